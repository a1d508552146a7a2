"""Bring frames to a CUDA device on a stream of their own, so that a frame arrives while another is segmented."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from ovsdino.edge.cuda_memory import Buffer, Lease, Pool, as_bytes, ok

__all__ = ["Upload", "Uploads"]

AHEAD = 2  # frames of a camera that wait on the device: the one that is about to be segmented, and the one after it


class Upload(Buffer):
    """Memory of a frame on its way to the device. Mapped memory is there as soon as the host has written it."""

    def __init__(self, cuda: Any, *, mapped: bool) -> None:
        self._arrived: Any = None
        if not mapped:
            self._arrived = ok(cuda, cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming))
        super().__init__(cuda, mapped=mapped)

    def begin(self, pixels: np.ndarray, stream: Any) -> None:
        """Copy a contiguous frame into the host's side and begin to bring it to the device."""
        if self._arrived is not None:  # a frame that nobody wanted may still be on its way from here
            ok(self._cuda, self._cuda.cudaEventSynchronize(self._arrived))
        self.host[: pixels.nbytes] = as_bytes(pixels)
        self.upload(pixels.nbytes, stream)
        if self._arrived is not None:
            ok(self._cuda, self._cuda.cudaEventRecord(self._arrived, stream))

    def wait(self, stream: Any) -> None:
        """Let a stream wait until the frame is there; the host does not wait."""
        if self._arrived is not None:
            ok(self._cuda, self._cuda.cudaStreamWaitEvent(stream, self._arrived, 0))

    def close(self) -> None:
        """Give everything back for good, once the frame on its way is there."""
        if self._arrived is not None:
            ok(self._cuda, self._cuda.cudaEventSynchronize(self._arrived))
            ok(self._cuda, self._cuda.cudaEventDestroy(self._arrived))
            self._arrived = None
        super().close()


class Uploads:
    """The frames of cameras on their way to the device, and those that wait there.

    Args:
        cuda: The module of `ovsdino.edge.cuda_memory.cuda_runtime`.
        mapped: Frames are in memory of both sides, and nothing is copied: for integrated GPUs.
    """

    def __init__(self, cuda: Any, *, mapped: bool) -> None:
        self._cuda = cuda
        self._stream = ok(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._pool = Pool(lambda: Upload(cuda, mapped=mapped))
        self._lock = threading.Lock()  # frames come from the threads of cameras
        self._ahead: dict[int, deque[tuple[np.ndarray, Lease[Upload]]]] = {}

    def stage(self, pixels: np.ndarray, camera: int) -> None:
        """Begin to bring a frame to the device before it is asked for; of each camera the last two are kept."""
        lease = self._begin(pixels)
        with self._lock:
            self._ahead.setdefault(camera, deque(maxlen=AHEAD)).append((pixels, lease))

    def take(self, pixels: np.ndarray) -> Lease[Upload]:
        """Return a frame that was staged (this same array), or begin to bring it now."""
        with self._lock:
            for waiting in self._ahead.values():
                for place, (staged, lease) in enumerate(waiting):
                    if staged is pixels:
                        del waiting[place]
                        return lease
        return self._begin(pixels)

    def _begin(self, pixels: np.ndarray) -> Lease[Upload]:
        pixels = np.ascontiguousarray(pixels)
        lease = self._pool.take(pixels.nbytes)
        lease.buffer.begin(pixels, self._stream)
        return lease

    def close(self) -> None:
        """Free memory, events and stream."""
        ok(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))
        self._ahead.clear()
        self._pool.close()
        ok(self._cuda, self._cuda.cudaStreamDestroy(self._stream))
