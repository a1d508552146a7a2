"""The settings of a run on several kinds of images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ovsdino.settings import Count, InputPath, Positive, Probability, Share, Weight, Within
from ovsdino.train.config import RunConfig, Side
from ovsdino.train.dense.config import DataConfig, TextSupervision


@dataclass(frozen=True, kw_only=True)
class LabelSet(DataConfig):
    """A data set with pixel labels; each has its own share of every step.

    Attributes:
        height, width: Crop size in pixels, multiples of the patch size.
        batch: Images of a step.
        area: Smallest fraction of the image that a crop covers.
        neighbours: Probability that a class is called by a vocabulary word near its phrases.
        edges: Edges between labels teach the boundary and the affinity; not where they are separated by unlabeled
            pixels, as in PASCAL VOC.
        weight: Factor of its terms.
        text: The names of its classes.
    """

    height: Side = 256
    width: Side = 320
    batch: Positive = 8
    area: Share = 0.3
    neighbours: Probability = 0.3
    edges: bool = True
    weight: Weight = 1.0
    text: TextSupervision = field(default_factory=TextSupervision)


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Pictures of one thing each, with its word.

    Attributes:
        root: Folder or zip of images; "" leaves it out.
        annotations: File of lines {"image", "caption"}.
        side: Side of the square crops in pixels.
        batch: Images of a step.
        area: Smallest fraction of the picture that a crop covers.
        sharpness: r of the pooling log-mean-exp, see `objective`.
    """

    root: Annotated[str, InputPath()] = ""
    annotations: Annotated[str, InputPath()] = ""
    side: Side = 192
    batch: Positive = 16
    area: Share = 0.4
    sharpness: Annotated[float, Within(0, 1000, above=True)] = 10.0


@dataclass(frozen=True, kw_only=True)
class EdgeSet:
    """Images cut into regions by people: BSDS500.

    Attributes:
        root: Folder that `ovsdino.data.bsds` reads; "" leaves it out.
        height, width: Crop size in pixels.
        batch: Images of a step.
        area: Smallest fraction of the image that a crop covers.
    """

    root: Annotated[str, InputPath()] = ""
    height: Side = 320
    width: Side = 320
    batch: Positive = 4
    area: Share = 0.5


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A frozen ImageNet network with an aligned head, which tells what each position of every image shows.

    Attributes:
        model: Name in the zoo; a CNN with the sentence encoder as its text tower.
        weights: File of its backbone, with its classifier; "" leaves the teacher out.
        head: File of its linear head.
        positions: Positions of a step that are compared.
        scale: Factor of cosines before the softmax over the vocabulary.
    """

    model: str = "lite2"
    weights: Annotated[str, InputPath()] = ""
    head: Annotated[str, InputPath()] = ""
    positions: Positive = 4096
    scale: Annotated[float, Within(0, 1000, above=True)] = 20.0


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Words that compete with the classes, as one more channel.

    Attributes:
        drop: Probability that a step asks for some of a data set's classes only; the pixels of the others are then
            none of these. Each is dropped with the same probability.
        max_cosine: A contrast word at least this near to a class that is asked for is left out.
    """

    drop: Probability = 0.5
    max_cosine: Annotated[float, Within(-1, 1)] = 0.6


@dataclass(frozen=True, kw_only=True)
class MixedLoss:
    """Weights of the terms; 0 leaves a term out. See `objective`."""

    cross_entropy: Weight = 1.0
    dice: Weight = 0.5
    coarse: Weight = 0.4
    boundary: Weight = 0.3
    affinity: Weight = 0.3
    pictures: Weight = 0.5
    classes: Weight = 0.5
    words: Weight = 1.0
    kept: Weight = 1.0
    class_power: Annotated[float, Within(0, 4)] = 0.4
    class_weight_max: Annotated[float, Within(0, 1e6, above=True)] = 5.0


@dataclass(frozen=True, kw_only=True)
class MixedConfig(RunConfig):
    """A run on all of them.

    Attributes:
        backbone_weights: Of an ImageNet network; the whole backbone is trained, at `backbone_rate` of the rate.
        labels: Data sets with pixel labels, by a name of your choice.
        workers: Processes that make batches; 0 makes them in the training process. The batches are the same.
        exclude: Words held out of all vocabularies, with all words that begin with them.
        only_words: Train the head behind the backbone and the SMD alone, and keep what other words answer by the term
            `kept`: a stage that teaches an earlier model (`initial`) more names. See `kept`.
        eval_every: Steps between validations on the val split of every label set.
    """

    supervision: Literal["mixed"] = "mixed"
    workers: Annotated[int, Within(0, 1024)] = 0
    backbone_rate: Annotated[float, Within(0, 10)] = 0.3
    labels: dict[str, LabelSet] = field(default_factory=dict)
    pictures: PictureSet = field(default_factory=PictureSet)
    edges: EdgeSet = field(default_factory=EdgeSet)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    exclude: tuple[str, ...] = ()
    only_words: bool = False
    loss: MixedLoss = field(default_factory=MixedLoss)
    eval_every: Count = 0
