"""Ways to make the logits of a clip steady: the memory, its controls, and what it must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.eval.flow import Motion
from ovsdino.models.memory import Memory, MemoryConfig, remembered

__all__ = ["EncodedClip", "control", "exponential", "flow_mean", "steady", "without_structure"]


@dataclass(frozen=True)
class EncodedClip:
    """A clip behind the network.

    Attributes:
        logits: (T, K, 4h, 4w) float32, of each frame alone.
        affinity: (T, C, 4h, 4w) float32, see `ScoreAttention.embed`.
        motions: T - 1, from each frame to the next.
    """

    logits: Tensor
    affinity: Tensor
    motions: Sequence[Motion]


def steady(clip: EncodedClip, config: MemoryConfig | None = None) -> Tensor:
    """Return the logits (T, K, 4h, 4w) with the memory of `ovsdino.models.memory`."""
    return _run(clip, lambda step, memory: memory, config or MemoryConfig())


def without_structure(clip: EncodedClip, config: MemoryConfig | None = None) -> Tensor:
    """Return the logits where affinities are all alike: the same window and share, and nothing told apart."""
    blank = replace(clip, affinity=torch.zeros_like(clip.affinity))
    return _run(blank, lambda step, memory: memory, config or MemoryConfig())


def control(clip: EncodedClip, other: EncodedClip, order: Tensor, config: MemoryConfig | None = None) -> Tensor:
    """Return the logits where the memory of each frame is a frame of another clip, or of another time.

    Args:
        clip: The frames.
        other: Where the memories are taken from; of the same size and classes.
        order: (T,) indices into `other`.
        config: See `steady`.
    """

    def taken(step: int, memory: Memory) -> Memory:
        index = int(order[step])
        return Memory(other.logits[index : index + 1], other.affinity[index : index + 1])

    return _run(clip, taken, config or MemoryConfig())


def _run(clip: EncodedClip, swap: Callable[[int, Memory], Memory], config: MemoryConfig) -> Tensor:
    memory: Memory | None = None
    found = []
    with torch.inference_mode():
        for step, (x, a) in enumerate(zip(clip.logits.split(1), clip.affinity.split(1), strict=True)):
            memory, _ = remembered(x, a, None if memory is None else swap(step, memory), config)
            found.append(memory.logits)
    return torch.cat(found)


def exponential(clip: EncodedClip, share: float) -> Tensor:
    """Return the exponential mean of the logits at each pixel: y = share y' + (1 - share) x."""
    found = [clip.logits[0]]
    for x in clip.logits[1:]:
        found.append(torch.lerp(x, found[-1], share))
    return torch.stack(found)


def flow_mean(clip: EncodedClip, share: float) -> Tensor:
    """Return the exponential mean along optical flow: y' is read where a pixel came from, if the flow is reliable."""
    height, width = clip.logits.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = [clip.logits[0]]
    for x, moved in zip(clip.logits[1:], clip.motions, strict=True):
        size = moved.back.shape[:2]
        flow = torch.from_numpy(moved.back).permute(2, 0, 1)[None]
        flow = F.interpolate(flow, (height, width), mode="area")[0]
        sure = F.interpolate(torch.from_numpy(moved.reliable).float()[None, None], (height, width), mode="area")[0]
        x_at = columns + flow[0] * (width / size[1])
        y_at = rows + flow[1] * (height / size[0])
        grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y_at + 1) / height - 1], -1)[None]
        before = F.grid_sample(found[-1][None], grid, padding_mode="border", align_corners=False)[0]
        found.append(torch.lerp(x, before, share * sure))
    return torch.stack(found)
