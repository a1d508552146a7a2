"""`ovsdino eval`: score a model on a labeled data set."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ovsdino.console import print_json, progress_bar, say
from ovsdino.errors import OVSDinoError
from ovsdino.options import SegmenterOptions, data_root
from ovsdino.parsing import OptionalValue
from ovsdino.vocabulary import DEFAULT_BACKGROUND

if TYPE_CHECKING:
    from ovsdino.eval.protocol import Protocol

SLOWEST = timedelta(hours=12)  # that the other processes wait for the slowest: their sums meet only once, at the end


@dataclass(frozen=True, kw_only=True)
class Eval(SegmenterOptions):
    """Score a model on a labeled data set: mIoU, pixel accuracy, boundary F1, Boundary IoU, recall by size.

    The eight benchmarks run under the talk2dino protocol; each of its settings has an option here. Several processes
    share the images: torchrun --nproc-per-node N -m ovsdino eval ...
    """

    dataset: str
    """camvid, folder (images/, labels/ with index PNGs, classes.json), voc21, voc20, context60, context59, coco-object,
    coco-stuff, cityscapes or ade20k."""
    root: Path | None = None
    """Folder with DATASET_SPLIT.zip or the data set's own folders. Default: $OVSDINO_DATA."""
    split: str = "val"
    """Part of the data set: train, val or another that it has."""
    protocol: Literal["talk2dino", "dinov3", "native"] | None = None
    """Protocol of the evaluation; native segments as `ovsdino segment` does. Default: talk2dino for the eight
    benchmarks, native for the others."""
    class_names: Path | None = None
    """JSON file: class name to the text, or list of texts to average, that is used in its place."""
    limit: int | None = None
    """Take the first N images only."""
    background: Annotated[float | None, OptionalValue("T", DEFAULT_BACKGROUND)] = None
    """native: leave pixels less certain than T (0..1, 0.5 if no number follows) unlabeled; they count as errors, or as
    the data set's background class. Protocols: constant score of the background channel."""
    window: int | None = None
    """Side of a sliding window in pixels of the resized image. Default: the protocol's; native: the whole image."""
    stride: int | None = None
    """Step of the window. Default: the protocol's; native: half of the window."""
    max_long_side: int | None = None
    """Protocols: largest long side after the resize."""
    score: Literal["sigmoid", "cosine"] | None = None
    """Protocols: sigmoid of the cosine, or the cosine."""
    templates: tuple[str, ...] = ()
    """Protocols: prompts with {} for the class name. Default: Talk2DINO's seven."""
    cleaning: Literal["off", "protocol", "released"] | None = None
    """Protocols: background cleaning as Talk2DINO's released code computes it (the default of voc21 and coco-object),
    or in another reading of its description."""
    cleaning_weight: float | None = None
    """Protocols: share of the cleaning map."""
    pamr: bool = False
    """Protocols: refine each window's scores by PAMR, 10 iterations (the published "+ PAMR" rows)."""
    pamr_iterations: int | None = None
    """Protocols: PAMR with another number of iterations."""
    pamr_dilations: tuple[int, ...] = ()
    """Protocols: distances of PAMR's neighbors. Default: 1 2 4 8 12 24."""
    window_align_corners: Literal["on", "off"] | None = None
    """Protocols: align_corners of the upsampling to the window. Default: on."""
    final_align_corners: Literal["on", "off"] | None = None
    """Protocols: align_corners of the resize to the image. Default: off."""
    batch_size: int | None = None
    """Windows in one forward. Default: 8, halved when memory runs out."""
    json: bool = False
    """Print one JSON object on stdout; scores in 0..1. mIoU is the mean over classes of intersections over unions, both
    summed over the data set; a class neither labeled nor predicted anywhere is null and left out."""

    def run(self) -> int:
        from ovsdino.data.benchmarks import SPECS
        from ovsdino.data.datasets import open_dataset
        from ovsdino.distributed import joined
        from ovsdino.eval.evaluate import dataset_vocabulary, evaluate, read_class_names
        from ovsdino.windows import Batches

        root = data_root(self.root)
        class_names = read_class_names(self.class_names) if self.class_names else {}
        dataset = open_dataset(self.dataset, root, self.split)
        dataset_vocabulary(dataset.names, class_names, has_background=dataset.has_background)
        name = self.protocol or ("talk2dino" if self.dataset in SPECS else "native")
        protocol = self._protocol(name)
        native: dict[str, Any] = {"background": self.background, "window": self.window, "stride": self.stride}
        with joined("gloo", SLOWEST) as ranks:
            segmenter = self._on_own_device(ranks.size).load()
            if self.batch_size is not None:
                segmenter.batches = Batches(self.batch_size)
            with progress_bar(ranks.first) as progress:
                task = progress.add_task(f"eval {self.dataset} {self.split}", total=None)
                result = evaluate(
                    segmenter,
                    dataset,
                    protocol=protocol,
                    class_names=class_names,
                    limit=self.limit,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                    ranks=ranks,
                    **({} if protocol is not None else native),
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
        facts = {"dataset": self.dataset, "split": self.split, "model": self.model}
        report = {**facts, **result.to_dict(), "protocol": settings}
        if self.json:
            print_json(report)
        else:
            _print_table(report)
        return 0

    def _protocol(self, kind: str) -> Protocol | None:
        """Return the preset with the changes of this line; None for native.

        Raises:
            OVSDinoError: An option that native does not have, or a value out of range.
        """
        from ovsdino.eval.protocol import preset
        from ovsdino.models.zoo import get_config

        changes = self._given("max_long_side score templates cleaning cleaning_weight pamr_iterations pamr_dilations")
        for name, value in self._given("window_align_corners final_align_corners").items():
            changes[name] = value == "on"
        if self.pamr:
            changes.setdefault("pamr_iterations", 10)
        embed_dim = get_config(self.model).embed_dim
        if kind == "native":
            if changes:
                option = next(iter(changes)).replace("_", "-")
                raise OVSDinoError(f"--{option} belongs to a protocol: add --protocol talk2dino")
            return None
        changes |= self._given("short_side window stride background")
        base = preset(kind, self.dataset, embed_dim)
        if "window" in changes:
            changes.setdefault("stride", max(1, changes["window"] // 2))
        if "short_side" in changes:
            changes.setdefault("max_long_side", max(base.max_long_side, changes["short_side"]))
        return dataclasses.replace(base, **changes)

    def _given(self, names: str) -> dict[str, Any]:
        """Return the values of the named options that were given."""
        return {name: value for name in names.split() if (value := getattr(self, name)) not in (None, ())}

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
    ):
        table.add_row(label, percent(report[key]))
    for name, group in report["sizes"].items():
        table.add_row(f"recall, {name} regions ({group['regions']})", percent(group["recall"]))
    table.add_row("ms per image", f"{report['ms_per_image']:.1f}")
    Console().print(table)
