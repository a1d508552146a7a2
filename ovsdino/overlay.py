"""Colors for class names, and the picture of a segmentation laid over its image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ovsdino.captions import draw_names
from ovsdino.legend import Entry, with_legend

__all__ = ["BACKGROUND_COLOR", "PALETTE", "class_colors", "draw_overlay"]

BACKGROUND_COLOR = (0, 0, 0)
SCALE = 256  # of the weights; 255 x 256 fits uint16
WHITE = np.full(3, 255, np.uint8)
LINE = 218  # weight of white in a border, 0.85
SPECK = 2e-4  # of the image, below which a connected part gets no border: 35 pixels of 480 x 360
SPECK_GRID = 1024  # cells of the long side on which parts are told
BLOCK = 1 << 18  # pixels painted at once, whose 1.5 MB as uint16 stay in the cache

# Twenty-four colors of which any two are at least 21 apart in CIEDE2000 and 37 in CIELAB, and each 21 from black (the
# background) and white (the borders). Street words have the ones nearest to Cityscapes' colors.
STREET = {
    "road": (130, 0, 102),
    "sidewalk": (255, 0, 251),
    "building": (139, 93, 30),
    "wall": (131, 102, 112),
    "fence": (255, 171, 163),
    "pole": (181, 188, 153),
    "traffic light": (255, 179, 6),
    "sign": (255, 255, 4),
    "tree": (76, 147, 0),
    "terrain": (34, 255, 75),
    "sky": (0, 107, 168),
    "person": (194, 14, 31),
    "bicyclist": (255, 105, 0),
    "car": (25, 0, 255),
    "truck": (2, 0, 72),
    "bus": (10, 150, 135),
    "train": (0, 65, 69),
    "motorcycle": (129, 117, 255),
    "bicycle": (76, 0, 4),
    "water": (50, 205, 255),
}
MORE = ((10, 64, 0), (228, 190, 255), (134, 255, 236), (255, 48, 121))
SAME = {
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


PALETTE = np.array([*STREET.values(), *MORE], dtype=np.uint8)
BLACK_AND_WHITE = np.array([BACKGROUND_COLOR, (255, 255, 255)], dtype=np.uint8)
STREET_ROWS = {name: row for row, name in enumerate(STREET)}


def class_colors(names: Sequence[str]) -> np.ndarray:
    """Return a color for each class of a list, no two of them alike.

    Up to 24 classes get colors of `PALETTE`, of which any two are at least 21 apart in CIEDE2000; each further class
    gets what is farthest from all before it. A street word has its own color in every list. Any other word has one that
    follows from the word alone, unless another class of the list has it already; then it takes its next choice.

    Args:
        names: K class names.

    Returns:
        (K, 3) uint8 RGB.
    """
    keys = [" ".join(name.casefold().split()) for name in names]
    chosen: dict[int, int] = {}  # palette entry by row
    taken: set[int] = set()
    for row, key in enumerate(keys):
        place = STREET_ROWS.get(SAME.get(key, key))
        if place is not None and place not in taken:
            chosen[row] = place
            taken.add(place)
    for row, key in enumerate(keys):
        if row not in chosen and len(taken) < len(PALETTE):
            chosen[row] = next(place for place in _order(key) if place not in taken)
            taken.add(chosen[row])
    colors = np.zeros((len(names), 3), dtype=np.uint8)
    rows = list(chosen)
    colors[rows] = PALETTE[[chosen[row] for row in rows]]
    rest = [row for row in range(len(names)) if row not in chosen]
    colors[rest] = _far_colors(np.vstack([PALETTE, BLACK_AND_WHITE]), len(rest))
    return colors


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    entries: Sequence[Entry],
    *,
    alpha: float = 0.5,
    boundaries: bool = True,
    names: bool = True,
    legend: bool = True,
) -> Image.Image:
    """Lay class colors over an image, draw the borders between classes and their names, and add a legend below.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers, indices into `entries`.
        entries: Name, color and fraction (0..1) of each label value.
        alpha: Weight of the color, 0..1.
        boundaries: Draw a light line where two classes meet, but not around specks of less than `SPECK` of the image.
        names: Write the name of each class on its region, where there is room.
        legend: Add a strip below the image with the classes, those with pixels first, the largest before the others.

    Returns:
        An RGB picture of W x H, higher by the legend (and at least 160 wide) if there is one.
    """
    colors = np.array([color for _, color, _ in entries], dtype=np.uint8).reshape(-1, 3)
    thickness = max(1, round(min(labels.shape) / 360)) if boundaries else 0
    lined = _without_specks(labels) if thickness else labels
    canvas = np.empty_like(image)
    step = max(1, BLOCK // labels.shape[1])
    for top in range(0, len(labels), step):
        rows = slice(top, top + step)
        paint = _painted(labels[rows], colors)
        mixed = _mixed(image[rows], paint, round(SCALE * alpha))
        if thickness:
            line = _borders(lined[top : top + step + thickness], thickness)[: len(mixed)]
            mixed[line] = _mixed(mixed[line], WHITE, LINE)
        canvas[rows] = mixed
    picture = Image.fromarray(canvas)
    if names:
        picture = draw_names(picture, labels, entries)
    return with_legend(picture, entries) if legend else picture


def _without_specks(labels: np.ndarray) -> np.ndarray:
    """Return labels whose specks have the label to their left; the labels themselves where SciPy is not installed."""
    try:
        from scipy import ndimage
    except ImportError:
        return labels
    step = -(-max(labels.shape) // SPECK_GRID)
    grid = labels[step // 2 :: step, step // 2 :: step]
    specks = np.zeros(grid.shape, dtype=bool)
    for label in np.flatnonzero(np.bincount(grid.ravel())):
        parts, _ = ndimage.label(grid == label)
        specks |= (np.bincount(parts.ravel()) < SPECK * grid.size)[parts] & (parts > 0)
    if not specks.any():
        return labels
    specks = np.asarray(specks.repeat(step, 0).repeat(step, 1))
    height, width = labels.shape
    missing = [(0, max(0, height - len(specks))), (0, max(0, width - len(specks[0])))]
    specks = np.pad(specks, missing)[:height, :width]
    found = labels.copy()
    rows = np.flatnonzero(specks.any(1))
    source = np.where(specks[rows], 0, np.arange(labels.shape[1]))
    np.maximum.accumulate(source, axis=1, out=source)
    found[rows] = np.take_along_axis(labels[rows], source, axis=1)
    return found


def _painted(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return the colors (H, W, 3) uint8 of labels (H, W)."""
    if len(colors) > 256:
        return np.asarray(colors[labels])
    picture = Image.fromarray(labels.astype(np.uint8))  # Pillow's palette takes a fifth of NumPy's time
    picture.putpalette(colors.tobytes())
    return np.asarray(picture.convert("RGB"))


