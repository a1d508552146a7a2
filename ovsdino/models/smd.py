"""Structure-Modulated Decoder (SMD): structure attention on the patch tokens behind a preservation gate.

OVS-DINO (arXiv 2604.08461) names the module; the algebra is this project's. For head m, with e_i = W_e S_i centered
over the tokens:

    logit_ij = q_i . k_j / sqrt(d) - lambda_m |e_i - e_j|^2      lambda_m = softplus(l_m)
    o_i      = g_i sum_j softmax_j(logit_ij) v_j                 g_i = sigmoid(W_g [x_i ; S_i])
    x <- x + W_o o ;  x <- x + MLP(LN x) ;  F' = F + W_out x     W_out = 0 at the start
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.models.config import SMDConfig
from ovsdino.ops import structure_attention


class SMDBlock(nn.Module):
    """One block of gated structure attention and an MLP."""

    def __init__(self, config: SMDConfig, structure_dim: int) -> None:
        super().__init__()
        c = self.config = config
        self.norm = nn.LayerNorm(c.width)
        self.query_key_value = nn.Linear(c.width, c.heads * (2 * c.head_dim + c.value_dim))
        if c.structure:
            self.structure = nn.Linear(structure_dim, c.heads * c.structure_rank)
            # softplus(-2) = 0.13, a hint at the start: with softplus(0) distances of about 10 would rule the softmax.
            self.lam = nn.Parameter(torch.full((c.heads,), -2.0))
        if c.gate:
            self.gate = nn.Linear(c.width + structure_dim, c.heads)
        self.out = nn.Linear(c.heads * c.value_dim, c.width)
        self.mlp_norm = nn.LayerNorm(c.width)
        hidden = int(c.width * c.mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(c.width, hidden), nn.GELU(), nn.Linear(hidden, c.width))

    def forward(self, x: Tensor, structure: Tensor) -> Tensor:
        """Map tokens x (B, N, width) to (B, N, width), by structure tokens S (B, N, structure_dim)."""
        c = self.config
        batch, tokens, _ = x.shape
        normed = self.norm(x)
        mixed = self.query_key_value(normed).view(batch, tokens, c.heads, -1).transpose(1, 2)
        q, k, v = mixed.split([c.head_dim, c.head_dim, c.value_dim], dim=-1)
        gate = None
        if c.gate:
            gate = self.gate(torch.cat([normed, structure], dim=-1)).sigmoid().transpose(1, 2)
        if c.structure:
            e = self.structure(structure).view(batch, tokens, c.heads, c.structure_rank).transpose(1, 2)
            attended = structure_attention(q, k, v, e, F.softplus(self.lam), gate)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
            attended = attended if gate is None else attended * gate.unsqueeze(-1)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, -1))
        return x + self.mlp(self.mlp_norm(x))


class StructureModulatedDecoder(nn.Module):
    """Map F and S to F' = F + W_out x; a fresh module returns F bit for bit."""

    def __init__(self, config: SMDConfig, embed_dim: int, structure_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, config.width)
        self.structure_norm = nn.LayerNorm(structure_dim)
        self.blocks = nn.ModuleList(SMDBlock(config, structure_dim) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, embed_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, structure: Tensor) -> Tensor:
        """Return F' (B, D, h, w) of features F (B, D, h, w) and structure tokens S (B, structure_dim, h, w)."""
        tokens = features.flatten(2).transpose(1, 2)
        structure = self.structure_norm(structure.flatten(2).transpose(1, 2))
        x = self.project(tokens)
        for block in self.blocks:
            x = block(x, structure)
        return (tokens + self.out(self.norm(x))).transpose(1, 2).reshape(features.shape)
