"""How the eight benchmarks are run: every number of a published evaluation protocol in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ovsdino.errors import OVSDinoError
from ovsdino.eval.background import Cleaning
from ovsdino.eval.pamr import PAMR_DILATIONS
from ovsdino.models.text import TEMPLATES

__all__ = ["BACKGROUND_SETS", "CLEANED_SETS", "PROTOCOLS", "Protocol", "preset"]

BACKGROUND_SETS = ("voc21", "context60", "coco-object")  # "background" is a class, and never text
CLEANED_SETS = ("voc21", "coco-object")
PROTOCOLS = ("talk2dino", "dinov3")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An evaluation protocol; the defaults are Talk2DINO's (ICCV 2025) without its background settings.

    Attributes:
        name: the preset this came from.
        short_side: the image's short side after the resize, in pixels.
        max_long_side: the long side is at most this.
        window: side of the sliding window, in pixels of the resized image; a smaller image is one window, resized to
            window x window for the network.
        stride: step of the window; the last one is shifted inward to end at the border.
        templates: prompts with one {} each; a class's text embeddings are averaged before they are normalised.
        score: sigmoid of the cosine, or the cosine itself.
        window_align_corners: of the bilinear upsampling from the score grid to the window.
        final_align_corners: of the bilinear resize from the merged map to the image.
        background: constant score of the channel placed first; None for data sets without a background class.
        cleaning: background cleaning, see `clean_background`.
        cleaning_weight: its share.
        pamr_iterations: 0 leaves PAMR out; the published "+PAMR" rows take 10.
        pamr_dilations: see `pamr`.
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
        """Checks every value.

        Raises:
            OVSDinoError: one is out of its range.
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
    """The published settings for a data set and a width of the backbone.

    "talk2dino" is the protocol of the eight benchmarks: constant background 0.55 (0.54 for ViT-L, width 1024) where
    the data set has a background class, and background cleaning as the released code computes it on VOC21 and
    COCO-Object. "dinov3" takes the sizes of
    DINOv3's text-segmentation notebook (short side 512, window 384, stride 192), the rest being the same.

    Raises:
        OVSDinoError: no such preset.
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


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OVSDinoError(f"{name} is {value}: expected {low}..{high}")
