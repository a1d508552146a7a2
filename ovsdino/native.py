"""The native module `ovsdino._C`, where this install has it; without torch, so that the edge runtime finds it too."""

from __future__ import annotations

from types import ModuleType

__all__ = ["BACKENDS", "NATIVE_VERSION", "native", "native_error"]

# Implementations of the ops, as OVSDINO_BACKEND names them.
BACKENDS = ("auto", "reference", "sdpa", "dense", "cpu", "triton", "cuda")
# Version of the functions in csrc/bindings.cpp; a module of another version is a stale build.
NATIVE_VERSION = 9


def _load_native() -> tuple[ModuleType | None, str]:
    try:
        from ovsdino import _C
    except ImportError as error:
        return None, str(error)
    found = getattr(_C, "VERSION", 0)
    if found != NATIVE_VERSION:
        return None, f"it is of version {found}, these sources need {NATIVE_VERSION}"
    return _C, ""


native, native_error = _load_native()
