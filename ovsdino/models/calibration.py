"""The background scores that were calibrated for a decoder, in the metadata of its weight file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, read_bytes, reading
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.weights import read_safetensors

__all__ = ["background_metadata", "read_backgrounds", "write_background"]

KEY = "backgrounds"  # of the metadata; its value is a JSON object from data set to score


def read_backgrounds(path: str | Path) -> dict[str, float]:
    """Return the scores by data set; none where the file was never calibrated.

    Raises:
        OVSDinoError: The file is missing, no safetensors file, or its entry is damaged.
    """
    data = read_bytes(path, "weight file")
    with reading(path, "safetensors file"):
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        found = json.loads((header.get("__metadata__") or {}).get(KEY, "{}"))
        if not all(isinstance(v, float) and math.isfinite(v) for v in found.values()):
            raise ValueError(f"{KEY} is {found!r}: expected a number for each data set")
    return dict(found)


def write_background(path: str | Path, dataset: str, score: float) -> None:
    """Put the score of a data set into a weight file, in place of an earlier one; the weights stay as they are.

    Raises:
        OVSDinoError: The file cannot be read or written.
    """
    if not math.isfinite(score):
        raise OVSDinoError(f"background is {score}: expected a number")
    state, backgrounds = read_safetensors(path), read_backgrounds(path)
    data = save(state, background_metadata({**backgrounds, dataset: float(score)}))
    with atomic_write(path) as file:
        file.write(seal_safetensors(data))


def background_metadata(backgrounds: Mapping[str, float]) -> dict[str, str] | None:
    """Return the metadata of a safetensors file that carries the scores; None where there are none."""
    return {KEY: json.dumps(dict(backgrounds))} if backgrounds else None
