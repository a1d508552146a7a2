"""The settings that runs share: where, how long, with which optimizer, and stages of crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from ovsdino.errors import OVSDinoError
from ovsdino.settings import Count, InputPath, Positive, Probability, Share, Size, Within

Side = Annotated[int, Within(1, 16384)]
SHIPPED = "shipped"  # the installed package's weights


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """The settings of every run, whatever it trains.

    Attributes:
        output: Folder for the checkpoint, the log and the weights. Unlike what is read, it is relative to the working
            folder.
        threads: Of this process; 0 leaves it to torch.
        device: "auto" takes CUDA if there is one.
        checkpoint_every: Steps between checkpoints; the last step writes one too.
        log_every: Steps between lines of the log.
    """

    output: Annotated[str, Size(1, 4096)] = "runs/nano"
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0
    threads: Annotated[int, Within(0, 4096)] = 0
    device: str = "auto"
    checkpoint_every: Positive = 200
    log_every: Positive = 20


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW; the rate is constant after warm-up and falls along half a cosine over the last `decay` of the steps.

    A constant rate makes runs of different length share their beginning, so a budget comparison can branch; `decay: 1`
    is the usual cosine.

    Attributes:
        scalar_rate: Rate of scalars (temperatures, strengths, shares, a gate's bias), in shares of `lr`; they have no
            weight decay.
        gate_rate: Rate of the preservation gate, in shares of `lr`; W_out, which starts behind a nearly shut gate, then
            has the inverse of that gate as its rate, as if it were open. 0 trains both at the rates of all others. A
            gate as fast as what it lets through shuts before that has learned anything.
        clip: The largest norm of a step's gradient.
        warmup: Steps over which the rate rises from zero.
        accumulate: Parts that a step's images are split into; a loss that compares images sees one part at a time.
        ema: Decay of the running mean of the weights, which is validated and kept.
    """

    steps: Positive = 1000
    lr: Annotated[float, Within(0, 10, above=True)] = 1e-3
    weight_decay: Annotated[float, Within(0, 10)] = 0.05
    scalar_rate: Annotated[float, Within(0, 1000)] = 10.0
    warmup: Count = 200
    decay: Probability = 0.4
    gate_rate: Annotated[float, Within(0, 1000)] = 0.0
    clip: Annotated[float, Within(0, 1e6, above=True)] = 1.0
    ema: Probability = 0.998
    accumulate: Annotated[int, Within(1, 10_000)] = 1
    bf16: bool = True


@dataclass(frozen=True, kw_only=True)
class RunConfig(CommonConfig):
    """The settings of a run that trains a segmentation model.

    Files and folders that are read are relative to the YAML file that names them; in an override on the command line,
    to the working folder.

    Attributes:
        model: Name in the zoo.
        decoder: False trains the baseline, which has none.
        architecture: Fields of the model's configuration to replace, e.g. ``{smd: {gate: none}}``.
        backbone_weights: A file of the backbone's official weights; "" asks the hub, or for nano begins with random
            ones.
        text_weights: Safetensors file of nano's text tower; "" takes the shipped model's.
        projection: File of Talk2DINO's text projection, for the models that have one, or of lite2's head; "" asks the
            hub where one is published, else the run begins with a random one.
        clip_weights: File of CLIP ViT-B-16's openai weights; "" asks the hub.
        sentence_weights: Folder of lite2's sentence encoder; "" takes the installed package's.
        initial: Safetensors file of a model that an earlier run learned, or "shipped": the run begins with it and reads
            no `backbone_weights` and `text_weights` of nano. "" begins with those.
        compile: `torch.compile` the loss, from the image to the terms.
        eval_every: Steps between validations; the last step is validated too. 0 never validates.
    """

    model: str = "nano"
    decoder: bool = True
    architecture: dict[str, Any] = field(default_factory=dict)
    backbone_weights: Annotated[str, InputPath()] = ""
    text_weights: Annotated[str, InputPath()] = ""
    projection: Annotated[str, InputPath()] = ""
    clip_weights: Annotated[str, InputPath()] = ""
    sentence_weights: Annotated[str, InputPath()] = ""
    initial: Annotated[str, InputPath(words=(SHIPPED,))] = ""
    compile: bool = False
    eval_every: Count = 500
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def weights_read(self) -> tuple[str, ...]:
        """The files of weights that the run reads; "" stands for none."""
        files = (self.backbone_weights, self.text_weights, self.projection, self.clip_weights, self.sentence_weights)
        return (*files, "" if self.initial == SHIPPED else self.initial)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training.

    Attributes:
        until: It ends at this fraction of all steps.
    """

    until: Share = 1.0


AnyStage = TypeVar("AnyStage", bound=Stage)


def stage_at(stages: Sequence[AnyStage], step: int, steps: int) -> AnyStage:
    """Return the stage of a step: the first that ends after it, else the last."""
    return next((stage for stage in stages if step < stage.until * steps), stages[-1])


def check_multiples(sides: Mapping[str, int], multiple: int) -> None:
    """Refuse sides that the patch size does not divide.

    Args:
        sides: Pixels by name of the setting.
        multiple: The patch size.

    Raises:
        OVSDinoError: A side is not a multiple.
    """
    for name, side in sides.items():
        if side % multiple:
            raise OVSDinoError(f"{name}: expected a multiple of {multiple}, the patch size, got {side}")
