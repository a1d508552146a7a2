"""Image messages of every encoding, with spare bytes and odd sizes, against pixels worked out by themselves."""

from __future__ import annotations

import array
import io
from types import SimpleNamespace

import numpy as np
import pytest
from ovsdino_ros.images import read_image
from PIL import Image

from ovsdino.errors import OVSDinoError

SIZES = [(4, 6), (5, 7), (1, 1), (3, 2)]


def message(encoding: str, height: int, width: int, rows: np.ndarray, spare: int = 0) -> SimpleNamespace:
    """A sensor_msgs/Image whose rows have `spare` bytes of 99 to the right."""
    padded = np.pad(rows, ((0, 0), (0, spare)), constant_values=99)
    data = array.array("B", padded.tobytes())  # as rclpy gives it
    return SimpleNamespace(encoding=encoding, height=height, width=width, step=padded.shape[1], data=data)


def bt601(y: float, cb: float, cr: float) -> list[int]:
    """One pixel of limited range, by the standard's own constants."""
    gray = (float(y) - 16) * 255 / 219
    chroma = [(float(part) - 128) * 255 / 224 for part in (cb, cr)]
    red = gray + 1.402 * chroma[1]
    green = gray - 1.772 * 0.114 / 0.587 * chroma[0] - 1.402 * 0.299 / 0.587 * chroma[1]
    blue = gray + 1.772 * chroma[0]
    return [round(min(255.0, max(0.0, value))) for value in (red, green, blue)]


def random_yuv(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Luma (H, W) and chroma (H, (W + 1) // 2, 2) of moderate colors."""
    draw = np.random.default_rng(seed)
    luma = draw.integers(40, 200, (height, width), np.uint8)
    return luma, draw.integers(100, 156, (height, (width + 1) // 2, 2), np.uint8)


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "8UC3", "rgba8", "bgra8", "mono8"])
def test_packed_pixels_are_read_in_their_order(encoding: str, size: tuple[int, int], spare: int) -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    if encoding == "mono8":
        rgb[:] = rgb[:, :, :1]
        stored = rgb[:, :, :1]
    else:
        stored = rgb[:, :, ::-1] if encoding in ("bgr8", "8UC3", "bgra8") else rgb
        if encoding.endswith("a8"):
            stored = np.concatenate([stored, np.full((*size, 1), 7, np.uint8)], 2)
    pixels, nv12 = read_image(message(encoding, *size, stored.reshape(size[0], -1), spare))
    assert not nv12 and np.array_equal(pixels, rgb)


@pytest.mark.parametrize("spare", [0, 6])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_pairs_share_their_chroma(encoding: str, size: tuple[int, int], spare: int) -> None:
    luma, chroma = random_yuv(*size)
    height, width = size
    even = np.pad(luma, ((0, 0), (0, width % 2)), "edge")
    first = 1 if encoding in ("yuv422", "uyvy") else 0
    rows = np.empty((height, even.shape[1] // 2, 4), np.uint8)
    rows[:, :, first], rows[:, :, first + 2] = even[:, ::2], even[:, 1::2]
    rows[:, :, 1 - first], rows[:, :, 3 - first] = chroma[..., 0], chroma[..., 1]
    pixels, _ = read_image(message(encoding, height, width, rows.reshape(height, -1), spare))
    expected = [[bt601(luma[y, x], *chroma[y, x // 2]) for x in range(width)] for y in range(height)]
    assert pixels.shape == (height, width, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1  # the constants have seven digits here, six there


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2"])
def test_an_odd_row_that_ends_within_its_last_pair_takes_the_neighbors_chroma(encoding: str) -> None:
    whole = np.full((2, 4), [120, 90, 140, 100], np.uint8)  # of one color, whatever the order
    rows = np.tile(whole, (1, 2))[:, :6]  # three pixels, six bytes
    pixels, _ = read_image(message(encoding, 2, 3, rows))
    reference, _ = read_image(message(encoding, 2, 4, np.tile(whole, (1, 2))))
    assert np.array_equal(pixels, reference[:, :3])


@pytest.mark.parametrize("spare", [0, 6])
def test_nv12_of_an_even_size_is_passed_on_as_it_is(spare: int) -> None:
    luma, _ = random_yuv(4, 6)
    chroma = np.random.default_rng(2).integers(100, 156, (2, 6), np.uint8)
    pixels, nv12 = read_image(message("nv12", 4, 6, np.concatenate([luma, chroma]), spare))
    assert nv12 and np.array_equal(pixels, np.concatenate([luma, chroma]))


@pytest.mark.parametrize("size", [(5, 7), (4, 7), (5, 6), (1, 1)])
def test_nv12_of_an_odd_size_becomes_rgb(size: tuple[int, int]) -> None:
    height, width = size
    luma, _ = random_yuv(height, width)
    chroma = np.random.default_rng(2).integers(100, 156, ((height + 1) // 2, (width + 1) // 2, 2), np.uint8)
    wide = 2 * ((width + 1) // 2)
    rows = np.concatenate([np.pad(luma, ((0, 0), (0, wide - width))), chroma.reshape(len(chroma), -1)])
    pixels, nv12 = read_image(message("nv12", height, width, rows))
    expected = [[bt601(luma[y, x], *chroma[y // 2, x // 2]) for x in range(width)] for y in range(height)]
    assert not nv12 and np.abs(pixels.astype(int) - expected).max() <= 1


def test_compressed_images_are_decoded() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (8, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    found, nv12 = read_image(SimpleNamespace(format="bgr8; png compressed bgr8", data=file.getvalue()))
    assert not nv12 and np.array_equal(found, rgb)
    with pytest.raises(OVSDinoError, match="depth"):
        read_image(SimpleNamespace(format="16UC1; compressedDepth png", data=b"x"))
    with pytest.raises(OVSDinoError, match="compressed image"):
        read_image(SimpleNamespace(format="jpeg", data=b"\xff\xd8\xffnothing"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoding": "16UC1"}, "encoding '16UC1' is not read"),
        ({"step": 17}, "steps of 17 bytes"),
        ({"data": bytes(71)}, "lacks 1 of its bytes"),
        ({"height": 0}, "an image of 6x0"),
        ({"height": 1 << 20, "width": 1 << 20}, "at most"),
    ],
)
def test_a_message_that_cannot_be_is_refused(changes: dict, told: str) -> None:
    fields = {"encoding": "rgb8", "height": 4, "width": 6, "step": 18, "data": bytes(72)}
    with pytest.raises(OVSDinoError, match=told):
        read_image(SimpleNamespace(**fields | changes))
