"""Memory of a CUDA device, and its side on the host."""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from ovsdino.errors import OVSDinoError, one_line

__all__ = ["Buffer", "Lease", "Pool", "as_bytes", "cuda_runtime", "ok"]


def cuda_runtime() -> Any:
    """Return the module `cuda.bindings.runtime`.

    Raises:
        OVSDinoError: cuda-python is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise OVSDinoError(
            f"cuda-python is missing ({one_line(error, 120)}): pip install cuda-python, of the release of the CUDA here"
        ) from error


class Buffer:
    """Memory on the device, and as much page-locked memory on the host once somebody asks for it.

    It grows, and never shrinks. A mapped buffer is one piece of memory for both sides, and copies are left out: where
    the GPU shares the CPU's memory, as on a Jetson, a copy is a second pass over the same chips.

    Args:
        cuda: The module of `cuda_runtime`.
        size: Bytes.
        mapped: One piece of memory for both sides; for integrated GPUs.
    """

    def __init__(self, cuda: Any, size: int = 0, *, mapped: bool = False) -> None:
        self._cuda, self._mapped = cuda, mapped
        self._size = 0
        self._host_address = 0
        self._host: np.ndarray | None = None
        self.device = 0
        self.fit(size)

    @property
    def host(self) -> np.ndarray:
        """The host's side, (size,) uint8."""
        if self._host is None:
            if not self._host_address and self._size:
                self._host_address = int(ok(self._cuda, self._cuda.cudaMallocHost(self._size)))
            self._host = _view(self._host_address, self._size)
        return self._host

    def fit(self, size: int) -> None:
        """Make room for `size` bytes; the content is lost if the buffer has to grow."""
        if size <= self._size:
            return
        cuda = self._cuda
        self.free()
        if self._mapped:
            self._host_address = int(ok(cuda, cuda.cudaHostAlloc(size, cuda.cudaHostAllocMapped)))
            self.device = int(ok(cuda, cuda.cudaHostGetDevicePointer(self._host_address, 0)))
        else:
            self.device = int(ok(cuda, cuda.cudaMalloc(size)))
        self._size = size

    def upload(self, size: int, stream: Any) -> None:
        """Bring the first bytes of the host's side to the device, where that is another memory."""
        if not self._mapped:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            ok(self._cuda, self._cuda.cudaMemcpyAsync(self.device, self._host_address, size, kind, stream))

    def download(self, size: int, stream: Any) -> None:
        """Bring the first bytes of the device's side to the host, likewise; there once the stream was waited for."""
        if not self._mapped and self.host.size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            ok(self._cuda, self._cuda.cudaMemcpyAsync(self._host_address, self.device, size, kind, stream))

    def read(self, size: int) -> np.ndarray:
        """Return the first bytes of the device's side on the host, (size,) uint8; wait until they are there."""
        if not self._mapped and self.host.size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            ok(self._cuda, self._cuda.cudaMemcpy(self._host_address, self.device, size, kind))
        return self.host[:size]

    def write(self, size: int) -> None:
        """Bring the first bytes of the host's side to the device, where that is another memory, and wait for it."""
        if not self._mapped and self.host.size:
            kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            ok(self._cuda, self._cuda.cudaMemcpy(self.device, self._host_address, size, kind))

    def free(self) -> None:
        """Give both sides back."""
        if self.device and not self._mapped:
            ok(self._cuda, self._cuda.cudaFree(self.device))
        if self._host_address:
            ok(self._cuda, self._cuda.cudaFreeHost(self._host_address))
        self.device = self._host_address = self._size = 0
        self._host = None

    def close(self) -> None:
        """Give everything back for good."""
        self.free()


def _view(address: int, size: int) -> np.ndarray:
    """Return memory of the host as (size,) uint8."""
    if not size:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


B = TypeVar("B", bound=Buffer)


class Lease(Generic[B]):
    """A buffer of a `Pool`, which goes back to it when nobody refers to the lease any more."""

    def __init__(self, pool: Pool[B], buffer: B) -> None:
        self.buffer = buffer
        weakref.finalize(self, pool.give, buffer).atexit = False


class Pool(Generic[B]):
    """Buffers that are used again and again, so that no frame allocates memory.

    Args:
        make: Makes an empty buffer.
    """

    def __init__(self, make: Callable[[], B]) -> None:
        self._make = make
        self._free: deque[B] = deque()  # its ends need no lock: a lease ends in any thread, at any moment
        self._closed = False

    def take(self, size: int) -> Lease[B]:
        """Return a buffer with room for `size` bytes; the one that was not used for longest."""
        try:
            buffer = self._free.popleft()
        except IndexError:
            buffer = self._make()
        lease = Lease(self, buffer)
        buffer.fit(size)
        return lease

    def give(self, buffer: B) -> None:
        """Take a buffer back."""
        if self._closed:
            buffer.close()
        else:
            self._free.append(buffer)

    def close(self) -> None:
        """Free the buffers, each when its lease ends."""
        self._closed = True
        while self._free:
            self._free.popleft().close()


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return a contiguous array's memory as (n,) uint8."""
    return array.reshape(-1).view(np.uint8)


def ok(cuda: Any, answer: tuple[Any, ...]) -> Any:
    """Return the result of a CUDA call.

    Raises:
        OVSDinoError: The call failed.
    """
    code, *result = answer
    if code != cuda.cudaError_t.cudaSuccess:
        text = cuda.cudaGetErrorString(code)[1]
        text = text.decode() if isinstance(text, bytes) else text
        raise OVSDinoError(f"CUDA: {code.name}: {text}")
    return result[0] if result else None
