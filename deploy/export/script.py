"""The model that a script of this folder works on: a zoo model, with its own weights or seeded random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovsdino.errors import OVSDinoError
from ovsdino.options import ModelOptions

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["ModelSource", "random_model", "randomise"]


@dataclass(frozen=True, kw_only=True)
class ModelSource(ModelOptions):
    """Which model, with which weights."""

    random_weights: int | None = None
    """Seed of random weights in place of the model's own, for timing and tests: no file is fetched."""

    def load(self) -> OVSDINO:
        """Return the model on the CPU, in eval mode.

        Raises:
            OVSDinoError: Unknown name; weights missing, damaged or out of reach; or files given with --random-weights.
        """
        if self.random_weights is None:
            return self.load_model()
        for name in self.weight_files:
            option = name.replace("_", "-")
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
