"""Colours for class names, and the picture of a segmentation laid over its image."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["BACKGROUND_COLOUR", "class_colours", "draw_overlay"]

BACKGROUND_COLOUR = (0, 0, 0)
MAX_LEGEND_ENTRIES = 40

# Cityscapes' colours for the names drivers know; brighter where they vanish on the picture (building, car).
_STREET = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (176, 104, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "sign": (220, 220, 0),
    "tree": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "bicyclist": (255, 70, 20),
    "car": (20, 40, 220),
    "truck": (10, 20, 110),
    "bus": (0, 120, 140),
    "train": (0, 80, 100),
    "motorcycle": (60, 60, 255),
    "bicycle": (150, 20, 40),
    "water": (40, 180, 200),
}
_SAME = {
    "automobile": "car",
    "bike": "bicycle",
    "cyclist": "bicyclist",
    "foliage": "tree",
    "grass": "terrain",
    "house": "building",
    "human": "person",
    "pavement": "sidewalk",
    "pedestrian": "person",
    "people": "person",
    "rider": "bicyclist",
    "street": "road",
    "traffic sign": "sign",
    "trees": "tree",
    "vegetation": "tree",
    "vehicle": "car",
}


def class_colours(names: Sequence[str]) -> np.ndarray:
    """One colour a class: Cityscapes' for street words, otherwise one that follows from the name alone.

    Two classes of one list never have like colours while the table lasts (72 entries): the later of the two takes the
    next free one.

    Args:
        names: K class names.

    Returns:
        (K, 3) uint8 RGB.
    """
    table = np.array(_TABLE)
    used = np.zeros((0, 3), dtype=np.int64)
    colours = np.zeros((len(names), 3), dtype=np.uint8)
    for row, name in enumerate(names):
        key = " ".join(name.casefold().split())
        start = int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:4], "little") % len(table)
        candidates = np.roll(table, -start, axis=0)
        street = _STREET.get(_SAME.get(key, key))
        if street is not None:
            candidates = np.vstack([street, candidates])
        free = np.flatnonzero(_distances(candidates, used).min(1, initial=np.inf) > _DISTINCT)
        if not free.size:  # the table is used up: begin again
            used = used[:0]
        colours[row] = candidates[free[0] if free.size else 0]
        used = np.vstack([used, colours[row : row + 1]])
    return colours


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    entries: Sequence[tuple[str, tuple[int, int, int], float]],
    *,
    alpha: float = 0.5,
    boundaries: bool = True,
    legend: bool = True,
) -> Image.Image:
    """Lays class colours over an image, draws the borders between classes, and adds a legend below.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers, indices into `entries`.
        entries: name, colour and fraction (0..1) of each label value.
        alpha: weight of the colour, 0..1.
        boundaries: draw a light line where two classes meet.
        legend: add a strip below the image with the classes that have pixels, largest first.

    Returns:
        An RGB picture of W x H, higher by the legend (and at least 160 wide) if there is one.
    """
    colours = np.array([colour for _, colour, _ in entries], dtype=np.float32).reshape(-1, 3)
    blended = image.astype(np.float32) * (1.0 - alpha) + colours[labels] * alpha
    if boundaries:
        thickness = max(1, round(min(labels.shape) / 360))
        line = _borders(labels, thickness)
        blended[line] = blended[line] * 0.15 + 255.0 * 0.85
    picture = Image.fromarray(np.rint(blended).clip(0, 255).astype(np.uint8))
    if not legend:
        return picture
    shown = sorted((entry for entry in entries if entry[2] > 0), key=lambda entry: -entry[2])
    return _with_legend(picture, shown)


def _table() -> list[tuple[int, int, int]]:
    colours = []
    for saturation, value in ((0.85, 0.95), (0.55, 0.75), (0.95, 0.60)):
        for step in range(24):
            hue = (step * 0.618034) % 1.0  # the golden ratio keeps neighbours in the table far apart in hue
            red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
            colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


_TABLE = _table()


_DISTINCT = 60.0


def _distances(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(A, 3), (B, 3) -> (A, B) distances that weigh red, green and blue as the eye does ("redmean"), 0..765."""
    delta = (colours[:, None].astype(np.float64) - others[None]) ** 2
    red = (colours[:, None, 0].astype(np.float64) + others[None, :, 0]) / 2 / 256
    return np.asarray(np.sqrt((2 + red) * delta[..., 0] + 4 * delta[..., 1] + (3 - red) * delta[..., 2]))


def _borders(labels: np.ndarray, thickness: int) -> np.ndarray:
    """(H, W) bool: pixels within `thickness` of a change of label to the right or below."""
    height, width = labels.shape
    line = np.zeros((height, width), dtype=bool)
    for shift in range(1, thickness + 1):
        if width > shift:
            line[:, :-shift] |= labels[:, :-shift] != labels[:, shift:]
        if height > shift:
            line[:-shift, :] |= labels[:-shift, :] != labels[shift:, :]
    return line


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int], float]]) -> Image.Image:
    width = max(picture.width, 160)
    size = int(np.clip(width / 42, 12, 40))
    font = ImageFont.load_default(size)
    pad, swatch = round(size * 0.7), size
    row_height = round(size * 1.75)
    items = [(_short(name), colour, _percent(fraction)) for name, colour, fraction in entries[:MAX_LEGEND_ENTRIES]]
    if len(entries) > MAX_LEGEND_ENTRIES:
        items.append((f"and {len(entries) - MAX_LEGEND_ENTRIES} more", (90, 90, 90), ""))
    widths = [
        swatch + size * 0.45 + font.getlength(name) + size * 0.4 + font.getlength(percent) for name, _, percent in items
    ]
    # equal columns read as a table; as many as the widest entry allows
    column = min(width - 2 * pad, int(max(widths, default=0)) + round(size * 1.4))
    columns = max(1, (width - 2 * pad + round(size * 1.4)) // max(1, column))
    rows = -(-len(items) // columns)
    strip = rows * row_height + pad
    canvas = Image.new("RGB", (width, picture.height + strip), (22, 24, 28))
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (name, colour, percent) in enumerate(items):
        x = pad + (index % columns) * column
        y = picture.height + pad // 2 + (index // columns) * row_height + row_height // 2
        box = (x, y - swatch // 2, x + swatch, y - swatch // 2 + swatch)
        draw.rounded_rectangle(box, radius=size // 5, fill=colour, outline=(235, 235, 235))
        text_x = x + swatch + size * 0.45
        draw.text((text_x, y), name, font=font, fill=(240, 240, 240), anchor="lm")
        draw.text(
            (text_x + font.getlength(name) + size * 0.4, y), percent, font=font, fill=(160, 165, 172), anchor="lm"
        )
    return canvas


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"


def _percent(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction >= 0.01 else "<1%"
