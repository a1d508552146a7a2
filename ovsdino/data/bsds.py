"""BSDS500 (Arbeláez, Maire, Fowlkes, Malik 2011): images, each cut into regions by several people."""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.imageio import FORMATS, MAX_PIXELS

__all__ = ["SPLITS", "BoundarySample", "BsdsDataset", "boundaries", "open_bsds"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class BoundarySample:
    """One image and its segmentations.

    Attributes:
        stem: file name without suffix.
        image: (H, W, 3) uint8 RGB.
        segments: (A, H, W) integer region ids, one map an annotator.
    """

    stem: str
    image: np.ndarray
    segments: np.ndarray


class BsdsDataset:
    """One split; `dataset[i]` reads and decodes.

    Args:
        source: a zip file or a folder.
        files: for each image its file and the files of its segmentations, relative to the source.
    """

    def __init__(self, source: Path, files: dict[str, list[str]]) -> None:
        self.source = source
        self.files = sorted(files.items())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> BoundarySample:
        name, marked = self.files[index]
        image = self._picture(name, "RGB")
        maps = [one for file in marked for one in self._segments(file)]
        for one in maps:
            if one.shape != image.shape[:2]:
                raise OVSDinoError(f"{self.source}: {marked[0]} is {one.shape}, its image is {image.shape[:2]}")
        return BoundarySample(PurePosixPath(name).stem, image, np.stack(maps))

    def _segments(self, name: str) -> list[np.ndarray]:
        if not name.endswith(".mat"):
            return [self._picture(name, None)]
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise OVSDinoError(f"{self.source}: {name} needs scipy: pip install 'ovsdino[probe]'") from error
        try:
            cells = loadmat(io.BytesIO(self._read(name)))["groundTruth"]
            return [np.asarray(cells[0, i]["Segmentation"][0, 0], np.int32) for i in range(cells.shape[1])]
        except Exception as error:  # scipy raises many types for a broken file; each means the same here
            raise OVSDinoError(
                f"{self.source}: {name} is no ground truth of BSDS500 ({one_line(error, 80)})"
            ) from error

    def _picture(self, name: str, mode: str | None) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(self._read(name)), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise OVSDinoError(f"{self.source}: {name} has more than {MAX_PIXELS} pixels")
                values = np.asarray(picture.convert(mode) if mode else picture)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, OVSDinoError):
                raise
            raise OVSDinoError(f"{self.source}: cannot read {name}: {one_line(error, 80)}") from error
        if mode is None and values.ndim != 2:
            raise OVSDinoError(f"{self.source}: {name} is no map of region ids (one channel)")
        return values if mode else values.astype(np.int32)

    def _read(self, name: str) -> bytes:
        if self.source.is_file():
            with zipfile.ZipFile(self.source) as archive:
                return archive.read(name)
        path = self.source / name
        if not path.resolve().is_relative_to(self.source.resolve()):
            raise OVSDinoError(f"{path}: leads out of the data set; remove the link")
        return path.read_bytes()


def open_bsds(root: str | Path, split: str) -> BsdsDataset:
    """Opens a split of BSDS500.

    Args:
        root: a folder with `bsds500_<split>.zip`, or with the same (`images/*.jpg`, `segments/<stem>_<annotator>.png`
            of region ids) as folders in `bsds500/<split>/` or `<split>/`, or with the authors' own download,
            `BSDS500/data/{images,groundTruth}/<split>/` (its .mat files need scipy).
        split: "train", "val" or "test".

    Raises:
        OVSDinoError: unknown split, nothing found, or an image without segmentation.
    """
    root = Path(root)
    if split not in SPLITS:
        raise OVSDinoError(f"unknown split {split!r} of bsds500; available: {', '.join(SPLITS)}")
    if not root.is_dir():
        raise OVSDinoError(f"{root}: no such folder; --root names the folder that holds the data set")
    archive = root / f"bsds500_{split}.zip"
    if archive.is_file():
        try:
            with zipfile.ZipFile(archive) as opened:
                names = opened.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise OVSDinoError(f"{archive}: not a zip file ({one_line(error, 80)}); fetch it again") from error
        return _pair(archive, names, "images", "segments")
    for source in (root / "bsds500" / split, root / split, root):
        if (source / "images").is_dir() and (source / "segments").is_dir():
            return _pair(source, _list(source), "images", "segments")
    for source in (root, root / "data", root / "BSDS500" / "data", root / "BSR" / "BSDS500" / "data"):
        if (source / "groundTruth" / split).is_dir():
            return _pair(source, _list(source), f"images/{split}", f"groundTruth/{split}")
    raise OVSDinoError(
        f"{root}: neither {archive.name} nor images/ and segments/ nor BSDS500/data/groundTruth/{split}/ found there; "
        "the data set is BSR_bsds500.tgz of Berkeley's Computer Vision Group"
    )


def _list(source: Path) -> list[str]:
    return [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]


def _pair(source: Path, names: list[str], images: str, segments: str) -> BsdsDataset:
    marked: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.parent.as_posix() == segments and path.suffix == ".png":
            marked[path.stem.rpartition("_")[0]].append(name)
        elif path.parent.as_posix() == segments and path.suffix == ".mat":
            marked[path.stem].append(name)
    found = [p for p in map(PurePosixPath, names) if p.parent.as_posix() == images and p.suffix in (".jpg", ".png")]
    if not found:
        raise OVSDinoError(f"{source}: no images in {images}/")
    bare = sorted(p.stem for p in found if p.stem not in marked)
    if bare:
        raise OVSDinoError(f"{source}: {len(bare)} images have no segmentation in {segments}/, e.g. {bare[0]!r}")
    return BsdsDataset(source, {str(p): marked[p.stem] for p in found})


def boundaries(segments: np.ndarray) -> np.ndarray:
    """(A, H, W) region ids -> bool: pixels whose right, lower or lower right neighbour is of another region."""
    edge = np.zeros(segments.shape, dtype=bool)
    edge[:, :, :-1] |= segments[:, :, :-1] != segments[:, :, 1:]
    edge[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edge[:, :-1, :-1] |= segments[:, :-1, :-1] != segments[:, 1:, 1:]
    return edge
