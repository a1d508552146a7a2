"""The eight benchmarks in the folders in which their publishers and mmsegmentation leave them.

| name | folders below the root (or in the sub-folder that mmsegmentation uses) |
|---|---|
| voc21, voc20 | JPEGImages, SegmentationClass, ImageSets/Segmentation/<split>.txt |
| context60, context59 | JPEGImages, SegmentationClassContext, ImageSets/SegmentationContext/<split>.txt |
| coco-stuff | images/<split>2017, annotations/<split>2017/*_labelTrainIds.png or raw maps (or stuffthingmaps) |
| coco-object | images/<split>2017, annotations/<split>2017/*_instanceTrainIds.png, raw maps or instances_*.json |
| cityscapes | leftImg8bit/<split>/<city>, gtFine/<split>/<city>/*_gtFine_labelTrainIds.png or *_labelIds.png |
| ade20k | images/validation, annotations/validation (training for split train) |

Labels that only exist as raw ids are converted while they are read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ovsdino.data import names
from ovsdino.data.labels import (
    CocoInstances,
    cityscapes_ids,
    coco_object_ids,
    coco_stuff_ids,
    identity,
    reduce_zero,
)
from ovsdino.data.segmentation import Entry, SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import is_litter, read_text

__all__ = ["SPECS", "Benchmark", "Layout", "find_layout", "open_benchmark"]


@dataclass
class Layout:
    """Files of a split that were found.

    Attributes:
        home: The folder that holds the data set's own folders.
        entries: Images with their labels.
        missing: Images or labels that a list or a partner calls for and that are not there.
        labels: Which kind of label files, for people.
        table: See `SegmentationDataset`.
        paint: See `SegmentationDataset`.
    """

    home: Path
    entries: list[Entry]
    missing: list[str]
    labels: str
    table: np.ndarray | None
    paint: Callable[[str], np.ndarray] | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set and where it comes from.

    Attributes:
        names: Classes as mmsegmentation 0.30 has them.
        expected: Images in each official split.
        homes: Sub-folders of the root to look into, after the root itself.
        find: Function that returns the files of a split in a home, or None if this is not the place.
        wanted: What was looked for, for people.
        source: The archives and who publishes them.
    """

    names: tuple[str, ...]
    expected: Mapping[str, int]
    homes: tuple[str, ...]
    find: Callable[[Path, str], Layout | None] = field(repr=False)
    wanted: str
    source: str
    has_background: bool = False


def open_benchmark(name: str, root: Path, split: str) -> SegmentationDataset:
    """Open one of the eight from its own folders.

    Raises:
        OVSDinoError: It is not there, or incomplete.
    """
    layout = find_layout(name, root, split)
    if layout.missing:
        raise OVSDinoError(
            f"{layout.home}: {len(layout.missing)} files are missing, e.g. {layout.missing[0]}; "
            f"see `ovsdino data check {name}`"
        )
    if not layout.entries:
        raise OVSDinoError(f"{layout.home}: no images of split {split}; see `ovsdino data check {name}`")
    return dataset_of(name, layout)


def dataset_of(name: str, layout: Layout) -> SegmentationDataset:
    """Return one of the eight over the files of a layout that were found."""
    return SegmentationDataset(
        layout.home,
        SPECS[name].names,
        layout.entries,
        table=layout.table,
        paint=layout.paint,
        has_background=SPECS[name].has_background,
    )


def find_layout(name: str, root: Path, split: str) -> Layout:
    """Return the files of a split, complete or not.

    Raises:
        OVSDinoError: There is no such data set below the root.
    """
    spec = SPECS[name]
    if split not in spec.expected:
        raise OVSDinoError(f"split is {split!r}: {name} has {', '.join(spec.expected)}")
    for sub in ("", *spec.homes):
        home = root / sub
        if not home.resolve().is_relative_to(root.resolve()):
            raise OVSDinoError(f"{home} is a link that leaves {root}; give its target as --root")
        layout = spec.find(home, split) if home.is_dir() else None
        if layout is not None:
            return layout
    raise OVSDinoError(f"{root}: no {name} there; looked for {spec.wanted}. Get it from: {spec.source}")


def _files(folder: Path, suffix: str) -> set[str]:
    """Return the names of the files in a folder; none where it is missing."""
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if e.name.endswith(suffix) and not e.is_dir() and not is_litter(e.name)}
    except OSError:
        return set()


