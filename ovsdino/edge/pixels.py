"""Turn camera pixels into the graph's input on the CPU: the pixels of `ovsdino.ops.preprocess`, without torch.

The integers are torch's (`ovsdino.levels`): by the native kernel where there is one, else in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ovsdino.errors import OVSDinoError
from ovsdino.levels import Taps, axis_taps, gain_and_shift, resize_levels

BLOCK = 1 << 16  # sums held at a time
LONGEST_SIDE = 2048 / 448  # of the short side: the protocol's keep-ratio resize into (2048, 448)

__all__ = ["check_image", "kept_ratio", "nv12_to_rgb", "preprocess", "resize", "ycbcr_to_rgb"]


def preprocess(
    image: np.ndarray,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    out: np.ndarray | None = None,
    threads: int = 1,
) -> np.ndarray:
    """Compute out_c = (resize(image)_c / 255 - mean_c) / std_c, resized on uint8 and rounded to whole levels.

    Args:
        image: (H, W, 3) uint8 RGB, or NV12 (H * 3 // 2, W) uint8 (see `check_image`).
        size: (h, w) of the result.
        mean: Three values in 0..1.
        std: Three values, > 0.
        out: (3, h, w) float32 to write into; allocated if not given.
        threads: Of the native kernel, where there is one.

    Returns:
        (3, h, w) float32.
    """
    if image.ndim == 2:
        image = nv12_to_rgb(image)
    if out is None:
        out = np.empty((3, *size), np.float32)
    packed = image if image.strides[1:] == (3, 1) else np.ascontiguousarray(image)
    if out.flags.c_contiguous and resize_levels(packed, size, mean, std, out, threads):
        return out
    resized = resize(image, size)
    gain, shift = gain_and_shift(mean, std)
    for channel in range(3):
        np.multiply(resized[:, :, channel], np.float32(gain[channel]), out=out[channel])
        out[channel] += np.float32(shift[channel])
    return out


def kept_ratio(height: int, width: int, short_side: int, multiple: int) -> tuple[int, int]:
    """Return (h, w) that a network sees of an image: ratio kept, sides rounded to whole patches.

    The long side is at most 2048/448 of the short one, so that a strip of an image cannot fill the memory.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        short_side: Of the result in pixels.
        multiple: Side of a patch in pixels.
    """
    scale = min(short_side / min(height, width), short_side * LONGEST_SIDE / max(height, width))
    h, w = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
    return h, w


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to (h, w, 3) bilinearly with half-pixel centers, columns first, each pass rounded."""
    height, width = image.shape[:2]
    down = None if height == size[0] else axis_taps(height, size[0])
    if width != size[1]:
        across = axis_taps(width, size[1])
        if down is not None:  # a result reads two rows: a shrink leaves the others out
            kept = down.rows(height)
            image, down = image[kept], down.after(kept)
        image = _columns(np.ascontiguousarray(image).reshape(len(image), -1), across).reshape(len(image), size[1], 3)
    return image if down is None else _rows(image, down)


def _columns(image: np.ndarray, taps: Taps) -> np.ndarray:
    """Resize (H, W * 3) to (H, w * 3) uint8; gathering bytes takes 2/3 of the time of gathering pixels."""
    last = image.shape[1] // 3 - 1
    columns = [np.minimum(taps.start + tap, last) for tap in range(len(taps.weights))]
    indices = [(column[:, None] * 3 + np.arange(3)).ravel() for column in columns]
    weights = [np.repeat(row, 3) for row in taps.weights]
    out = np.empty((len(image), len(indices[0])), np.uint8)
    for rows in _blocks(out.shape):
        block = image[rows]
        _combine([np.take(block, index, axis=1) for index in indices], weights, taps.bits, out[rows])
    return out


def _rows(image: np.ndarray, taps: Taps) -> np.ndarray:
    """Resize (H, w, 3) to (h, w, 3) uint8."""
    last = len(image) - 1
    flat = image.reshape(len(image), -1)
    out = np.empty((len(taps.start), flat.shape[1]), np.uint8)
    for rows in _blocks(out.shape):
        sources = [flat[np.minimum(taps.start[rows] + tap, last)] for tap in range(len(taps.weights))]
        _combine(sources, [row[rows, None] for row in taps.weights], taps.bits, out[rows])
    return out.reshape(-1, *image.shape[1:])


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows that are worked on at a time: sums of 256 KB stay in the cache, and freed memory is used again.

    Whole images took five times as long, most of it in page faults (960x720 to 464x352: 17 ms, 3.2 in blocks).
    """
    step = max(1, BLOCK // shape[1])
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _combine(sources: list[np.ndarray], weights: list[np.ndarray], bits: int, out: np.ndarray) -> None:
    """Write out = (sum_k sources[k] * weights[k] + half) >> bits."""
    total = sources[0] * weights[0]
    for source, weight in zip(sources[1:], weights[1:], strict=True):
        total += source * weight
    total += 1 << (bits - 1)
    total >>= bits
    out[...] = total


def check_image(image: np.ndarray, nv12: bool) -> None:
    """Refuse an array that is not a camera image.

    Args:
        image: (H, W, 3) uint8 RGB, or with `nv12` (H * 3 // 2, W) uint8 with even H and W: H rows of luma, then H / 2
            rows of interleaved chroma (Cb, Cr), ITU-R BT.601, limited range, chroma taken nearest.
        nv12: Expect NV12.

    Raises:
        OVSDinoError: Another shape or dtype.
    """
    found = f"an image of shape {image.shape} {image.dtype}"
    if nv12:
        if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape or image.shape[0] % 3 or image.shape[1] % 2:
            raise OVSDinoError(f"{found}: NV12 is (H * 3 // 2, W) uint8 with even H and W")
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise OVSDinoError(f"{found}: expected (H, W, 3) uint8 RGB, or nv12=True for NV12")


def nv12_to_rgb(image: np.ndarray) -> np.ndarray:
    """Turn NV12 (H * 3 // 2, W) uint8 into RGB (H, W, 3) uint8, in float32 as `ovsdino.ops.preprocess` does."""
    height, width = image.shape[0] * 2 // 3, image.shape[1]
    luma = image[:height].reshape(height // 2, 2, width // 2, 2)
    return ycbcr_to_rgb(luma, image[height:].reshape(height // 2, 1, width // 2, 1, 2))


def ycbcr_to_rgb(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Turn YCbCr of ITU-R BT.601, limited range, into RGB; chroma is taken nearest.

    Args:
        luma: (n, a, m, b) uint8, blocks of a x b pixels.
        chroma: (n, 1, m, 1, 2) uint8, Cb and Cr of each block.

    Returns:
        (n * a, m * b, 3) uint8.
    """
    down, high, across, wide = luma.shape
    rgb = np.empty((*luma.shape, 3), np.uint8)
    for rows in _blocks((down, high * across * wide)):
        gray = 1.164383 * (luma[rows].astype(np.float32) - 16.0)
        blue, red = np.moveaxis(chroma[rows].astype(np.float32) - 128.0, -1, 0)
        for channel, color in enumerate((1.596027 * red, -0.391762 * blue - 0.812968 * red, 2.017232 * blue)):
            level = gray + color
            rgb[rows, ..., channel] = np.clip(np.rint(level, out=level), 0, 255, out=level)
    return rgb.reshape(down * high, across * wide, 3)
