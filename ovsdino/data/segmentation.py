"""One split of a segmentation data set: images and index PNGs, in a zip or in folders."""

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
)
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import SUFFIXES
from ovsdino.io.tree import FileTree

__all__ = ["IGNORE_INDEX", "Entry", "Sample", "SegmentationDataset"]

LABEL_SUFFIXES = (".png", ".bmp")


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        stem: File name without suffix; in sub-folders of `images`, the path below it.
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 class indices, 255 where there is none; of data sets with more than 255 classes uint16, and
            65535.
    """

    stem: str
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Entry:
    """Places of an image and its labels, relative to the data set's source; `label` is None if labels are computed."""

    stem: str
    image: str
    label: str | None


class SegmentationDataset:
    """Images and labels of one split; `dataset[i]` reads and decodes.

    An image is read as `ovsdino.io.images.load_image` reads it, so turned as its EXIF says. A label map is taken as
    it is stored, where it has the size of the turned image; where only the image's stored size fits, it is turned
    likewise.

    Args:
        source: A zip file or a folder; nothing outside it is read, whatever links or names it holds.
        names: The classes, in label order; at most 5000.
        entries: The files; None finds `images/**` and `labels/**` by the path below these folders, without suffix.
        table: (256,) uint8, class index of each id in the label files; None takes ids as they are, ignores those
            beyond the classes, and counts them in `ids`.
        paint: Makes the labels of an image file where there are no label files.
        has_background: Class 0 is "background": all that is none of the others, and never a word.

    Attributes:
        ignore_index: The class index of pixels without a label: 255, with more than 255 classes 65535.
        ids: The ids of the label maps read so far; None with a table, which knows all ids.

    Raises:
        OVSDinoError: Nothing is found, files have no partner, two files have one name, or there are too many classes.
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
                f"{self.source}: {other}: is not a PNG, and other formats change ids; save label maps as PNG"
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
            OVSDinoError: A file is missing, damaged or too large, or their sizes differ.
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
        OVSDinoError: Two files of one kind differ in their suffix only.
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
