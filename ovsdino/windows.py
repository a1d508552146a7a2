"""Run a network over the windows of an image: where they lie, how many at once, and how their scores are merged.

`Segmenter`, the evaluation protocols and the measurements of training all go through this file.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.errors import OVSDinoError, out_of_memory
from ovsdino.models.config import ModelConfig
from ovsdino.timing import Clock

__all__ = [
    "Batches",
    "autocast",
    "bilinear",
    "check_window",
    "large_input",
    "mean_of_windows",
    "merge_windows",
    "window_offsets",
    "window_places",
    "window_stride",
]

log = logging.getLogger("ovsdino")

Network = Callable[[Tensor], Tensor]

ONEDNN_PRIMITIVE = "could not create a primitive"
# classes upsampled and added at once: 6.4 MB of a 448x448 window, which stay in the cache and need no fresh pages.
# 171 classes, 3 windows: 1.05 s of one busy core, 7.6 s with all at once
MERGE_CLASSES = 8
MOST_TOKENS = 4096  # of an image at once, beyond which attention between all of them outweighs the rest of a network


class Batches:
    """Run a network on parts of a batch, as many rows at once as the memory allows.

    Args:
        size: Rows at once, at least 1.

    Attributes:
        size: Rows at once; halved for good, and said once, when memory runs out.

    Raises:
        OVSDinoError: The size is below 1.
    """

    def __init__(self, size: int = 8) -> None:
        if size < 1:
            raise OVSDinoError(f"batch_size is {size}: expected at least 1")
        self.size = size
        self._said_onednn = False

    def run(self, network: Network, batch: Tensor) -> Tensor:
        """Return the network's result on a batch.

        Args:
            network: (n, ...) to (n, ...), any n from 1.
            batch: (N, ...), N at least 1.

        Raises:
            RuntimeError: Memory ran out on a single row; or any other error of the network, unchanged.
        """
        parts: list[Tensor] = []
        start, onednn = 0, True
        while start < len(batch):
            rows = batch[start : start + self.size]
            try:
                with _onednn(onednn):
                    parts.append(network(rows))
            except (RuntimeError, MemoryError) as error:
                if onednn and ONEDNN_PRIMITIVE in str(error):
                    # oneDNN keeps a primitive that failed for good: the same shape fails on when memory is back.
                    onednn = False
                    if not self._said_onednn:
                        log.warning("out of memory in oneDNN: batches that fail there run without it")
                    self._said_onednn = True
                    continue
                if len(rows) == 1 or not out_of_memory(error):
                    raise
                self.size = len(rows) // 2
                log.warning("out of memory: batches of %d from now on", self.size)
                if batch.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            start += len(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def window_offsets(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start along one side: every `stride`, the last shifted inward to end at the border.

    >>> window_offsets(800, 448, 224)
    [0, 224, 352]
    """
    steps = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(step * stride + window, length) - window, 0) for step in range(steps)]


