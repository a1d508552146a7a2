"""The settings of a run on pixel labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ovsdino.settings import InputPath, Positive, Probability, Share, Size, Weight, Within
from ovsdino.train.config import RunConfig, Side, Stage

Phrase = Annotated[str, Size(1, 1000)]


@dataclass(frozen=True, kw_only=True)
class StageConfig(Stage):
    """A stretch of training at one crop size.

    Attributes:
        height, width: Crop size in pixels, multiples of the patch size.
        batch: Images of a step.
        area: Smallest fraction of the image that a crop covers.
        neighbours: Probability that a class is called by a vocabulary word near its phrases (`TextSupervision`).
    """

    height: Side = 256
    width: Side = 320
    batch: Positive = 8
    area: Share = 0.3
    neighbours: Probability = 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are varied.

    Attributes:
        root: Folder of the data sets.
        selection: Share of the training images that are kept out of training and choose `best.safetensors`: the last
            by name, so that only one cut goes through a video. 0 chooses nothing: the weights of the last step are
            the result. `val_split` is measured along the way and chooses nothing in either case.
        exclude: Training images whose names begin with one of these are left out: the frames of a drive, for instance.
        aspect: A crop's aspect differs from width / height by up to this factor.
        mix: Probability that an image receives the pixels of `mix_classes` of another one, at the same place.
        cache_mb: Megabytes of decoded images and labels that are kept; the least recently used make room.
    """

    dataset: str = "camvid"
    root: Annotated[str, InputPath()] = "data"
    train_split: str = "train"
    val_split: str = "val"
    selection: Annotated[float, Within(0, 0.9)] = 0.0
    exclude: tuple[Annotated[str, Size(1, 1000)], ...] = ()
    flip: bool = True
    aspect: Annotated[float, Within(1, 16)] = 1.2
    colour: Annotated[float, Within(0, 4)] = 0.35
    mix: Probability = 0.5
    mix_classes: tuple[str, ...] = ()
    cache_mb: Annotated[int, Within(1, 1_000_000)] = 2048


@dataclass(frozen=True, kw_only=True)
class TextSupervision:
    """The names of the classes during training.

    Attributes:
        names: Phrases by the class's name in the data set; a class that is absent has its own name.
        vocabulary: File of words, one on each line.
        num_distractors: Words drawn at each step as classes that no pixel has.
        distractor_max_cosine: A word nearer than this to any phrase of a class is not a distractor.
        neighbour_min_cosine: A word at least this near to a class's phrases can be a neighbor of the class: another
            name for it, in stages with `neighbours`.
        neighbour_margin: How much nearer a neighbor is to its class's phrases than to those of any other class.
        exclude: Words held out of training, with all words that begin with them.
    """

    names: dict[str, Annotated[tuple[Phrase, ...], Size(1, 1000)]] = field(default_factory=dict)
    vocabulary: Annotated[str, InputPath()] = ""
    num_distractors: Annotated[int, Within(0, 100_000)] = 8
    distractor_max_cosine: Annotated[float, Within(-1, 1)] = 0.3
    neighbour_min_cosine: Annotated[float, Within(-1, 1)] = 0.55
    neighbour_margin: Annotated[float, Within(0, 2)] = 0.1
    exclude: tuple[Phrase, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms of training on pixel labels; 0 leaves a term out.

    Attributes:
        class_power: p, a class weighs frequency^-p.
        class_weight_max: The largest weight of a class.
    """

    cross_entropy: Weight = 1.0
    dice: Weight = 0.5
    coarse: Weight = 0.4
    boundary: Weight = 0.3
    class_power: Annotated[float, Within(0, 4)] = 0.4
    class_weight_max: Annotated[float, Within(0, 1e6, above=True)] = 5.0


@dataclass(frozen=True, kw_only=True)
class DenseConfig(RunConfig):
    """A run on pixel labels.

    Attributes:
        train_backbone: True trains the backbone too (vit6, from scratch); False keeps it frozen in eval mode.
    """

    supervision: Literal["labels", "captions"] = "labels"
    train_backbone: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    text: TextSupervision = field(default_factory=TextSupervision)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: Annotated[tuple[StageConfig, ...], Size(1, 100)] = (StageConfig(),)
