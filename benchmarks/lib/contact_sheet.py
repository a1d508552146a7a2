"""Forty photographs that nobody chose, segmented by words that were fixed for each data set, on one sheet."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovsdino.data.names import VOC20
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.io.tree import ImageSource
from ovsdino.legend import with_legend
from ovsdino.pipeline import Segmenter

__all__ = ["PARTS", "Part", "contact_sheet"]

GROUND = (22, 24, 28)
MOST_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """Photographs of one data set.

    Attributes:
        archive: Its zip below the root.
        every: The first photograph, and each so many after it, in the order of their names.
        words: The words, the same for all.
    """

    archive: str
    every: int
    words: tuple[str, ...]


PARTS = (
    Part(
        archive="bsds500_val.zip",
        every=10,
        words=("person", "animal", "bird", "sky", "water", "tree", "grass", "rock", "mountain", "building", "boat"),
    ),
    Part(archive="voc21_val.zip", every=10, words=VOC20),
    Part(
        archive="labelmefacade_val.zip",
        every=5,
        words=("building", "car", "door", "pavement", "road", "sky", "vegetation", "window", "person"),
    ),
)


def contact_sheet(
    segmenter: Segmenter, root: Path, path: Path, parts: Sequence[Part] = PARTS, columns: int = 8, width: int = 240
) -> int:
    """Write the sheet as a JPEG of at most a megabyte, and return how many photographs are on it.

    Each photograph is shown with the colors of its words and a legend of those that were found.

    Args:
        segmenter: The model.
        root: Folder with the zips.
        path: The JPEG.
        parts: Data sets.
        columns: Photographs in a row.
        width: Of a photograph in pixels.

    Raises:
        OVSDinoError: The file cannot be written, or does not get small enough.
    """
    tiles = [tile for part in parts for tile in _tiles(segmenter, root, part, width)]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    sheet = Image.new("RGB", (columns * width, sum(max(t.height for t in row) for row in rows)), GROUND)
    top = 0
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * width, top))
        top += max(tile.height for tile in row)
    for quality in (85, 75, 65, 55, 45, 35):
        data = io.BytesIO()
        sheet.save(data, format="JPEG", quality=quality, optimize=True)
        if data.tell() <= MOST_BYTES:
            with atomic_write(path) as file:
                file.write(data.getvalue())
            return len(tiles)
    raise OVSDinoError(f"{path}: more than {MOST_BYTES:,} bytes at JPEG quality 35: take a smaller width")


def _tiles(segmenter: Segmenter, root: Path, part: Part, width: int) -> Iterator[Image.Image]:
    source = ImageSource(root / part.archive)
    for name in source.names[:: part.every]:
        pixels = source.read(name)
        result = segmenter.segment(pixels, part.words, scores=False)
        height = round(result.height * width / result.width)
        small = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
        labels = np.asarray(Image.fromarray(result.labels).resize((width, height), Image.Resampling.NEAREST))
        shown = type(result)(labels=labels, names=result.names, background=result.background, image=small)
        entries = zip(shown.all_names, map(tuple, shown.colors.tolist()), shown.fractions, strict=True)
        yield with_legend(shown.overlay(alpha=0.55, legend=False), [entry for entry in entries if entry[2] > 0])