def window_stride(window: int | None, stride: int | None, multiple: int, model: str) -> int:
    """Return the step of a window: half of it by default, and 0 without a window.

    Args:
        window: Side of the window in pixels, or None.
        stride: Its step, or None.
        multiple: Both must be multiples of it.
        model: Name of the model, for messages.

    Raises:
        OVSDinoError: A value is out of range, or a stride is given without a window.
    """
    if window is None:
        if stride is not None:
            raise OVSDinoError("stride is given without window: give both, or neither for the whole image at once")
        return 0
    check_window(window, multiple, model)
    if stride is None:
        return max(1, window // 2 // multiple) * multiple
    if not 0 < stride <= window or stride % multiple:
        raise OVSDinoError(f"stride is {stride}: expected a multiple of {multiple} from {multiple} to {window}")
    return stride


def window_places(height: int, width: int, window: int, stride: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the height and width of each window of an image, and their upper left corners (y, x), row by row."""
    crop = min(window, height), min(window, width)
    return crop, [
        (y, x) for y in window_offsets(height, crop[0], stride) for x in window_offsets(width, crop[1], stride)
    ]


def mean_of_windows(scores: Iterable[Tensor], height: int, width: int, window: int, stride: int) -> Tensor:
    """Return the mean of windows' scores on the network's own grid; see `merge_windows`, which runs the network.

    Args:
        scores: Of each window of `window_places`, (K, h', w').
        height: Of the image in pixels.
        width: Of the image in pixels.
        window: Side of a window in pixels.
        stride: Step of the windows in pixels.

    Returns:
        (K, H h' / wh, W w' / ww).
    """
    (crop_h, crop_w), corners = window_places(height, width, window, stride)
    total = count = None
    for one, (y, x) in zip(scores, corners, strict=True):
        rows, columns = one.shape[-2:]
        if total is None or count is None:
            total = one.new_zeros(len(one), height * rows // crop_h, width * columns // crop_w)
            count = one.new_zeros(total.shape[1:])
        top, left = y * rows // crop_h, x * columns // crop_w
        area = (..., slice(top, top + rows), slice(left, left + columns))
        total[area] += one
        count[area] += 1
    assert total is not None and count is not None
    return total.div_(count)


def check_window(window: int, multiple: int, model: str) -> None:
    """Refuse a window that is not a multiple of the model's patch.

    Raises:
        OVSDinoError: It is none; the message names one that is.
    """
    if window < multiple or window % multiple:
        near = max(1, round(window / multiple)) * multiple
        raise OVSDinoError(f"window is {window}: {model} needs a multiple of {multiple}, for instance {near}")


def large_input(config: ModelConfig, height: int, width: int) -> str | None:
    """Return a hint where an input of the network has more than `MOST_TOKENS` tokens, None where it has not.

    Measured for nano on one thread: at a short side of 1408 an image of 4:3 takes 24 times the time of 352, for 16
    times the pixels, and 1.7 GB; windows of 704 that do not overlap take as long, one at a time, and 0.9 GB.
    """
    tokens = (height // config.patch_size) * (width // config.patch_size)
    if tokens <= MOST_TOKENS:
        return None
    window = 2 * config.short_side
    return (
        f"an input of {width}x{height} pixels is {tokens} tokens, {config.name} was made for a short side of "
        f"{config.short_side}: it takes long, and memory; a smaller short_side is faster, a window "
        f"(window={window}, stride={window}) needs less memory; said once"
    )


def merge_windows(
    network: Network,
    image: Tensor,
    window: int,
    stride: int,
    batches: Batches,
    clock: Clock,
    *,
    to_pixels: bool = False,
    align_corners: bool = False,
    refine: Callable[[Tensor, Tensor], Tensor] | None = None,
    background: float | None = None,
) -> Tensor:
    """Return the mean of the windows' scores over the whole image.

    Memory: the result, whatever the number of windows, and the scores of one batch of windows.

    Args:
        network: Windows (n, C, wh, ww) to scores (n, K, h', w') float32. A side of the image that is shorter than the
            window is one window of that side.
        image: (C, H, W).
        window: Side of a window in pixels.
        stride: Step of the windows in pixels.
        batches: How many windows at once.
        clock: Gets the milliseconds of the stage "merge".
        to_pixels: Bring scores to the window's pixels, bilinear, before they are added. Otherwise they are added on the
            network's own grid: offsets and sides must then fall on whole cells.
        align_corners: Of that bilinear.
        refine: Scores (K, h', w') of one window and its pixels (C, wh, ww) to (K, h', w') or (K, wh, ww).
        background: Constant score of a channel placed first; None for no such channel.

    Returns:
        (K, H, W) with `to_pixels`, else (K, H h' / wh, W w' / ww); K + 1 channels with a background. float32.
    """
    height, width = image.shape[-2:]
    (crop_h, crop_w), corners = window_places(height, width, window, stride)
    first = 0 if background is None else 1
    total: Tensor | None = None
    count: Tensor | None = None
    start = 0
    while start < len(corners):
        part = corners[start : start + batches.size]
        crops = torch.stack([image[:, y : y + crop_h, x : x + crop_w] for y, x in part])
        for scores, pixels, (y, x) in zip(batches.run(network, crops), crops, part, strict=True):
            if refine is not None:
                scores = refine(scores, pixels)
            with clock("merge"):
                rows, columns = (crop_h, crop_w) if to_pixels else scores.shape[-2:]
                if total is None or count is None:
                    size = height * rows // crop_h, width * columns // crop_w
                    total = scores.new_zeros(first + len(scores), *size)
                    count = scores.new_zeros(size)
                top, left = y * rows // crop_h, x * columns // crop_w
                area = (..., slice(top, top + rows), slice(left, left + columns))
                for k in range(0, len(scores), MERGE_CLASSES):
                    fine = bilinear(scores[k : k + MERGE_CLASSES], (rows, columns), align_corners)
                    total[first + k : first + k + len(fine)][area].add_(fine)
                count[area].add_(1)
        start += len(part)
    assert total is not None and count is not None
    with clock("merge"):
        total[first:] /= count
        if background is not None:
            total[0] = background
    return total


def bilinear(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return maps (B, C, h, w) or (C, h, w) at another size, bilinear without antialiasing."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    batched = maps if maps.ndim == 4 else maps[None]
    out = F.interpolate(batched, size, mode="bilinear", align_corners=align_corners)
    return out if maps.ndim == 4 else out[0]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a network runs in a dtype; float32 shuts out an autocast of the caller."""
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype)


@contextlib.contextmanager
def _onednn(wanted: bool) -> Iterator[None]:
    """Run the body without oneDNN where it is not wanted."""
    switch: Any = torch.backends.mkldnn  # torch annotates the property itself, not its bool
    before = switch.enabled
    switch.enabled = before and wanted
    try:
        yield
    finally:
        switch.enabled = before
