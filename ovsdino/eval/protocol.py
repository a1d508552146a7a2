"""The protocols of the eight benchmarks: the numbers of a published protocol, and an image labelled under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.eval.background import Cleaning, clean_background
from ovsdino.eval.pamr import PAMR_DILATIONS, pamr
from ovsdino.eval.resize import fit_size, resize_bilinear
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import TEMPLATES
from ovsdino.models.text_rows import TextRows
from ovsdino.ops import upsample_argmax
from ovsdino.timing import Clock
from ovsdino.windows import Batches, autocast, bilinear, check_window, merge_windows

__all__ = ["BACKGROUND_SETS", "CLEANED_SETS", "PROTOCOLS", "Protocol", "label_image", "preset", "score_map"]

BACKGROUND_SETS = ("voc21", "context60", "coco-object")  # "background" is a class, and never text
CLEANED_SETS = ("voc21", "coco-object")
PROTOCOLS = ("talk2dino", "dinov3")
BAND_BYTES = 64 * 2**20  # of the score map at image size held at once, where no kernel merges resize and argmax


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation protocol; the defaults are Talk2DINO's (ICCV 2025) without its background settings.

    Attributes:
        name: The preset this came from.
        short_side: The image's short side after the resize, in pixels.
        max_long_side: The long side is at most this.
        window: Side of the sliding window, in pixels of the resized image; a smaller image is one window, resized to
            window x window for the network.
        stride: Step of the window; the last one is shifted inward to end at the border.
        templates: Prompts with one {} each; a class's text embeddings are averaged before they are normalized.
        score: Sigmoid of the cosine, or the cosine itself.
        window_align_corners: Of the bilinear upsampling from the score grid to the window.
        final_align_corners: Of the bilinear resize from the merged map to the image.
        background: Constant score of the channel placed first; None for data sets without a background class.
        cleaning: Background cleaning, see `clean_background`.
        cleaning_weight: Its share.
        pamr_iterations: 0 leaves PAMR out; the published "+PAMR" rows take 10.
        pamr_dilations: See `pamr`.
    """

    name: str = "talk2dino"
    short_side: int = 448
    max_long_side: int = 2048
    window: int = 448
    stride: int = 224
    templates: tuple[str, ...] = TEMPLATES
    score: Literal["sigmoid", "cosine"] = "sigmoid"
    window_align_corners: bool = True
    final_align_corners: bool = False
    background: float | None = None
    cleaning: Cleaning = "off"
    cleaning_weight: float = 0.2
    pamr_iterations: int = 0
    pamr_dilations: tuple[int, ...] = PAMR_DILATIONS

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            OVSDinoError: One is out of its range.
        """
        _within("short_side", self.short_side, 1, 8192)
        _within("max_long_side", self.max_long_side, self.short_side, 65536)
        _within("window", self.window, 1, 8192)
        _within("stride", self.stride, 1, self.window)
        _within("pamr_iterations", self.pamr_iterations, 0, 1000)
        if not self.templates or not all(t.count("{}") == 1 for t in self.templates):
            raise OVSDinoError(f"templates is {self.templates!r}: expected prompts with one {{}} each")
        if not self.pamr_dilations or min(self.pamr_dilations) < 1:
            raise OVSDinoError(f"pamr_dilations is {self.pamr_dilations}: expected distances of at least 1 pixel")
        if self.score not in ("sigmoid", "cosine"):
            raise OVSDinoError(f"score is {self.score!r}: expected sigmoid or cosine")
        if self.cleaning not in ("off", "protocol", "released"):
            raise OVSDinoError(f"cleaning is {self.cleaning!r}: expected off, protocol or released")
        if self.background is not None and not math.isfinite(self.background):
            raise OVSDinoError(f"background is {self.background}: expected a number")
        if not (math.isfinite(self.cleaning_weight) and self.cleaning_weight >= 0):
            raise OVSDinoError(f"cleaning_weight is {self.cleaning_weight}: expected at least 0")


def preset(name: str, dataset: str, embed_dim: int) -> Protocol:
    """Return the published settings for a data set and a width of the backbone.

    "talk2dino" is the protocol of the eight benchmarks: constant background 0.55 (0.54 for ViT-L, width 1024) where
    the data set has a background class, and background cleaning as the released code computes it on VOC21 and
    COCO-Object. "dinov3" takes the sizes of
    DINOv3's text-segmentation notebook (short side 512, window 384, stride 192), the rest being the same.

    Raises:
        OVSDinoError: There is no such preset.
    """
    if name not in PROTOCOLS:
        raise OVSDinoError(f"unknown protocol {name!r}; available: {', '.join(PROTOCOLS)}, native")
    short_side, window, stride = (512, 384, 192) if name == "dinov3" else (448, 448, 224)
    return Protocol(
        name=name,
        short_side=short_side,
        window=window,
        stride=stride,
        background=(0.54 if embed_dim >= 1024 else 0.55) if dataset in BACKGROUND_SETS else None,
        cleaning="released" if dataset in CLEANED_SETS else "off",
    )


def label_image(
    model: OVSDINO,
    image: np.ndarray,
    text: Tensor | TextRows,
    protocol: Protocol,
    *,
    batches: Batches | None = None,
    dtype: torch.dtype = torch.float32,
    clock: Clock | None = None,
    prior: Tensor | None = None,
) -> np.ndarray:
    """Return the label of every pixel: `score_map`, resized to the image, largest class.

    The protocol's softmax keeps the order of the classes, so it is left out; the (K, H, W) map at image size is
    never made.

    Args:
        model: In eval mode.
        image: (H, W, 3) uint8 RGB.
        text: (K, D) float32, rows of length one, without the background class; or `TextRows`, whose contrast, if it has
            one, is the background.
        protocol: With a background, label 0 is background and class k has label k + 1.
        batches: How many windows in one forward; 8 by default.
        dtype: Number format of the network, see `Segmenter`.
        clock: Gets the milliseconds of each stage.
        prior: (K,), of which the logarithm is taken from the logits, see `OVSDINO.decode`.

    Returns:
        (H, W) integers.

    Raises:
        OVSDinoError: The protocol does not fit the model.
    """
    clock = clock or Clock()
    scores = score_map(model, image, text, protocol, batches=batches, dtype=dtype, clock=clock, prior=prior)
    size = (image.shape[0], image.shape[1])
    with torch.inference_mode(), clock("postprocess"):
        if protocol.final_align_corners:
            return _argmax_in_bands(scores, size).cpu().numpy()
        return upsample_argmax(scores[None], size)[0].cpu().numpy()


def score_map(
    model: OVSDINO,
    image: np.ndarray,
    text: Tensor | TextRows,
    protocol: Protocol,
    *,
    batches: Batches | None = None,
    dtype: torch.dtype = torch.float32,
    clock: Clock | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """Return the mean of the windows' scores at the size of the resized image; arguments as `label_image`.

    The contrast channel comes first, where a constant background would: it competes as the classes do.

    Memory: the map itself, whatever the number of windows and the size of the image (171 classes, 448x896: 275 MB), and
    with PAMR one window's scores at window size (137 MB).

    Returns:
        (K, h, w) float32, or (K + 1, h, w) with the background first.

    Raises:
        OVSDinoError: The protocol does not fit the model, or its background or cleaning the text.
    """
    check_window(protocol.window, model.stride_multiple, model.config.name)
    if isinstance(text, TextRows):
        if text.contrast is not None and protocol.background is not None:
            raise OVSDinoError(f"background is {protocol.background} and contrast: give one")
        if protocol.cleaning != "off":
            raise OVSDinoError(
                f"cleaning is {protocol.cleaning}: it takes one row for each class and no contrast; average the words "
                "of a class (--average-words), or leave it out (--cleaning off)"
            )
    clock = clock or Clock()
    with torch.inference_mode():
        with clock("preprocess"):
            size = fit_size(image.shape[0], image.shape[1], protocol.short_side, protocol.max_long_side)
            small = resize_bilinear(image, size)
            pixels = (
                torch.from_numpy(np.array(small))
                .to(text.words.device if isinstance(text, TextRows) else text.device)
                .permute(2, 0, 1)
                .float()
            )

        def refine(scores: Tensor, window: Tensor) -> Tensor:
            with clock("merge"):
                fine = bilinear(scores, (window.shape[1], window.shape[2]), protocol.window_align_corners)
            with clock("pamr"):
                return pamr(window, fine, protocol.pamr_iterations, protocol.pamr_dilations)

        return merge_windows(
            lambda crops: _coarse(model, crops, text, protocol, dtype, clock, prior),
            pixels,
            protocol.window,
            protocol.stride,
            batches or Batches(),
            clock,
            to_pixels=True,
            align_corners=protocol.window_align_corners,
            refine=refine if protocol.pamr_iterations else None,
            background=protocol.background,
        )


def _coarse(
    model: OVSDINO,
    crops: Tensor,
    text: Tensor | TextRows,
    protocol: Protocol,
    dtype: torch.dtype,
    clock: Clock,
    prior: Tensor | None,
) -> Tensor:
    """Return scores of windows (B, 3, h, w) in 0..255 on the model's grid: (B, K, h', w') float32."""
    with clock("preprocess"):
        mean, std = (crops.new_tensor(v).view(3, 1, 1) for v in (model.config.mean, model.config.std))
        batch = (crops / 255 - mean) / std
        batch = bilinear(batch, (protocol.window, protocol.window), False)
    attention = None
    with autocast(batch.device, dtype):
        with clock("encode"):
            if protocol.cleaning == "off":
                features = model.encode_image(batch)
            else:
                features, attention = model.encode_with_attention(batch)
        with clock("decode"):
            offset: dict[str, Any] = {} if prior is None else {"prior": prior, "tau": 1.0}
            scores = model.cosine(features, text, **offset).float()
    with clock("decode"):
        if protocol.score == "sigmoid":
            scores = scores.sigmoid()
        if isinstance(text, TextRows):
            return scores if text.contrast is None else scores.roll(1, 1)  # the background first
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


def _argmax_in_bands(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return argmax of (K, h, w) resized bilinearly with align_corners=True, a band of rows at a time: (H, W)."""
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
        labels.append(bilinear(band, (len(position), size[1]), True).argmax(0))
    return torch.cat(labels)


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OVSDinoError(f"{name} is {value}: expected {low}..{high}")