def _pascal(labels: str, lists: str, table: np.ndarray) -> Callable[[Path, str], Layout | None]:
    def find(home: Path, split: str) -> Layout | None:
        if not (home / "JPEGImages").is_dir() or not (home / labels).is_dir():
            return None
        listed = home / "ImageSets" / lists / f"{split}.txt"
        text = read_text(listed, "list of the split")
        stems = [line.split()[0] for line in text.splitlines() if line.strip()]
        bad = next((s for s in stems if s != os.path.basename(s) or s in (".", "..") or "\\" in s or "\0" in s), None)
        if bad is not None:
            raise OVSDinoError(f"{listed}: {bad!r} is not an image name; the list holds names without folders")
        images, maps = _files(home / "JPEGImages", ".jpg"), _files(home / labels, ".png")
        entries, missing = [], []
        for stem in dict.fromkeys(stems):
            absent = [f"JPEGImages/{stem}.jpg"] * (f"{stem}.jpg" not in images)
            absent += [f"{labels}/{stem}.png"] * (f"{stem}.png" not in maps)
            missing += absent
            if not absent:
                entries.append(Entry(stem, f"JPEGImages/{stem}.jpg", f"{labels}/{stem}.png"))
        return Layout(home, entries, missing, f"{labels}/*.png", table)

    return find


def _coco(
    suffix: str, converted: np.ndarray, raw: np.ndarray, *, instances: bool
) -> Callable[[Path, str], Layout | None]:
    def find(home: Path, split: str) -> Layout | None:
        part = f"{split}2017"
        images = next((f for f in (f"images/{part}", part) if (home / f).is_dir()), None)
        if images is None:
            return None
        stems = sorted(name[:-4] for name in _files(home / images, ".jpg"))
        places = [(f"annotations/{part}", suffix, converted)]
        places += [
            (f, ".png", raw)
            for f in (f"annotations/{part}", f"stuffthingmaps/{part}", f"annotations/stuffthingmaps/{part}")
        ]
        best: Layout | None = None
        for folder, ending, table in places:
            maps = _files(home / folder, ending)
            if ending == ".png":
                maps = {name for name in maps if "TrainIds" not in name}
            if not maps:
                continue
            entries = [Entry(s, f"{images}/{s}.jpg", f"{folder}/{s}{ending}") for s in stems if s + ending in maps]
            missing = [f"{folder}/{s}{ending}" for s in stems if s + ending not in maps]
            missing += [
                f"{images}/{m[: -len(ending)]}.jpg" for m in sorted(maps) if m[: -len(ending)] not in set(stems)
            ]
            found = Layout(home, entries, missing, f"{folder}/*{ending}", table)
            if best is None or len(entries) > len(best.entries):
                best = found
        if best is not None or not instances:
            return best
        for file in (f"annotations/instances_{part}.json", f"instances_{part}.json"):
            if (home / file).is_file():
                if not (home / file).resolve().is_relative_to(home.resolve()):
                    raise OVSDinoError(f"{home / file} leads out of the data set; copy the file, or link its root")
                return _coco_instances(home, file, images, set(stems))
        return None

    return find


def _coco_instances(home: Path, file: str, images: str, stems: set[str]) -> Layout:
    annotations = CocoInstances(home / file)
    listed = sorted(name[:-4] for name in annotations.images if name.endswith(".jpg"))
    entries = [Entry(stem, f"{images}/{stem}.jpg", None) for stem in listed if stem in stems]
    missing = [f"{images}/{stem}.jpg" for stem in listed if stem not in stems]
    return Layout(home, entries, missing, file, identity(81), annotations.paint)


def _cityscapes(home: Path, split: str) -> Layout | None:
    pictures, truth = home / "leftImg8bit" / split, home / "gtFine" / split
    if not pictures.is_dir() or not truth.is_dir():
        return None
    cities = sorted(
        d.name for folder in (pictures, truth) for d in folder.iterdir() if d.is_dir() and not is_litter(d.name)
    )
    found: dict[str, Layout] = {}
    for ending, table in (("_gtFine_labelTrainIds.png", identity(19)), ("_gtFine_labelIds.png", cityscapes_ids())):
        layout = Layout(home, [], [], f"gtFine/*/*{ending}", table)
        for city in dict.fromkeys(cities):
            images = {n[: -len("_leftImg8bit.png")] for n in _files(pictures / city, "_leftImg8bit.png")}
            labels = {n[: -len(ending)] for n in _files(truth / city, ending)}
            for stem in sorted(images | labels):
                image, label = (
                    f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png",
                    f"gtFine/{split}/{city}/{stem}{ending}",
                )
                if stem in images and stem in labels:
                    layout.entries.append(Entry(stem, image, label))
                else:
                    layout.missing.append(label if stem in images else image)
        found[ending] = layout
    return max(found.values(), key=lambda layout: len(layout.entries))  # the first, trainIds, where both are complete


