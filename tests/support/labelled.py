"""Labelled pictures that a model with random weights can tell apart: blue squares on red and green stripes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("background", "my mug", "stripes")
BACKGROUND, MUG, STRIPES = range(3)


def write(root: Path, count: int = 6, names: tuple[str, ...] = NAMES) -> tuple[Path, Path]:
    """Write pictures of 48 x 80 pixels below images/ and labels/, and classes.json; return both folders."""
    rng = np.random.default_rng(0)
    images, labels = root / "images", root / "labels"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for index in range(count):
        label = np.full((48, 80), BACKGROUND, np.uint8)
        label[:, 48:] = STRIPES
        row, column = 16 * rng.integers(0, 2), 16 * rng.integers(0, 2)
        label[row : row + 32, column : column + 32] = MUG
        label[:2] = 255
        colors = np.array([(120, 120, 120), (20, 40, 230), (230, 20, 20)], np.uint8)[np.minimum(label, 2)]
        colors[:, 48::8] = (20, 200, 20)
        noise = rng.integers(0, 20, colors.shape, dtype=np.uint8)
        Image.fromarray(colors + noise).save(images / f"{index}.png")
        Image.fromarray(label).save(labels / f"{index}.png")
    (root / "classes.json").write_text(json.dumps(names))
    return images, labels
