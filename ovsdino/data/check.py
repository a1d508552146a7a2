"""Check whether a data set is usable, by counting files and reading labels; write converted labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovsdino.data.benchmarks import SPECS, dataset_of, find_layout
from ovsdino.data.datasets import CAMVID_SOURCE, open_dataset
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.data.spread import spread
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write

__all__ = ["Check", "check_dataset", "convert_dataset"]

CAMVID_EXPECTED = {"train": 367, "val": 101, "test": 233}
SAMPLE = 20  # images and labels that are decoded, evenly spread
SHOWN = 5  # of a longer list of files


@dataclass
class Check:
    """Findings of `check_dataset`.

    Attributes:
        images: Images with labels.
        expected: Images of the official split; None where there is no official number.
        labels: Which label files are used, and whether they are converted on reading.
        checked: Images and labels that were decoded.
        ids: Class index to the number of checked label files that hold it.
        missing: Files that are called for and not there.
        problems: Reasons why the data set cannot be used, one line each.
        notes: Other remarks, one line each.
    """

    dataset: str
    root: str
    split: str
    images: int = 0
    expected: int | None = None
    labels: str = ""
    checked: int = 0
    ids: dict[int, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON; of the missing files the first few and their number."""
        found = asdict(self)
        found["ids"] = {str(k): v for k, v in self.ids.items()}
        found["missing"] = {"count": len(self.missing), "first": self.missing[:SHOWN]}
        return {**found, "usable": self.usable}


def check_dataset(name: str, root: str | Path, split: str = "val", *, every: bool = False) -> Check:
    """Look at a data set's files and read labels and images.

    Args:
        name: See `open_dataset`.
        root: See `open_dataset`.
        split: See `open_dataset`.
        every: Decode all images and labels, not 20 of them.

    Raises:
        OVSDinoError: The name is unknown, or there is no such folder or split. Bad files are in the result.
    """
    check = Check(dataset=name, root=str(root), split=split)
    if name in SPECS and Path(root).is_dir() and not (Path(root) / f"{name}_{split}.zip").is_file():
        dataset = _benchmark(check, name, Path(root), split)
    else:
        dataset = open_dataset(name, root, split)
        check.labels = "labels/*.png"
        check.expected = CAMVID_EXPECTED.get(split) if name == "camvid" else None
        if name in SPECS:
            check.expected = SPECS[name].expected.get(split)
    if dataset is None:
        return check
    check.images = len(dataset)
    if check.expected is not None and check.images < check.expected:
        check.problems.append(f"{check.images} of {check.expected} images are there{_obtain(name)}")
    if check.expected is not None and check.images > check.expected:
        check.notes.append(f"{check.images} images, {check.expected} in the official split")
    _read(check, dataset, every)
    return check


def _benchmark(check: Check, name: str, root: Path, split: str) -> SegmentationDataset | None:
    layout = find_layout(name, root, split)
    check.expected = SPECS[name].expected[split]
    check.labels = layout.labels
    check.missing = layout.missing
    if layout.missing:
        check.problems.append(f"{len(layout.missing)} files are missing, e.g. {layout.missing[0]}{_obtain(name)}")
    if name == "coco-object" and layout.paint is not None:
        check.notes.append(
            "labels are painted from the instance annotations; the published figures were made with the stuff-thing "
            "maps (stuffthingmaps_trainval2017.zip), which are used when they are there"
        )
    if not layout.entries:
        check.problems.append(f"no image of split {split} has its labels{_obtain(name)}")
        return None
    return dataset_of(name, layout)


def _read(check: Check, dataset: SegmentationDataset, every: bool) -> None:
    count = len(dataset)
    indices = range(count) if every else spread(count, SAMPLE)
    unexpected: dict[int, str] = {}
    broken: list[str] = []
    for index in indices:
        entry = dataset.entries[index]
        try:
            _, raw = dataset.read(index)
        except OVSDinoError as error:
            broken.append(one_line(error, 300))
            continue
        classes = dataset.to_classes(raw)
        for unknown in dataset.unknown_ids(raw):
            unexpected.setdefault(unknown, entry.label or entry.image)
        for value in np.unique(classes).tolist():
            if value < len(dataset.names):
                check.ids[value] = check.ids.get(value, 0) + 1
        check.checked += 1
    check.ids = dict(sorted(check.ids.items()))
    check.problems += broken[:SHOWN]
    if len(broken) > SHOWN:
        check.problems.append(f"{len(broken) - SHOWN} more files cannot be used")
    if dataset.ids is not None:
        check.problems += dataset.ids.problems()
        check.notes += dataset.ids.notes()
    if unexpected:
        value, where = next(iter(sorted(unexpected.items())))
        listed = ", ".join(map(str, sorted(unexpected)[:10]))
        check.problems.append(
            f"labels hold ids that {check.dataset} does not have ({listed}), {value} in {where}: is this another "
            "version or an unfinished conversion?"
        )


def _obtain(name: str) -> str:
    source = CAMVID_SOURCE if name == "camvid" else SPECS[name].source if name in SPECS else ""
    return f"; get them from: {source}" if source else ""


def convert_dataset(name: str, root: str | Path, split: str = "val", output: str | Path | None = None) -> list[Path]:
    """Write the class indices of COCO-Object, COCO-Stuff or Cityscapes as the PNGs that mmsegmentation reads.

    Not needed to evaluate here: raw labels are converted while they are read.

    Args:
        name: "coco-object", "coco-stuff" or "cityscapes".
        root: See `open_dataset`.
        split: See `open_dataset`.
        output: Folder that gets the data set's label folders; its own by default.

    Returns:
        The files written.

    Raises:
        OVSDinoError: It is another data set, already converted, incomplete, or not writable.
    """
    endings = {
        "coco-object": "_instanceTrainIds.png",
        "coco-stuff": "_labelTrainIds.png",
        "cityscapes": "_gtFine_labelTrainIds.png",
    }
    if name not in endings:
        raise OVSDinoError(f"{name} needs no conversion; those with one: {', '.join(endings)}")
    dataset = open_dataset(name, root, split)
    ending = endings[name]
    if str(dataset.entries[0].label).endswith(ending):
        raise OVSDinoError(f"{dataset.source}: the labels are converted already ({dataset.entries[0].label})")
    home = Path(output) if output is not None else dataset.source
    written = []
    for index, entry in enumerate(dataset.entries):
        folder = Path(entry.label).parent if name == "cityscapes" and entry.label else Path(f"annotations/{split}2017")
        target = home / folder / f"{entry.stem}{ending}"
        with atomic_write(target) as file:
            Image.fromarray(dataset[index].label).save(file, format="PNG")
        written.append(target)
    return written
