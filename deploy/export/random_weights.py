"""Random weights that give activations of the size that trained ones have: to time a model, or to check a precision."""

from __future__ import annotations

import torch
from torch import nn

from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.zoo import create_model, get_config

__all__ = ["random_model", "randomize"]


def random_model(name: str, seed: int) -> OVSDINO:
    """Return a zoo model with its decoder and the weights of `randomize`.

    Raises:
        OVSDinoError: The name is unknown.
    """
    get_config(name)
    return randomize(create_model(name, pretrained=False), seed)


def randomize(model: OVSDINO, seed: int) -> OVSDINO:
    """Set seeded random weights in place and return the model.

    Initial weights would not do to check a precision: DINOv2's LayerScale starts at 1e-5 and the decoder's last layers
    at 0, so little but the patch embedding would be compared. Here every linear map keeps the variance of its input,
    attention logits have variance 1, and every part takes part.
    """
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
            if model.config.upsampling == "attention":
                model.decoder.score_attention.mix.fill_(0.7)
            if model.config.detail:
                model.decoder.detail.weight.normal_(std=0.02)
    return model
