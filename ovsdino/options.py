"""Options of several commands and scripts: which model runs, and where the data sets are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO
    from ovsdino.pipeline import Segmenter

__all__ = ["DType", "ModelOptions", "SegmenterOptions", "data_root"]

DType = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and its weights."""

    model: str = "nano"
    """Model name (see `ovsdino models`), folder of a shared model, or hub repository NAME/REPOSITORY[@REVISION]."""
    checkpoint: Path | None = None
    """Weights written by `ovsdino train`, in place of the shipped ones."""
    backbone_weights: Path | None = None
    """Local file of the backbone's official weights (timm's, or its authors' own .pth), in place of the hub."""
    projection: Path | None = None
    """Local file of Talk2DINO's text projection, or of a whole Talk2DINO model, in place of the hub; lite2's head."""
    clip_weights: Path | None = None
    """Local file of CLIP ViT-B-16's openai weights (open_clip's, or OpenAI's own .pt), in place of the hub."""
    sentence_weights: Path | None = None
    """Local folder of lite2's sentence encoder, in place of the installed package's."""

    @property
    def weight_files(self) -> dict[str, Any]:
        """The files that were given, by option."""
        names = ("checkpoint", "backbone_weights", "projection", "clip_weights", "sentence_weights")
        return {name: path for name in names if (path := getattr(self, name)) is not None}

    def load_model(self) -> OVSDINO:
        """Return the model on the CPU, in eval mode.

        Raises:
            OVSDinoError: See `ovsdino.models.zoo.create_model`.
        """
        from ovsdino.models.zoo import create_model

        return create_model(self.model, **self.weight_files)


@dataclass(frozen=True, kw_only=True)
class SegmenterOptions(ModelOptions):
    """The model, its weights, device, number format and size of input."""

    device: str | None = None
    """cpu, cuda or cuda:N. Default: CUDA if there is one."""
    dtype: DType = "float32"
    """Number format of the network; auto is bfloat16 on CUDA."""
    short_side: int | None = None
    """Inference size of the image's short side in pixels. Default: the model's own."""
    adapted: Path | None = None
    """Words of your own, learned by `ovsdino adapt`, in place of the model's rows for them."""

    @property
    def input_files(self) -> list[Any]:
        """The files that are read, which no output may replace."""
        return [*self.weight_files.values(), *([] if self.adapted is None else [self.adapted])]

    def load(self) -> Segmenter:
        """Return the segmenter that these options ask for.

        Raises:
            OVSDinoError: See `ovsdino.load`.
        """
        from ovsdino.pipeline import load

        settings: dict[str, Any] = {"dtype": self.dtype, "short_side": self.short_side, "adapted": self.adapted}
        return load(self.model, self.device, **settings, **self.weight_files)


def data_root(given: Path | None) -> Path:
    """Return the folder of the data sets: the one given, else that of the environment.

    Raises:
        OVSDinoError: There is none.
    """
    root = given or os.environ.get("OVSDINO_DATA")
    if not root:
        raise OVSDinoError("--root is missing: name the folder that holds the data set, or set OVSDINO_DATA")
    return Path(root)
