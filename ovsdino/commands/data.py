"""`ovsdino data`: check a data set and convert its labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ovsdino.console import print_json, say
from ovsdino.options import data_root
from ovsdino.parsing import Argument


@dataclass(frozen=True, kw_only=True)
class Check:
    """Count a data set's files against the official numbers, read labels, and name missing files with their source."""

    name: Annotated[str, Argument("NAME")]
    """camvid, folder, voc21, voc20, context60, context59, coco-object, coco-stuff, cityscapes or ade20k."""
    root: Path | None = None
    """Folder of the data set, or the one above it. Default: $OVSDINO_DATA."""
    split: str = "val"
    """Part of the data set: train, val or another that it has."""
    every: bool = False
    """Decode every image and label, not a sample of 20."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.data.check import check_dataset

        check = check_dataset(self.name, data_root(self.root), self.split, every=self.every)
        if self.json:
            print_json(check.to_dict())
        else:
            expected = f" of {check.expected}" if check.expected is not None else ""
            print(
                f"{check.dataset} {check.split}: {check.images}{expected} images, labels {check.labels or 'not found'}"
            )
            print(f"decoded {check.checked}, {len(check.ids)} classes seen")
            for note in check.notes:
                print(f"note: {note}")
        for problem in check.problems:
            say(f"error: {check.dataset}: {problem}")
        return 0 if check.usable else 2


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write the labels of coco-object, coco-stuff or cityscapes as the index PNGs that mmsegmentation reads.

    `ovsdino eval` does not need this: it converts while it reads.
    """

    name: Annotated[str, Argument("NAME")]
    """coco-object, coco-stuff or cityscapes."""
    root: Path | None = None
    """Folder of the data set, or the one above it. Default: $OVSDINO_DATA."""
    split: str = "val"
    """Part of the data set: train, val or another that it has."""
    output: Path | None = None
    """Folder that gets the label folders. Default: the data set's own."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.data.check import convert_dataset

        written = convert_dataset(self.name, data_root(self.root), self.split, self.output)
        if self.json:
            print_json(
                {"dataset": self.name, "split": self.split, "files": len(written), "output": str(written[0].parent)}
            )
        else:
            print(f"{self.name} {self.split}: {len(written)} files, e.g. {written[0]}")
        return 0
