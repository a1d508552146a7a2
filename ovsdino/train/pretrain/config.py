"""The settings of self-distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ovsdino.errors import OVSDinoError
from ovsdino.settings import (
    InputPath,
    Positive,
    Probability,
    Size,
    Weight,
    Within,
    anchored,
    build_config,
    overridden,
    read_yaml,
)
from ovsdino.train.config import CommonConfig, OptimConfig, Stage


@dataclass(frozen=True, kw_only=True)
class CropStage(Stage):
    """A stretch of training at one crop size; sides in pixels, multiples of the patch size.

    Attributes:
        batch: Images of a step; each gives two large crops, and each of those gives
            `SelfDistillConfig.small_crops` small ones.
    """

    large: Annotated[int, Within(1, 16384)] = 128
    small: Annotated[int, Within(1, 16384)] = 64
    batch: Annotated[int, Within(2, 1_000_000)] = 32


@dataclass(frozen=True, kw_only=True)
class SelfDistillConfig(CommonConfig):
    """One run.

    Attributes:
        images: Folders or zips; every image in them is used, nothing else of them is read. Relative to the YAML file.
        cache_mb: Megabytes of decoded images that are kept; the least recently used make room.
        large_area: Least and largest share of its image that a large crop covers.
        small_area: Least and largest share of its large crop that a small one covers.
        mask_ratio: Least and largest share of its patches that a masked crop loses; half of the large crops are masked.
        prototypes: Width of the head's output.
        teacher_momentum: At the start; it rises to 1 along half a cosine.
        temperature: Of the teacher's distributions, which Sinkhorn-Knopp balances over the batch.
    """

    model: str = "vit6"
    images: Annotated[tuple[str, ...], Size(1, 1000), InputPath()] = ()
    output: Annotated[str, Size(1, 4096)] = "runs/self_distill"
    steps: Positive = 2400
    small_crops: Annotated[int, Within(1, 100)] = 2
    large_area: Annotated[tuple[float, ...], Within(0, 1, above=True), Size(2, 2)] = (0.3, 1.0)
    small_area: Annotated[tuple[float, ...], Within(0, 1, above=True), Size(2, 2)] = (0.1, 0.4)
    mask_ratio: Annotated[tuple[float, ...], Within(0, 1), Size(2, 2)] = (0.1, 0.5)
    prototypes: Annotated[int, Within(2, 1_000_000)] = 512
    image: Weight = 0.3
    koleo: Weight = 0.1
    lr: Annotated[float, Within(0, 10, above=True)] = 1.5e-3
    weight_decay: Annotated[float, Within(0, 10)] = 0.05
    warmup: Positive = 60
    clip: Annotated[float, Within(0, 1e6, above=True)] = 3.0
    teacher_momentum: Probability = 0.99
    temperature: Annotated[float, Within(0, 10, above=True)] = 0.05
    bf16: bool = True
    cache_mb: Annotated[int, Within(1, 1_000_000)] = 2048
    checkpoint_every: Positive = 100
    stages: Annotated[tuple[CropStage, ...], Size(1, 100)] = (CropStage(),)

    def __post_init__(self) -> None:
        for name in ("large_area", "small_area", "mask_ratio"):
            least, most = getattr(self, name)
            if least > most:
                raise OVSDinoError(f"{name}: expected the least first, got [{least}, {most}]")

    @property
    def optim(self) -> OptimConfig:
        """The settings of the optimizer."""
        return OptimConfig(
            steps=self.steps, lr=self.lr, weight_decay=self.weight_decay, warmup=self.warmup, clip=self.clip
        )


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> SelfDistillConfig:
    """Read a YAML file and apply `key=value` overrides; see `ovsdino.train.config.load_config`."""
    tree = anchored(SelfDistillConfig, read_yaml(path), Path(path).parent)
    config: SelfDistillConfig = build_config(SelfDistillConfig, overridden(tree, overrides), "")
    if not config.images:
        raise OVSDinoError("images: expected a list of folders or zips of images, got none")
    return config
