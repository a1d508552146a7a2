"""State of a graph with a memory between two frames, moved from one to the other along the optical flow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import beginning
from ovsdino.flow import Flow

__all__ = ["FrameState"]


class FrameState:
    """The state of one video between two runs of its graph; empty for a graph without a memory.

    Attributes:
        inputs: `last_logits` (1, K, 4h, 4w) and `last_affinity` (1, C, 4h, 4w), float32, for the next run.

    Args:
        sidecar: The graph's sidecar.

    Raises:
        OVSDinoError: The graph has a memory, and OpenCV is not installed.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._flow = None if sidecar.memory is None else Flow()
        self.inputs: dict[str, np.ndarray] = {}

    def reset(self, classes: int) -> None:
        """Begin a video.

        Args:
            classes: K of the text bank.
        """
        self.inputs = beginning(self._sidecar, classes)
        if self._flow is not None:
            self._flow.reset()

    def follow(self, pixels: np.ndarray, size: tuple[int, int]) -> None:
        """Move the state to the next frame, before its run.

        Args:
            pixels: (H, W, 3) uint8 RGB, or NV12, (1.5 H, W) uint8.
            size: (H, W).
        """
        if self._flow is None:
            return
        frame = pixels[: size[0]] if pixels.ndim == 2 else pixels
        height, width = self.inputs["last_logits"].shape[2:]
        found = self._flow.follow(frame, self._sidecar.input[2:], (height, width))
        if found is not None:
            self.inputs = {name: self._flow.moved(maps[0], found.places)[None] for name, maps in self.inputs.items()}

    def take(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Keep `logits` and `affinity` of a run for the next one."""
        if self._flow is not None:
            self.inputs = {f"last_{name}": outputs[name] for name in ("logits", "affinity")}
