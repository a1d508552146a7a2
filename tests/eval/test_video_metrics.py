"""Scores of videos against clips of a few pixels, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ovsdino.eval.davis import contour_f, region_j
from ovsdino.eval.flow import Motion
from ovsdino.eval.video_metrics import VideoConsistency, VideoMetrics


def row(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


def unmoved(*shape: int) -> Motion:
    return Motion(back=np.zeros((*shape, 2), np.float32), reliable=np.ones(shape, bool))


def test_consistency_counts_where_the_truth_stays_and_the_prediction_too() -> None:
    measure = VideoConsistency(3)
    truth = [row(0, 0, 1, 1), row(0, 0, 1, 1), row(0, 0, 1, 0), row(0, 0, 1, 0)]
    found = [row(0, 1, 1, 1), row(0, 1, 1, 1), row(0, 1, 1, 1), row(0, 0, 1, 1)]
    for predicted, target in zip(found, truth, strict=True):
        measure.update(predicted, target)
    # frames 0..2: the truth of three pixels stays, and all three predictions (one is wrong, and steady): 1
    # frames 1..3: likewise three, of which one prediction changes: 2/3
    assert measure.windows == 2 and measure.mean() == pytest.approx((1 + 2 / 3) / 2)


def test_consistency_leaves_out_pixels_without_a_label_and_short_clips() -> None:
    measure = VideoConsistency(2)
    measure.update(row(0, 0), row(0, 255))
    measure.update(row(0, 1), row(0, 255))
    assert measure.mean() == 1.0
    measure.start()
    measure.update(row(1, 1), row(0, 0))  # another clip: its one frame makes no window
    assert measure.windows == 1
    assert VideoConsistency(8).mean() is None


def test_consistency_forgets_a_pixel_whose_label_was_missing_in_between() -> None:
    measure = VideoConsistency(3)
    for target in (row(0), row(255), row(0), row(0)):
        measure.update(row(0), target)
    assert measure.mean() is None
    measure.update(row(0), row(0))
    assert measure.windows == 1


def test_flicker_is_told_apart_by_what_the_truth_does() -> None:
    metrics = VideoMetrics(("a", "b"))
    image = np.zeros((1, 4, 3), np.uint8)
    metrics.update(image, row(0, 0, 1, 1), row(0, 0, 1, 255))
    metrics.update(image, row(0, 1, 0, 0), row(0, 0, 0, 1), unmoved(1, 4))
    found = metrics.scores().flicker
    # the truth stays at two pixels, one of which changes; it changes at one, which changes too; one is not labeled
    assert (found.outside, found.inside) == (0.5, 1.0)
    assert (found.still, found.moving, found.along_flow) == (0.75, None, 0.75)
    assert metrics.scores().pairs == 1 and metrics.scores().frames == 2


def test_a_pattern_that_moves_by_a_pixel_does_not_flicker_along_the_flow() -> None:
    metrics = VideoMetrics(("a", "b"))
    image = np.zeros((1, 4, 3), np.uint8)
    back = np.zeros((1, 4, 2), np.float32)
    back[..., 0] = -1
    moved = Motion(back=back, reliable=np.array([[False, True, True, True]]))
    metrics.update(image, row(0, 1, 1, 0), row(0, 1, 1, 0))
    metrics.update(image, row(0, 0, 1, 1), row(0, 0, 1, 1), moved)
    scores = metrics.scores()
    assert scores.flicker.along_flow == 0.0 and scores.temporal_consistency == 1.0
    assert scores.flicker.outside == 0.0 and scores.flicker.inside == 1.0
    assert scores.miou == 1.0


def test_temporal_consistency_is_the_miou_of_neighboring_labels() -> None:
    metrics = VideoMetrics(("a", "b"))
    image = np.zeros((1, 4, 3), np.uint8)
    metrics.update(image, row(0, 0, 1, 1), row(0, 0, 1, 1))
    metrics.update(image, row(0, 0, 0, 1), row(0, 0, 1, 1), unmoved(1, 4))
    # a: 2 of 3, b: 1 of 2
    assert metrics.scores().temporal_consistency == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_nothing_scored_is_none() -> None:
    scores = VideoMetrics(("a",)).scores()
    assert scores.mvc8 is None and scores.flicker.along_flow is None and scores.temporal_consistency is None


def test_region_similarity_is_the_intersection_over_the_union() -> None:
    truth, found = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    truth[:2], found[1:3] = True, True
    assert region_j(found, truth) == pytest.approx(4 / 12)
    assert region_j(found & False, truth & False) == 1.0


def test_contour_accuracy_forgives_less_than_its_radius() -> None:
    truth = np.zeros((60, 80), bool)
    truth[20:40, 20:60] = True
    assert contour_f(truth, truth) == 1.0
    assert contour_f(np.roll(truth, 1, 0), truth) == 1.0  # the radius is ceil(0.8) = 1 pixel
    # moved by 2: of 118 contour pixels right and left sides stay near, top and bottom do not
    shifted = contour_f(np.roll(truth, 2, 0), truth)
    assert 0.2 < shifted < 0.5
    assert contour_f(truth & False, truth) == 0.0 and contour_f(truth, truth & False) == 0.0
    assert contour_f(truth & False, truth & False) == 1.0
