"""`ovsdino probe`: measure the boundary awareness of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.console import print_json, progress_bar, say
from ovsdino.errors import OVSDinoError
from ovsdino.options import SegmenterOptions, data_root

if TYPE_CHECKING:
    from ovsdino.eval.probe import Probe


@dataclass(frozen=True, kw_only=True)
class ProbeLayers(SegmenterOptions):
    """Measure the knowledge of boundaries in each block or stage of a model: a linear readout, and local contrast.

    With --gate IMAGE, draw instead where the preservation gate lets the decoder change the image's features.
    """

    dataset: str = "bsds500"
    """Data set; bsds500 is the only one."""
    root: Path | None = None
    """Folder with bsds500_train.zip and bsds500_val.zip, or BSDS500's own folders. Default: $OVSDINO_DATA."""
    limit: int | None = None
    """Take the first N images of each split only."""
    matching: Literal["one-to-one", "nearest"] = "one-to-one"
    """one-to-one matches boundary pixels with each annotator's as BSDS500's benchmark does; nearest lets pixels share a
    partner: faster, and with higher scores."""
    gate: Path | None = None
    """Draw the gate's map for this image, gate_MODEL.png, and measure nothing else."""
    output: Path = Path("probe")
    """Folder for probe_MODEL.csv and probe_MODEL.png, or for gate_MODEL.png."""
    json: bool = False
    """Print one JSON object on stdout; scores in 0..1."""

    def run(self) -> int:
        if self.gate is not None:
            return self._draw_gate(self.gate)
        root = data_root(self.root)
        if self.dataset != "bsds500":
            raise OVSDinoError(f"unknown data set {self.dataset!r} for the probe; available: bsds500")
        from ovsdino.data.bsds import open_bsds
        from ovsdino.eval.probe import probe, write_csv, write_plot

        train, val = open_bsds(root, "train"), open_bsds(root, "val")
        segmenter = self.load()
        with progress_bar() as progress:
            task = progress.add_task("probe", total=None)
            result = probe(
                segmenter,
                train,
                val,
                limit=self.limit,
                matching=self.matching,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        table, plot = (self.output / f"probe_{segmenter.name}.{suffix}" for suffix in ("csv", "png"))
        write_csv(result, table)
        title = f"{segmenter.name}: boundary awareness by block, BSDS500 val ({result.val_images} images)"
        plotted = write_plot(result, plot, title)
        if not plotted:
            say("note: no plot, matplotlib is missing: pip install 'ovsdino[probe]'")
        report = {
            "dataset": self.dataset,
            "model": segmenter.name,
            "short_side": segmenter.short_side,
            "matching": self.matching,
            **result.to_dict(),
            "csv": str(table),
            "plot": str(plot) if plotted else None,
        }
        if self.json:
            print_json(report)
        else:
            _print_table(result, report)
        return 0

    def _draw_gate(self, image: Path) -> int:
        from ovsdino.eval.gate import draw_gate, gate_map
        from ovsdino.io.files import atomic_write
        from ovsdino.io.images import load_image

        segmenter = self.load()
        pixels = load_image(image)
        gate = gate_map(segmenter, pixels)
        path = self.output / f"gate_{segmenter.name}.png"
        with atomic_write(path) as file:
            draw_gate(pixels, gate).save(file, format="PNG")
        low, mean, high = (round(float(value), 4) for value in (gate.min(), gate.mean(), gate.max()))
        report = {"model": segmenter.name, "image": str(image), "mean": mean, "least": low, "largest": high}
        if self.json:
            print_json({**report, "picture": str(path)})
        else:
            print(f"{path}: gate {mean:.3f} on average, from {low:.3f} to {high:.3f}")
        return 0


def _print_table(result: Probe, report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report['model']} on BSDS500: {result.train_images} images read, {result.val_images} scored, "
        f"pixels matched {report['matching']}"
    )
    table.add_column("layer")
    table.add_column("stride", justify="right")
    for header in ("ODS F", "precision", "recall", "local contrast"):
        table.add_column(header, justify="right")
    for row in result.rows:
        numbers = [f"{value:.3f}" for value in (row.f, row.precision, row.recall)]
        contrast = "-" if row.contrast is None else f"{row.contrast:.3f}"
        stride = "-" if row.stride is None else f"{row.stride:g}"
        table.add_row(row.name if row.trained else f"{row.name} (no readout)", stride, *numbers, contrast)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    kind = result.rows[0].name.split()[0]
    console.print(
        f"best {kind} {result.peak_block}; the last is {result.fade:.3f} ± {result.fade_error:.3f} lower; recommended "
        f"taps {', '.join(map(str, result.taps))}"
    )
    console.print(f"{report['csv']}" + (f", {report['plot']}" if report["plot"] else ""))
