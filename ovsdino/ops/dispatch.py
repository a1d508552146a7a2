"""The choice of an op's implementation: by name (``OVSDINO_BACKEND``, `use_backend`), or "auto" by what was measured.

"auto" takes the backend that the table of `measured` has for the card, dtype, direction and size; where it has none, or
one that this build lacks, the first of `OP_BACKENDS` that can run.

A backend asked for by name that an op has but that cannot run here raises with the reason. A name that other ops have
and this op has not (``OVSDINO_BACKEND=sdpa`` and `mask_pool`) leaves that op on "auto", said once in the log.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch

from ovsdino.errors import OVSDinoError
from ovsdino.native import BACKENDS, native, native_error
from ovsdino.ops import measured
from ovsdino.ops.compat import constant

log = logging.getLogger("ovsdino.ops")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The needs of a backend: device type ("" for any), the native module `ovsdino._C`, Triton, dtypes (() for any)."""

    device: str = ""
    native: bool = False
    triton: bool = False
    dtypes: tuple[torch.dtype, ...] = ()


KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ANYWHERE = Needs()
NATIVE_CPU = Needs(device="cpu", native=True, dtypes=KERNEL_DTYPES)
NATIVE_CUDA = Needs(device="cuda", native=True, dtypes=KERNEL_DTYPES)
MATRIX_CUDA = Needs(device="cuda", native=True, dtypes=(torch.float16, torch.bfloat16))
TRITON = Needs(triton=True, dtypes=KERNEL_DTYPES)

# In the order that "auto" tries them in where nothing was measured.
OP_BACKENDS: dict[str, dict[str, Needs]] = {
    "structure_attention": {"sdpa": ANYWHERE, "triton": TRITON, "cuda": MATRIX_CUDA, "reference": ANYWHERE},
    # dense, one product in the features' dtype, comes after reference: it is taken where it was measured to be faster.
    "mask_pool": {"cuda": NATIVE_CUDA, "cpu": NATIVE_CPU, "reference": ANYWHERE, "dense": ANYWHERE},
    "upsample_argmax": {"cuda": NATIVE_CUDA, "cpu": NATIVE_CPU, "reference": ANYWHERE},
    "guided_upsample": {"cuda": NATIVE_CUDA, "cpu": NATIVE_CPU, "reference": ANYWHERE},
    # torch's own uint8 resize: 2 times the float path's speed from 480x360 to 448x448, 20 times with antialias from HD.
    "preprocess": {"cuda": NATIVE_CUDA, "cpu": Needs(device="cpu"), "reference": ANYWHERE},
}

TABLE = measured.read(measured.FILE, OP_BACKENDS)

has_triton: bool = importlib.util.find_spec("triton") is not None
native_cuda: bool = native is not None and bool(native.build_info()["cuda"])
if native is None:
    log.warning("ovsdino._C is missing (%s): ops use the plain PyTorch reference", native_error)


def environment_backend() -> str:
    """Return the backend that ``OVSDINO_BACKEND`` names when the package is imported; "auto" where it is empty."""
    return os.environ.get("OVSDINO_BACKEND", "") or "auto"


class _State:
    """The backend that was asked for, and the messages that the log has had."""

    requested: str = environment_backend()
    said: ClassVar[set[str]] = set()


def requested() -> str:
    """Return the backend asked for: that of the innermost `use_backend`, else ``OVSDINO_BACKEND``, else "auto"."""
    return _State.requested


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Ask for a backend by name inside a ``with`` block (the whole process, not one thread).

    Args:
        name: one of `BACKENDS`.

    Raises:
        ValueError: unknown name.
    """
    _check_name(name)
    before, _State.requested = _State.requested, name
    try:
        yield
    finally:
        _State.requested = before


def why_not(op: str, backend: str, device: str, dtype: torch.dtype | None = None) -> str:
    """Return why `backend` of `op` cannot run on a device type and dtype; "" if it can."""
    needs = OP_BACKENDS[op][backend]
    if needs.device and needs.device != device:
        return f"it runs on {needs.device} tensors, got {device}"
    if needs.triton and _without_triton(device):
        return _without_triton(device)
    if needs.native and native is None:
        return f"ovsdino._C is missing ({native_error}); reinstall with a C++ compiler at hand"
    if needs.native and needs.device == "cuda" and not native_cuda:
        return "ovsdino._C was built without CUDA; reinstall with OVSDINO_CUDA=1 and nvcc on the PATH"
    if needs.dtypes and dtype is not None and dtype not in needs.dtypes:
        return f"it takes {', '.join(str(d)[6:] for d in needs.dtypes)}, got {str(dtype)[6:]}"
    return ""


def _without_triton(device: str) -> str:
    """Return why Triton's kernels cannot run on a device type; "" if they can."""
    if not has_triton:
        return "triton is not installed (pip install triton; Jetson and Windows have none)"
    interpreted = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if device == "cuda" or (device == "cpu" and interpreted):
        return _too_old_triton()
    return f"it runs on cuda tensors (on cpu ones, slowly, with TRITON_INTERPRET=1 in the environment), got {device}"


