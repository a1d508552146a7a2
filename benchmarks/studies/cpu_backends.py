"""nano end to end on a CPU, by every runtime that there is, in turn in one process: least and median, and the labels.

    python benchmarks/studies/cpu_backends.py --output benchmarks/results/cpu_backends.json
    python benchmarks/studies/cpu_backends.py --int8 nano_int8.onnx --data data --output ...

The photograph is the first of CamVid val, which is 480x360, with --data, else scikit-learn's china.jpg at that size.
"torch float32, before" is PyTorch without what `ovsdino.models` does for inference on a CPU: batch norms by themselves,
the stem's image by plane, the scores' attention with its logits in memory, the contrast rows found anew for every
image. With --data the labels are also compared on CamVid val.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from ovsdino import pipeline
from ovsdino.benchmarks.latency import picture
from ovsdino.benchmarks.lib import board
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.console import say
from ovsdino.data.datasets import open_dataset
from ovsdino.data.names import CAMVID
from ovsdino.deploy.export.publish import publish
from ovsdino.deploy.export.trace import export_graph
from ovsdino.edge.bank import TextBank
from ovsdino.edge.runtimes import Runtime, available_threads
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.models import folded, score_attention
from ovsdino.models.weights import weights_digest
from ovsdino.parsing import run_script
from ovsdino.text_banks import TextBanks
from ovsdino.vocabulary import Vocabulary

SIZE = (360, 480)
PAUSE_S = 0.02  # in which the threads of the call before go to sleep
BEFORE = "torch float32, before"

Labels = Callable[[np.ndarray], np.ndarray]


@contextlib.contextmanager
def before() -> Iterator[None]:
    """Run PyTorch without the forms for inference on a CPU."""

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    def network(_: Any, module: torch.nn.Module, image: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor]:
        return module, folded.by_pixel(image)

    with (
        mock.patch.object(folded.FoldedForms, "of", network),
        mock.patch("ovsdino.models.sae.by_pixel", lambda image: image),
        mock.patch.object(score_attention, "_weighed", plain),
        mock.patch.object(TextBanks, "rows", TextBanks._made),
    ):
        yield


@dataclass(frozen=True, kw_only=True)
class CpuBackends(ReportOptions):
    """Time nano's runtimes on a CPU against each other, and compare their labels with PyTorch's in float32."""

    int8: Path | None = None
    """Graph that deploy/quantize.py made, to time as well."""
    data: Path | None = None
    """Folder of CamVid, to compare the labels on every image of val."""
    every: int = 1
    """Take every N-th image of it."""
    rounds: int = 60
    """Calls of each."""
    threads: int | None = None
    """CPU threads of every runtime. Default: all cores."""

    def run(self) -> int:
        threads = self.threads or available_threads()
        torch.set_num_threads(threads)
        image = self._photograph()
        with tempfile.TemporaryDirectory(prefix="ovsdino-cpu-") as folder:
            runs = self._runs(Path(folder), threads)
            loads = [board.load_average()]
            times = timed(runs, image, self.rounds)
            loads.append(board.load_average())
            rows = [row(name, times[name], times[BEFORE], runs, image) for name in runs]
            if self.data is not None:
                add_agreement(rows, runs, self.data, self.every)
        machine = {"cpu": board.cpu_name(), "threads": threads, "torch": torch.__version__, **board.board_facts()}
        report = {
            "machine": {**machine, "load_average": loads, "date": board.stamp()},
            "image": f"{image.shape[1]}x{image.shape[0]}",
        }
        return self.publish({**report, "classes": len(CAMVID), "rounds": self.rounds, "results": rows}, markdown)

    def _photograph(self) -> np.ndarray:
        if self.data is not None:
            return open_dataset("camvid", self.data, "val")[0].image
        return np.asarray(Image.fromarray(picture(None)[:, :569]).resize(SIZE[::-1], Image.Resampling.BICUBIC))

    def _runs(self, folder: Path, threads: int) -> dict[str, Labels]:
        segmenter = pipeline.load("nano", "cpu")
        words = list(CAMVID)

        def with_torch(one: pipeline.Segmenter) -> Labels:
            return lambda image: one.segment(image, words, scores=False).labels

        def as_before(image: np.ndarray) -> np.ndarray:
            with before():
                return segmenter.segment(image, words, scores=False).labels

        runs: dict[str, Labels] = {BEFORE: as_before, "torch float32": with_torch(segmenter)}
        runs["torch bfloat16"] = with_torch(pipeline.Segmenter(segmenter.model, dtype="bfloat16"))
        say("exporting")
        path = folder / "nano.onnx"
        height, width = segmenter.inference_size(*SIZE)
        publish(path, export_graph(segmenter.model, height=height, width=width))
        rows: Any = segmenter.text_rows(words, False)
        digest = weights_digest(segmenter.model)
        bank = TextBank(
            names=Vocabulary.of(words).names,
            text=rows.words[:, 0].numpy(),
            model="nano",
            weights=digest,
            contrast=rows.contrast.numpy(),
        )

        def on_edge(file: Path, runtime: Runtime) -> tuple[str, Labels]:
            one = EdgeSegmenter(file, bank, threads=threads, runtime=runtime)
            return one.backend, lambda image: one.segment(image, scores=False).labels

        runs["onnxruntime float32"] = on_edge(path, "onnxruntime")[1]
        runs["openvino float32"] = on_edge(path, "openvino")[1]
        runs["openvino bfloat16"] = on_edge(path, "openvino_bfloat16")[1]
        if self.int8 is not None:
            runs["onnxruntime int8"] = on_edge(self.int8, "onnxruntime")[1]
            runs["openvino int8"] = on_edge(self.int8, "openvino")[1]
        backend, runs["auto"] = on_edge(path, "auto")
        say(f"auto is {backend}")
        return runs


def timed(runs: dict[str, Labels], image: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each call, all called in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, labels in runs.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            labels(image)
            if turn >= 3:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def row(name: str, times: list[float], reference: list[float], runs: dict[str, Labels], image: np.ndarray) -> dict:
    """Return a line of the report: least and median milliseconds, the ratios, and the share of equal labels."""
    least, median = min(times), statistics.median(times)
    return {
        "name": name,
        "least_ms": round(least, 2),
        "median_ms": round(median, 2),
        "faster": round(statistics.median(reference) / median, 2),
        "faster_least": round(min(reference) / least, 2),
        "labels_equal": round(float((runs[name](image) == runs[BEFORE](image)).mean()), 5),
    }


def add_agreement(rows: list[dict[str, Any]], runs: dict[str, Labels], root: Path, every: int) -> None:
    """Add the share of labels of CamVid val that are those of PyTorch before."""
    data = open_dataset("camvid", root, "val")
    images = [data[index].image for index in range(0, len(data), every)]
    expected = [runs[BEFORE](image) for image in images]
    for line in rows:
        same = [float((runs[line["name"]](image) == x).mean()) for image, x in zip(images, expected, strict=True)]
        line["camvid_labels_equal"] = round(statistics.fmean(same), 5)
        line["camvid_images"] = len(images)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as one line and a table."""
    facts = report["machine"]
    packages = "".join(f", {name} {version}" for name, version in facts.get("packages", {}).items())
    loads = " and ".join(map(str, facts["load_average"]))
    wide = any("camvid_labels_equal" in line for line in report["results"])
    lines = [
        f"{facts['cpu']}, {facts['threads']} CPU threads, torch {facts['torch']}{packages}; photograph of "
        f"{report['image']}, {report['classes']} words, {report['rounds']} calls in turn; load average before and "
        f"after {loads}.",
        "",
        f"| nano, image in memory to labels | least ms | median ms | times as fast | labels equal |"
        f"{' CamVid val |' if wide else ''}",
        f"|---|---|---|---|---|{'---|' if wide else ''}",
    ]
    for line in report["results"]:
        cells = [line["name"], f"{line['least_ms']:.1f}", f"{line['median_ms']:.1f}", f"{line['faster']:.2f}"]
        cells.append(f"{line['labels_equal']:.4f}")
        if wide:
            cells.append(f"{line['camvid_labels_equal']:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run_script(CpuBackends, "cpu_backends.py"))
