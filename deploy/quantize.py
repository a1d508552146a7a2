"""INT8 for an exported graph: Q/DQ on its linears, SmoothQuant first, ranges from real images.

    python deploy/quantize.py --input nano_fp32.onnx --calibration ../shared/data/camvid_train.zip
    python deploy/quantize.py --input nano_fp32.onnx --calibration FOLDER --sensitivity --keep 3
    python deploy/quantize.py ... --evaluate ../shared/data --also nano_fp16.onnx --json

Linears only: attention products, residual adds, norms and convolutions keep the graph's precision, since quantising
them costs accuracy (residuals) or speed (attention is no longer fused). The result runs in ONNX Runtime and parses in
TensorRT as a strongly typed network; from a float16 graph it is int8 with float16 around it.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from ovsdino.deploy.export.start import start

    sys.exit(start("quantize", "Quantize"))

import dataclasses
import fnmatch
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ovsdino.console import print_json, progress_bar, say
from ovsdino.deploy.export.publish import proven
from ovsdino.deploy.export_onnx import write_facts
from ovsdino.deploy.quantization.calibrate import (
    Method,
    calibration_images,
    channel_ranges,
    open_session,
    tensor_ranges,
)
from ovsdino.deploy.quantization.qdq import insert_qdq
from ovsdino.deploy.quantization.score import feed, score, text_bank
from ovsdino.deploy.quantization.smoothquant import Linear, find_linears, smooth
from ovsdino.edge.sidecar import Sidecar, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, lock_folder, reading, refuse_inputs

__all__ = ["Recipe", "quantise", "read_graph", "sensitivity"]

SENSITIVITY_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is quantised, and how its ranges are found."""

    alpha: float = 0.5
    """SmoothQuant's share of the activation's range that moves into the weights; 0 leaves SmoothQuant out."""
    method: Method = "percentile"
    """Range of an activation: its largest value, a percentile of its absolute values, or least relative entropy."""
    percentile: float = 99.999
    """For --method percentile."""
    images: int = 32
    """Calibration images, spread evenly over those given."""
    keep: int = 0
    """Leave the N most sensitive linears in float."""
    keep_first: int = 0
    """Leave the first N linears of the graph in float."""
    keep_last: int = 0
    """Leave the last N linears of the graph in float."""
    skip: tuple[str, ...] = ()
    """Leave linears of these names in float; * and ? match."""
    least_features: int = 16
    """Leave linears with fewer inputs or outputs in float: there is nothing to gain."""
    threads: int = 0
    """Of ONNX Runtime; 0: all cores."""

    def check(self) -> None:
        """Raises OVSDinoError for a value out of range."""
        limits = {
            "alpha": (0.0, 1.0),
            "percentile": (50.0, 100.0),
            "images": (1, 100_000),
            "keep": (0, 100_000),
            "keep_first": (0, 100_000),
            "keep_last": (0, 100_000),
            "least_features": (1, 100_000),
            "threads": (0, 1024),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise OVSDinoError(f"{name} is {value:g}: expected {low:g}..{high:g}")

    def chosen(self, linears: Sequence[Linear]) -> list[Linear]:
        """The linears to quantise, before the sensitive ones are taken out.

        Raises:
            OVSDinoError: a name that matches none, or nothing left.
        """
        for pattern in self.skip:
            if not any(fnmatch.fnmatchcase(linear.name, pattern) for linear in linears):
                raise OVSDinoError(f"skip: no linear is named {pattern!r}; --sensitivity lists them")
        inner = linears[self.keep_first : len(linears) - self.keep_last]
        found = [
            linear
            for linear in inner
            if min(linear.shape) >= self.least_features
            and not any(fnmatch.fnmatchcase(linear.name, pattern) for pattern in self.skip)
        ]
        if len(found) <= self.keep:
            raise OVSDinoError(f"{len(found)} linears to quantise and --keep {self.keep}: nothing would be left")
        return found


@dataclass(frozen=True)
class Quantised:
    """A quantised graph and what was done.

    Attributes:
        model: the graph.
        linears: names of those in int8.
        kept: names of those in float.
        sensitivity: see `sensitivity`; None unless it was asked for.
    """

    model: onnx.ModelProto
    linears: tuple[str, ...]
    kept: tuple[str, ...]
    sensitivity: list[dict[str, Any]] | None


def read_graph(path: str | Path) -> tuple[onnx.ModelProto, Sidecar]:
    """An exported ONNX file, checked against its sidecar, with the shapes of inner tensors.

    Raises:
        OVSDinoError: missing, changed, an engine, damaged, or quantised already.
    """
    path = Path(path)
    if not path.is_file():
        raise OVSDinoError(f"{path}: no such file; export one with deploy/export_onnx.py")
    sidecar = Sidecar.load(path)
    if sidecar.kind != "onnx":
        raise OVSDinoError(f"{path}: is an {sidecar.kind}; quantise the .onnx it was made of, then build again")
    if sidecar.quantised:
        raise OVSDinoError(f"{path}: is quantised already; give the float32 or float16 graph")
    sidecar.check_file(path)
    with reading(path, "ONNX graph", sidecar.rebuild()):
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
    sidecar.check_graph({entry.key: entry.value for entry in model.metadata_props})
    return model, sidecar


def quantise(
    model: onnx.ModelProto,
    feeds: Sequence[dict[str, np.ndarray]],
    recipe: Recipe,
    *,
    measure_sensitivity: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantised:
    """Quantises a graph; the one given is left as it is.

    Args:
        model: float32 or float16, with type information of inner tensors.
        feeds: inputs made of real images; the text bank in them is any, since no quantised linear sees it.
        measure_sensitivity: list it even where `recipe.keep` does not need it.
        progress: told each step.

    Raises:
        OVSDinoError: a number of the recipe is out of range, no images, or no linears.
    """
    recipe.check()
    if not feeds:
        raise OVSDinoError("no calibration images: int8 ranges come from real images; name a folder with --calibration")
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    linears = find_linears(graph)
    if not linears:
        raise OVSDinoError("the graph has no linears on the way from the image; is it one of deploy/export_onnx.py?")
    chosen = recipe.chosen(linears)
    if recipe.alpha > 0:
        progress("ranges of channels")
        smooth(graph, chosen, channel_ranges(graph, inputs_of(chosen), feeds, recipe.threads), recipe.alpha)
        names = {linear.node for linear in chosen}
        chosen = [linear for linear in find_linears(graph) if linear.node in names]  # their inputs may have moved
    progress("ranges of tensors")
    ranges = tensor_ranges(graph, inputs_of(chosen), feeds, recipe.method, recipe.percentile, recipe.threads)
    rows = None
    if measure_sensitivity or recipe.keep:
        progress("sensitivity")
        rows = sensitivity(graph, chosen, ranges, feeds[:: max(1, len(feeds) // SENSITIVITY_IMAGES)], recipe.threads)
        worst = {row["linear"] for row in rows[: recipe.keep]}
        chosen = [linear for linear in chosen if linear.name not in worst]
    insert_qdq(graph, chosen, ranges)
    onnx.checker.check_model(graph)
    done = {linear.node for linear in chosen}
    kept = tuple(linear.name for linear in linears if linear.node not in done)
    return Quantised(graph, tuple(linear.name for linear in chosen), kept, rows)


def inputs_of(linears: Iterable[Linear]) -> list[str]:
    return list(dict.fromkeys(linear.input for linear in linears))


def sensitivity(
    model: onnx.ModelProto,
    linears: Sequence[Linear],
    ranges: dict[str, float],
    feeds: Sequence[dict[str, np.ndarray]],
    threads: int = 0,
) -> list[dict[str, Any]]:
    """What each linear alone in int8 does to the logits, the worst first.

    Returns:
        Rows of linear, error (norm of the logits' change over their norm) and label_agreement (share of cells).
    """
    session = open_session(model, threads)
    expected = [session.run(["logits"], one)[0] for one in feeds]
    rows = []
    for linear in linears:
        alone = onnx.ModelProto()
        alone.CopyFrom(model)
        insert_qdq(alone, [linear], ranges)
        session = open_session(alone, threads)
        _, error, agreement = compared(expected, [session.run(["logits"], one)[0] for one in feeds])
        rows.append({"linear": linear.name, "error": round(error, 6), "label_agreement": round(agreement, 6)})
    return sorted(rows, key=lambda row: -row["error"])


def compared(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Cosine, relative error and label agreement of logits (B, K, h, w), averaged over images."""
    values = []
    for a, b in zip(expected, found, strict=True):
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        size = max(float(np.linalg.norm(x)), 1e-12)
        cosine = float(x @ y) / (size * max(float(np.linalg.norm(y)), 1e-12))
        values.append((cosine, float(np.linalg.norm(x - y)) / size, float((a.argmax(1) == b.argmax(1)).mean())))
    cosine, error, agreement = np.mean(values, axis=0).tolist()
    return cosine, error, agreement


@dataclass(frozen=True, kw_only=True)
class Quantize(Recipe):
    """Quantise an exported ONNX graph to int8 (Q/DQ on linears, SmoothQuant), and say what it costs."""

    input: Path
    """Graph made by deploy/export_onnx.py, float32 or float16, with its sidecar."""
    calibration: Path | None = None
    """Real images: a folder, or a zip with images/ in it (../shared/data/camvid_train.zip). Without them: refused."""
    output: Path | None = None
    """Default: NAME_int8.onnx beside the input."""
    bank: Path | None = None
    """Text bank for --evaluate. Default: the classes' names through the model that was exported."""
    sensitivity: bool = False
    """List what each linear alone in int8 does to the logits."""
    evaluate: Path | None = None
    """Folder of the data set to score float and int8 graphs on (--dataset), through ONNX Runtime."""
    dataset: str = "camvid"
    """See `ovsdino eval`."""
    limit: int | None = None
    """Score the first N images only."""
    also: tuple[Path, ...] = ()
    """Other graphs to score beside them."""
    least_agreement: float = 0.95
    """Refuse to write a graph that agrees with the float one on fewer of the labels of the calibration images."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        report = self.report()
        if self.json:
            print_json(report)
        else:
            print(markdown(report))
        return 0

    def report(self) -> dict[str, Any]:
        """Quantises, writes and scores; what --json prints.

        Raises:
            OVSDinoError: no calibration images, a bad file or number, or a result that agrees too little.
        """
        if self.calibration is None:
            raise OVSDinoError("--calibration is missing: int8 ranges come from real images; name a folder of them")
        self.check()
        output = self.output or self.input.with_name(f"{self.input.stem.removesuffix('_fp32')}_int8.onnx")
        inputs = [self.input, sidecar_path(self.input), self.calibration, *self.also]
        refuse_inputs([output, sidecar_path(output)], [*inputs, *([self.bank] if self.bank else [])])
        with lock_folder(output.parent, "export"):
            return self._report(output, self.calibration)

    def _report(self, output: Path, calibration: Path) -> dict[str, Any]:
        model, sidecar = read_graph(self.input)
        names, data = self._data()
        text = text_bank(sidecar, names, self.bank) if data else words_at_random(sidecar)
        feeds = [feed(image, text, sidecar) for image in calibration_images(calibration, self.images)]
        found = quantise(model, feeds, self, measure_sensitivity=self.sensitivity, progress=say)
        verified = self._verify(model, found.model, feeds)
        verified |= {
            "source": f"calibration images of {calibration.name}",
            "reference": f"the {sidecar.precision} graph",
        }
        written = self._write(found, sidecar, verified, output)
        rows = self._score(model, feeds, sidecar, data, text, output) if data else None
        return {
            "output": str(output),
            "sidecar": f"{output}.json",
            "bytes": written.bytes,
            "input": str(self.input),
            "size": f"{sidecar.input[2]}x{sidecar.input[3]}",
            "quantised": written.quantised,
            "verified": verified,
            "sensitivity": found.sensitivity,
            "results": rows,
            "load_average": round(os.getloadavg()[0], 2),
        }

    def _data(self) -> tuple[tuple[str, ...], Any]:
        if self.evaluate is None:
            return (), None
        from ovsdino.data.segmentation import open_dataset

        data = open_dataset(self.dataset, self.evaluate, "val")
        return data.names, data

    def _verify(
        self, model: onnx.ModelProto, result: onnx.ModelProto, feeds: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """Float against int8 on some of the calibration images.

        Raises:
            OVSDinoError: too few labels agree.
        """
        some = feeds[:: max(1, len(feeds) // 8)]
        logits = []
        for graph in (model, result):
            session = open_session(graph, self.threads)
            logits.append([session.run(["logits"], one)[0] for one in some])
        cosine, _, agreement = compared(*logits)
        if agreement < self.least_agreement:
            raise OVSDinoError(
                f"int8 agrees with float on {agreement:.3f} of the labels, expected {self.least_agreement:g}; use "
                "--keep N to leave the most sensitive linears in float (--sensitivity lists them)"
            )
        return {"cosine": round(cosine, 6), "label_agreement": round(agreement, 6), "images": len(some)}

    def _write(self, found: Quantised, sidecar: Sidecar, verified: dict[str, Any], output: Path) -> Sidecar:
        facts = {
            "linears": len(found.linears),
            "kept": list(found.kept),
            "alpha": self.alpha,
            "method": self.method,
            "percentile": self.percentile if self.method == "percentile" else None,
            "images": self.images,
            "base": sidecar.precision,
            "source": sidecar.sha256,
        }
        write_facts(found.model, dataclasses.replace(sidecar, precision="int8"))
        with proven(output) as temporary:
            with atomic_write(temporary) as file:
                file.write(found.model.SerializeToString())
            sidecar.of_file(temporary, precision="int8", quantised=facts, verified=verified).save(temporary)
        return Sidecar.load(output)

    def _score(self, model: onnx.ModelProto, feeds: Any, sidecar: Sidecar, data: Any, text: Any, output: Path) -> Any:
        """The source, others, int8 without SmoothQuant, and the result."""
        graphs = {sidecar.precision: self.input}
        graphs |= {path.stem: path for path in self.also}
        with tempfile.TemporaryDirectory(prefix="ovsdino-quantize-") as folder:
            if self.alpha > 0:
                say("the same without SmoothQuant")
                plain = quantise(model, feeds, dataclasses.replace(self, alpha=0.0))
                graphs["int8 without SmoothQuant"] = Path(folder) / "plain.onnx"
                onnx.save(plain.model, graphs["int8 without SmoothQuant"])
            graphs["int8"] = output
            with progress_bar() as bar:
                task = bar.add_task("score", total=None)
                return score(
                    graphs,
                    sidecar,
                    data,
                    text,
                    limit=self.limit,
                    threads=self.threads,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                )


def words_at_random(sidecar: Sidecar) -> np.ndarray:
    """A text bank of unit rows: calibration runs the whole graph, and no quantised linear sees the text."""
    rows = min(max(sidecar.classes[0], 8), sidecar.classes[1])
    text = np.random.default_rng(0).normal(size=(rows, sidecar.embed_dim)).astype(np.float32)
    return text / np.linalg.norm(text, axis=1, keepdims=True)


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    facts, verified = report["quantised"], report["verified"]
    lines = [
        f"{report['output']}: {report['bytes'] / 1e6:.2f} MB, {facts['linears']} linears in int8, "
        f"{len(facts['kept'])} in float; on {verified['images']} calibration images cosine {verified['cosine']:.5f}, "
        f"label agreement {verified['label_agreement']:.4f}."
    ]
    if report["sensitivity"]:
        lines += ["", "| linear, alone in int8 | change of the logits | label agreement |", "|---|---|---|"]
        for row in report["sensitivity"]:
            lines.append(f"| {row['linear']} | {row['error']:.5f} | {row['label_agreement']:.5f} |")
    if report["results"]:
        lines += ["", *score_table(report["results"])]
    return "\n".join(lines)


def score_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines of `score`'s rows."""
    lines = ["| graph | MB | mIoU | boundary F1 | label agreement | ms |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['bytes'] / 1e6:.2f} | {row['miou']:.4f} | {row['boundary_f1']:.4f} | "
            f"{row['label_agreement']:.4f} | {row['ms']:.1f} |"
        )
    return lines
