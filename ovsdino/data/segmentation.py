"""Segmentation data sets with pixel labels: images and index PNGs, in a zip or in folders."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError

CAMVID_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "sidewalk",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
IGNORE_INDEX = 255


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        stem: file name without suffix.
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 class indices, 255 where there is none.
    """

    stem: str
    image: np.ndarray
    label: np.ndarray


class SegmentationDataset:
    """Images and labels of one split; `dataset[i]` reads and decodes."""

    ignore_index = IGNORE_INDEX

    def __init__(self, source: Path, names: tuple[str, ...]) -> None:
        self.source = source
        self.names = names
        self._zip: zipfile.ZipFile | None = None
        files = self._list()
        labels = {PurePosixPath(f).stem: f for f in files if PurePosixPath(f).parent.name == "labels"}
        images = {
            PurePosixPath(f).stem: f
            for f in files
            if PurePosixPath(f).parent.name == "images" and PurePosixPath(f).suffix.lower() in IMAGE_SUFFIXES
        }
        missing = sorted(set(images) ^ set(labels))
        if missing:
            raise OVSDinoError(f"{source}: {len(missing)} files lack their image or label partner, e.g. {missing[0]!r}")
        if not images:
            raise OVSDinoError(f"{source}: no images; expected images/*.jpg (or .png) and labels/*.png")
        self.stems = tuple(sorted(images))
        self._pairs = [(images[stem], labels[stem]) for stem in self.stems]

    def _list(self) -> list[str]:
        if self.source.is_file():
            try:
                with zipfile.ZipFile(self.source) as archive:
                    names = archive.namelist()
            except zipfile.BadZipFile as error:
                raise OVSDinoError(f"{self.source}: not a zip file ({error}); fetch it again") from error
            return [n for n in names if not PurePosixPath(n).is_absolute() and ".." not in PurePosixPath(n).parts]
        return [str(p.relative_to(self.source).as_posix()) for p in self.source.rglob("*") if p.is_file()]

    def _read(self, name: str) -> bytes:
        if not self.source.is_file():
            return (self.source / name).read_bytes()
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.source)
        return self._zip.read(name)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None}  # an open archive does not travel to a worker process

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        image_name, label_name = self._pairs[index]
        try:
            image = np.asarray(Image.open(io.BytesIO(self._read(image_name))).convert("RGB"))
            label = np.array(Image.open(io.BytesIO(self._read(label_name))))
        except (OSError, SyntaxError, ValueError) as error:
            raise OVSDinoError(f"{self.source}: cannot read {image_name} or {label_name}: {error}") from error
        if label.shape != image.shape[:2]:
            raise OVSDinoError(f"{self.source}: {label_name} is {label.shape}, its image is {image.shape[:2]}")
        return Sample(
            self.stems[index],
            image,
            np.where(label < len(self.names), label, IGNORE_INDEX).astype(np.uint8),
        )


def open_dataset(name: str, root: str | Path, split: str = "val") -> SegmentationDataset:
    """Opens a labelled data set.

    Args:
        name: "camvid", or "folder" (images/, labels/ with index PNGs, classes.json with the list of names).
        root: folder that holds `<name>_<split>.zip`, or `images` and `labels`, there or in `<split>/`.
        split: "train", "val", …

    Raises:
        OVSDinoError: unknown name, nothing found, or files without partner.
    """
    root = Path(root)
    if name not in ("camvid", "folder"):
        raise OVSDinoError(f"unknown data set {name!r}; available: camvid, folder")
    if not root.is_dir():
        raise OVSDinoError(f"{root}: no such folder; --root names the folder that holds the data set")
    archive = root / f"{name}_{split}.zip"
    candidates = [archive, root / name / split, root / split, root]
    source = next((c for c in candidates if c.is_file() or (c / "images").is_dir()), None)
    if source is None:
        raise OVSDinoError(f"{root}: neither {archive.name} nor images/ and labels/ found there")
    if name == "camvid":
        return SegmentationDataset(source, CAMVID_NAMES)
    for names_file in (root / "classes.json", source.parent / "classes.json", source / "classes.json"):
        if names_file.is_file():
            break
    else:
        raise OVSDinoError(f"{root}: classes.json is missing: a JSON list of the class names, in label order")
    try:
        names = json.loads(names_file.read_text())
    except json.JSONDecodeError as error:
        raise OVSDinoError(f"{names_file}: not JSON: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise OVSDinoError(f"{names_file}: must be a non-empty JSON list of class names")
    return SegmentationDataset(source, tuple(names))
