"""Structure attention below the token: class scores of a grid, carried to pixels along an affinity of the guide."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.models.config import ScoreAttentionConfig
from ovsdino.ops.compat import attention, exporting

__all__ = ["ScoreAttention", "attended", "score_attention"]

KEYS = 2  # keys along a token's side
LARGEST_HEAD = 64  # of the flash kernel's values: with more classes the zeros that fill q and k cost more than it saves
OUTSIDE = -1e9  # logit of a key beyond the border: below those of keys however unlike, and no infinity meets a 0
OUTSIDE_HALF = -3e4  # likewise in float16; a graph's memory begins with logits above -2.6e4 (`ovsdino.edge.tensors`)
HEADS = (32, 64)  # of TensorRT's fused attention in float16, whose queries, keys and values have one size


def score_attention(
    scores: Tensor,
    embedding: Tensor,
    *,
    gamma: Tensor | float = 0.5,
    strength: Tensor | float = 1.0,
    reach: int = 4,
    query_stride: int = 1,
    rounds: int = 1,
) -> Tensor:
    """Upsample class scores: each pixel takes the mean of the scores near it, weighed by likeness and by distance.

    With a the embedding, p positions in tokens, e = [a, gamma p], i the fine pixels and j the keys, two along a token's
    side, at which a is pooled and the scores s are interpolated:

        out_i = sum_j softmax_j(-strength |e_i - e_j|^2) s_j

    This is structure attention without queries and keys of its own. |e_i|^2 is left out, since it cancels in the
    softmax, so the logits are one dot product, [2 e_i, 1] . [e_j, -|e_j|^2]. Pixels attend in tiles: those of a tile of
    reach x reach tokens see the keys of 3 x 3 tiles around. Scores of different classes do not meet.

    Args:
        scores: (B, K, h, w) floating.
        embedding: (B, C, f*h, f*w), f a multiple of two, such as 4.
        gamma: Weight of the distance, per token.
        strength: Factor of the squared distance, >= 0.
        reach: Side of a tile in tokens; every pixel sees at least so far.
        query_stride: 1 attends at every pixel; 2 at half of them, both ways, which are then upsampled bilinearly.
        rounds: 2 takes the keys' scores from a first round among the keys.

    Returns:
        (B, K, f*h, f*w) in float32, computed in it.

    Raises:
        ValueError: A shape or a number does not fit.
    """
    scale = _check(scores, embedding, reach, query_stride, rounds)
    fine = embedding.float()
    keys = F.avg_pool2d(fine, scale // KEYS) if scale > KEYS else fine
    values = F.interpolate(scores.float(), scale_factor=float(KEYS), mode="bilinear", align_corners=False)
    queries = F.avg_pool2d(fine, query_stride) if query_stride > 1 else fine
    for step in range(rounds):
        values = attended(queries if step == rounds - 1 else keys, keys, values, gamma, strength, reach)
    if query_stride > 1:
        values = F.interpolate(values, scale_factor=float(query_stride), mode="bilinear", align_corners=False)
    return values


def _check(scores: Tensor, embedding: Tensor, reach: int, query_stride: int, rounds: int) -> int:
    """Return f, or raise ValueError."""
    if scores.ndim != 4 or embedding.ndim != 4 or scores.shape[0] != embedding.shape[0]:
        raise ValueError(
            f"scores must be (B, K, h, w) and embedding (B, C, f*h, f*w), got {tuple(scores.shape)} and "
            f"{tuple(embedding.shape)}"
        )
    height, width = scores.shape[2:]
    scale = embedding.shape[2] // height
    if scale < KEYS or scale % KEYS or embedding.shape[2:] != (scale * height, scale * width):
        raise ValueError(
            f"embedding must be an even multiple of the grid {height}x{width}, got {tuple(embedding.shape[2:])}"
        )
    if reach < 1 or rounds < 1 or query_stride not in (1, 2):
        raise ValueError(
            f"reach and rounds must be >= 1 and query_stride 1 or 2, got {reach}, {rounds} and {query_stride}"
        )
    return scale


def attended(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    gamma: Tensor | float,
    strength: Tensor | float,
    reach: int,
    per_token: int = KEYS,
) -> Tensor:
    """Return the keys' values, seen from the queries: the sum of `score_attention`. Both may be of two frames.

    Args:
        queries: (B, C, s*h, s*w), s along a token's side.
        keys: (B, C, n*h, n*w).
        values: (B, K, n*h, n*w).
        gamma: See `score_attention`.
        strength: See `score_attention`.
        reach: See `score_attention`.
        per_token: n.

    Returns:
        (B, K, s*h, s*w) in the dtype of the keys.
    """
    h, w = keys.shape[2] // per_token, keys.shape[3] // per_token
    density = queries.shape[2] // h
    tiles = ((h + reach - 1) // reach, (w + reach - 1) // reach)  # a tracer truncates a negative quotient
    root = torch.as_tensor(strength, dtype=keys.dtype, device=keys.device).sqrt()
    q = _tiled(queries, density * reach, tiles) * root
    k = _windows(keys, per_token * reach, tiles) * root
    v = _windows(values, per_token * reach, tiles)
    at_q = root * gamma * _positions(reach, density, reach, keys)
    at_k = root * gamma * _positions(reach, per_token, 3 * reach, keys)
    beyond = OUTSIDE_HALF if keys.dtype == torch.float16 else OUTSIDE
    outside = beyond * (1 - _windows(torch.ones_like(keys[:1, :1]), per_token * reach, tiles))
    column = outside - k.square().sum(-1, keepdim=True) - at_k.square().sum(-1, keepdim=True)
    batch, count = keys.shape[0], tiles[0] * tiles[1]
    one = torch.ones_like(q[..., :1])
    folded_q = torch.cat([2 * q, (2 * at_q).expand(batch, count, -1, -1), one], -1)
    folded_k = torch.cat([k, at_k.expand(batch, count, -1, -1), column], -1)
    out = _weighed(folded_q, folded_k, v)
    return _untiled(out, density * reach, tiles)[:, :, : queries.shape[2], : queries.shape[3]]


def _weighed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T) v of tiles (B, n, N, d), (B, n, M, d) and (B, n, M, K): (B, n, N, K).

    At inference on a CPU by the flash kernel, which takes one head size: nano's 28 MB of logits never are in memory,
    and its eleven words take 11 ms of one core in place of 23. A float16 graph has zeros up to a size of `HEADS`, where
    the number of classes is fixed.
    """
    sides = (q.shape[-1], v.shape[-1])
    if exporting() and q.dtype == torch.float16 and type(sides[1]) is int and max(sides) <= HEADS[-1]:
        size = next(head for head in HEADS if head >= max(sides))
        q, k, v = (F.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v)[..., : sides[1]]
    if q.device.type != "cpu" or torch.is_grad_enabled() or exporting() or not q.numel() or sides[1] > LARGEST_HEAD:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v
    size = max(sides)
    q, k, v = (F.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
    return attention(q, k, v)[..., : sides[1]]


def _positions(reach: int, density: int, side: int, like: Tensor) -> Tensor:
    """Return (n, 2) positions in tokens of a square of `side` tokens, from its center, row by row."""
    at = (torch.arange(density * side, dtype=like.dtype, device=like.device) + 0.5) / density - side / 2
    return torch.stack([at[:, None].expand(-1, len(at)), at[None].expand(len(at), -1)], -1).flatten(0, 1)


def _tiled(x: Tensor, side: int, tiles: tuple[int, int]) -> Tensor:
    """Return (B, tiles, side^2, C) of x (B, C, H, W), zeros beyond its lower and right border."""
    batch, channels, height, width = x.shape
    rows, columns = tiles
    x = F.pad(x, (0, columns * side - width, 0, rows * side - height))
    x = x.view(batch, channels, rows, side, columns, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, side * side, channels)


def _untiled(x: Tensor, side: int, tiles: tuple[int, int]) -> Tensor:
    """Return (B, C, H, W) of tiles (B, tiles, side^2, C)."""
    rows, columns = tiles
    batch, channels = x.shape[0], x.shape[-1]
    x = x.view(batch, rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, rows * side, columns * side)


def _windows(x: Tensor, side: int, tiles: tuple[int, int]) -> Tensor:
    """Return (B, tiles, 9 side^2, C): each tile of x (B, C, H, W) with the eight around it, zeros beyond the border."""
    batch, channels, height, width = x.shape
    rows, columns = tiles
    x = F.pad(x, (side, (columns + 1) * side - width, side, (rows + 1) * side - height))
    x = x.view(batch, channels, rows + 2, side, columns + 2, side)
    x = torch.cat([x[:, :, i : i + rows] for i in range(3)], 3)
    x = torch.cat([x[:, :, :, :, i : i + columns] for i in range(3)], 5)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, 9 * side * side, channels)


