"""Segmentation data sets with pixel labels: images and index PNGs, in a zip or in folders."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ovsdino.data.labels import IGNORE_INDEX, UNEXPECTED
from ovsdino.data.names import CAMVID as CAMVID_NAMES
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.imageio import FORMATS, MAX_PIXELS
from ovsdino.io.files import read_json

__all__ = ["CAMVID_NAMES", "DATASETS", "IGNORE_INDEX", "Entry", "Sample", "SegmentationDataset", "open_dataset"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_FILE_BYTES = 400_000_000  # of one image or label, unpacked: `MAX_PIXELS` as RGB with room to spare
BENCHMARKS = ("voc21", "voc20", "context60", "context59", "coco-object", "coco-stuff", "cityscapes", "ade20k")
DATASETS = ("camvid", "folder", *BENCHMARKS)


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


@dataclass(frozen=True)
class Entry:
    """Where an image and its labels are, relative to the data set's source; `label` is None if labels are computed."""

    stem: str
    image: str
    label: str | None


class SegmentationDataset:
    """Images and labels of one split; `dataset[i]` reads and decodes.

    Args:
        source: a zip file or a folder; nothing outside it is read, whatever links or names it holds.
        names: the classes, in label order.
        entries: the files; None finds `images/*` and `labels/*.png` by stem.
        table: (256,) uint8, class index of each id in the label files; None takes ids as they are and ignores those
            beyond the classes.
        paint: makes the labels of an image file where there are no label files.
        has_background: class 0 is "background": what is none of the others, not a word.

    Raises:
        OVSDinoError: nothing found, or files without partner.
    """

    ignore_index = IGNORE_INDEX

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
        self.source = source
        self.names = tuple(names)
        self.has_background = has_background
        self.entries = tuple(self._pair() if entries is None else entries)
        self.stems = tuple(entry.stem for entry in self.entries)
        self._table = table
        self._paint = paint
        self._zip: zipfile.ZipFile | None = None

    def _pair(self) -> list[Entry]:
        files = [PurePosixPath(name) for name in self._list()]
        labels = {file.stem: file for file in files if file.parent.name == "labels"}
        images = {f.stem: f for f in files if f.parent.name == "images" and f.suffix.lower() in IMAGE_SUFFIXES}
        missing = sorted(set(images) ^ set(labels))
        if missing:
            raise OVSDinoError(
                f"{self.source}: {len(missing)} files lack their image or label partner, e.g. {missing[0]!r}"
            )
        if not images:
            raise OVSDinoError(f"{self.source}: no images; expected images/*.jpg (or .png) and labels/*.png")
        return [Entry(stem, str(images[stem]), str(labels[stem])) for stem in sorted(images)]

    def _list(self) -> list[str]:
        if self.source.is_file():
            try:
                with zipfile.ZipFile(self.source) as archive:
                    names = archive.namelist()
            except (zipfile.BadZipFile, OSError) as error:
                raise OVSDinoError(f"{self.source}: not a zip file ({one_line(error, 80)}); fetch it again") from error
            return [n for n in names if not PurePosixPath(n).is_absolute() and ".." not in PurePosixPath(n).parts]
        return [str(p.relative_to(self.source).as_posix()) for p in self.source.rglob("*") if p.is_file()]

    def _open(self, name: str, what: str) -> Image.Image:
        """The decoded image of a file.

        Raises:
            OVSDinoError: out of the source, missing, damaged or too large.
        """
        where = f"{self.source}: {name}"
        try:
            picture = Image.open(io.BytesIO(self._read(name)), formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise OVSDinoError(f"{where}: more than {MAX_PIXELS:,} pixels")
            picture.load()
        except OVSDinoError:
            raise
        except FileNotFoundError as error:
            raise OVSDinoError(f"{where}: no such {what}") from error
        except Exception as error:  # decoders raise whatever a broken byte leads to
            raise OVSDinoError(f"{where}: cannot read this {what}: {one_line(error, 120)}") from error
        return picture

    def _read(self, name: str) -> bytes:
        if not self.source.is_file():
            path = (self.source / name).resolve()
            if not path.is_relative_to(self.source.resolve()):
                raise OVSDinoError(f"{self.source}: {name} leads out of the data set; copy the file, or link its root")
            if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
                raise OVSDinoError(f"{self.source}: {name} has more than {MAX_FILE_BYTES:,} bytes")
            return path.read_bytes()
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.source)
        if self._zip.getinfo(name).file_size > MAX_FILE_BYTES:
            raise OVSDinoError(f"{self.source}: {name} unpacks to more than {MAX_FILE_BYTES:,} bytes")
        return self._zip.read(name)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None}  # an open archive does not travel to a worker process

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        image = self.image(index)
        raw = self.raw_label(index)
        where = entry.label or f"the label of {entry.image}"
        if raw.shape != image.shape[:2]:
            raise OVSDinoError(f"{self.source}: {where} is {raw.shape}, its image is {image.shape[:2]}")
        label = self.to_classes(raw)
        if self._table is not None and (label == UNEXPECTED).any():
            ids = np.unique(raw[label == UNEXPECTED])[:5].tolist()
            raise OVSDinoError(
                f"{self.source}: {where} holds the ids {ids}, which this data set does not have; "
                "see `ovsdino data check`"
            )
        return Sample(entry.stem, image, label)

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB.

        Raises:
            OVSDinoError: the file is missing, damaged or too large.
        """
        return np.asarray(self._open(self.entries[index].image, "image").convert("RGB"))

    def raw_label(self, index: int) -> np.ndarray:
        """(H, W) ids as they stand in the label file.

        Raises:
            OVSDinoError: the file is missing, damaged, or has no single channel.
        """
        entry = self.entries[index]
        if entry.label is None:
            assert self._paint is not None
            return self._paint(PurePosixPath(entry.image).name)
        raw = np.array(self._open(entry.label, "label"))
        if raw.ndim != 2:
            raise OVSDinoError(f"{self.source}: {entry.label} has {raw.shape[-1]} channels: expected an index PNG")
        return raw

    def to_classes(self, raw: np.ndarray) -> np.ndarray:
        """(H, W) uint8 class indices, 255 ignored; ids that the data set does not have become `UNEXPECTED`."""
        if self._table is None:
            return np.where((raw >= 0) & (raw < len(self.names)), raw, IGNORE_INDEX).astype(np.uint8)
        inside = (raw >= 0) & (raw < 256)
        return np.where(inside, self._table[np.where(inside, raw, 0)], UNEXPECTED).astype(np.uint8)


def open_dataset(name: str, root: str | Path, split: str = "val") -> SegmentationDataset:
    """Opens a labelled data set.

    Args:
        name: "camvid"; "folder" (images/, labels/ with index PNGs, classes.json with the list of names); or one of the
            eight benchmarks, in the layout of `ovsdino.data.benchmarks`.
        root: folder that holds `<name>_<split>.zip`, or `images` and `labels`, there or in `<split>/`, or the
            benchmark's own folders.
        split: "train", "val", …

    Raises:
        OVSDinoError: unknown name, nothing found, or files without partner.
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
        raise OVSDinoError(f"{root}: neither {archive.name} nor images/ and labels/ found there")
    if name == "camvid":
        return SegmentationDataset(source, CAMVID_NAMES)
    if name in BENCHMARKS:
        from ovsdino.data.benchmarks import SPECS

        return SegmentationDataset(source, SPECS[name].names, has_background=SPECS[name].has_background)
    for names_file in (root / "classes.json", source.parent / "classes.json", source / "classes.json"):
        if names_file.is_file():
            break
    else:
        raise OVSDinoError(f"{root}: classes.json is missing: a JSON list of the class names, in label order")
    names = read_json(names_file, "JSON list of class names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise OVSDinoError(f"{names_file}: must be a non-empty JSON list of class names")
    return SegmentationDataset(source, tuple(names))
