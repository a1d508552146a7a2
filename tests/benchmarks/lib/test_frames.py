"""Frames of a camera, made of a picture."""

from __future__ import annotations

import numpy as np
import pytest

from ovsdino.benchmarks.lib.frames import frame_size, nv12_of
from ovsdino.edge.pixels import check_image, nv12_to_rgb
from ovsdino.errors import OVSDinoError


def test_a_frame_in_nv12_has_the_colors_of_its_picture() -> None:
    image = np.empty((40, 60, 3), np.uint8)
    image[:20], image[20:, :30], image[20:, 30:] = (200, 40, 90), (10, 220, 30), (128, 128, 128)
    frame = nv12_of(image, 40, 60)
    check_image(frame, nv12=True)
    assert frame.shape == (60, 60)
    assert np.abs(nv12_to_rgb(frame).astype(int) - image).max() <= 4  # two roundings


def test_sizes_of_cameras_have_names() -> None:
    assert (
        frame_size("720p") == (720, 1280)
        and frame_size("1080p") == (1080, 1920)
        and frame_size("480X640") == (480, 640)
    )


@pytest.mark.parametrize("text", ["4k", "481x640", "0x2", "2x9000", ""])
def test_another_size_is_refused(text: str) -> None:
    with pytest.raises(OVSDinoError, match="expected 720p"):
        frame_size(text)