class ScoreAttention(nn.Module):
    """Bring coarse logits L to pixels: `score_attention` along an affinity of the guide, a = W_a G.

        logits = lerp(bilinear(L), score_attention(L; a), mix)

    `mix` is zero at the start, unless the configuration says otherwise. lambda = exp(l), the factor of the squared
    distances, and gamma, that of positions, are learned; lambda starts at 3.

    Args:
        config: Reach, strides and channels.
        guide_dim: Channels of the guide.
    """

    def __init__(self, config: ScoreAttentionConfig, guide_dim: int) -> None:
        super().__init__()
        self.config = config
        if config.structure:
            self.affinity = nn.Conv2d(guide_dim, config.affinity_dim, 1, bias=False)
        self.log_lambda = nn.Parameter(torch.tensor(3.0).log())
        self.gamma = nn.Parameter(torch.tensor(config.gamma))
        self.mix = nn.Parameter(torch.tensor(float(config.mix)))

    def embed(self, guide: Tensor) -> Tensor:
        """Return the affinity a of a guide (B, C, H, W): pixels i and j belong together by exp(-|a_i - a_j|^2).

        Returns:
            (B, affinity_dim, H, W) float32; zeros in one channel where the configuration has no structure.
        """
        if not self.config.structure:
            return torch.zeros_like(guide[:, :1], dtype=torch.float32)
        affinity: Tensor = self.affinity(guide)
        return affinity.float()

    def forward(self, coarse: Tensor, fine: Tensor, guide: Tensor) -> Tensor:
        """Return logits of the guide's size.

        Args:
            coarse: L, (B, K, h, w).
            fine: bilinear(L), (B, K, 4h, 4w).
            guide: G, (B, C, 4h, 4w).

        Returns:
            (B, K, 4h, 4w) in the dtype of `fine`.
        """
        c = self.config
        with _without_autocast(coarse.device.type):
            sharp = score_attention(
                coarse,
                self.embed(guide.to(self.mix.dtype)),
                gamma=self.gamma,
                strength=self.log_lambda.exp(),
                reach=c.reach,
                query_stride=c.query_stride,
                rounds=c.rounds,
            )
        return torch.lerp(fine, sharp.to(fine.dtype), self.mix.to(fine.dtype))


def _without_autocast(kind: str) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast; nothing where there is none, since a tracer would record it."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
