"""BSDS500 (Arbeláez, Maire, Fowlkes, Malik 2011): images, each cut into regions by several people."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ovsdino.data.mat import read_mat
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading
from ovsdino.io.tree import FileTree

__all__ = ["SPLITS", "BoundarySample", "BsdsDataset", "boundaries", "open_bsds"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class BoundarySample:
    """One image and its segmentations.

    Attributes:
        stem: File name without suffix.
        image: (H, W, 3) uint8 RGB.
        segments: (A, H, W) integer region ids, one map per annotator.
    """

    stem: str
    image: np.ndarray
    segments: np.ndarray


class BsdsDataset:
    """One split of BSDS500; `dataset[i]` reads and decodes.

    Args:
        tree: The folder or zip.
        files: For each image its file and the files of its segmentations, names in the tree.
    """

    def __init__(self, tree: FileTree, files: dict[str, list[str]]) -> None:
        self.source = tree.source
        self.files = sorted(files.items())
        self._tree = tree

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> BoundarySample:
        name, marked = self.files[index]
        image = self._tree.image(name)
        maps = [one for file in marked for one in self._segments(file)]
        for one in maps:
            if one.shape != image.shape[:2]:
                raise OVSDinoError(f"{self.source}: {marked[0]} is {one.shape}, its image is {image.shape[:2]}")
        return BoundarySample(PurePosixPath(name).stem, image, np.stack(maps))

    def _segments(self, name: str) -> list[np.ndarray]:
        if not name.endswith(".mat"):
            return [self._tree.label(name).astype(np.int32)]
        data = self._tree.read(name, "ground truth of BSDS500")
        with reading(f"{self.source}: {name}", "ground truth of BSDS500", "fetch it again"):
            maps = [np.asarray(person[0]["Segmentation"], np.int32) for person in read_mat(data)["groundTruth"]]
            if not maps or any(one.ndim != 2 for one in maps):
                raise ValueError("it holds no segmentation")
            return maps


def open_bsds(root: str | Path, split: str) -> BsdsDataset:
    """Open a split of BSDS500.

    Args:
        root: A folder with `bsds500_<split>.zip`, or with the same (`images/*.jpg`, `segments/<stem>_<annotator>.png`
            of region ids) as folders in `bsds500/<split>/` or `<split>/`, or with the authors' own download,
            `BSDS500/data/{images,groundTruth}/<split>/`.
        split: "train", "val" or "test".

    Raises:
        OVSDinoError: The split is unknown, nothing is found, or an image has no segmentation.
    """
    root = Path(root)
    if split not in SPLITS:
        raise OVSDinoError(f"unknown split {split!r} of bsds500; available: {', '.join(SPLITS)}")
    if not root.is_dir():
        raise OVSDinoError(f"{root}: no such folder; --root names the folder that holds the data set")
    archive = root / f"bsds500_{split}.zip"
    if archive.is_file():
        return _pair(FileTree(archive), "images", "segments")
    for source in (root / "bsds500" / split, root / split, root):
        if (source / "images").is_dir() and (source / "segments").is_dir():
            return _pair(FileTree(source), "images", "segments")
    for source in (root, root / "data", root / "BSDS500" / "data", root / "BSR" / "BSDS500" / "data"):
        if (source / "groundTruth" / split).is_dir():
            return _pair(FileTree(source), f"images/{split}", f"groundTruth/{split}")
    raise OVSDinoError(
        f"{root}: neither {archive.name} nor images/ and segments/ nor BSDS500/data/groundTruth/{split}/ found there; "
        "the data set is BSR_bsds500.tgz of Berkeley's Computer Vision Group"
    )


def _pair(tree: FileTree, images: str, segments: str) -> BsdsDataset:
    marked: dict[str, list[str]] = defaultdict(list)
    found: dict[str, str] = {}
    for name in tree.names():
        path = PurePosixPath(name)
        if path.parent.as_posix() == segments and path.suffix == ".png":
            marked[path.stem.rpartition("_")[0]].append(name)
        elif path.parent.as_posix() == segments and path.suffix == ".mat":
            marked[path.stem].append(name)
        elif path.parent.as_posix() == images and path.suffix in (".jpg", ".png"):
            if path.stem in found:
                raise OVSDinoError(f"{tree.source}: {found[path.stem]} and {name} have one name; remove one of them")
            found[path.stem] = name
    if not found:
        raise OVSDinoError(f"{tree.source}: no images in {images}/")
    bare = sorted(found.keys() - marked.keys())
    if bare:
        raise OVSDinoError(f"{tree.source}: {len(bare)} images have no segmentation in {segments}/, e.g. {bare[0]!r}")
    return BsdsDataset(tree, {name: marked[stem] for stem, name in found.items()})


def boundaries(segments: np.ndarray) -> np.ndarray:
    """Return which pixels of (A, H, W) region ids have a right, lower or lower right neighbor of another region."""
    edge = np.zeros(segments.shape, dtype=bool)
    edge[:, :, :-1] |= segments[:, :, :-1] != segments[:, :, 1:]
    edge[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edge[:, :-1, :-1] |= segments[:, :-1, :-1] != segments[:, 1:, 1:]
    return edge
