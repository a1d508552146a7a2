"""`ovsdino adapt`: a few labelled images in, words of one's own out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.console import print_json, progress_bar
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.options import SegmenterOptions, data_root

if TYPE_CHECKING:
    from ovsdino.data.segmentation import SegmentationDataset


@dataclass(frozen=True, kw_only=True)
class Adapt(SegmenterOptions):
    """Learn words of your own from 5 to 50 labeled images, in minutes on a CPU, and keep all other words as they are.

    It writes a small file, which every command takes with --adapted FILE; for a robot, `ovsdino text --adapted FILE`
    puts the rows into a text bank. With --adapted here, the words of that file go on into the new one.
    """

    images: Path | None = None
    """Folder of images, and of folders of them."""
    labels: Path | None = None
    """Folder of index PNGs with the images' names: a pixel holds the index of its class, 255 for no label."""
    names: Path | None = None
    """JSON list of the class names, in label order; "background" is none of the words. Default: classes.json in
    --labels or --images, or next to them."""
    dataset: str | None = None
    """In place of --images and --labels: a labeled data set, see `ovsdino eval --dataset`."""
    root: Path | None = None
    """Folder of that data set. Default: $OVSDINO_DATA."""
    split: str = "train"
    """Part of that data set."""
    words: str | None = None
    """The names to learn, separated by commas. Default: all of the names."""
    per_word: int | None = None
    """Take the first N images that show each of these words. Default: all images."""
    limit: int | None = None
    """Look at the first N images only."""
    output: Path = Path("adapted.safetensors")
    """File to write."""
    json: bool = False
    """Print one JSON object on stdout: for each word its images and pixels, and its IoU before and after on images that
    were held out."""

    def run(self) -> int:
        from ovsdino.io.files import refuse_inputs
        from ovsdino.train.adapt.session import adapt, choose_images, lesson_of
        from ovsdino.vocabulary import Vocabulary

        data = self._open()
        words = Vocabulary.of(self.words).names if self.words is not None else ()
        lesson = lesson_of(data, words)
        refuse_inputs([self.output], self.input_files)
        chosen = choose_images(lesson, self.per_word, self.limit)
        segmenter = self.load()
        with progress_bar() as progress:
            tasks: dict[str, Any] = {}

            def tell(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                progress.update(tasks[stage], completed=done)

            result = adapt(segmenter, lesson, chosen, progress=tell)
        adapted = result.adapted
        if segmenter.adapted is not None:
            adapted = segmenter.adapted.merged(adapted)
        path = adapted.save(self.output)
        if self.json:
            print_json({"output": str(path), **result.to_dict()})
        else:
            print(f"{one_line(path)}: {len(adapted)} words of {adapted.model}, {result.steps} steps")
            _print_table(result.to_dict())
        return 0

    def _open(self) -> SegmentationDataset:
        from ovsdino.data.datasets import open_dataset, open_folders

        if self.dataset is not None:
            if self.images is not None or self.labels is not None:
                raise OVSDinoError("--dataset takes the place of --images and --labels: give one or the other")
            return open_dataset(self.dataset, data_root(self.root), self.split)
        if self.images is None or self.labels is None:
            raise OVSDinoError("--images and --labels are missing: name both folders, or give --dataset")
        return open_folders(self.images, self.labels, self.names)


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    table = Table(title=f"{report['images']} images, each held out once")
    table.add_column("word")
    table.add_column("starts from")
    for column in ("images", "pixels", "IoU before", "IoU after"):
        table.add_column(column, justify="right")
    for entry in report["words"]:
        scores = [percent(entry["iou_before"]), percent(entry["iou_after"])]
        table.add_row(entry["word"], entry["start"] or "itself", str(entry["images"]), str(entry["pixels"]), *scores)
    if report["others"] is not None:
        table.add_section()
        table.add_row("mean of the other words", "", "", "", *map(percent, report["others"]))
    Console().print(table)
