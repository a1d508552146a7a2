"""Labels and mean confidences: of large images by a grid, of many classes by the maps that win somewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ovsdino
from ovsdino import labeling, network
from ovsdino.labeling import _means, _step
from ovsdino.models import survivors
from ovsdino.pipeline import Segmenter

WORDS = ["road", "car", "sky", "tree", "building", "person", "water", "dog", "cat|kitten", "table"]


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return ovsdino.load("nano", "cpu", short_side=96)


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3))
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    return (coarse[rows][:, columns] // 2 + rng.integers(0, 100, (height, width, 3))).astype(np.uint8)


def test_step_is_odd_and_bounds_the_pixels() -> None:
    assert _step((480, 360)) == 1 and _step((512, 512)) == 1 and _step((3000, 4000)) == 15
    for size in ((513, 513), (1080, 1920), (90_000, 3)):
        step = _step(size)
        assert step % 2 == 1 and -(-size[0] // step) * -(-size[1] // step) <= labeling.SCORED


@pytest.mark.parametrize("partition", [True, False])
def test_scores_of_a_large_image_are_those_of_all_pixels(nano: Segmenter, partition: bool) -> None:
    image = picture(900, 1203)
    found = nano.segment(image, WORDS, partition=partition, confidence=True, least_certainty=0.0)
    assert found.scores is not None and found.confidence is not None and len(np.unique(found.labels)) > 1
    for index, score in enumerate(found.scores):
        chosen = found.labels == index
        expected = float(found.confidence[chosen].astype(np.float64).mean()) if chosen.any() else 0.0
        assert score == pytest.approx(expected, abs=0.01 if chosen.mean() > 0.001 else 0.1)


def test_a_class_between_the_pixels_of_the_grid_takes_the_nearest() -> None:
    labels = torch.zeros(30, 50, dtype=torch.uint8)
    labels[0, 0], labels[29, 49] = 2, 3
    certainty = torch.full((6, 10), 0.5)
    certainty[0, 0], certainty[5, 9] = 0.25, 0.75
    assert _means(labels, certainty, torch.tensor([1, 0, 1, 1, 0]) > 0) == pytest.approx((0.5, 0.0, 0.25, 0.75, 0.0))
    labels[...] = 4  # the label of the background is none of the classes
    assert _means(labels, certainty, torch.zeros(4, dtype=torch.bool)) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("partition", "options"),
    [
        (True, {}),
        (False, {}),
        (False, {"confidence": True}),
        (True, {"background": 0.35, "confidence": True}),
        (False, {"window": 64, "stride": 32, "confidence": True}),
        (True, {"prior": True, "confidence": True}),
    ],
)
def test_many_classes_have_the_result_of_few(
    nano: Segmenter, partition: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(120, 160)
    if "prior" in options:
        options = {**options, "prior": torch.linspace(0.05, 0.3, len(WORDS)), "tau": 1.0}
    before = nano.segment(image, WORDS, partition=partition, **options)
    monkeypatch.setattr(network, "MOST_BYTES", 0)
    monkeypatch.setattr(survivors, "CHUNK_CLASSES", 4)
    monkeypatch.setattr(survivors, "KEPT_BYTES", 0)
    after = nano.segment(image, WORDS, partition=partition, **options)
    assert (after.labels == before.labels).mean() > 0.999 and after.labels.dtype == before.labels.dtype
    assert after.found == before.found and after.background == before.background
    assert after.novelty == pytest.approx(before.novelty)
    exact = "confidence" in options
    assert after.scores == pytest.approx(before.scores, abs=1e-3 if exact else 0.1)  # else those of the grid's cells
    if exact:
        assert before.confidence is not None and after.confidence is not None
        np.testing.assert_allclose(after.confidence, before.confidence, atol=2e-3)
    bare = nano.segment(image, WORDS, partition=partition, scores=False, **options)
    np.testing.assert_array_equal(bare.labels, after.labels)
    assert bare.scores is None
