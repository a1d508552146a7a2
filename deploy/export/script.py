"""What the scripts of this folder share: a command line from a dataclass, one-line errors, exit codes, a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.console import run_command
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import parse

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["ModelSource", "random_model", "randomise", "run_script"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model, with which weights."""

    model: str = "nano"
    """Model name (see `ovsdino models`), folder of a shared model, or hub repository NAME/REPOSITORY[@REVISION]."""
    random_weights: int | None = None
    """Seed of random weights in place of the model's own, for timing and tests: no file is fetched."""
    checkpoint: Path | None = None
    """Weights written by `ovsdino train`, in place of the shipped ones."""
    backbone_weights: Path | None = None
    """Local file of the backbone's official weights (timm's or Meta's own .pth), in place of the hub."""
    projection: Path | None = None
    """Local file of Talk2DINO's text projection, or of a whole Talk2DINO model, in place of the hub."""
    clip_weights: Path | None = None
    """Local file of CLIP ViT-B-16's openai weights (open_clip's, or OpenAI's own .pt), in place of the hub."""

    def load(self) -> OVSDINO:
        """The model, on the CPU, in eval mode.

        Raises:
            OVSDinoError: unknown name; weights missing, damaged or out of reach; or files beside --random-weights.
        """
        from ovsdino.models.zoo import create_model

        files: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "backbone_weights": self.backbone_weights,
            "projection": self.projection,
            "clip_weights": self.clip_weights,
        }
        given = [name for name, path in files.items() if path is not None]
        if self.random_weights is None:
            return create_model(self.model, **files)
        if given:
            option = given[0].replace("_", "-")
            raise OVSDinoError(f"--random-weights {self.random_weights}: leave it out, or leave out --{option}")
        return random_model(self.model, self.random_weights)


def random_model(name: str, seed: int) -> OVSDINO:
    """A zoo model with decoder and the weights of `randomise`.

    Raises:
        OVSDinoError: unknown name.
    """
    from ovsdino.models.zoo import create_model, get_config

    get_config(name)
    return randomise(create_model(name, pretrained=False), seed)


def randomise(model: OVSDINO, seed: int) -> OVSDINO:
    """Seeded random weights, in place, that give activations of the size that trained ones have.

    Initial weights would not do to check a precision: DINOv2's LayerScale starts at 1e-5 and the decoder's last layers
    at 0, so little but the patch embedding would be compared. Here every linear map keeps the variance of its input,
    attention logits have variance 1, and every part takes part.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in (*model.backbone.modules(), *(model.decoder.modules() if model.decoder else ())):
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            for key, parameter in module.named_parameters(recurse=False):
                if key in ("gamma", "gamma_1", "gamma_2"):
                    parameter.uniform_(0.2, 1.0)
                elif key in ("pos_embed", "cls_token", "reg_token"):
                    parameter.normal_(std=0.5)
                elif key.endswith("bias"):
                    parameter.normal_(std=0.1)
        if model.decoder is not None:
            if model.config.guided:
                model.decoder.beta.fill_(0.5)
                model.decoder.mix.fill_(0.7)
            if model.config.detail:
                model.decoder.detail.weight.normal_(std=0.02)
    return model


def run_script(command: Callable[..., Any], prog: str, argv: Sequence[str] | None = None) -> int:
    """Parse a command line into a dataclass, call its `run`, and return the exit code (see `ovsdino.console`).

    Args:
        command: A dataclass of options.
        prog: The script's name, for its help.
        argv: Arguments after it; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        options = parse(command, prog, args)
        return 0 if options is None else int(options.run())

    return run_command(args, body)
