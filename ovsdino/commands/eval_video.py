"""`ovsdino eval-video`: score a model on labeled videos, with a memory of the frames before and without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ovsdino.console import print_json, progress_bar
from ovsdino.options import SegmenterOptions, data_root


@dataclass(frozen=True, kw_only=True)
class EvalVideo(SegmenterOptions):
    """Score a model on labeled videos: how right its labels are, and how steady.

    mVC8 and mVC16 as VSPW defines them, flicker outside and inside of what moves, consistency along optical flow, mIoU,
    boundary F1; of DAVIS 2016 also J and F of a word for each video.
    """

    dataset: Literal["camvid", "davis2016", "folder"]
    """camvid, davis2016 (DATASET_SPLIT.zip), or folder (images/, labels/ with index PNGs, classes.json) of numbered
    frames."""
    root: Path | None = None
    """Folder of the data set. Default: $OVSDINO_DATA."""
    split: str = "val"
    """Part of the data set."""
    memory: bool = True
    """Remember the frame before; --no-memory segments each frame by itself."""
    key_frames: int = 1
    """Encode one frame of so many whole, and sooner where the image changes; the others are moved along."""
    class_names: Path | None = None
    """JSON file: class name, or word of a video, to the text, or list of texts, that is used in its place."""
    average_words: bool = False
    """Average the embeddings of a class's texts. Default: a class is where any of its texts is."""
    limit: int | None = None
    """Take the first N frames of each video only."""
    json: bool = False
    """Print one JSON object on stdout; scores in 0..1."""

    def run(self) -> int:
        from ovsdino.data.clips import clips_of, open_davis
        from ovsdino.data.datasets import open_dataset
        from ovsdino.eval.evaluate import read_class_names
        from ovsdino.eval.video import evaluate_video
        from ovsdino.models.memory import KeyFrames

        root = data_root(self.root)
        names = read_class_names(self.class_names) if self.class_names else {}
        if self.dataset == "davis2016":
            clips = open_davis(root, self.split)
        else:
            clips = clips_of(open_dataset(self.dataset, root, self.split))
        with progress_bar(True) as progress:
            task = progress.add_task(f"eval-video {self.dataset} {self.split}", total=None)
            found = evaluate_video(
                self.load(),
                clips,
                memory=self.memory,
                key_frames=KeyFrames(every=self.key_frames),
                class_names=names,
                average=self.average_words,
                limit=self.limit,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        facts = {"dataset": self.dataset, "split": self.split, "model": self.model, "memory": self.memory}
        facts["key_frames"] = self.key_frames
        report = {**facts, **found.to_dict()}
        if self.json:
            print_json(report)
        else:
            _print_table(report)
        return 0


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    memory = "memory" if report["memory"] else "single frames"
    table = Table(title=f"{report['model']} on {report['dataset']} {report['split']}, {memory}")
    table.add_column("score")
    table.add_column("value", justify="right")

    def row(label: str, value: float | None) -> None:
        table.add_row(label, "-" if value is None else f"{value:.1%}")

    for key, label in (
        ("miou", "mIoU"),
        ("boundary_f1", "boundary F1"),
        ("mvc8", "mVC8"),
        ("mvc16", "mVC16"),
        ("temporal_consistency", "temporal consistency"),
    ):
        row(label, report[key])
    for key, value in report["flicker"].items():
        row(f"flicker, {key.replace('_', ' ')}", value)
    for name, one in report.get("objects", {}).items():
        row(f"J {name} ({one['word']})", one["j"])
        row(f"F {name} ({one['word']})", one["f"])
    table.add_row("ms per frame", f"{report['ms_per_frame']:.1f}")
    Console().print(table)
