"""The state of an engine with a memory: moved on the host between two frames, bound on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovsdino.edge.cuda_memory import Buffer, as_bytes
from ovsdino.edge.frame_state import FrameState
from ovsdino.edge.sidecar import Sidecar

__all__ = ["DeviceState"]


class DeviceState:
    """`FrameState` in buffers of a device; nothing at all for an engine without a memory.

    The state is a megabyte of eleven words, which comes down and goes up again with each frame: the flow that moves it
    is the host's.

    Args:
        cuda: The module of CUDA's runtime.
        sidecar: The engine's sidecar.
        mapped: The buffers are memory of both sides.
    """

    def __init__(self, cuda: Any, sidecar: Sidecar, *, mapped: bool) -> None:
        self._state = FrameState(sidecar)
        names = ("last_logits", "last_affinity", "affinity") if sidecar.memory is not None else ()
        self.buffers = {name: Buffer(cuda, mapped=mapped) for name in names}
        self._classes = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the inputs that the state is."""
        return {name: maps.shape for name, maps in self._state.inputs.items()}

    def reset(self, classes: int) -> None:
        """Begin a video, see `FrameState.reset`."""
        self._classes = classes
        self._state.reset(classes)
        for name, maps in self._state.inputs.items():
            self.buffers[name].fit(maps.nbytes)
        if self.buffers:
            self.buffers["affinity"].fit(self._state.inputs["last_affinity"].nbytes)

    def follow(self, pixels: np.ndarray, size: tuple[int, int]) -> None:
        """Move the state to the next frame, see `FrameState.follow`."""
        self._state.follow(pixels, size)

    def upload(self, stream: Any) -> None:
        """Bring the state to the device, before the engine runs."""
        for name, maps in self._state.inputs.items():
            buffer = self.buffers[name]
            buffer.host[: maps.nbytes] = as_bytes(np.ascontiguousarray(maps))
            buffer.upload(maps.nbytes, stream)

    def download(self, logits: Buffer, stream: Any) -> None:
        """Bring what the engine gave to the host; it is there once the stream was waited for."""
        if self.buffers:
            logits.download(self._state.inputs["last_logits"].nbytes, stream)
            self.buffers["affinity"].download(self._state.inputs["last_affinity"].nbytes, stream)

    def take(self, logits: Buffer) -> None:
        """Keep what `download` brought for the next frame; NaN or infinite logits begin a video anew."""
        if not self.buffers:
            return
        found = {}
        for name, buffer in (("logits", logits), ("affinity", self.buffers["affinity"])):
            like = self._state.inputs[f"last_{name}"]
            found[name] = buffer.host[: like.nbytes].view(np.float32).reshape(like.shape).copy()
        if all(np.isfinite(maps).all() for maps in found.values()):
            self._state.take(found)
        else:
            self.reset(self._classes)

    def close(self) -> None:
        """Free the buffers."""
        for buffer in self.buffers.values():
            buffer.close()
