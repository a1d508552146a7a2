"""Names of classes, written on their regions of an overlay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ovsdino.errors import one_line
from ovsdino.fonts import Text
from ovsdino.legend import Entry

__all__ = ["draw_names"]

GRID = 160  # cells of the long side on which places are looked for
LEAST_SHARE = 0.01  # of the image, below which a class is named by the legend alone
PLATE, INK = (22, 24, 28, 190), (245, 245, 245)


def draw_names(picture: Image.Image, labels: np.ndarray, entries: Sequence[Entry]) -> Image.Image:
    """Return the picture with the name of each class where its region is thickest, the largest classes first.

    A class that is thinner than its name is high, or whose place is taken, is not named.

    Args:
        picture: RGB, W x H.
        labels: (H, W) integers, indices into `entries`.
        entries: Name, color and fraction (0..1) of each label value; those in black (the background) are not named.
    """
    step = -(-max(labels.shape) // GRID)
    grid = labels[step // 2 :: step, step // 2 :: step]
    size = int(np.clip(picture.width / 42, 11, 36))
    taken: list[tuple[float, float, float, float]] = []
    canvas = picture.convert("RGBA")
    plates = Image.new("RGBA", picture.size)
    texts = []
    for index in sorted(range(len(entries)), key=lambda index: -entries[index][2]):
        name, color, share = entries[index]
        if share < LEAST_SHARE or not any(color):
            continue
        depth, row, column = _thickest(grid == index)
        text = Text(one_line(name, 40), size)
        width, height = text.width + size * 0.8, size * 1.4
        if 2 * depth * step < size or width > picture.width or height > picture.height:
            continue
        x = min(max((column + 0.5) * step - width / 2, 0.0), picture.width - width)
        y = min(max((row + 0.5) * step - height / 2, 0.0), picture.height - height)
        box = (x, y, x + width, y + height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        ImageDraw.Draw(plates).rounded_rectangle(box, radius=size / 3, fill=PLATE, outline=(*color, 255))
        texts.append((text, x + size * 0.4, y + height / 2))
    if not texts:
        return picture
    named = Image.alpha_composite(canvas, plates).convert("RGB")
    for text, x, y in texts:
        text.draw(named, x, y, INK)
    return named


def _thickest(mask: np.ndarray) -> tuple[int, int, int]:
    """Return how often a mask can be eroded by its four neighbors, and the cell in the middle of what is left last."""
    left = np.pad(mask, 1)
    depth = 0
    while True:
        inner = left.copy()
        inner[1:-1, 1:-1] &= left[:-2, 1:-1] & left[2:, 1:-1] & left[1:-1, :-2] & left[1:-1, 2:]
        if not inner.any():
            break
        left, depth = inner, depth + 1
    rows, columns = np.nonzero(left[1:-1, 1:-1])
    if not len(rows):
        return 0, 0, 0
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return depth + 1, int(rows[nearest]), int(columns[nearest])
