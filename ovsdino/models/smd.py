"""Structure-Modulated Decoder (SMD): structure attention on the patch tokens behind a preservation gate.

OVS-DINO (arXiv 2604.08461) names the module; the algebra is this project's. For head m, with e_i = W_e S_i centered
over the tokens and scaled so that the mean of |e_i|^2 is 1:

    logit_ij = q_i . k_j / sqrt(d) - lambda_m |e_i - e_j|^2      lambda_m = exp(l_m)
    x <- x + W_o softmax(logit) v ;  x <- x + MLP(LN x)
    F'_i = F_i + g_i W_out LN x_i                                g_i = sigmoid(w_g . [LN x_i ; S_i] + b_g)

W_out is zero at the start, and b_g is -2. Where the gate is shut (g = 0), F' is F bit for bit, whatever was learned.
The mean of lambda_m |e_i - e_j|^2 over all pairs of tokens is 2 lambda_m: of what the term does, W_e has the direction
and lambda the size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.models.config import SMDConfig
from ovsdino.ops import structure_attention

SHUT = -2.0  # b_g at the start: g = 0.12
SMALL = 1e-6  # added to the variance of e: a grid of one token has none


class SMDBlock(nn.Module):
    """One block of structure attention and an MLP."""

    def __init__(self, config: SMDConfig, structure_dim: int) -> None:
        super().__init__()
        c = self.config = config
        self.norm = nn.LayerNorm(c.width)
        self.query_key_value = nn.Linear(c.width, c.heads * (2 * c.head_dim + c.value_dim))
        if c.structure:
            # A shift common to all tokens does not change their distances, so the bias would learn nothing.
            self.structure = nn.Linear(structure_dim, c.heads * c.structure_rank, bias=False)
            # A hint at the start: a mean of 1 over the pairs.
            self.log_lambda = nn.Parameter(torch.full((c.heads,), math.log(0.5)))
        self.out = nn.Linear(c.heads * c.value_dim, c.width)
        self.mlp_norm = nn.LayerNorm(c.width)
        hidden = int(c.width * c.mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(c.width, hidden), nn.GELU(), nn.Linear(hidden, c.width))

    def forward(self, x: Tensor, structure: Tensor) -> Tensor:
        """Map tokens x (B, N, width) to (B, N, width), by structure tokens S (B, N, structure_dim)."""
        c = self.config
        batch, tokens, _ = x.shape
        mixed = (
            self.query_key_value(self.norm(x))
            .view(batch, tokens, c.heads, 2 * c.head_dim + c.value_dim)
            .transpose(1, 2)
        )
        q, k, v = mixed.split([c.head_dim, c.head_dim, c.value_dim], dim=-1)
        if c.structure:
            attended = structure_attention(q, k, v, self.embed(structure), self.strength())
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))

    def embed(self, structure: Tensor) -> Tensor:
        """Return e (B, heads, N, r) of structure tokens S (B, N, structure_dim)."""
        c, (batch, tokens, _) = self.config, structure.shape
        e: Tensor = self.structure(structure).view(batch, tokens, c.heads, c.structure_rank).transpose(1, 2)
        return unit_variance(e)

    def strength(self) -> Tensor:
        """Return lambda, (heads,)."""
        return self.log_lambda.exp()


class StructureModulatedDecoder(nn.Module):
    """Map F and S to F' = F + g W_out x; a fresh module returns F bit for bit."""

    def __init__(self, config: SMDConfig, embed_dim: int, structure_dim: int) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(embed_dim, config.width)
        self.structure_norm = nn.LayerNorm(structure_dim)
        self.blocks = nn.ModuleList(SMDBlock(config, structure_dim) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        if config.gate == "output":
            self.gate = nn.Linear(config.width + structure_dim, 1)
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, SHUT)
        self.out = nn.Linear(config.width, embed_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, structure: Tensor) -> Tensor:
        """Return F' (B, D, h, w) of features F (B, D, h, w) and structure tokens S (B, structure_dim, h, w)."""
        tokens = features.flatten(2).transpose(1, 2)
        x, structure = self._decoded(tokens, structure)
        change = self.out(x)
        if self.config.gate == "output":
            change = self._gate(x, structure) * change
        return (tokens + change).transpose(1, 2).reshape(features.shape)

    def gate_map(self, features: Tensor, structure: Tensor) -> Tensor:
        """Return g (B, 1, h, w) of what `forward` takes.

        Raises:
            ValueError: The decoder has no gate of its output.
        """
        if self.config.gate != "output":
            raise ValueError(f"the gate is {self.config.gate!r}: only one of the output has a map")
        gate = self._gate(*self._decoded(features.flatten(2).transpose(1, 2), structure))
        return gate.transpose(1, 2).reshape(len(features), 1, *features.shape[2:])

    def distances(self, structure: Tensor) -> Tensor:
        """Return lambda |e_i - e_j|^2 of all pairs of tokens, of structure tokens S (B, structure_dim, h, w).

        Returns:
            (B, blocks heads, N, N) float32.
        """
        structure = self.structure_norm(structure.flatten(2).transpose(1, 2))
        found = []
        for block in self.blocks:
            assert isinstance(block, SMDBlock)
            e = block.embed(structure).float()
            size = e.square().sum(-1)
            squared = (size[..., None] + size[..., None, :] - 2 * e @ e.transpose(-2, -1)).clamp_min(0)
            found.append(block.strength()[:, None, None] * squared)
        return torch.cat(found, 1)

    def _decoded(self, tokens: Tensor, structure: Tensor) -> tuple[Tensor, Tensor]:
        """Return the blocks' tokens and S, both normalized, (B, N, width) and (B, N, structure_dim)."""
        structure = self.structure_norm(structure.flatten(2).transpose(1, 2))
        x = self.project(tokens)
        for block in self.blocks:
            x = block(x, structure)
        return self.norm(x), structure

    def _gate(self, x: Tensor, structure: Tensor) -> Tensor:
        """Return g, (B, N, 1)."""
        gate: Tensor = self.gate(torch.cat([x, structure], dim=-1)).sigmoid()
        return gate


def unit_variance(e: Tensor) -> Tensor:
    """Return e (B, heads, N, r) in float32, centered over the tokens, the mean of |e_i|^2 being 1 for each head."""
    e = e.float()
    e = e - e.mean(2, keepdim=True)
    return e * (e.square().sum(-1, keepdim=True).mean(2, keepdim=True) + SMALL).rsqrt()
