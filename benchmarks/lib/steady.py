"""Ways to make the logits of a clip steady: the memory, its controls, and what it must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.eval.flow import Motion
from ovsdino.flow import Flow
from ovsdino.models.memory import Memory, MemoryConfig, moved, remembered

__all__ = ["EncodedClip", "control", "exponential", "flow_mean", "followed", "steady", "without_structure"]


@dataclass(frozen=True)
class EncodedClip:
    """A clip behind the network.

    Attributes:
        logits: (T, K, 4h, 4w) float32, of each frame alone.
        affinity: (T, C, 4h, 4w) float32, see `ScoreAttention.embed`.
        motions: T - 1, from each frame to the next.
        images: T of (H, W, 3) uint8 RGB, by which the memory moves; empty: it stays where it is.
    """

    logits: Tensor
    affinity: Tensor
    motions: Sequence[Motion]
    images: Sequence[np.ndarray] = ()

    def memory(self, index: int) -> Memory:
        """Return the memory of one frame alone."""
        return Memory(self.logits[index : index + 1], self.affinity[index : index + 1])

    def every(self, step: int) -> EncodedClip:
        """Return the clip with one frame of so many."""
        return EncodedClip(self.logits[::step], self.affinity[::step], [], self.images[::step])


def steady(clip: EncodedClip, config: MemoryConfig | None = None) -> Tensor:
    """Return the logits (T, K, 4h, 4w) with the memory of `ovsdino.models.memory`."""
    return _run(clip, clip, lambda step: (step - 1, None), config or MemoryConfig())


def without_structure(clip: EncodedClip, config: MemoryConfig | None = None) -> Tensor:
    """Return the logits where affinities are all alike: the same window and share, and nothing told apart."""
    return steady(replace(clip, affinity=torch.zeros_like(clip.affinity)), config)


def control(clip: EncodedClip, other: EncodedClip, order: Tensor, config: MemoryConfig | None = None) -> Tensor:
    """Return the logits where the memory of each frame is a frame of another clip, or of another time.

    Args:
        clip: The frames.
        other: Where the memories are taken from; of the same size and classes.
        order: (T,) indices into `other`.
        config: See `steady`.
    """

    def taken(step: int) -> tuple[int, Memory]:
        index = int(order[step])
        return index, other.memory(index)

    return _run(clip, other, taken, config or MemoryConfig())


def followed(memory: Memory, before: np.ndarray, now: np.ndarray) -> Memory:
    """Return the memory of one image as it is moved to another by the flow between them."""
    height, width = memory.logits.shape[2:]
    flow, size = Flow(), (4 * height, 4 * width)
    flow.follow(before, size, (height, width))
    found = flow.follow(now, size, (height, width))
    return memory if found is None else moved(memory, torch.from_numpy(found.places)[None])


def _run(
    clip: EncodedClip, other: EncodedClip, swap: Callable[[int], tuple[int, Memory | None]], config: MemoryConfig
) -> Tensor:
    """Return steady logits; `swap` tells the frame of `other` before each, and its memory where it is not the own."""
    memory: Memory | None = None
    found = []
    with torch.inference_mode():
        for step, (x, a) in enumerate(zip(clip.logits.split(1), clip.affinity.split(1), strict=True)):
            if memory is not None:
                index, foreign = swap(step)
                memory = foreign or memory
                if config.flow and clip.images:
                    memory = followed(memory, other.images[index], clip.images[step])
            memory, _ = remembered(x, a, memory, config)
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
    for x, way in zip(clip.logits[1:], clip.motions, strict=True):
        size = way.back.shape[:2]
        flow = torch.from_numpy(way.back).permute(2, 0, 1)[None]
        flow = F.interpolate(flow, (height, width), mode="area")[0]
        sure = F.interpolate(torch.from_numpy(way.reliable).float()[None, None], (height, width), mode="area")[0]
        x_at = columns + flow[0] * (width / size[1])
        y_at = rows + flow[1] * (height / size[0])
        grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y_at + 1) / height - 1], -1)[None]
        before = F.grid_sample(found[-1][None], grid, padding_mode="border", align_corners=False)[0]
        found.append(torch.lerp(x, before, share * sure))
    return torch.stack(found)
