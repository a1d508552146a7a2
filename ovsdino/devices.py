"""The device and the dtype of a model, and one line for a CPU whose memory is out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ovsdino.errors import OVSDinoError, one_line, out_of_memory
from ovsdino.models.folded import computes_bfloat16

__all__ = ["autocast_dtype", "check_device", "said_when_memory_is_out"]


def check_device(device: str | torch.device | None) -> torch.device:
    """Return the device of a name; for None CUDA if there is one, else the CPU.

    Raises:
        OVSDinoError: There is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise OVSDinoError(f"unknown device {str(device)!r}: expected cpu, cuda or cuda:N") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise OVSDinoError(
            f"device {str(device)!r}: this machine shows {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if place.type not in ("cpu", "cuda", "mps") or (place.type == "mps" and not torch.backends.mps.is_available()):
        raise OVSDinoError(f"device {str(device)!r} is not available here: expected cpu, cuda or cuda:N")
    return place


@contextlib.contextmanager
def said_when_memory_is_out() -> Iterator[None]:
    """Give memory that ran out on the CPU one line; CUDA's error has its own type, which passes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not out_of_memory(error):
            raise
        raise OVSDinoError(
            f"out of memory ({one_line(error, 100) or type(error).__name__}): take a smaller short_side, fewer "
            "classes, or a smaller image"
        ) from error


def autocast_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `Segmenter` calls "float32", "bfloat16", "float16" or "auto" on a device.

    Raises:
        OVSDinoError: It is none of them.
    """
    if name == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable or (device.type == "cpu" and computes_bfloat16()) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise OVSDinoError(f"dtype is {name!r}: expected one of {', '.join(known)}, auto")
    return known[name]
