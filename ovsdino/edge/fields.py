"""Check the fields of a sidecar: it is a file that anyone can have changed, so no field is believed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["BACKENDS", "KINDS", "PRECISIONS", "checked_fields"]

KINDS = ("onnx", "engine")
BACKENDS = ("onnx", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
HASH = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"\d+(\.\d+){1,4}[\w.+-]{0,40}")
TARGET = re.compile(r"sm\d{2,3}(,sm\d{2,3}){0,15}")

# least and most of each whole number
WHOLE = {
    "bytes": (1, 1 << 40),
    "embed_dim": (1, 1 << 16),
    "short_side": (1, 8192),
    "patch_size": (1, 256),
}
BATCH, SIDE, CLASSES = 256, 8192, 32767
REALS = {"mean": (0.0, 1.0), "std": (1e-3, 10.0)}  # of pixels in 0..1


def checked_fields(data: Mapping[str, Any], names: set[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Check every field of a sidecar, and how they go together.

    Args:
        data: The JSON object.
        names: The fields that it must have, no more and no less.
        optional: Those of them that may be missing, or null, all together: ranges of whole numbers.

    Returns:
        The fields, lists as tuples.

    Raises:
        ValueError: A field is unknown, missing, of another type, or outside its range; the message names it.
    """
    data = {name: value for name, value in data.items() if value is not None or name not in optional}
    data.setdefault("memory", None)
    absent = set(optional) if not set(optional) & set(data) else set()
    data = {name: value for name, value in data.items() if name != "baked" or value is not None}
    names = names if "baked" in data else names - {"baked"}
    odd = sorted(set(data) ^ (names - absent))
    if odd:
        raise ValueError(f"field {odd[0]!r} is {'unknown' if odd[0] in data else 'missing'}")
    values = dict(data)
    for name in set(optional) - absent:
        values[name] = _range(name, data[name])
    for name in ("kind", "file", "sha256", "model", "precision", "backend", "version", "target", "weights"):
        if not isinstance(data[name], str) or len(data[name]) > 1000:
            raise ValueError(f"{name} is {_shown(data[name])}, expected text")
    for name, allowed in (("kind", KINDS), ("backend", BACKENDS), ("precision", PRECISIONS)):
        if data[name] not in allowed:
            raise ValueError(f"{name} is {_shown(data[name])}, expected one of {', '.join(allowed)}")
    for name, (least, most) in WHOLE.items():
        _whole(name, data[name], least, most)
    if data["memory"] is not None:
        _whole("memory", data["memory"], 1, 1 << 12)
    for name in ("sha256", "weights"):
        if not HASH.fullmatch(data[name]):
            raise ValueError(f"{name} is {_shown(data[name])}, expected 64 hexadecimal digits")
    if not data["model"].strip() or not data["model"].isprintable():
        raise ValueError(f"model is {_shown(data['model'])}, expected a name")
    if not data["file"] or "/" in data["file"]:
        raise ValueError(f"file is {_shown(data['file'])}, expected a name without a folder")
    values["input"] = _input(data["input"])
    values["classes"] = _range("classes", data["classes"])
    for name, (low, high) in REALS.items():
        values[name] = _reals(name, data[name], 3, low, high)
    values["stride"] = _stride(data["stride"], data["patch_size"])
    _runtime(data)
    _figures(data["verified"])
    _quantized(data["quantised"], data["precision"])
    _baked(data.get("baked"))
    return values


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number from {least} to {most}")
    return value


def _real(name: str, value: Any, low: float, high: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:  # NaN is refused
        raise ValueError(f"{name} is {_shown(value)}, expected a number from {low:g} to {high:g}")
    return float(value)


def _reals(name: str, values: Any, count: int, low: float, high: float) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ValueError(f"{name} is {_shown(values)}, expected {count} numbers")
    return tuple(_real(name, value, low, high) for value in values)


def _input(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        raise ValueError(f"input is {_shown(values)}, expected 4 numbers: batch, 3, height, width")
    limits = ((1, BATCH), (3, 3), (1, SIDE), (1, SIDE))
    return tuple(_whole("input", value, *limit) for value, limit in zip(values, limits, strict=True))


def _range(name: str, values: Any) -> tuple[int, int]:
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise ValueError(f"{name} is {_shown(values)}, expected 2 numbers: least and most")
    least, most = (_whole(name, value, 1, CLASSES) for value in values)
    if least > most:
        raise ValueError(f"{name} is {_shown(values)}, expected least and most")
    return least, most


def _stride(value: Any, patch: int) -> float:
    """Return the stride: one cell of the logits is a patch, or with a decoder a quarter of one."""
    stride = _real("stride", value, 0.25, 256)
    if not any(math.isclose(stride, patch / scale) for scale in (1, 4)):
        raise ValueError(f"stride is {_shown(value)}, expected {patch / 4:g} or {patch} for a patch_size of {patch}")
    return stride


def _runtime(data: Mapping[str, Any]) -> None:
    """Check that kind, backend, version and target agree."""
    graph = data["kind"] == "onnx"
    if graph != (data["backend"] == "onnx"):
        raise ValueError(f"kind {data['kind']} and backend {data['backend']} do not go together")
    for name, none, form in (("version", "", VERSION), ("target", "any", TARGET)):
        value = data[name]
        if value != none if graph else not form.fullmatch(value):
            expected = repr(none) if graph else {"version": "10.3.0 or the like", "target": "sm87 or the like"}[name]
            raise ValueError(f"{name} is {_shown(value)}, expected {expected} for kind {data['kind']}")


def _figures(verified: Any) -> None:
    if verified is None:
        return
    if not isinstance(verified, dict):
        raise ValueError(f"verified is {_shown(verified)}, expected an object or null")
    for name, low in (("cosine", -1.0), ("label_agreement", 0.0)):
        _real(f"verified.{name}", verified.get(name), low, 1.0 + 1e-6)  # a rounded cosine of 1
    _whole("verified.images", verified.get("images"), 1, 1 << 30)


def _quantized(facts: Any, precision: str) -> None:
    if (precision == "int8") != isinstance(facts, dict) or not (isinstance(facts, dict) or facts in (None, False)):
        raise ValueError(f"quantised is {_shown(facts)} for precision {precision}")
    if not isinstance(facts, dict):
        return
    _whole("quantised.linears", facts.get("linears"), 1, 1 << 20)
    kept = facts.get("kept")
    if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
        raise ValueError(f"quantised.kept is {_shown(kept)}, expected a list of names")
    if facts.get("base") not in PRECISIONS[:2]:
        raise ValueError(f"quantised.base is {_shown(facts.get('base'))}, expected float32 or float16")


def _baked(facts: Any) -> None:
    if facts is None:
        return
    if not isinstance(facts, dict) or set(facts) != {"names", "none", "layout", "output"}:
        raise ValueError(f"baked is {_shown(facts)}, expected names, none, layout and output")
    names = facts["names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"baked.names is {_shown(names)}, expected a list of words")
    known = {"none": (True, False), "layout": ("nchw", "nhwc"), "output": ("logits", "probabilities", "labels")}
    for name, values in known.items():
        if facts[name] not in values:
            raise ValueError(f"baked.{name} is {_shown(facts[name])}, expected one of {', '.join(map(str, values))}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
