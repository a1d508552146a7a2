"""Background cleaning of the talk2dino protocol: scores mixed with the attention of the class token."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.models.backbone import normalize

__all__ = ["Cleaning", "clean_background"]

Cleaning = Literal["off", "protocol", "released"]


def clean_background(
    scores: Tensor,
    tokens: Tensor,
    attention: Tensor,
    text: Tensor,
    *,
    weight: float = 0.2,
    cleaning: Cleaning = "released",
) -> Tensor:
    """Lower scores where no head of the class token looks.

    With A_m the map of head m over the patches and t_k the text of class k:

        e_m  = sum_n A_m(n) token_n, length one            one embedding per head
        w_mk = softmax over heads of e_m . t_k
        C_k  = softmax over patches of sum_m w_mk A_m / sum_m w_mk
        C    = (C - min C) / max(max C, max C - min C), min and max over all classes and patches of the window,
               then brought to the range of the window's scores
        out  = (scores + weight C) / (1 + weight)

    Args:
        scores: (B, K, h', w'), one window per row.
        tokens: (B, D, h, w) patch tokens.
        attention: (B, M, h w) logits of the last block's class-token query, registers dropped.
        text: (K, D), rows of length one.
        weight: Share of the map.
        cleaning: "released" is Talk2DINO's released code, the only public one: A_m are the logits themselves.
            "protocol" is another reading of the words that describe it: A_m is the softmax of the logits over the
            patches, and w is the softmax over classes.

    Returns:
        (B, K, h', w').

    Raises:
        ValueError: Shapes do not fit, or cleaning is "off".
    """
    if cleaning not in ("protocol", "released"):
        raise ValueError(f"cleaning is {cleaning!r}: expected 'protocol' or 'released'")
    grid = tokens.shape[-2:]
    if attention.ndim != 3 or attention.shape[-1] != grid[0] * grid[1]:
        raise ValueError(
            f"attention {tuple(attention.shape)} does not cover the patches of tokens {tuple(tokens.shape)}"
        )
    maps = attention.softmax(-1) if cleaning == "protocol" else attention
    pooled = normalize(torch.einsum("bmn,bdn->bmd", maps, tokens.flatten(2).to(maps.dtype)), dim=-1)
    weights = (pooled @ text.T.to(pooled.dtype)).softmax(-1 if cleaning == "protocol" else 1)  # (B, M, K)
    mixed = torch.einsum("bmk,bmn->bkn", weights, maps) / weights.sum(1).unsqueeze(-1)
    share = mixed.softmax(-1)
    low, high = share.amin((1, 2), keepdim=True), share.amax((1, 2), keepdim=True)
    share = ((share - low) / torch.maximum(high, high - low)).unflatten(-1, grid)
    if scores.shape[-2:] != grid:
        share = F.interpolate(share, scores.shape[-2:], mode="bilinear", align_corners=False)
    floor, top = scores.amin((1, 2, 3), keepdim=True), scores.amax((1, 2, 3), keepdim=True)
    return (scores + weight * (share * (top - floor) + floor)) / (1 + weight)
