"""Score attention across frames: the labels of a video that do not flicker, without training.

With y the logits shown last, a the affinity of `ScoreAttention` (likewise of the frame shown last where primed), both
moved along the optical flow (`moved`), p positions in tokens, i the pixels of this frame at four times the grid and j
those of the last one in a window:

    w_ij = softmax_j(-strength |a_i - a'_j|^2 - strength gamma^2 |p_i - p_j|^2)
    g_i  = most exp(-tolerance |a_i - sum_j w_ij a'_j|^2)
    y_i  = (1 - g_i) x_i + g_i sum_j w_ij y'_j

This is structure attention whose keys are another frame's: the structure term finds what the flow left elsewhere. The
gate g is the likeness of a pixel and of what the memory found for it: something new has none, and keeps its
own logits x. Where the level, the mean likeness with `strictness` in the place of `tolerance`, is below `cut`, the
memory is of another scene, and the frame is left as it is, bit for bit. The memory is one frame's logits and
affinities, whatever the length of the video, since y' holds what came before it: a recursive mean, as the exponential
mean of logits is, but along the structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.models.score_attention import attended

__all__ = ["KeyFrames", "Memory", "MemoryConfig", "moved", "remembered"]

DENSITY = 4  # pixels of the guide along a token's side: queries and keys are all of them


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Settings of `remembered`, chosen for nano (docs/video.md).

    Attributes:
        most: Largest share of a pixel that the memory gives, 0..1.
        tolerance: Factor of the squared distance in the gate, >= 0; 0 leaves the gate open.
        strength: Factor of the squared distances in the softmax, > 0.
        gamma: Weight of the distance, per token.
        reach: Tokens that every pixel sees at least, in all directions.
        strictness: Factor of the squared distance in the level, > 0.
        cut: Level below which the frame begins another scene, 0..1.
        flow: Whether the memory moves along the optical flow (`ovsdino.flow`), which needs OpenCV.
    """

    most: float = 0.98
    tolerance: float = 1.0
    strength: float = 10.0
    gamma: float = 0.3
    reach: int = 1
    strictness: float = 1.6
    cut: float = 0.77
    flow: bool = True


@dataclass(frozen=True, kw_only=True)
class KeyFrames:
    """Say which frames of a video are encoded; the others take their labels from the memory, `moved` by the flow.

    Attributes:
        every: Frames from one key frame to the next at most, >= 1; 1 encodes all.
        level: Share of the image that the flow must explain (`ovsdino.flow.Followed`), below which a frame becomes a
            key frame, 0..1. Neighboring frames of CamVid's clip have 0.97 or more, cuts between streets 0.79 at most.
    """

    every: int = 2
    level: float = 0.85

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.level <= 1:
            raise ValueError(f"every is {self.every} and level {self.level}: expected >= 1 and 0..1")


@dataclass(frozen=True)
class Memory:
    """State after a frame.

    Attributes:
        logits: y, (B, K, 4h, 4w) float32.
        affinity: a, (B, C, 4h, 4w) float32.
    """

    logits: Tensor
    affinity: Tensor


def remembered(
    logits: Tensor,
    affinity: Tensor,
    memory: Memory | None,
    config: MemoryConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Memory, Tensor]:
    """Return the memory after a frame, whose `logits` are the frame's steady ones, and how well the frame was known.

    Args:
        logits: x, (B, K, 4h, 4w) floating, of this frame alone.
        affinity: a, (B, C, 4h, 4w), see `ScoreAttention.embed`.
        memory: After the frame before; None at the beginning.
        config: Settings; None takes the defaults.
        dtype: Of the attention's products and of its softmax; the rest is float32.

    Returns:
        The memory, and the level of each image, (B,) float32: 0 at a beginning, and 1 in a still.

    Raises:
        ValueError: The shapes do not fit each other or the memory.
    """
    config = config or MemoryConfig()
    x, a = logits.float(), affinity.float()
    if x.ndim != 4 or a.ndim != 4 or x.shape[2:] != a.shape[2:] or x.shape[0] != a.shape[0]:
        raise ValueError(f"logits {tuple(logits.shape)} and affinity {tuple(affinity.shape)}: expected one grid")
    if memory is None:
        return Memory(x, a), x.new_zeros(x.shape[0])
    if memory.logits.shape != x.shape or memory.affinity.shape != a.shape:
        raise ValueError(
            f"memory of logits {tuple(memory.logits.shape)} and affinity {tuple(memory.affinity.shape)}: expected "
            f"{tuple(x.shape)} and {tuple(a.shape)}"
        )
    found, distance = _found(a, memory, config, dtype)
    level = _level(distance, config)
    known = (level >= config.cut).to(x.dtype)[:, None, None, None]
    gate = config.most * known * torch.exp(-config.tolerance * distance)
    # a sum and no lerp: with a shut gate x + 0 is x, bit for bit
    return Memory(x + gate * (found - x), a), level


def moved(memory: Memory, places: Tensor) -> Memory:
    """Return the memory as it would be seen from the next frame, each cell read bicubically where it was.

    Bilinear reads take 0.5 points of mIoU and 1 of boundary F1 more where every second frame is a key frame.

    Args:
        memory: After the frame before.
        places: (B, 4h, 4w, 2) float32, x and y in cells, see `ovsdino.flow.Followed`.
    """
    both = torch.cat([memory.affinity, memory.logits], 1)
    channels, sides = memory.affinity.shape[1], both.new_tensor([both.shape[3], both.shape[2]])
    at = (2 * places + 1) / sides - 1
    found = F.grid_sample(both, at, mode="bicubic", padding_mode="border", align_corners=False)
    return Memory(found[:, channels:], found[:, :channels])


def _found(
    a: Tensor, memory: Memory, config: MemoryConfig, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return sum_j w_ij y'_j, (B, K, 4h, 4w), and |a_i - sum_j w_ij a'_j|^2, (B, 1, 4h, 4w)."""
    channels = a.shape[1]
    values = torch.cat([memory.affinity, memory.logits], 1)  # the fixed number first: exported slices are constant
    queries, keys, values = a.to(dtype), memory.affinity.to(dtype), values.to(dtype)
    found = attended(queries, keys, values, config.gamma, config.strength, config.reach, DENSITY).float()
    distance = (a - found[:, :channels]).square().sum(1, keepdim=True)
    return found[:, channels:], distance


def _level(distance: Tensor, config: MemoryConfig) -> Tensor:
    return torch.exp(-config.strictness * distance).mean((1, 2, 3))
