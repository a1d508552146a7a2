"""Flow between neighboring frames: places that are known, and images that nothing explains."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from scipy.ndimage import gaussian_filter

from ovsdino.flow import Flow


def scene(seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(128, 208)), 3)
    gray = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, -1)


def test_places_are_those_that_the_camera_moved_from() -> None:
    flow, wide = Flow(), scene(0)
    assert flow.follow(wide[:, :192], (64, 96), (16, 24)) is None
    found = flow.follow(wide[:, 8:200], (64, 96), (16, 24))  # 8 of 192 pixels: one of 24 cells
    assert found is not None and found.explained > 0.95
    rows, columns = np.indices((16, 24))
    inner = (slice(2, -2), slice(2, -4))
    np.testing.assert_allclose(found.places[..., 0][inner], (columns + 1)[inner], atol=0.25)
    np.testing.assert_allclose(found.places[..., 1][inner], rows[inner], atol=0.25)


def test_another_scene_is_not_explained_and_another_size_or_a_reset_begins_anew() -> None:
    flow = Flow()
    flow.follow(scene(0), (64, 96), (16, 24))
    other = flow.follow(scene(1), (64, 96), (16, 24))
    assert other is not None and other.explained < 0.85
    assert flow.follow(scene(1), (96, 64), (24, 16)) is None
    flow.reset()
    assert flow.follow(scene(1), (96, 64), (24, 16)) is None
