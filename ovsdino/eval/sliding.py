"""Sliding-window scores of one image under a `Protocol`, and its labels."""

from __future__ import annotations

import contextlib
import logging
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.eval.background import clean_background
from ovsdino.eval.pamr import pamr
from ovsdino.eval.protocol import Protocol
from ovsdino.eval.resize import fit_size, resize_bilinear
from ovsdino.models.config import ModelConfig
from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.ops import upsample_argmax
from ovsdino.pipeline import Clock, out_of_memory, window_offsets

__all__ = ["WindowModel", "check_window", "label_image", "score_map"]

log = logging.getLogger("ovsdino")

# classes upsampled and added at once: 6.4 MB of a 448x448 window, which stay in the cache and need no fresh pages.
# 171 classes, 3 windows: 1.05 s of one busy core, 7.6 s with all at once
MERGE_CLASSES = 8
BAND_BYTES = 64 * 2**20  # of the score map at image size held at once, where no kernel merges resize and argmax


class WindowModel(Interface):
    """What a model must offer here; `OVSDINO` does."""

    config: ModelConfig

    @property
    def stride_multiple(self) -> int:
        """Sides of a window must be multiples of this."""
        ...

    def encode_image(self, image: Tensor, /) -> ImageFeatures:
        """(B, 3, H, W) normalised -> features."""
        ...

    def encode_with_attention(self, image: Tensor, /) -> tuple[ImageFeatures, Tensor]:
        """Also the logits (B, M, N) of the last block's class-token query over the patches, before any softmax."""
        ...

    def cosine(self, features: ImageFeatures, text: Tensor, /) -> Tensor:
        """Cosine of features and text rows (K, D): (B, K, h', w')."""
        ...


def label_image(
    model: WindowModel,
    image: np.ndarray,
    text: Tensor,
    protocol: Protocol,
    *,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    clock: Clock | None = None,
) -> np.ndarray:
    """The label of every pixel: `score_map`, resized to the image, largest class.

    The protocol's softmax keeps the order of the classes, so it is left out; the (K, H, W) map at image size is
    never made.

    Args:
        model: in eval mode.
        image: (H, W, 3) uint8 RGB.
        text: (K, D), rows of length one, without the background class.
        protocol: with a background, label 0 is background and class k has label k + 1.
        batch_size: windows in one forward.
        dtype: see `Segmenter`.
        clock: gets the milliseconds of each stage.

    Returns:
        (H, W) integers.

    Raises:
        OVSDinoError: the protocol does not fit the model.
    """
    clock = clock or Clock(text.device)
    scores = score_map(model, image, text, protocol, batch_size=batch_size, dtype=dtype, clock=clock)
    size = (image.shape[0], image.shape[1])
    with torch.inference_mode(), clock("postprocess"):
        if protocol.final_align_corners:
            return _argmax_in_bands(scores, size).cpu().numpy()
        return upsample_argmax(scores[None], size)[0].cpu().numpy()