def _mixed(below: np.ndarray, above: np.ndarray, weight: int) -> np.ndarray:
    """Return uint8 pixels with others laid over them, by a weight in 0..`SCALE`, rounded half to even."""
    mixed = below.astype(np.uint16)
    mixed *= SCALE - weight
    mixed += above.astype(np.uint16) * np.uint16(weight)
    mixed += ((mixed >> 8) & 1) + np.uint16(SCALE // 2 - 1)
    mixed >>= 8
    return mixed.astype(np.uint8)


def _order(key: str) -> list[int]:
    """Return the palette's entries in the order in which a word would have them."""
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8], "little")
    return np.random.default_rng(seed).permutation(len(PALETTE)).tolist()


def _far_colors(used: np.ndarray, count: int) -> np.ndarray:
    """Return (count, 3) colors of a grid, each the farthest in CIELAB from those before it and from ``used``."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * 3, indexing="ij"), -1).reshape(-1, 3).round()
    places = _lab(grid)
    nearest = _squared(places, _lab(used)).min(1)
    found = np.zeros((count, 3))
    for index in range(count):
        best = int(nearest.argmax())
        found[index] = grid[best]
        nearest = np.minimum(nearest, _squared(places, places[best : best + 1])[:, 0])
    return found


def _squared(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.asarray(((places[:, None] - others[None]) ** 2).sum(-1))


def _lab(colors: np.ndarray) -> np.ndarray:
    """Return (N, 3) sRGB 0..255 in CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    linear = colors / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def _borders(labels: np.ndarray, thickness: int) -> np.ndarray:
    """Return the pixels within `thickness` of a change of label to the right or below, (H, W) bool."""
    line = np.zeros(labels.shape, dtype=bool)
    if labels.shape[1] > 1:
        line[:, :-1] = _spread((labels[:, :-1] != labels[:, 1:]).T, thickness).T
    if len(labels) > 1:
        line[:-1] |= _spread(labels[:-1] != labels[1:], thickness)
    return line


def _spread(change: np.ndarray, thickness: int) -> np.ndarray:
    """Return which rows have a set pixel among the `thickness` rows from their own downwards, in steps that double."""
    done = 1
    while done < thickness:
        step = min(done, thickness - done)
        change[:-step] |= change[step:]
        done += step
    return change
