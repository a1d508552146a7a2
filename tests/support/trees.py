"""Miniature data sets in the folders of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def write(path: Path, array: np.ndarray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    if palette:  # as Pascal's PNGs are: colors by index
        picture.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    picture.save(path)


def label(*ids: int) -> np.ndarray:
    """(4, 6) with the ids one after the other in the first row and down, the first id everywhere else."""
    out = np.full((4, 6), ids[0], np.uint8)
    out.ravel()[: len(ids)] = ids
    return out


def pascal(root: Path, labels: dict[str, np.ndarray], folder: str, lists: str, split: str = "val") -> None:
    for stem, ids in labels.items():
        write(root / "JPEGImages" / f"{stem}.jpg", IMAGE)
        write(root / folder / f"{stem}.png", ids, palette=True)
    (root / "ImageSets" / lists).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in labels))


def coco(root: Path, labels: dict[str, np.ndarray], ending: str, folder: str = "annotations/val2017") -> None:
    for stem, ids in labels.items():
        write(root / "images" / "val2017" / f"{stem}.jpg", IMAGE)
        write(root / folder / f"{stem}{ending}", ids)


def coco_instances(
    root: Path, annotations: list[dict[str, object]], stems: tuple[str, ...] = ("000000000139",)
) -> Path:
    """Annotations of the first image; all images are 6 wide and 4 high."""
    for stem in stems:
        write(root / "images" / "val2017" / f"{stem}.jpg", IMAGE)
    images = [{"id": int(s), "file_name": f"{s}.jpg", "height": 4, "width": 6} for s in stems]
    full = [{"id": i, "image_id": int(stems[0]), "iscrowd": 0, **a} for i, a in enumerate(annotations)]
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": full, "categories": []}))
    return path


def cityscapes(root: Path, labels: dict[tuple[str, str], np.ndarray], ending: str = "labelTrainIds") -> None:
    for (city, stem), ids in labels.items():
        write(root / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png", IMAGE)
        write(root / "gtFine" / "val" / city / f"{stem}_gtFine_{ending}.png", ids)


def ade20k(root: Path, labels: dict[str, np.ndarray]) -> None:
    for stem, ids in labels.items():
        write(root / "images" / "validation" / f"{stem}.jpg", IMAGE)
        write(root / "annotations" / "validation" / f"{stem}.png", ids)


def folder(root: Path) -> None:
    write(root / "images" / "a.png", IMAGE)
    write(root / "labels" / "a.png", label(1))
    (root / "classes.json").write_text('["x", "y"]')
