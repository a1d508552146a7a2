"""The manifest of the packaged weights: which models are shipped, and what their files are. It needs no torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.io.files import read_json, reading

__all__ = ["MANIFEST", "WEIGHTS", "Packaged", "manifest", "packaged"]

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
