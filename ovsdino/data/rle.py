"""Check COCO run lengths before pycocotools sees them.

pycocotools is C that trusts its input: a size that is not the mask's reads and writes outside its buffers or takes
gigabytes. Every run length that is read from a file goes through here.

A mask of (H, W) pixels is its column-major sequence of 0s and 1s. The runs of equal pixels alternate, zeros first, and
fill the image: their sum is H * W. "counts" holds them as a list of numbers, or as text with five bits a character.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.images import MAX_PIXELS

__all__ = ["checked_rle", "decode_rle", "encode_mask", "pycocotools_mask", "run_lengths"]

MAX_GROUPS = 7  # characters of one number in text: 35 bits hold any difference of two runs


def pycocotools_mask() -> Any:
    """Return the module `pycocotools.mask`.

    Raises:
        OVSDinoError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise OVSDinoError(
            "masks as run lengths need pycocotools: pip install 'ovsdino[train]' or pip install pycocotools"
        ) from error
    return mask


def run_lengths(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the runs of a mask, checked to fill the image.

    Args:
        segmentation: {"size": [height, width], "counts": text, bytes or a list of integers}, from a file.
        height: Pixels of the image the mask belongs to.
        width: Likewise.

    Returns:
        (R,) int64 run lengths in pixels, column-major, zeros first; their sum is height * width.

    Raises:
        OVSDinoError: The form is not this one, the size is not the image's, or the runs do not fill the image.
    """
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise OVSDinoError(f'run lengths: expected {{"size", "counts"}}, got {one_line(repr(segmentation), 60)}')
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or [*map(type, size)] != [int, int] or [*size] != [height, width]:
        raise OVSDinoError(f"run lengths: size is {one_line(repr(size), 60)}, the image's is [{height}, {width}]")
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise OVSDinoError(f"run lengths: an image of {height}x{width} pixels; expected 1 to {MAX_PIXELS}")
    runs = _listed(counts) if isinstance(counts, list) else _unpacked(counts)
    pixels = height * width
    if runs.size and (runs.min() < 0 or runs.max() > pixels):
        raise OVSDinoError(f"run lengths: a run of {runs[(runs < 0) | (runs > pixels)][0]}; expected 0 to {pixels}")
    if (total := int(runs.sum())) != pixels:
        raise OVSDinoError(f"run lengths: they sum to {total}, the image has {pixels} pixels")
    return runs


def checked_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return run lengths in the form that pycocotools decodes; see `run_lengths`.

    Returns:
        {"size": [height, width], "counts": bytes}.

    Raises:
        OVSDinoError: See `run_lengths`; or pycocotools is not installed.
    """
    runs = run_lengths(segmentation, height, width)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        code = pycocotools_mask().frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
        return {"size": [height, width], "counts": code["counts"]}
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def decode_rle(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return a mask of run lengths, (H, W) uint8, 0 or 1; see `run_lengths`.

    Raises:
        OVSDinoError: See `checked_rle`.
    """
    found: np.ndarray = pycocotools_mask().decode([checked_rle(segmentation, height, width)])
    return found[:, :, 0]


def encode_mask(mask: np.ndarray) -> tuple[dict[str, Any], int, list[float]]:
    """Return a mask's run lengths, area and box, ready for JSON.

    Args:
        mask: (H, W) bool.

    Returns:
        {"size": [H, W], "counts": text}; the area in pixels; [x, y, width, height] in pixels.

    Raises:
        OVSDinoError: pycocotools is not installed.
    """
    rle = pycocotools_mask()
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": [int(v) for v in mask.shape], "counts": code["counts"].decode("ascii")}
    return segmentation, int(rle.area(code)), [float(v) for v in rle.toBbox(code)]


def _listed(counts: list[Any]) -> np.ndarray:
    """Return uncompressed runs, (R,) int64."""
    if not all(type(run) is int and 0 <= run <= MAX_PIXELS for run in counts):
        raise OVSDinoError(f"run lengths: expected numbers of pixels, 0 to {MAX_PIXELS}")
    return np.array(counts, np.int64)


def _unpacked(counts: Any) -> np.ndarray:
    """Return the runs of COCO's text, (R,) int64.

    A character less 48 holds five bits, the low ones first, and 32 where more follow; the last one's 16 is the sign.
    From the fourth number on each is the difference to the run two places before.
    """
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise OVSDinoError(f"run lengths: counts is not a text of run lengths but {type(counts).__name__}")
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise OVSDinoError("run lengths: counts holds other characters than COCO's, or is cut off")
    last = np.flatnonzero(codes & 32 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() >= MAX_GROUPS:
        raise OVSDinoError("run lengths: a number of counts is longer than any image")
    place = 5 * (np.arange(codes.size) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((codes & 31) << place, first)
    values -= np.where(codes[last] & 16, 1 << (place[last] + 5), 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    return values
