"""Training configuration: YAML file, `key=value` overrides, frozen dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ovsdino.errors import OVSDinoError
from ovsdino.train.robust import RobustConfig
from ovsdino.train.weak_batches import WeakDataConfig


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

    until: float = 1.0
    height: int = 256
    width: int = 320
    batch: int = 8
    area: float = 0.3
    neighbours: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are varied.

    Attributes:
        mix: probability that an image receives the pixels of `mix_classes` of another one, at the same place.
    """

    dataset: str = "camvid"
    root: str = "../shared/data"
    train_split: str = "train"
    val_split: str = "val"
    flip: bool = True
    aspect: float = 1.2
    colour: float = 0.35
    mix: float = 0.5
    mix_classes: tuple[str, ...] = ()


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

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vocabulary: str = ""
    num_distractors: int = 8
    distractor_max_cosine: float = 0.3
    neighbour_min_cosine: float = 0.55
    neighbour_margin: float = 0.1
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the dense losses; `class_power` p weighs a class by frequency^-p."""

    cross_entropy: float = 1.0
    dice: float = 0.5
    coarse: float = 0.4
    boundary: float = 0.3
    class_power: float = 0.4
    class_weight_max: float = 5.0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW; the rate is constant after warm-up and falls along half a cosine over the last `decay` of the steps.

    A constant rate makes runs of different length share their beginning, so a budget comparison can branch; `decay: 1`
    is the usual cosine.

    Attributes:
        accumulate: a step's images are taken in this many parts; a loss that compares images sees one part at a time.
        ema: the running mean of the weights is what is validated and kept.
    """

    steps: int = 1000
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    decay: float = 0.4
    clip: float = 1.0
    ema: float = 0.998
    accumulate: int = 1
    bf16: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every training run has.

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
        output: folder for checkpoints, logs and the best weights.
        device: "auto" takes CUDA if there is one.
        compile: `torch.compile` the loss, from the image to the terms.
        eval_every: steps between validations, the last step validated too; 0 for none at all.
    """

    model: str = "nano"
    decoder: bool = True
    architecture: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str = ""
    text_weights: str = ""
    projection: str = ""
    clip_weights: str = ""
    output: str = "runs/nano"
    seed: int = 0
    threads: int = 0
    device: str = "auto"
    compile: bool = False
    checkpoint_every: int = 200
    eval_every: int = 500
    log_every: int = 20
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A run on pixel labels.

    Attributes:
        train_backbone: True trains the ViT too (nano, from scratch); False keeps it frozen in eval mode.
    """

    supervision: str = "labels"
    train_backbone: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    text: TextSupervision = field(default_factory=TextSupervision)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)


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
        pool: how an image becomes one embedding a text: "heads" is the class token's attention, head by head, the best
            head counts (Talk2DINO); "text" lets each text look for itself, for a ViT without class token.
        sharpness: of the attention of "text".
        adjust: how far the scores of `pull`, `words` and `present` are learnt beyond how common a text is, from 0, not
            at all, to 1.
        rarest: the least common that `adjust` takes a text to be, in shares of all cells.
    """

    contrast: float = 1.0
    mask: float = 1.0
    pull: float = 0.5
    words: float = 1.0
    present: float = 1.0
    least: float = 0.05
    sam: float = 0.0
    boundary: float = 0.3
    preserve: float = 0.2
    pool: str = "text"
    sharpness: float = 10.0
    adjust: float = 1.0
    rarest: float = 0.02


@dataclass(frozen=True, kw_only=True)
class ValConfig:
    """Labelled images to measure on during training; they teach nothing. An empty `root` measures nothing."""

    dataset: str = "camvid"
    root: str = ""
    split: str = "val"


@dataclass(frozen=True, kw_only=True)
class WeakConfig(RunConfig):
    """A run on captions and pseudo-masks: no pixel label.

    Attributes:
        batch: images a step, over all processes.
        train_alignment: train the map between image and text space: nano's linear head, or the projection of the CLIP
            tower. False keeps it as it was loaded.
        sam_checkpoint: official SAM weights, for alignment targets made as they are needed.
        sam_variant: "vit_b", "vit_l" or "vit_h".
    """

    supervision: str = "captions"
    batch: int = 16
    train_alignment: bool = True
    sam_checkpoint: str = ""
    sam_variant: str = "vit_b"
    data: WeakDataConfig = field(default_factory=WeakDataConfig)
    loss: WeakLossConfig = field(default_factory=WeakLossConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    val: ValConfig = field(default_factory=ValConfig)


def build_config(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated type `kind` from what YAML gives; `where` is its place, for messages.

    Raises:
        OVSDinoError: a key is unknown, a value has the wrong type.
    """
    if kind is Any:
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise OVSDinoError(f"{where}: expected a mapping, got {value!r}")
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise OVSDinoError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(hints)}")
        return kind(**{k: build_config(hints[k], v, f"{where}.{k}" if where else k) for k, v in value.items()})
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise OVSDinoError(f"{where}: expected a list, got {value!r}")
        return tuple(build_config(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise OVSDinoError(f"{where}: expected a mapping, got {value!r}")
        return {str(k): build_config(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin in (typing.Union, types.UnionType):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise OVSDinoError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        OVSDinoError: the file is missing, not YAML, or no mapping.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise OVSDinoError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise OVSDinoError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise OVSDinoError(f"{path}: expected a mapping at the top")
    return tree


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tree` with `changes` laid over it, mappings key by key, everything else replaced."""
    result = dict(tree)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`tree` with `key.sub=value` overrides.

    Raises:
        OVSDinoError: an override is not of that form, or goes through something that is no mapping.
    """
    tree = merged(tree, {})
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise OVSDinoError(f"override {override!r} is not key=value, e.g. optim.steps=100")
        node = tree
        *parents, leaf = key.lstrip("-").split(".")
        for part in parents:
            node[part] = dict(node[part]) if isinstance(node.get(part), dict) else node.get(part, {})
            node = node[part]
            if not isinstance(node, dict):
                raise OVSDinoError(f"override {override!r}: {part!r} is not a mapping")
        node[leaf] = yaml.safe_load(text) if text else ""
    return tree


def train_config(tree: dict[str, Any]) -> RunConfig:
    """A run from nested mappings: a `TrainConfig`, or with ``supervision: captions`` a `WeakConfig`.

    Raises:
        OVSDinoError: a key is unknown, a value has the wrong type.
    """
    kinds = {"labels": TrainConfig, "captions": WeakConfig}
    kind = tree.get("supervision", "labels")
    if kind not in kinds:
        raise OVSDinoError(f"supervision: expected {' or '.join(kinds)}, got {kind!r}")
    config: RunConfig = build_config(kinds[kind], tree, "")
    return config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file and applies `key.sub=value` overrides.

    Raises:
        OVSDinoError: the file is missing or not YAML, a key is unknown, a value has the wrong type.
    """
    return train_config(overridden(read_yaml(path), overrides))
