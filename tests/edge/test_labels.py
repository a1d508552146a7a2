"""Labels from logits without torch: the kernel through NumPy pointers, and NumPy alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovsdino import label_maps, labeling
from ovsdino.edge import labels as postprocess
from ovsdino.edge.labels import lead_of, leave_out_unfound, sure_shares
from ovsdino.label_maps import count_labels
from ovsdino.ops.upsample_argmax import upsample_argmax_confidence_reference
from ovsdino.vocabulary import SURE_SHARE

WAYS = ["native", "numpy"]


def run(
    way: str, monkeypatch: pytest.MonkeyPatch, logits: np.ndarray, size: tuple[int, int], **options: object
) -> tuple[np.ndarray, np.ndarray | None]:
    if way == "native" and postprocess.native is None:
        pytest.skip("ovsdino._C is missing")
    if way == "numpy":
        monkeypatch.setattr(postprocess, "native", None)
    return postprocess.upsample_argmax(logits, size, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "shape, size", [((19, 12, 16), (97, 130)), ((3, 9, 7), (9, 21)), ((1, 1, 1), (4, 5)), ((300, 6, 5), (3, 40))]
)
def test_labels_are_those_of_interpolate_and_argmax(
    monkeypatch: pytest.MonkeyPatch, way: str, shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    labels, confidence = run(way, monkeypatch, logits, size, confidence=True)
    expected, probability = (
        x[0].numpy() for x in upsample_argmax_confidence_reference(torch.tensor(logits)[None], size)
    )
    assert labels.dtype == expected.dtype and confidence is not None
    assert (labels == expected).mean() > 0.9995  # ties to the last bit may fall either way
    assert np.abs(confidence - probability).max() < 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_threshold_makes_background_and_confidence_is_optional(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    logits = np.zeros((2, 1, 2), np.float32)
    logits[0, 0, 1] = 4  # 0.5 on the left, 1 / (1 + e^-4) on the right
    labels, confidence = run(way, monkeypatch, logits, (1, 2), threshold=0.7)
    assert labels.tolist() == [[2, 0]] and confidence is None


@pytest.mark.parametrize("way", WAYS)
def test_the_smallest_index_wins_a_tie_and_nan_wins_over_numbers(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    logits = np.zeros((3, 1, 2), np.float32)
    logits[1, 0, 1] = np.nan
    assert run(way, monkeypatch, logits, (1, 2))[0].tolist() == [[0, 1]]


@pytest.mark.parametrize("way", WAYS)
def test_strided_logits(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    logits = np.random.default_rng(0).standard_normal((8, 10, 5)).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(
        run(way, monkeypatch, logits, (32, 30))[0], run(way, monkeypatch, np.ascontiguousarray(logits), (32, 30))[0]
    )


def test_both_ways_agree_where_the_two_largest_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    if postprocess.native is None:
        pytest.skip("ovsdino._C is missing")
    logits = np.random.default_rng(1).standard_normal((11, 72, 96)).astype(np.float32)
    fast = postprocess.upsample_argmax(logits, (360, 480), threads=2)[0]
    slow = postprocess.upsample_argmax_numpy(logits, (360, 480))[0]
    assert (fast != slow).mean() < 1e-5


def test_classes_on_too_little_of_the_image_become_background() -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[0, :3], labels[1, :2], labels[2, 0] = 1, 2, 4
    kept = leave_out_unfound(labels, 4, 0.015)  # three pixels of 200
    assert kept.tolist() == [True, True, False, False]
    assert (labels == 1).sum() == 3 and not (labels == 2).any() and (labels == 4).sum() == 3


def test_a_word_is_sure_where_it_leads_all_words_and_the_contrast_by_enough() -> None:
    logits = np.zeros((3, 2, 4), np.float32)  # two words, then the contrast
    logits[0, 0] = (2.0, 1.0, 0.5, -1.0)
    logits[1, 1] = (3.0, 3.0, 1.3, 1.4)
    logits[0, 1, 1] = 2.9  # as sure as the other word, and not the first
    assert lead_of(0.8) == pytest.approx(np.log(4)) and lead_of(0.5) == lead_of(0.1) == 0
    assert sure_shares(logits, 0.8).tolist() == [1 / 8, 3 / 8]
    assert sure_shares(logits, 0.5).tolist() == [3 / 8, 5 / 8]  # a word that ties with the contrast is the first
    found = labeling.sure_shares(torch.tensor(logits)[None], 0.8)
    assert found.tolist() == [1 / 8, 3 / 8]


def test_a_class_that_is_nowhere_sure_becomes_background() -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[:5] = 1
    kept = leave_out_unfound(labels, 2, 0.01, np.array([SURE_SHARE, SURE_SHARE / 2]))
    assert kept.tolist() == [True, False] and (labels[:5] == 2).all() and (labels[5:] == 0).all()


def test_without_a_least_share_every_pixel_counts() -> None:
    labels = np.zeros((10, 20), np.int16)
    labels[0, 0] = 1
    assert leave_out_unfound(labels, 3, 0.0).tolist() == [True, True, False]
    assert labels[0, 0] == 1


@pytest.mark.parametrize(("dtype", "classes"), [(np.uint8, 3), (np.uint8, 255), (np.uint8, 300), (np.int16, 300)])
def test_labels_are_counted_and_left_out_by_parts(dtype: type, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_maps, "BLOCK", 7)
    labels = np.random.default_rng(0).integers(0, min(classes, np.iinfo(dtype).max) + 1, (9, 13)).astype(dtype)
    counts = np.bincount(labels.ravel(), minlength=classes + 1)[:classes]
    assert count_labels(labels, classes).tolist() == counts.tolist()
    assert count_labels(labels[::2, ::3], classes).sum() == (labels[::2, ::3] < classes).sum()
    assert count_labels(labels[:0], classes).tolist() == [0] * classes
    if classes <= np.iinfo(dtype).max:
        few = np.flatnonzero((counts > 0) & (counts < 2))
        expected = np.where(np.isin(labels, few), classes, labels)
        leave_out_unfound(labels, classes, 2 / labels.size)
        assert labels.tolist() == expected.tolist()
