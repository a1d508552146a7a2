"""The protocol's resize against OpenCV: recorded checksums, OpenCV itself where it is installed, and by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from ovsdino.eval.resize import fit_size, resize_bilinear


def pattern(height: int, width: int) -> np.ndarray:
    y, x, channel = np.mgrid[:height, :width, :3]
    return ((y * y * 7 + x * 13 + x * y * 3 + channel * 91) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("source", "size", "checksum"),
    # crc32 of cv2.resize(pattern, (w, h), interpolation=cv2.INTER_LINEAR), OpenCV 4.10.0
    [
        ((37, 50), (23, 31), 338441674),
        ((375, 500), (448, 597), 2696767577),
        ((64, 96), (32, 48), 1415041528),
        ((20, 30), (61, 17), 1782250025),
        ((1, 9), (4, 5), 2329498730),
        ((1024, 2048), (448, 896), 1877627829),
    ],
)
def test_equal_to_opencv_to_the_last_bit(source: tuple[int, int], size: tuple[int, int], checksum: int) -> None:
    assert zlib.crc32(resize_bilinear(pattern(*source), size).tobytes()) == checksum


def test_equal_to_the_installed_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width, h, w = (int(v) for v in rng.integers(1, 200, 4))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize_bilinear(image, (h, w)), expected)


def test_two_pixels_to_four_by_hand() -> None:
    # centers of the four at -0.25, 0.25, 0.75, 1.25 of the two: 0, 25 %, 75 % and 100 % of 200
    image = np.zeros((1, 2, 1), np.uint8)
    image[0, 1] = 200
    assert resize_bilinear(image, (1, 4))[0, :, 0].tolist() == [0, 50, 150, 200]


def test_the_same_size_is_the_same_image() -> None:
    image = pattern(5, 7)
    assert resize_bilinear(image, (5, 7)) is image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((375, 500), (448, 597)),  # 500 * 448 / 375 = 597.33
        ((500, 375), (597, 448)),
        ((1024, 2048), (448, 896)),
        ((427, 640), (448, 671)),  # 671.48 rounds down
        ((300, 2000), (307, 2048)),  # the long side stops it: scale 1.024, 307.2
        ((1, 20000), (1, 2048)),  # 0.1 rounds to nothing; one row stays
    ],
)
def test_sizes_by_hand(image: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_size(*image, 448, 2048) == expected


@pytest.mark.parametrize(
    ("image", "size"), [(np.zeros((2, 2), np.uint8), (1, 1)), (np.zeros((2, 2, 3)), (1, 1)), (pattern(2, 2), (0, 3))]
)
def test_wrong_arguments_are_refused(image: np.ndarray, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        resize_bilinear(image, size)