def score_map(
    model: WindowModel,
    image: np.ndarray,
    text: Tensor,
    protocol: Protocol,
    *,
    batch_size: int = 8,
    dtype: torch.dtype = torch.float32,
    clock: Clock | None = None,
) -> Tensor:
    """Windows' scores summed and divided by their number, at the size of the resized image; arguments as `label_image`.

    Memory: the map itself, whatever the number of windows and the size of the image (171 classes, 448x896: 275 MB), and
    with PAMR one window's scores at window size (137 MB).

    Returns:
        (K, h, w) float32, or (K + 1, h, w) with the background's constant first.
    """
    check_window(model, protocol)
    clock = clock or Clock(text.device)
    with torch.inference_mode():
        with clock("preprocess"):
            size = fit_size(image.shape[0], image.shape[1], protocol.short_side, protocol.max_long_side)
            small = resize_bilinear(image, size)
            pixels = torch.from_numpy(np.array(small)).to(text.device).permute(2, 0, 1).float()
        height, width = size
        crop = min(protocol.window, height), min(protocol.window, width)
        corners = [
            (y, x)
            for y in window_offsets(height, crop[0], protocol.stride)
            for x in window_offsets(width, crop[1], protocol.stride)
        ]
        first = 0 if protocol.background is None else 1
        total = pixels.new_zeros(len(text) + first, height, width)
        count = pixels.new_zeros(height, width)
        start = 0
        while start < len(corners):
            part = corners[start : start + batch_size]
            crops = torch.stack([pixels[:, y : y + crop[0], x : x + crop[1]] for y, x in part])
            try:
                coarse = _coarse(model, crops, text, protocol, dtype, clock)
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or not out_of_memory(error):
                    raise
                batch_size = len(part) // 2
                log.warning("out of memory: batches of %d windows for this image", batch_size)
                torch.cuda.empty_cache()
                continue
            for scores, colours, (y, x) in zip(coarse, crops, part, strict=True):
                area = (slice(y, y + crop[0]), slice(x, x + crop[1]))
                if protocol.pamr_iterations:
                    with clock("merge"):
                        fine = _bilinear(scores, crop, protocol.window_align_corners)
                    with clock("pamr"):
                        fine = pamr(colours, fine, protocol.pamr_iterations, protocol.pamr_dilations)
                    with clock("merge"):
                        total[first:][:, area[0], area[1]] += fine
                else:
                    with clock("merge"):
                        for k in range(0, len(scores), MERGE_CLASSES):
                            fine = _bilinear(scores[k : k + MERGE_CLASSES], crop, protocol.window_align_corners)
                            total[first + k :][: len(fine), area[0], area[1]] += fine
                count[area] += 1
            start += len(part)
        with clock("merge"):
            total[first:] /= count
            if protocol.background is not None:
                total[0] = protocol.background
    return total


def check_window(model: WindowModel, protocol: Protocol) -> None:
    """Raises an OVSDinoError unless the network takes windows of this size."""
    multiple = model.stride_multiple
    if protocol.window % multiple:
        near = max(1, round(protocol.window / multiple)) * multiple
        raise OVSDinoError(
            f"window is {protocol.window}: {model.config.name} needs a multiple of {multiple}, for instance {near}"
        )


def _coarse(
    model: WindowModel, crops: Tensor, text: Tensor, protocol: Protocol, dtype: torch.dtype, clock: Clock
) -> Tensor:
    """Scores of a batch of windows on the model's grid: (B, 3, h, w) in 0..255 -> (B, K, h', w') float32."""
    with clock("preprocess"):
        mean, std = (crops.new_tensor(v).view(3, 1, 1) for v in (model.config.mean, model.config.std))
        batch = (crops / 255 - mean) / std
        batch = _bilinear(batch, (protocol.window, protocol.window), False)
    attention = None
    with _autocast(batch.device, dtype):
        with clock("encode"):
            if protocol.cleaning == "off":
                features = model.encode_image(batch)
            else:
                features, attention = model.encode_with_attention(batch)
        with clock("decode"):
            scores = model.cosine(features, text).float()
    with clock("decode"):
        if protocol.score == "sigmoid":
            scores = scores.sigmoid()
        if attention is not None:
            scores = clean_background(
                scores,
                features.tokens.float(),
                attention.float(),
                text.float(),
                weight=protocol.cleaning_weight,
                cleaning=protocol.cleaning,
            )
    return scores


def _bilinear(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear without antialiasing of (B, C, h, w) or (C, h, w)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    batched = maps if maps.ndim == 4 else maps[None]
    out = F.interpolate(batched, size, mode="bilinear", align_corners=align_corners)
    return out if maps.ndim == 4 else out[0]


def _argmax_in_bands(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """argmax of the bilinear resize with align_corners=True, a band of rows at a time: (K, h, w) -> (H, W)."""
    classes, height, _ = scores.shape
    rows = max(1, BAND_BYTES // (4 * classes * size[1]))
    scale = (height - 1) / (size[0] - 1) if size[0] > 1 else 0.0
    labels = []
    for start in range(0, size[0], rows):
        position = torch.arange(start, min(start + rows, size[0]), device=scores.device, dtype=torch.float64) * scale
        upper = position.floor().long().clamp_max(height - 1)
        share = (position - upper).to(scores.dtype).view(1, -1, 1)
        lower = (upper + 1).clamp_max(height - 1)
        band = torch.lerp(scores[:, upper], scores[:, lower], share)
        labels.append(_bilinear(band, (len(position), size[1]), True).argmax(0))
    return torch.cat(labels)


def _autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
