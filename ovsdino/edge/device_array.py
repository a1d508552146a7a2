"""Hand out arrays in the memory of a CUDA device, which other libraries take without a copy.

`torch.from_dlpack`, `cupy.asarray` and `numba.cuda.as_cuda_array` read them by two protocols: DLPack
(dmlc.github.io/dlpack, its structures as of version 0.8) and the CUDA array interface, version 3
(numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html). No board or graphics card has run this yet.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ovsdino.edge.cuda_memory import Buffer, Lease

__all__ = ["DeviceArray", "DeviceFound", "DeviceSegmentation"]

CUDA = 2  # kDLCUDA
CODES = {"i": 0, "u": 1, "f": 2}  # DLDataTypeCode
UNUSED = b"dltensor"  # name of a capsule that nobody took yet


class DeviceArray:
    """A contiguous array on a CUDA device. What it holds is there: no stream has to be waited for.

    Its memory belongs to it and to all that was made of it without a copy, and is used for another image once the last
    of them is gone. A reader must be done with it by then: wait for your stream before you let go of the array.

    Attributes:
        shape: Of the array.
        dtype: Of the array.

    Args:
        lease: The memory, from its first byte on.
        shape: See above.
        dtype: See above.
        device: Index of the CUDA device.
    """

    device_type = CUDA

    def __init__(self, lease: Lease[Buffer], shape: tuple[int, ...], dtype: Any, device: int) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._lease, self._device = lease, device

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def address(self) -> int:
        """The device's address of the first element."""
        return self._lease.buffer.device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The description that `cupy.asarray` and `numba.cuda.as_cuda_array` read."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,  # contiguous, rows first
            "stream": None,  # nothing to wait for
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return the kind of the device, and its index."""
        return self.device_type, self._device

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return the capsule that `torch.from_dlpack` reads.

        Args:
            stream: Of the reader; it has nothing to wait for.
            max_version: Newest form that the reader takes; the capsule is of the first form, which all take.
            dl_device: Where the reader wants it; only where it is.
            copy: True is refused.

        Raises:
            BufferError: It is wanted elsewhere, or as a copy.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("an array on a CUDA device is lent where it is, and not copied")
        return _capsule(self)

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        return self._on_host(self._lease.buffer.read(self.nbytes)).copy()

    def change(self, change: Callable[[np.ndarray], object]) -> None:
        """Change the array in place by a function of what it holds, on the host.

        Where the memory is that of both sides, nothing is copied for it.

        Args:
            change: Takes the array on the host, and writes into it.
        """
        change(self._on_host(self._lease.buffer.read(self.nbytes)))
        self._lease.buffer.write(self.nbytes)

    def download(self, stream: Any) -> None:
        """Begin to bring it to the host; there once the stream was waited for, for `downloaded`."""
        self._lease.buffer.download(self.nbytes, stream)

    def downloaded(self) -> np.ndarray:
        """Return a copy of what `download` brought."""
        return self._on_host(self._lease.buffer.host[: self.nbytes]).copy()

    def _on_host(self, data: np.ndarray) -> np.ndarray:
        return data.view(self.dtype).reshape(self.shape)


class DeviceFound(NamedTuple):
    """The part of `Found` that a graph leaves on the device, see `ovsdino.edge.labels.Found`."""

    labels: DeviceArray
    confidence: DeviceArray | None
    sure: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class DeviceSegmentation:
    """The labels of an image, on the device.

    Attributes:
        labels: (H, W) uint8 or int16: the index into `names`, or K for a pixel that belongs to none of them.
        names: The K class names.
        confidence: (H, W) float32, the largest softmax probability of each pixel; None if it was not asked for.
        background: Whether pixels can have the label K.
        stages_ms: Milliseconds of each stage of this image.
    """

    labels: DeviceArray
    names: tuple[str, ...]
    confidence: DeviceArray | None = None
    background: bool = False
    stages_ms: dict[str, float] = field(default_factory=dict)


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Release))


_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Release)(
    ("PyCapsule_New", ctypes.pythonapi)
)
# by address: the references of a capsule in its destructor must not be counted
_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

_lent: dict[int, tuple[_Managed, Any, DeviceArray]] = {}  # by the address of the structure that a reader has


def _release(address: int) -> None:
    _lent.pop(address, None)


def _drop(capsule: int) -> None:
    """Take back what a capsule holds that nobody took."""
    if _is_capsule(capsule, UNUSED):
        _release(_address_in(capsule, UNUSED))


_DELETER, _DESTRUCTOR = _Release(_release), _Release(_drop)


def _capsule(array: DeviceArray) -> Any:
    """Return a capsule "dltensor" of an array, which lives until its reader calls the deleter."""
    sizes = (ctypes.c_int64 * len(array.shape))(*array.shape)
    kind = _DataType(CODES[array.dtype.kind], 8 * array.dtype.itemsize, 1)
    tensor = _Tensor(array.address, _Device(*array.__dlpack_device__()), len(array.shape), kind, sizes, None, 0)
    managed = _Managed(tensor, None, _DELETER)
    address = ctypes.addressof(managed)
    _lent[address] = (managed, sizes, array)
    return _new_capsule(address, UNUSED, _DESTRUCTOR)
