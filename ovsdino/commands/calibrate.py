"""`ovsdino calibrate`: choose the background's score for a trained decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ovsdino.commands.protocol_options import ProtocolOptions
from ovsdino.console import print_json, progress_bar
from ovsdino.options import data_root


@dataclass(frozen=True, kw_only=True)
class Calibrate(ProtocolOptions):
    """Choose the background's score on training images, and write it into the checkpoint, where eval reads it.

    The published score, 0.55, is for a backbone without decoder; training the decoder changes the scores. Of the labels
    only the words of each image are read: the score is taken at which label maps show these and no others best.
    """

    split: str = "train"
    """Part of the data set; not the one that is reported."""
    protocol: Literal["talk2dino", "dinov3"] = "talk2dino"
    """Protocol to calibrate; evaluate with the same settings."""
    json: bool = False
    """Print one JSON object on stdout: background and f1, the protocol's own score before and f1_before, and where it
    was written."""

    def run(self) -> int:
        from ovsdino.data.datasets import open_dataset
        from ovsdino.eval.calibrate import calibrate
        from ovsdino.eval.evaluate import read_class_names
        from ovsdino.models.calibration import write_background
        from ovsdino.windows import Batches

        dataset = open_dataset(self.dataset, data_root(self.root), self.split)
        class_names = read_class_names(self.class_names) if self.class_names else {}
        self.changed_preset(self.protocol, 0)  # refuses a wrong option before the model is loaded
        segmenter = self.load()
        protocol = self.changed_preset(self.protocol, segmenter.model.config.embed_dim)
        if self.batch_size is not None:
            segmenter.batches = Batches(self.batch_size)
        with progress_bar() as progress:
            task = progress.add_task(f"calibrate {self.dataset} {self.split}", total=None)
            result = calibrate(
                segmenter,
                dataset,
                protocol,
                class_names=class_names,
                limit=self.limit,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        if self.checkpoint is not None:
            write_background(self.checkpoint, self.dataset, round(result.background, 5))
        written = str(self.checkpoint) if self.checkpoint else None
        if self.json:
            facts = {"dataset": self.dataset, "split": self.split, "model": self.model}
            print_json({**facts, **result.to_dict(), "written": written})
        else:
            print(
                f"background {result.background:.5f}: words of {result.images} images shown with F1 {result.f1:.3f}; "
                f"at the protocol's {result.before}: {result.f1_before:.3f}"
            )
            print(f"written into {written}" if written else "no checkpoint given: use it as --background")
        return 0
