"""Images unlike photographs, and the share of them and of photographs that a model warns of."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ovsdino.models.novelty import novelty
from ovsdino.network import NOVEL
from ovsdino.pipeline import Segmenter

__all__ = ["UNLIKE", "warnings_of"]

SIZE = (480, 360)
PHOTOGRAPHS = ("camvid_val", "voc21_val", "labelmefacade_val", "bsds500_val", "davis2016_val")


def warnings_of(segmenter: Segmenter, root: Path, photographs: int = 20, each: int = 6) -> dict[str, Any]:
    """Return the shares of images that are warned of, and their median novelty.

    Args:
        segmenter: The model.
        root: Folder with the data sets' zips.
        photographs: How many of each zip of validation images, evenly spread.
        each: How many of each kind of `UNLIKE`.

    Returns:
        "limit"; "unlike" and "photographs": for each kind or zip "warned" and "novelty". Only "limit" for a model that
        cannot tell.
    """
    report: dict[str, Any] = {"limit": NOVEL}
    if not segmenter.model.known:
        return report
    report["unlike"] = {
        name: _measured(segmenter, [make(np.random.default_rng(at)) for at in range(each)])
        for name, make in UNLIKE.items()
    }
    report["photographs"] = {
        name: _measured(segmenter, _spread(root / f"{name}.zip", photographs))
        for name in PHOTOGRAPHS
        if (root / f"{name}.zip").is_file()
    }
    return report


def _measured(segmenter: Segmenter, images: Sequence[np.ndarray]) -> dict[str, Any]:
    pooled = np.concatenate([segmenter.pooled(segmenter.encode_image(image)) for image in images])
    found = novelty(segmenter.model.known, pooled)
    return {
        "images": len(images),
        "warned": round(float((found > NOVEL).mean()), 5),
        "novelty": round(float(np.median(found)), 3),
    }


def _spread(path: Path, count: int) -> list[np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in sorted(archive.namelist()) if "images/" in name and name.endswith((".jpg", ".png"))]
        chosen = [names[at] for at in np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)]
        return [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen]


def _noise(random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)


def _text_page(random: np.random.Generator) -> np.ndarray:
    page = Image.new("RGB", (SIZE[0], 640), "white")
    draw = ImageDraw.Draw(page)
    for y in range(20, 620, 14):
        words = (
            "".join(chr(97 + letter) for letter in random.integers(0, 26, random.integers(2, 9))) for _ in range(9)
        )
        draw.text((20, y), " ".join(words), fill="black")
    return np.asarray(page)


def _x_ray(random: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    gray = np.zeros(SIZE[::-1])
    for _ in range(12):
        cx, cy, a, b = random.uniform((60, 60, 10, 10), (420, 300, 90, 120))
        gray += random.uniform(20, 90) * np.exp(-(((x - cx) / a) ** 2) - ((y - cy) / b) ** 2)
    return np.repeat(gray.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def _one_color(random: np.random.Generator) -> np.ndarray:
    return np.full((*SIZE[::-1], 3), random.integers(0, 256, 3), np.uint8)


def _fields(random: np.random.Generator) -> np.ndarray:
    picture = Image.new("RGB", SIZE)
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y, width, height = random.integers((0, 0, 20, 20), (*SIZE, 140, 140)).tolist()
        color = tuple(random.integers((60, 80, 30), (140, 160, 90)).tolist())
        draw.rectangle((x, y, x + width, y + height), fill=color)
    return np.asarray(picture)


UNLIKE: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "pages of text": _text_page,
    "shades like an X-ray's": _x_ray,
    "one color": _one_color,
    "fields from above, drawn": _fields,
}
