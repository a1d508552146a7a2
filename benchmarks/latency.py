"""End-to-end latency of models on backends, from an image array in memory to labels at its size.

    python benchmarks/latency.py --model nano --backends torch,onnxruntime [--json] [--plot latency.png]
    python benchmarks/latency.py --model b14 --random-weights --backends torch --precisions float32,bfloat16
    python benchmarks/latency.py --engine nano_fp16_sm87.engine --bank bank.safetensors --backends tensorrt

All cases are called in turn in one process, so that a drift of the machine meets all alike; each call is preceded by a
pause in which the threads of the one before go to sleep. A model on ONNX Runtime or TensorRT is one graph: its time is
`encode`, and there is no `decode`. `end_to_end` is measured around the whole call, not summed. `peak_mb` is the peak
resident memory of a process of its own that does nothing else, libraries included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.benchmarks.lib.latency_cases import EDGE, PRECISIONS, TORCH, Case, Once, case_json, prepared, shares
from ovsdino.benchmarks.lib.latency_report import markdown, plot
from ovsdino.console import print_json, say
from ovsdino.data.names import CAMVID
from ovsdino.edge.segmenter import available_threads
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write
from ovsdino.io.images import load_image
from ovsdino.parsing import run_script

PAUSE_S = 0.02  # torch's and ONNX Runtime's threads spin for a few milliseconds after a call
MEMORY_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time models from an image in memory to labels: every stage, p50, p95, p99, throughput and memory."""

    model: tuple[str, ...] = ()
    """Names of zoo models. Default: nano, or none beside --engine."""
    backends: str = "torch,onnxruntime"
    """Of torch, torch.compile, onnxruntime, tensorrt, tensorrt_rtx; commas between."""
    precisions: str = "float32"
    """Of float32, bfloat16, float16, int8; a backend takes those it has."""
    size: tuple[str, ...] = ()
    """HEIGHTxWIDTH that the network sees. Default: what the model makes of the image."""
    image: Path | None = None
    """What to segment. Default: scikit-learn's china.jpg, 427x640."""
    classes: str = ",".join(CAMVID)
    """Words, commas between."""
    engine: tuple[Path, ...] = ()
    """Exported .onnx or .engine files, with their sidecars, to time as well."""
    bank: Path | None = None
    """Text bank for --engine. Default: made of --classes by the engine's model."""
    calibration: Path | None = None
    """Data set or folder of images that int8 is calibrated on (see deploy/quantize.py)."""
    random_weights: bool = False
    """Random weights and text: timing without any download."""
    device: str | None = None
    """cpu or cuda, for torch. Default: CUDA if there is one."""
    threads: int | None = None
    """CPU threads of every backend. Default: all cores."""
    runs: int = 50
    """Timed calls of each case."""
    warmup: int = 5
    """Calls of each case before that."""
    memory: bool = True
    """Measure peak memory, each case in a process of its own."""
    shares: bool = True
    """Also time the parts inside PyTorch's run."""
    json: bool = False
    """Print one JSON object on stdout."""
    output: Path | None = None
    """Also write that JSON here."""
    plot: Path | None = None
    """Draw the stages of each case into this PNG or SVG."""

    def run(self) -> int:
        self._check()
        device = self._device()
        image = picture(self.image)
        threads = self.threads or available_threads()
        with tempfile.TemporaryDirectory(prefix="ovsdino-latency-") as folder:
            cases = self._cases(image, device, threads, Path(folder))
            report = measure(cases, image, runs=self.runs, warmup=self.warmup)
            if self.memory:
                add_memory(report, cases, image, Path(folder))
        report["shares"] = []
        for case in cases if self.shares else ():
            if case.backend == "torch":
                say(f"shares of {case}")
                report["shares"] += shares(case, image, max(self.runs // 2, 1))
        report = {"machine": facts(device, threads, report.pop("machine")), **report}
        report["image"] = {"source": str(self.image or "china.jpg"), "size": f"{image.shape[0]}x{image.shape[1]}"}
        report["classes"] = len(cases[0].classes)
        if self.output:
            with atomic_write(self.output) as file:
                file.write(json.dumps(report, indent=1, allow_nan=False).encode() + b"\n")
        if self.plot:
            plot(report, self.plot)
        if self.json:
            print_json(report)
        else:
            print(markdown(report))
        return 0

    def _device(self) -> str:
        """Where torch runs; a board that times engines has no torch."""
        if self._models() and set(listed(self.backends)) & set(TORCH):
            from ovsdino.pipeline import check_device

            return check_device(self.device).type
        return self.device or "cpu"

    def _models(self) -> tuple[str, ...]:
        return self.model or (() if self.engine else ("nano",))

    def _check(self) -> None:
        for name, value, least in (("runs", self.runs, 1), ("warmup", self.warmup, 0), ("threads", self.threads, 1)):
            if value is not None and value < least:
                raise OVSDinoError(f"{name} is {value}: expected at least {least}")
        for backend in listed(self.backends):
            if backend not in PRECISIONS:
                raise OVSDinoError(f"unknown backend {backend!r}; available: {', '.join(PRECISIONS)}")
        known = sorted({name for names in PRECISIONS.values() for name in names})
        for precision in listed(self.precisions):
            if precision not in known:
                raise OVSDinoError(f"unknown precision {precision!r}; available: {', '.join(known)}")
        if self.random_weights and "int8" in listed(self.precisions):
            raise OVSDinoError("int8 with --random-weights: calibration needs a trained model; leave one of them out")

    def _cases(self, image: np.ndarray, device: str, threads: int | None, folder: Path) -> list[Case]:
        """Every combination that exists, exported where need be."""
        from ovsdino.benchmarks.lib.latency_exports import engine_case, exported

        found, left_out = [], []
        words = tuple(listed(self.classes))
        for path in self.engine:
            found.append(engine_case(path, self.bank, words, threads, folder))
        for name in self._models():
            for size in sizes(name, self.size, image):
                for backend in listed(self.backends):
                    for precision in listed(self.precisions):
                        if precision not in PRECISIONS[backend]:
                            left_out.append(f"{backend} has no {precision}")
                            continue
                        case = Case(
                            model=name,
                            backend=backend,
                            precision=precision,
                            size=size,
                            classes=words,
                            random_weights=self.random_weights,
                            device=device if backend in TORCH else "cpu",
                            threads=threads,
                        )
                        found.append(exported(case, folder, self.calibration) if backend in EDGE else case)
        for reason in dict.fromkeys(left_out):
            say(f"left out: {reason}")
        if not found:
            raise OVSDinoError(f"nothing to time: {'; '.join(dict.fromkeys(left_out))}")
        return found


def measure(cases: Sequence[Case], image: np.ndarray, *, runs: int, warmup: int) -> dict[str, Any]:
    """Times all cases in turn.

    Returns:
        ``results``, a row a case and stage; ``throughput``, images a second one after the other; ``machine`` with the
        power drawn meanwhile, where it can be measured.
    """
    from ovsdino.benchmarks.lib.board import power

    calls: list[tuple[Case, Once]] = []
    for case in cases:
        say(f"preparing {case}")
        calls.append((case, prepared(case, image)))
    for _ in range(warmup):
        for _, once in calls:
            once()
    samples: list[list[dict[str, float]]] = [[] for _ in calls]
    machine: dict[str, Any] = {}
    say(f"timing {len(calls)} cases, {runs} calls each")
    with power(machine):
        for _ in range(runs):
            for (_, once), rounds in zip(calls, samples, strict=True):
                time.sleep(PAUSE_S)
                rounds.append(once())
    report: dict[str, Any] = {"machine": machine, "results": [], "throughput": []}
    for (case, _), rounds in zip(calls, samples, strict=True):
        for stage in rounds[0]:
            report["results"].append(row(case, stage, [ms[stage] for ms in rounds]))
        mean = sum(ms["end_to_end"] for ms in rounds) / len(rounds)
        report["throughput"].append({**identity(case), "images_per_s": round(1e3 / mean, 2)})
    return report


def identity(case: Case) -> dict[str, str]:
    return dict(zip(("model", "backend", "precision", "input"), case.key, strict=True))


def row(case: Case, stage: str, ms: Sequence[float]) -> dict[str, Any]:
    """A line of the report; percentiles are interpolated between the two nearest samples."""
    p50, p95, p99 = (round(float(np.percentile(ms, q)), 3) for q in (50, 95, 99))
    facts = {"stage": stage, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "runs": len(ms), "peak_mb": None}
    return {**identity(case), **facts}


def add_memory(report: dict[str, Any], cases: Sequence[Case], image: np.ndarray, folder: Path) -> None:
    """Peak memory of each case into its end_to_end row, by a process of its own.

    Raises:
        RuntimeError: the process failed, though the case ran here.
    """
    np.save(folder / "image.npy", image)
    script = Path(__file__).resolve().parent / "lib" / "latency_cases.py"
    for case in cases:
        say(f"memory of {case}")
        (folder / "case.json").write_text(case_json(case))
        command = [sys.executable, script, folder / "case.json", folder / "image.npy", str(MEMORY_RUNS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{case}: the process that measures memory failed: {one_line(done.stderr[-300:])}")
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mb"]
        for line in report["results"]:
            if line["stage"] == "end_to_end" and identity(case).items() <= line.items():
                line["peak_mb"] = peak


def facts(device: str, threads: int, measured: dict[str, Any]) -> dict[str, Any]:
    """The machine and its load; its limits too where torch, which measures them, was needed anyway."""
    from ovsdino.benchmarks.lib import board

    if "torch" in sys.modules:
        from ovsdino.benchmarks.lib.machine import machine_facts

        found = machine_facts(device)
    else:
        found = {"device": device, "cpu": board.cpu_name(), "threads": threads, **board.board_facts()}
    return {**found, **measured, "load_average": board.load_average(), "date": board.stamp()}


def sizes(model: str, asked: Sequence[str], image: np.ndarray) -> list[tuple[int, int]]:
    """(H, W) that the network sees: those asked for, else what the pipeline makes of the image.

    Raises:
        OVSDinoError: unknown model, or not a size.
    """
    if not asked:
        import torch

        from ovsdino.models.zoo import build_model
        from ovsdino.pipeline import Segmenter

        with torch.device("meta"):  # sizes need no weights
            return [Segmenter(build_model(model)).inference_size(*image.shape[:2])]
    found = []
    for text in asked:
        parts = text.lower().split("x")
        if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 8192 for part in parts):
            raise OVSDinoError(f"size is {text!r}: expected HEIGHTxWIDTH such as 448x448, sides up to 8192")
        found.append((int(parts[0]), int(parts[1])))
    return found


def picture(path: Path | None) -> np.ndarray:
    """The image to segment, (H, W, 3) uint8.

    Raises:
        OVSDinoError: it cannot be read; or none was given and scikit-learn, which brings one, is not installed.
    """
    if path is not None:
        return load_image(path)
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise OVSDinoError("no image: give --image FILE, or install scikit-learn, which brings one") from error
    return np.ascontiguousarray(load_sample_image("china.jpg"))


def listed(text: str) -> list[str]:
    """The parts of a comma-separated list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


if __name__ == "__main__":
    sys.exit(run_script(Latency, "latency.py"))
