"""Figures of a decoder that were measured after its training, in its weight file.

The metadata hold the background's scores and the Gaussians of the images that the model knows, by data set. A
temperature needs no place of its own: logits are proportional to `exp(log_scale)`, so it goes into that weight. Labels
and cosines stay as they are, and exported graphs are calibrated as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, read_bytes, reading
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.novelty import Gaussian
from ovsdino.models.weights import read_safetensors

__all__ = ["Measured", "metadata", "read_measured", "write_measured"]

BACKGROUNDS, NOVELTY = "backgrounds", "novelty"  # of the metadata; each value is a JSON object by data set
SCALE = "log_scale"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured figures, by data set.

    Attributes:
        backgrounds: Scores of a protocol's background.
        known: Gaussians of the images.
    """

    backgrounds: Mapping[str, float] = field(default_factory=dict)
    known: Mapping[str, Gaussian] = field(default_factory=dict)


def read_measured(path: str | Path) -> Measured:
    """Return what a weight file says; nothing where it was never calibrated.

    Raises:
        OVSDinoError: The file is missing, no safetensors file, or its entry is damaged.
    """
    data = read_bytes(path, "weight file")
    with reading(path, "safetensors file"):
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        entries = header.get("__metadata__") or {}
        backgrounds = json.loads(entries.get(BACKGROUNDS, "{}"))
        if not all(isinstance(v, float) and math.isfinite(v) for v in backgrounds.values()):
            raise ValueError(f"{BACKGROUNDS} is {backgrounds!r}: expected a number for each data set")
        known = {name: Gaussian.from_dict(one) for name, one in json.loads(entries.get(NOVELTY, "{}")).items()}
    return Measured(backgrounds=dict(backgrounds), known=known)


def write_measured(
    path: str | Path,
    dataset: str,
    *,
    background: float | None = None,
    known: Gaussian | None = None,
    temperature: float = 1.0,
) -> None:
    """Put the figures of a data set into a weight file, in place of earlier ones; other weights stay as they are.

    Args:
        path: The file.
        dataset: Name of the data set.
        background: Score of the background; None leaves what is there.
        known: Gaussian of its images; None leaves what is there.
        temperature: Number that logits are divided by from now on.

    Raises:
        OVSDinoError: The file cannot be read or written, has no temperature, or a number is out of range.
    """
    if background is not None and not math.isfinite(background):
        raise OVSDinoError(f"background is {background}: expected a number")
    if not (math.isfinite(temperature) and temperature > 0):
        raise OVSDinoError(f"temperature is {temperature}: expected a positive number")
    state, before = read_safetensors(path), read_measured(path)
    if temperature != 1.0:
        _divide(state, temperature, path)
    after = Measured(
        backgrounds={**before.backgrounds, **({} if background is None else {dataset: float(background)})},
        known={**before.known, **({} if known is None else {dataset: known})},
    )
    data = save(state, metadata(after))
    with atomic_write(path) as file:
        file.write(seal_safetensors(data))


def metadata(measured: Measured) -> dict[str, str] | None:
    """Return the metadata of a safetensors file that carries the figures; None where there are none."""
    found = {}
    if measured.backgrounds:
        found[BACKGROUNDS] = json.dumps(dict(measured.backgrounds))
    if measured.known:
        found[NOVELTY] = json.dumps({name: one.to_dict() for name, one in measured.known.items()})
    return found or None


def _divide(state: dict[str, Tensor], temperature: float, path: str | Path) -> None:
    """Divide the scale of the logits; in float32, since float16 has steps of 0.2 % of it."""
    if SCALE not in state:
        raise OVSDinoError(f"{path}: it has no {SCALE}, so its confidences cannot be calibrated; train it again")
    state[SCALE] = (state[SCALE].double() - math.log(temperature)).to(torch.float32)
