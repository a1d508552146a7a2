"""The manifest of the packaged weights: which models are shipped, and what their files are. It needs no torch."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_bytes, read_json, reading

__all__ = ["MANIFEST", "WEIGHTS", "Packaged", "manifest", "packaged", "read_bytes_of"]

WEIGHTS = Path(__file__).parent.parent / "weights"
MANIFEST = WEIGHTS / "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """An entry of the manifest of packaged weights."""

    file: str
    sha256: str
    bytes: int
    parameters: int


@functools.lru_cache(maxsize=1)
def manifest() -> dict[str, Packaged]:
    """Return the packaged weights by model name.

    Raises:
        OVSDinoError: The manifest is damaged.
    """
    if not MANIFEST.is_file():
        return {}
    kind, remedy = "manifest of weights", "reinstall ovsdino"
    with reading(MANIFEST, kind, remedy):
        return {name: _entry(name, entry) for name, entry in read_json(MANIFEST, kind, remedy).items()}


def _entry(name: str, entry: dict[str, Any]) -> Packaged:
    known = Packaged(**entry)
    if not (isinstance(known.file, str) and known.file == Path(known.file).name and known.file):
        raise ValueError(f"{name}: file is {known.file!r}, expected a name without a folder")
    if not isinstance(known.sha256, str):
        raise ValueError(f"{name}: sha256 is {known.sha256!r}, expected text")
    if not (isinstance(known.bytes, int) and isinstance(known.parameters, int)):
        raise ValueError(f"{name}: bytes and parameters are {known.bytes!r}, {known.parameters!r}, expected numbers")
    return known


def packaged(name: str) -> Packaged | None:
    """Return the manifest's entry of a model, or None when no weights are shipped for it."""
    return manifest().get(name)


def read_bytes_of(name: str) -> tuple[Path, bytes]:
    """Return the path and the content of a model's shipped weights, refused unless their hash is the manifest's.

    safetensors does not notice flipped payload bits; the hash does.

    Raises:
        OVSDinoError: The file is missing or damaged.
    """
    entry = manifest()[name]
    path = WEIGHTS / entry.file
    data = read_bytes(path, "weight file")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise OVSDinoError(f"{path}: damaged (its SHA-256 is not the manifest's); reinstall ovsdino")
    return path, data
