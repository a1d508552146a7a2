"""Training configuration: YAML file, `key=value` overrides, frozen dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from ovsdino.errors import OVSDinoError
from ovsdino.settings import (
    Count,
    InputPath,
    Positive,
    Probability,
    Share,
    Size,
    Weight,
    Within,
    anchored,
    build_config,
    overridden,
    read_yaml,
)
from ovsdino.train.weak.batches import WeakDataConfig
from ovsdino.train.weak.robust import RobustConfig

Side = Annotated[int, Within(1, 16384)]
Phrase = Annotated[str, Size(1, 1000)]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of training at one crop size.

    Attributes:
        until: the stage ends at this fraction of all steps.
        height, width: crop size in pixels, multiples of the patch size.
        batch: images a step.
        area: smallest fraction of the image that a crop covers.
        neighbours: probability that a class is called by a vocabulary word near its phrases (`TextSupervision`).
    """

    until: Share = 1.0
    height: Side = 256
    width: Side = 320
    batch: Positive = 8
    area: Share = 0.3
    neighbours: Probability = 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are varied.

    Attributes:
        root: folder of the data sets.
        selection: share of the training images that are kept out of training to choose `best.safetensors` by, the last
            ones by name, so that a video's frames lie on one side but for one cut. 0 chooses nothing: the weights of
            the last step are the result. `val_split` is measured along the way and chooses nothing in either case.
        aspect: a crop's aspect differs from width / height by up to this factor.
        mix: probability that an image receives the pixels of `mix_classes` of another one, at the same place.
        cache_mb: megabytes of decoded images and labels that are kept; what has not been used longest makes room.
    """

    dataset: str = "camvid"
    root: Annotated[str, InputPath()] = "data"
    train_split: str = "train"
    val_split: str = "val"
    selection: Annotated[float, Within(0, 0.9)] = 0.0
    flip: bool = True
    aspect: Annotated[float, Within(1, 16)] = 1.2
    colour: Annotated[float, Within(0, 4)] = 0.35
    mix: Probability = 0.5
    mix_classes: tuple[str, ...] = ()
    cache_mb: Annotated[int, Within(1, 1_000_000)] = 2048


@dataclass(frozen=True, kw_only=True)
class TextSupervision:
    """The words a class is called during training.

    Attributes:
        names: class name in the data set -> phrases; the class's own name when absent.
        vocabulary: file of words, one a line.
        num_distractors: words drawn each step as classes that no pixel has.
        distractor_max_cosine: a word nearer than this to any class's phrase is not a distractor.
        neighbour_min_cosine, neighbour_margin: a word at least this near to a class's phrases, and by the margin nearer
            than to any other class's, is a neighbour of the class: another name for it in stages with `neighbours`.
        exclude: words held out of training altogether, with all words that begin with them.
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
    """Weights of the dense losses; `class_power` p weighs a class by frequency^-p."""

    cross_entropy: Weight = 1.0
    dice: Weight = 0.5
    coarse: Weight = 0.4
    boundary: Weight = 0.3
    class_power: Annotated[float, Within(0, 4)] = 0.4
    class_weight_max: Annotated[float, Within(0, 1e6, above=True)] = 5.0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW; the rate is constant after warm-up and falls along half a cosine over the last `decay` of the steps.

    A constant rate makes runs of different length share their beginning, so a budget comparison can branch; `decay: 1`
    is the usual cosine.

    Attributes:
        clip: the largest norm of a step's gradient.
        accumulate: a step's images are taken in this many parts; a loss that compares images sees one part at a time.
        ema: the running mean of the weights is what is validated and kept.
    """

    steps: Positive = 1000
    lr: Annotated[float, Within(0, 10, above=True)] = 1e-3
    weight_decay: Annotated[float, Within(0, 10)] = 0.05
    warmup: Count = 200
    decay: Probability = 0.4
    clip: Annotated[float, Within(0, 1e6, above=True)] = 1.0
    ema: Probability = 0.998
    accumulate: Annotated[int, Within(1, 10_000)] = 1
    bf16: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has.

    Files and folders that are read are relative to the YAML file that names them; in an override on the command line,
    to the working folder.

    Attributes:
        model: name in the zoo.
        decoder: False trains the baseline, which has none.
        architecture: fields of the model's configuration to replace, e.g. ``{smd: {gate: false}}``.
        backbone_weights: nano: safetensors file of an earlier run whose backbone this one starts from. Others: file of
            the backbone's official weights; "" asks the hub.
        text_weights: safetensors file of nano's text tower; "" takes the shipped model's.
        projection: file of Talk2DINO's text projection, for the models that have one; "" asks the hub where one is
            published, and begins with a random one where none is.
        clip_weights: file of CLIP ViT-B-16's openai weights; "" asks the hub.
        output: folder for checkpoints, logs and weights. Unlike what is read, it is relative to the working folder.
        threads: of this process; 0 leaves it to torch.
        device: "auto" takes CUDA if there is one.
        compile: `torch.compile` the loss, from the image to the terms.
        eval_every: steps between validations, the last step validated too; 0 for none at all.
    """

    model: str = "nano"
    decoder: bool = True
    architecture: dict[str, Any] = field(default_factory=dict)
    backbone_weights: Annotated[str, InputPath()] = ""
    text_weights: Annotated[str, InputPath()] = ""
    projection: Annotated[str, InputPath()] = ""
    clip_weights: Annotated[str, InputPath()] = ""
    output: Annotated[str, Size(1, 4096)] = "runs/nano"
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0
    threads: Annotated[int, Within(0, 4096)] = 0
    device: str = "auto"
    compile: bool = False
    checkpoint_every: Positive = 200
    eval_every: Count = 500
    log_every: Positive = 20
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A run on pixel labels.

    Attributes:
        train_backbone: True trains the ViT too (nano, from scratch); False keeps it frozen in eval mode.
    """

    supervision: Literal["labels", "captions"] = "labels"
    train_backbone: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    text: TextSupervision = field(default_factory=TextSupervision)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: Annotated[tuple[StageConfig, ...], Size(1, 100)] = (StageConfig(),)


@dataclass(frozen=True, kw_only=True)
class WeakLossConfig:
    """Weights of the terms of training on captions and pseudo-masks; 0 leaves a term out.

    Attributes:
        contrast: InfoNCE between images, or regions, and their texts.
        mask: BCE + Dice of each pseudo-mask, its pooled embedding the classifier.
        pull: a pseudo-mask's embedding is one of its caption's texts.
        words: the decoder's answer to the words is one of them, the same one at every cell of a pseudo-mask.
        present: the decoder's answer has each of them in its region; needs pseudo-masks as `words` does.
        least: the share of a region below which a text that is said of it counts as missing.
        sam: the structure tokens towards SAM's embedding; needs `data.sam_targets` or `sam_checkpoint`.
        boundary: BCE + Dice of the boundary logits against the pseudo-masks' edges.
        preserve: F' stays near F, pooled in the pseudo-masks.
        pool: how an image becomes one embedding: "heads" is the class token's attention, head by head, of which the
            one that its own caption agrees with most counts for all captions (Talk2DINO); "text" lets each text look
            for itself, for a ViT without class token.
        sharpness: of the attention of "text".
        adjust: how far the scores of `pull`, `words` and `present` are learnt beyond how common a text is, from 0, not
            at all, to 1.
        rarest: the least common that `adjust` takes a text to be, in shares of all cells.
    """

    contrast: Weight = 1.0
    mask: Weight = 1.0
    pull: Weight = 0.5
    words: Weight = 1.0
    present: Weight = 1.0
    least: Share = 0.05
    sam: Weight = 0.0
    boundary: Weight = 0.3
    preserve: Weight = 0.2
    pool: Literal["text", "heads"] = "text"
    sharpness: Annotated[float, Within(0, 10_000)] = 10.0
    adjust: Probability = 1.0
    rarest: Share = 0.02


@dataclass(frozen=True, kw_only=True)
class ValConfig:
    """Labelled images to measure on during training; they teach nothing. An empty `root` measures nothing."""

    dataset: str = "camvid"
    root: Annotated[str, InputPath()] = ""
    split: str = "val"


@dataclass(frozen=True, kw_only=True)
class WeakConfig(RunConfig):
    """A run on captions and pseudo-masks: no pixel label.

    Attributes:
        batch: images a step, over all processes.
        train_alignment: train the map between image and text space: nano's linear head, or the projection of the CLIP
            tower. False keeps it as it was loaded.
        projection_rate: learning rate of a projection that was loaded, in shares of `optim.lr`: it is trained already.
            One that begins at random, and nano's head, are trained at the full rate.
        sam_checkpoint: official SAM weights, for alignment targets made as they are needed.
        sam_variant: of `sam_checkpoint`.
    """

    supervision: Literal["labels", "captions"] = "captions"
    batch: Positive = 16
    train_alignment: bool = True
    projection_rate: Probability = 0.1
    sam_checkpoint: Annotated[str, InputPath()] = ""
    sam_variant: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"
    data: WeakDataConfig = field(default_factory=WeakDataConfig)
    loss: WeakLossConfig = field(default_factory=WeakLossConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    val: ValConfig = field(default_factory=ValConfig)


def supervision(tree: dict[str, Any]) -> type[RunConfig]:
    """Return the class of the configuration that a tree is of: `TrainConfig`, or `WeakConfig` for captions.

    Raises:
        OVSDinoError: The key `supervision` has another value.
    """
    kind = tree.get("supervision", "labels")
    if kind == "labels":
        return TrainConfig
    if kind == "captions":
        return WeakConfig
    raise OVSDinoError(f"supervision: expected labels or captions, got {kind!r:.60}")


def train_config(tree: dict[str, Any]) -> RunConfig:
    """Return a run from nested mappings: a `TrainConfig`, or with ``supervision: captions`` a `WeakConfig`.

    Raises:
        OVSDinoError: A key is unknown, a value has the wrong type or is out of range.
    """
    config: RunConfig = build_config(supervision(tree), tree, "")
    return config


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the tree of a training configuration, the relative paths that it reads taken from its own folder.

    Raises:
        OVSDinoError: See `read_yaml`; an unknown kind of supervision.
    """
    tree = read_yaml(path)
    result: dict[str, Any] = anchored(supervision(tree), tree, Path(path).parent)
    return result


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` overrides.

    Raises:
        OVSDinoError: The file is missing or not YAML, a key is unknown, a value has the wrong type or is out of range.
    """
    return train_config(overridden(read_config(path), overrides))
