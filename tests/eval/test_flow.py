"""Optical flow of a picture that was moved by known pixels."""

from __future__ import annotations

import numpy as np
import pytest

from ovsdino.eval.flow import motion, warped


@pytest.fixture(scope="module")
def textured() -> np.ndarray:
    pytest.importorskip("cv2")
    coarse = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    smooth = coarse.repeat(8, 0).repeat(8, 1).astype(np.float32)
    for axis in (0, 1):
        smooth = sum(np.roll(smooth, step, axis) for step in range(-4, 5)) / 9
    return smooth.astype(np.uint8)


def test_a_shift_is_found_and_leads_labels_to_their_new_place(textured: np.ndarray) -> None:
    now = np.roll(textured, (2, 3), (0, 1))  # 2 down, 3 right
    found = motion(textured, now)
    inner = np.s_[24:-24, 24:-24]
    assert np.abs(found.back[inner] - (-3, -2)).mean() < 0.2
    assert found.reliable[inner].mean() > 0.98 and not found.still[inner].any()
    labels = (textured[..., 0] > 128).astype(np.uint8)
    assert (warped(labels, found)[inner] == np.roll(labels, (2, 3), (0, 1))[inner]).mean() > 0.98


def test_a_picture_that_stays_is_still(textured: np.ndarray) -> None:
    found = motion(textured, textured)
    assert found.still.mean() > 0.99 and np.abs(found.back).max() < 0.5


def test_two_sizes_are_refused(textured: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one size"):
        motion(textured, textured[:-1])