@cache
def _too_old_triton() -> str:
    """Return why the installed Triton is too old for the kernels; "" if it is not."""
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    return "" if hasattr(triton, "knobs") else f"triton {triton.__version__} is too old: 3.4 or newer (torch 2.8)"


def available(op: str, device: str) -> list[str]:
    """Return the backends of `op` that can run on a device type, in the order "auto" prefers them."""
    return [name for name in OP_BACKENDS[op] if not why_not(op, name, device)]


def resolve(
    op: str,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    name: str = "",
    *,
    size: int | None = None,
    gradient: bool = False,
) -> str:
    """Return the backend that `op` runs with on a device.

    Args:
        op: a key of `OP_BACKENDS`.
        device: ``tensor.device``, or only its type, for which nothing is looked up in the measured table.
        dtype: dtype of the op's main input; None where every backend takes all.
        name: the backend asked for; "" for `requested`.
        size: what the measured table counts of this op (`measured`); None for an op that it does not have.
        gradient: whether a backward pass will follow.

    Raises:
        OVSDinoError: the requested name is unknown, or no op of this build has it, or it cannot run here; says why.
    """
    name = name or _State.requested
    table = OP_BACKENDS[op]
    choices = () if size is None or isinstance(device, str) else measured_choices(op, device, dtype, gradient)
    device = device if isinstance(device, str) else device.type
    if name in table:
        reason = why_not(op, name, device, dtype)
        if reason:
            raise OVSDinoError(f"backend {name!r} of {op} cannot run: {reason}")
        return name
    if name != "auto":
        _check_name(name)
        if not any(name in other for other in OP_BACKENDS.values()):
            raise OVSDinoError(f"backend {name!r} of {op} cannot run: this build has no such kernel")
    chosen = "reference"
    fastest = measured.choose(choices, size) if choices and size is not None else ""
    for candidate in (fastest, *table) if fastest else table:
        if not why_not(op, candidate, device, dtype):
            chosen = candidate
            break
    if not torch.compiler.is_compiling():
        if name != "auto":
            _say_once(logging.INFO, f"{op} has no backend {name!r}: using {chosen!r}")
        elif device != "cpu" and chosen == "reference" and device in table:
            _say_once(logging.WARNING, f"{op} on {device} uses {chosen!r}: {why_not(op, device, device, dtype)}")
    return chosen


@constant
def measured_choices(
    op: str, device: torch.device, dtype: torch.dtype | None, gradient: bool
) -> tuple[tuple[int, int | None, str], ...]:
    """Return the (at_least, below, backend) that the measured table has for an op on the card of a device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return ()
    return _choices(op, _card(device.index), str(dtype)[6:], gradient)


@cache
def _card(index: int | None) -> str:
    return torch.cuda.get_device_name(index)


@cache
def _choices(op: str, card: str, dtype: str, gradient: bool) -> tuple[tuple[int, int | None, str], ...]:
    rows = (row for row in TABLE if row.key == (card, op, dtype, gradient))
    return tuple((row.at_least, row.below, row.backend) for row in rows)


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise OVSDinoError(f"unknown backend {name!r} (OVSDINO_BACKEND): expected one of {', '.join(BACKENDS)}")


def _say_once(level: int, message: str) -> None:
    if message not in _State.said:
        _State.said.add(message)
        log.log(level, message)
