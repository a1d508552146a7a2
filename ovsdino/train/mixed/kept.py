"""The answers of a model before a run that teaches it more names, so that its other words go on as before.

Where the head behind the backbone and the SMD alone are trained, all that they read stays as it was. So a copy of these
two parts gives the earlier tokens F'_0 at little cost, and with T the rows of words that the run does not teach

    kept = mean_i KL(softmax_n(s cos(F'_0i, T_n)) || softmax_n(s cos(F'_i, T_n)))       s = 20
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import freeze, normalize
from ovsdino.models.ovsdino import OVSDINO

__all__ = ["PARTS", "Kept", "train_words_alone"]

PARTS = ("backbone.head.", "decoder.smd.")
SCALE = 20.0
POSITIONS = 2048  # tokens of a step that are compared


def train_words_alone(model: OVSDINO) -> None:
    """Freeze all but the parts that place tokens among words.

    Args:
        model: Changed in place.

    Raises:
        OVSDinoError: It has no such parts.
    """
    if model.decoder is None or model.decoder.smd is None or model.backbone.head is None:
        raise OVSDinoError("only_words: needs a model with a head behind its backbone and an SMD, as nano")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(PARTS))


class Kept(nn.Module):
    """The head and the SMD as they are now.

    Args:
        model: Copied from; see `train_words_alone`.
        rows: (n, D), of the words whose scores are kept.
    """

    rows: Tensor

    def __init__(self, model: OVSDINO, rows: Tensor) -> None:
        super().__init__()
        assert model.decoder is not None and model.decoder.smd is not None and model.backbone.head is not None
        self.head, self.smd = freeze(copy.deepcopy(model.backbone.head)), freeze(copy.deepcopy(model.decoder.smd))
        self.register_buffer("rows", rows, persistent=False)

    @torch.no_grad()
    def tokens(self, final: Tensor, structure: Tensor) -> Tensor:
        """Return F'_0 (B, D, h, w) of the map before the head (B, C, h, w) and the structure tokens (B, S, h, w)."""
        low = self.head(final.flatten(2).transpose(1, 2)).transpose(1, 2)
        found: Tensor = self.smd(low.reshape(len(final), -1, *final.shape[-2:]), structure)
        return found

    def forward(self, before: list[Tensor], now: list[Tensor]) -> Tensor:
        """Return the divergence of tokens, each list with maps (B, D, h, w), at some positions."""
        old, new = (
            torch.cat([normalize(x.float()).permute(0, 2, 3, 1).flatten(0, 2) for x in y]) for y in (before, now)
        )
        drawn = torch.randperm(len(old), device=old.device)[:POSITIONS]
        goal, answer = (F.log_softmax(SCALE * x[drawn] @ self.rows.T, -1) for x in (old, new))
        return F.kl_div(answer, goal, reduction="batchmean", log_target=True)