def _ade20k(home: Path, split: str) -> Layout | None:
    part = {"train": "training", "val": "validation"}[split]
    images, labels = f"images/{part}", f"annotations/{part}"
    if not (home / images).is_dir() or not (home / labels).is_dir():
        return None
    left, right = ({n[:-4] for n in _files(home / f, s)} for f, s in ((images, ".jpg"), (labels, ".png")))
    entries = [Entry(stem, f"{images}/{stem}.jpg", f"{labels}/{stem}.png") for stem in sorted(left & right)]
    missing = [f"{labels}/{s}.png" for s in sorted(left - right)] + [f"{images}/{s}.jpg" for s in sorted(right - left)]
    return Layout(home, entries, missing, f"{labels}/*.png", reduce_zero(150))


_VOC = {
    "expected": {"train": 1464, "val": 1449, "trainval": 2913},
    "homes": ("VOC2012", "VOCdevkit/VOC2012"),
    "wanted": "JPEGImages, SegmentationClass and ImageSets/Segmentation",
    "source": "VOCtrainval_11-May-2012.tar, the PASCAL VOC 2012 development kit data (PASCAL VOC challenge site)",
}
_CONTEXT = {
    "expected": {"train": 4996, "val": 5104},
    "homes": ("VOC2010", "VOCdevkit/VOC2010"),
    "wanted": "JPEGImages, SegmentationClassContext and ImageSets/SegmentationContext",
    "source": (
        "VOCtrainval_03-May-2010.tar (PASCAL VOC challenge site) and trainval_merged.json (PASCAL-Context project "
        "page), made into PNGs and lists by mmsegmentation's tools/convert_datasets/pascal_context.py"
    ),
}
_COCO_HOMES = ("coco_stuff164k", "coco", "COCO")
_COCO_EXPECTED = {"train": 118287, "val": 5000}

SPECS: dict[str, Benchmark] = {
    "voc21": Benchmark(
        names=names.VOC21,
        find=_pascal("SegmentationClass", "Segmentation", identity(21)),
        has_background=True,
        **_VOC,  # type: ignore[arg-type]
    ),
    "voc20": Benchmark(
        names=names.VOC20,
        find=_pascal("SegmentationClass", "Segmentation", reduce_zero(20)),
        **_VOC,  # type: ignore[arg-type]
    ),
    "context60": Benchmark(
        names=names.CONTEXT60,
        find=_pascal("SegmentationClassContext", "SegmentationContext", identity(60)),
        has_background=True,
        **_CONTEXT,  # type: ignore[arg-type]
    ),
    "context59": Benchmark(
        names=names.CONTEXT59,
        find=_pascal("SegmentationClassContext", "SegmentationContext", reduce_zero(59)),
        **_CONTEXT,  # type: ignore[arg-type]
    ),
    "coco-object": Benchmark(
        names=names.COCO_OBJECT,
        find=_coco("_instanceTrainIds.png", identity(81), coco_object_ids(), instances=True),
        has_background=True,
        expected=_COCO_EXPECTED,
        homes=_COCO_HOMES,
        wanted="images/val2017 with annotations/val2017/*.png or annotations/instances_val2017.json",
        source=(
            "val2017.zip and annotations_trainval2017.zip (COCO data set site), or stuffthingmaps_trainval2017.zip "
            "(COCO-Stuff project page) for the maps that the published figures were made with"
        ),
    ),
    "coco-stuff": Benchmark(
        names=names.COCO_STUFF,
        find=_coco("_labelTrainIds.png", identity(171), coco_stuff_ids(), instances=False),
        expected=_COCO_EXPECTED,
        homes=_COCO_HOMES,
        wanted="images/val2017 and annotations/val2017/*.png",
        source="val2017.zip (COCO data set site) and stuffthingmaps_trainval2017.zip (COCO-Stuff project page)",
    ),
    "cityscapes": Benchmark(
        names=names.CITYSCAPES,
        find=_cityscapes,
        expected={"train": 2975, "val": 500},
        homes=("cityscapes",),
        wanted="leftImg8bit/val and gtFine/val",
        source="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (Cityscapes site, after registration)",
    ),
    "ade20k": Benchmark(
        names=names.ADE20K,
        find=_ade20k,
        expected={"train": 20210, "val": 2000},
        homes=("ADEChallengeData2016", "ade/ADEChallengeData2016"),
        wanted="images/validation and annotations/validation",
        source="ADEChallengeData2016.zip (MIT Scene Parsing Benchmark site)",
    ),
}
