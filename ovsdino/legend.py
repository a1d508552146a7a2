"""The legend of a segmentation: a strip below the picture with the name, color and share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ovsdino.errors import one_line
from ovsdino.fonts import Text

__all__ = ["Entry", "with_legend"]

Entry = tuple[str, tuple[int, int, int], float]

MOST_ENTRIES = 40
LEAST_WIDTH = 160
GROUND, FRAME = (22, 24, 28), (235, 235, 235)
NAME, SHARE, ABSENT = (240, 240, 240), (160, 165, 172), (125, 130, 138)


def with_legend(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Return the picture with a legend below.

    Classes with pixels come first, the largest before the others; those without are named too, with "none".

    Args:
        picture: RGB.
        entries: Name, color and fraction (0..1) of each class.

    Returns:
        The picture, higher by the legend and at least 160 pixels wide.
    """
    width = max(picture.width, LEAST_WIDTH)
    size = int(np.clip(width / 42, 12, 40))
    pad, swatch, gap = round(size * 0.7), size, round(size * 0.45)
    items = _items(entries, size, width - 2 * pad - swatch - gap)
    widest = max((swatch + gap + name.width + gap + share.width for name, _, share in items), default=0.0)
    # equal columns read as a table; as many as the widest entry allows
    column = min(width - 2 * pad, round(widest) + round(size * 1.4))
    columns = max(1, (width - 2 * pad + round(size * 1.4)) // max(1, column))
    row_height = round(size * 1.75)
    rows = -(-len(items) // columns)
    canvas = Image.new("RGB", (width, picture.height + rows * row_height + pad), GROUND)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (name, color, share) in enumerate(items):
        x = pad + (index % columns) * column
        y = picture.height + pad // 2 + (index // columns) * row_height + row_height // 2
        there = share.text != "none"
        if color is not None:
            box = (x, y - swatch // 2, x + swatch, y - swatch // 2 + swatch)
            draw.rounded_rectangle(box, radius=size // 5, fill=color, outline=FRAME if there else ABSENT)
        end = name.draw(canvas, x + swatch + gap, y, NAME if there else ABSENT)
        share.draw(canvas, end + gap, y, SHARE if there else ABSENT)
    return canvas


def _items(entries: Sequence[Entry], size: int, room: float) -> list[tuple[Text, tuple[int, int, int] | None, Text]]:
    """Return name, color and share of the shown classes; a last item without a color counts the rest."""
    ordered = sorted(entries, key=lambda entry: -entry[2])
    items: list[tuple[Text, tuple[int, int, int] | None, Text]] = []
    for name, color, fraction in ordered[:MOST_ENTRIES]:
        share = Text(_percent(fraction), size)
        shown = Text(one_line(name, 120), size).shortened(min(room - share.width - size, 14.0 * size))
        items.append((shown, color, share))
    if len(ordered) > MOST_ENTRIES:
        items.append((Text(f"and {len(ordered) - MOST_ENTRIES} more", size), None, Text("", size)))
    return items


def _percent(fraction: float) -> str:
    if fraction <= 0:
        return "none"
    return f"{fraction:.0%}" if fraction >= 0.01 else "<1%"
