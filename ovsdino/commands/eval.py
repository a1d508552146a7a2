"""`ovsdino eval`: score a model on a labeled data set."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ovsdino.commands.protocol_options import ProtocolOptions
from ovsdino.console import print_json, progress_bar, say
from ovsdino.errors import OVSDinoError
from ovsdino.options import data_root
from ovsdino.parsing import OptionalValue
from ovsdino.vocabulary import DEFAULT_BACKGROUND

if TYPE_CHECKING:
    from ovsdino.eval.protocol import Protocol

CONTRAST = "contrast"
SLOWEST = timedelta(hours=12)  # that the other processes wait for the slowest: their sums meet only once, at the end


@dataclass(frozen=True, kw_only=True)
class Eval(ProtocolOptions):
    """Score a model on a labeled data set: mIoU, pixel accuracy, boundary F1, Boundary IoU, recall by size.

    The eight benchmarks run under the talk2dino protocol; each of its settings has an option here. Several processes
    share the images: torchrun --nproc-per-node N -m ovsdino eval ...
    """

    split: str = "val"
    """Part of the data set: train, val or another that it has."""
    protocol: Literal["talk2dino", "dinov3", "native"] | None = None
    """Protocol of the evaluation; native segments as `ovsdino segment` does. Default: talk2dino for the eight
    benchmarks, native for the others."""
    background: Annotated[float | str | None, OptionalValue("T", DEFAULT_BACKGROUND, (CONTRAST,))] = None
    """native: leave pixels less certain than T (0..1, 0.5 if no number follows) unlabeled; they count as errors, or as
    the data set's background class. Protocols: constant score of the background channel. "contrast": where the contrast
    vocabulary wins. Default, where the data set has a background class: contrast for a model that was trained with it;
    else the constant that `ovsdino calibrate` wrote into the checkpoint; else the protocol's."""
    prior: str = ""
    """Split of the same data set, for instance train: estimate how common each class is on 200 of its images, by the
    model's own account and without their labels, and take --tau times its logarithm from the logits."""
    tau: float = 0.5
    """Strength of the prior, 0..10."""
    json: bool = False
    """Print one JSON object on stdout; scores in 0..1. mIoU is the mean over classes of intersections over unions, both
    summed over the data set; a class neither labeled nor predicted anywhere is null and left out."""

    def run(self) -> int:
        from ovsdino.data.benchmarks import SPECS
        from ovsdino.data.datasets import open_dataset
        from ovsdino.distributed import joined
        from ovsdino.eval.evaluate import class_prior, dataset_vocabulary, evaluate, read_class_names
        from ovsdino.windows import Batches

        root = data_root(self.root)
        if not 0 <= self.tau <= 10:
            raise OVSDinoError(f"--tau is {self.tau}: expected 0..10")
        class_names = read_class_names(self.class_names) if self.class_names else {}
        dataset = open_dataset(self.dataset, root, self.split)
        vocabulary = dataset_vocabulary(
            dataset.names, class_names, self.average_words, has_background=dataset.has_background
        )
        name = self.protocol or ("talk2dino" if self.dataset in SPECS else "native")
        self._protocol(name, contrast=self.background == CONTRAST)  # refuses a wrong option before the model is loaded
        with joined("gloo", SLOWEST) as ranks:
            segmenter = self._on_own_device(ranks.size).load()
            model = segmenter.model
            contrast = self.background == CONTRAST or (
                self.background is None and model.config.contrast and dataset.has_background
            )
            constant = None if contrast else self.background
            native: dict[str, Any] = {"background": constant, "window": self.window, "stride": self.stride}
            protocol = self._protocol(name, model.config.embed_dim, model.backgrounds.get(self.dataset), contrast)
            if self.batch_size is not None:
                segmenter.batches = Batches(self.batch_size)
            prior: dict[str, Any] = {}
            if self.prior:
                images = open_dataset(self.dataset, root, self.prior)
                prior = {"prior": class_prior(segmenter, images, vocabulary), "tau": self.tau}
            with progress_bar(ranks.first) as progress:
                task = progress.add_task(f"eval {self.dataset} {self.split}", total=None)
                result = evaluate(
                    segmenter,
                    dataset,
                    protocol=protocol,
                    class_names=class_names,
                    average=self.average_words,
                    limit=self.limit,
                    contrast=contrast,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                    ranks=ranks,
                    **({} if protocol is not None else native),
                    **prior,
                )
            if not ranks.first:
                return 0
        if dataset.ids is not None:
            for line in dataset.ids.problems() + dataset.ids.notes():
                say(f"note: {self.dataset} {self.split}: {line}")
        settings = (
            {"name": "native", "short_side": segmenter.short_side, **native}
            if protocol is None
            else dataclasses.asdict(protocol)
        )
        if contrast:
            settings["background"] = CONTRAST
        facts = {"dataset": self.dataset, "split": self.split, "model": self.model}
        report = {**facts, **result.to_dict(), "protocol": settings}
        if prior:
            shares = zip(vocabulary.names, prior["prior"].tolist(), strict=True)
            report["prior"] = {"split": self.prior, "tau": self.tau, "shares": {k: round(v, 4) for k, v in shares}}
        if self.json:
            print_json(report)
        else:
            _print_table(report)
        return 0

    def _protocol(
        self, kind: str, embed_dim: int = 0, calibrated: float | None = None, contrast: bool = False
    ) -> Protocol | None:
        """Return the preset with the changes of this line; None for native.

        Args:
            kind: Name of the preset.
            embed_dim: Width of the backbone.
            calibrated: The checkpoint's own background.
            contrast: The contrast vocabulary is the background, so there is no constant, and no cleaning by default.

        Raises:
            OVSDinoError: An option that native does not have, or a value out of range.
        """
        if kind == "native":
            for name in self.protocol_changes():
                raise OVSDinoError(f"--{name.replace('_', '-')} belongs to a protocol: add --protocol talk2dino")
            return None
        if contrast:
            protocol = self.changed_preset(kind, embed_dim)
            return dataclasses.replace(protocol, background=None, cleaning=self.cleaning or "off")
        assert not isinstance(self.background, str)
        return self.changed_preset(kind, embed_dim, calibrated if self.background is None else self.background)

    def _on_own_device(self, world: int) -> Eval:
        """Take the GPU of the local rank, as each process under torchrun does unless a device is named."""
        import torch

        if world == 1 or not torch.cuda.is_available() or self.device not in (None, "cuda"):
            return self
        local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return dataclasses.replace(self, device=f"cuda:{local}")


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    where = f"{report['dataset']} {report['split']}, {report['images']} images, protocol {report['protocol']['name']}"
    table = Table(title=f"{report['model']} on {where}")
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
        ("trimap_miou", "mIoU within 8 px of a contour"),
    ):
        table.add_row(label, percent(report[key]))
    for name, group in report["sizes"].items():
        table.add_row(f"recall, {name} regions ({group['regions']})", percent(group["recall"]))
    table.add_row("calibration error", percent(report["ece"]))
    table.add_row("ms per image", f"{report['ms_per_image']:.1f}")
    Console().print(table)
