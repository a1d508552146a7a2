"""Images and words that an export is compared on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ovsdino.console import say
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError, one_line

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["Images", "bank_rows", "contrast_rows", "find_images", "random_rows", "synthetic", "text_rows"]

log = logging.getLogger("ovsdino")

CHECKOUT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SYNTHETIC = 4  # images, where there are no real ones
CONTRAST_ROWS = 32
RANDOM_CLASSES = 19  # rows of the text of a model that has no words


@dataclass(frozen=True)
class Images:
    """Images to compare on.

    Attributes:
        pixels: (H, W, 3) uint8 each.
        names: Class names that go with them, or () for random text.
        source: Where they come from, for people.
    """

    pixels: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    source: str


def find_images(folder: Path | None, dataset: str, root: Path | None, split: str, limit: int) -> Images:
    """Return images of a folder or a data set; where none is named and no data set is there, noise, with a note.

    Args:
        folder: Folder of images; None takes the data set.
        dataset: Name of the data set.
        root: Its folder; None looks at $OVSDINO_DATA, and next to the checkout.
        split: Split of the data set.
        limit: Most images.

    Raises:
        OVSDinoError: The folder or data set that was named is not there, or the limit is below 1.
    """
    if limit < 1:
        raise OVSDinoError(f"limit is {limit}: expected at least 1 image (--skip-verify compares none)")
    if folder is not None:
        from ovsdino.io.images import expand_paths, load_image

        paths = expand_paths([folder])[:limit]
        return Images(tuple(load_image(path) for path in paths), (), f"images of {folder}")
    named = root or os.environ.get("OVSDINO_DATA")
    place = Path(named or CHECKOUT_DATA)
    if not named and not (place / f"{dataset}_{split}.zip").is_file():
        say(
            f"no {dataset} {split} in {place}: comparing on {SYNTHETIC} seeded synthetic images; name real ones with "
            "--images DIR, or --dataset and --root"
        )
        return synthetic(min(limit, SYNTHETIC))
    from ovsdino.data.datasets import open_dataset

    data = open_dataset(dataset, place, split)
    names = data.names[1:] if data.has_background else data.names
    pixels = tuple(data[index].image for index in range(min(limit, len(data))))
    return Images(pixels, tuple(names), f"images of {dataset} {split}")


def synthetic(count: int) -> Images:
    """Return seeded images with flat patches, ramps and noise, which no camera took."""
    random = np.random.default_rng(0)
    pixels = []
    for _ in range(count):
        coarse = random.integers(0, 256, (9, 12, 3)).astype(np.float32)
        image = np.kron(coarse, np.ones((40, 40, 1), np.float32))
        image += np.linspace(-40, 40, image.shape[1])[None, :, None] + random.normal(0, 12, image.shape)
        pixels.append(image.clip(0, 255).astype(np.uint8))
    return Images(tuple(pixels), (), "seeded synthetic images")


def text_rows(model: OVSDINO, names: Sequence[str], classes: tuple[int, int]) -> np.ndarray:
    """Return text (K, D) float32 that the graph takes: the names where the model has words for them, else noise.

    Args:
        model: The model with its text tower.
        names: Class names; too few are filled up, too many are cut.
        classes: Least and most K of the graph.
    """
    if names:
        try:
            return _fitted(model.encode_text(list(names)).float().cpu().numpy(), classes)
        except OVSDinoError as error:
            log.warning("comparing on random text, there are no words: %s", one_line(error, 200))
    return random_rows(model.config.embed_dim, classes)


def random_rows(columns: int, classes: tuple[int, int]) -> np.ndarray:
    """Return seeded random text (K, D) float32 that a graph takes, rows of length one."""
    rows = np.random.default_rng(0).standard_normal((RANDOM_CLASSES, columns)).astype(np.float32)
    return _fitted(rows, classes)


def contrast_rows(sidecar: Sidecar) -> np.ndarray | None:
    """Return seeded random contrast rows (C, D) float32 to compare a graph on; None where it takes none."""
    if sidecar.contrast is None:
        return None
    return np.roll(random_rows(sidecar.embed_dim, (CONTRAST_ROWS, CONTRAST_ROWS)), 7, axis=1)


def bank_rows(sidecar: Sidecar, bank: Path) -> np.ndarray:
    """Return the text of a bank that the graph takes, without its contrast: (K, D) or (K, W, D) float32.

    Raises:
        OVSDinoError: The bank is damaged, or not of this model.
    """
    from ovsdino.edge.bank import TextBank

    found = TextBank.load(bank)
    shape = (len(found), found.text.shape[1])
    sidecar.check_bank(found.names, shape, found.weights, found.model, words=max(found.words, default=1))
    return found.padded() if found.words else found.text


def _fitted(rows: np.ndarray, classes: tuple[int, int]) -> np.ndarray:
    """Return as many rows as a graph takes, (least, most), each of length one."""
    least, most = classes
    rows = np.concatenate([rows, np.roll(rows, 1, axis=1)])[: max(least, len(rows))][:most]
    if len(rows) < least:
        rows = np.resize(rows, (least, rows.shape[1]))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
