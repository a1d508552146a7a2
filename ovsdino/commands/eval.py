"""`ovsdino eval`: scores on a labelled data set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ovsdino.commands.common import ModelOptions, print_json, progress_bar
from ovsdino.errors import OVSDinoError


@dataclass(frozen=True, kw_only=True)
class Eval(ModelOptions):
    """Score a model on a labelled data set: mIoU, pixel accuracy, boundary F1, Boundary IoU."""

    dataset: str
    """camvid, or folder (images/, labels/ with index PNGs, classes.json)."""
    root: Path | None = None
    """Folder with DATASET_SPLIT.zip or the data set's own folders. Default: $OVSDINO_DATA."""
    split: str = "val"
    """Which part of the data set."""
    class_names: Path | None = None
    """JSON file: class name to the text, or list of texts to average, that is used in its place."""
    limit: int | None = None
    """Take the first N images only."""
    background: Annotated[float | None, tyro.conf.arg(metavar="[T]")] = None
    """Leave pixels less certain than T (0..1, 0.5 if no number follows) unlabelled; they count as errors."""
    window: int | None = None
    """Side of a sliding window in pixels of the resized image. Default: the whole image at once."""
    stride: int | None = None
    """Step of the window. Default: half of it."""
    json: bool = False
    """Print one JSON object on stdout; scores in 0..1. mIoU is the mean over classes of intersections over unions, both
    summed over the data set; a class neither labelled nor predicted anywhere is null and left out."""

    def run(self) -> int:
        root = self.root or os.environ.get("OVSDINO_DATA")
        if not root:
            raise OVSDinoError("--root is missing: name the folder that holds the data set, or set OVSDINO_DATA")
        from ovsdino.data.segmentation import open_dataset
        from ovsdino.eval import evaluate, read_class_names
        from ovsdino.eval.evaluate import dataset_vocabulary

        class_names = read_class_names(self.class_names) if self.class_names else {}
        dataset = open_dataset(self.dataset, root, self.split)
        dataset_vocabulary(dataset.names, class_names)
        segmenter = self.load()
        with progress_bar() as progress:
            task = progress.add_task(f"eval {self.dataset} {self.split}", total=None)
            result = evaluate(
                segmenter,
                dataset,
                class_names=class_names,
                limit=self.limit,
                background=self.background,
                window=self.window,
                stride=self.stride,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        report = {"dataset": self.dataset, "split": self.split, "model": self.model, **result.to_dict()}
        if self.json:
            print_json(report)
        else:
            _print_table(report)
        return 0


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    table = Table(title=f"{report['model']} on {report['dataset']} {report['split']}, {report['images']} images")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in report["iou"].items():
        table.add_row(f"IoU {name}", percent(value))
    table.add_section()
    for key, label in (
        ("miou", "mIoU"),
        ("pixel_accuracy", "pixel accuracy"),
        ("boundary_f1", "boundary F1"),
        ("boundary_iou", "Boundary IoU"),
    ):
        table.add_row(label, percent(report[key]))
    table.add_row("ms per image", f"{report['ms_per_image']:.1f}")
    Console().print(table)
