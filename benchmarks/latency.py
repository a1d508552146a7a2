"""End-to-end latency of models on backends, from an image array in memory to labels at its size.

    python benchmarks/latency.py --model nano --backends torch,onnxruntime [--json] [--plot latency.png]
    python benchmarks/latency.py --model b14 --random-weights --backends torch --precisions float32,bfloat16
    python benchmarks/latency.py --engine nano_fp16_sm87.engine --bank bank.safetensors --frames 720p --seconds 120

All cases are called in turn in one process, so that a drift of the machine meets all alike; each call is preceded by a
pause in which the threads of the one before go to sleep. A model on ONNX Runtime or TensorRT is one graph: its time is
`encode`, and there is no `decode`. `end_to_end` is measured around the whole call, not summed, and asks for labels
alone; the stage `default` is the same call with the options of a caller who names none.

Meanwhile clocks, temperatures, load and power are sampled (`telemetry`), and each row has the medians of the first and
of the last fifth of its calls: where they differ the machine did not hold its pace. There is no p99 of fewer than 1 000
calls. Then each case runs alone, for its power and joules an image; and once more in a process of its own, for its
memory: `peak_mb` is resident, libraries included, `device_mb` by cudaMemGetInfo. What makes the figures doubtful
(governor, power mode, clocks that follow the load, other processes, throttling) is said, and refused nothing for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.console import say
from ovsdino.data.names import CAMVID
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import run_script

if TYPE_CHECKING:
    import numpy as np

    from ovsdino.benchmarks.lib.latency_cases import Case
    from ovsdino.benchmarks.lib.latency_measure import Plan


@dataclass(frozen=True, kw_only=True)
class Latency(ReportOptions):
    """Time models from an image in memory to labels: every stage, percentiles, throughput, power and memory."""

    model: tuple[str, ...] = ()
    """Names of zoo models. Default: nano, or none with --engine."""
    backends: str = "torch,onnxruntime"
    """Any of torch, torch.compile, onnxruntime, openvino, tensorrt and tensorrt_rtx, separated by commas."""
    precisions: str = "float32"
    """Any of float32, bfloat16, float16 and int8; a backend takes those that it has."""
    size: tuple[str, ...] = ()
    """HEIGHTxWIDTH that the network sees. Default: what the model makes of the image."""
    image: Path | None = None
    """Image to segment. Default: scikit-learn's china.jpg, 427x640."""
    frames: str = ""
    """Also time frames of a camera in NV12: any of 720p, 1080p and HEIGHTxWIDTH, separated by commas. Graphs only."""
    classes: str = ",".join(CAMVID)
    """Words, separated by commas."""
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
    seconds: float | None = None
    """Time all cases for so long, in place of --runs."""
    warmup: int = 5
    """Calls of each case before that, at least."""
    warmup_seconds: float = 3.0
    """Seconds of calls before that, at least: clocks rise in them."""
    default_path: bool = True
    """Also time the call with default options."""
    power_seconds: float = 5.0
    """Seconds of each case alone, in which its power is measured, where something measures it; 0: none."""
    memory: bool = True
    """Measure peak memory, each case in a process of its own."""
    shares: bool = True
    """Also time the parts inside PyTorch's run."""
    plot: Path | None = None
    """Draw the stages of each case into this PNG or SVG."""

    def run(self) -> int:
        from ovsdino.benchmarks.lib.board import board_facts, doubts, load_average
        from ovsdino.benchmarks.lib.latency_cases import shares
        from ovsdino.benchmarks.lib.latency_measure import add_memory, facts, measure
        from ovsdino.benchmarks.lib.latency_report import markdown, plot
        from ovsdino.benchmarks.lib.latency_roofline import roofline_rows
        from ovsdino.edge.runtimes import available_threads

        self._check()
        device = self._device()
        image = picture(self.image)
        threads = self.threads or available_threads()
        found = doubts({**board_facts(), "load_average": load_average()}, threads)
        for doubt in found:
            say(f"doubtful: {doubt}")
        with tempfile.TemporaryDirectory(prefix="ovsdino-latency-") as folder:
            cases = self._cases(image, device, threads, Path(folder))
            report = measure(cases, image, self._plan())
            if self.memory:
                add_memory(report, cases, image, Path(folder))
        report["shares"] = []
        for case in cases if self.shares else ():
            if case.backend == "torch":
                say(f"shares of {case}")
                report["shares"] += shares(case, image, max(self.runs // 2, 1))
        report = {"machine": facts(device, threads, report.pop("machine")), **report}
        report["machine"]["doubts"] = found
        report["roofline"] = roofline_rows(report, cases)
        report["image"] = {"source": str(self.image or "china.jpg"), "size": f"{image.shape[0]}x{image.shape[1]}"}
        report["classes"] = len(cases[0].classes)
        if self.plot is not None:
            plot(report, self.plot)
        return self.publish(report, markdown)

    def _plan(self) -> Plan:
        from ovsdino.benchmarks.lib.latency_measure import Plan

        return Plan(
            runs=self.runs,
            seconds=self.seconds,
            warmup=self.warmup,
            warmup_seconds=self.warmup_seconds,
            default=self.default_path,
            power_seconds=self.power_seconds,
        )

    def _device(self) -> str:
        """Return where torch runs; a board that times engines has no torch."""
        from ovsdino.benchmarks.lib.latency_cases import TORCH

        if self._models() and set(listed(self.backends)) & set(TORCH):
            from ovsdino.pipeline import check_device

            return check_device(self.device).type
        return self.device or "cpu"

    def _models(self) -> tuple[str, ...]:
        return self.model or (() if self.engine else ("nano",))

    def _check(self) -> None:
        from ovsdino.benchmarks.lib.frames import frame_size
        from ovsdino.benchmarks.lib.latency_cases import PRECISIONS
        from ovsdino.benchmarks.lib.latency_report import check_plot

        if self.plot is not None:
            check_plot(self.plot)
        for name, value, least in (("runs", self.runs, 1), ("warmup", self.warmup, 0), ("threads", self.threads, 1)):
            if value is not None and value < least:
                raise OVSDinoError(f"{name} is {value}: expected at least {least}")
        for name, span in (("warmup_seconds", self.warmup_seconds), ("power_seconds", self.power_seconds)):
            if not 0 <= span <= 3600:
                raise OVSDinoError(f"{name} is {span:g}: expected 0 to 3600 seconds")
        if self.seconds is not None and not 0 < self.seconds <= 86400:
            raise OVSDinoError(f"seconds is {self.seconds:g}: expected more than 0, up to 86400")
        for frame in listed(self.frames):
            frame_size(frame)
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
        """Return every combination that exists, exported where need be."""
        from ovsdino.benchmarks.lib.frames import frame_size
        from ovsdino.benchmarks.lib.latency_cases import EDGE, PRECISIONS, TORCH, Case
        from ovsdino.benchmarks.lib.latency_exports import engine_case, exported

        words = tuple(listed(self.classes))
        found = [engine_case(path, self.bank, words, threads, folder) for path in self.engine]
        left_out: list[str] = []
        inputs = [(name, size) for name in self._models() for size in sizes(name, self.size, image)]
        runs = itertools.product(inputs, listed(self.backends), listed(self.precisions))
        for (name, size), backend, precision in runs:
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
        frames = [frame_size(text) for text in listed(self.frames)]
        if frames:
            left_out += [f"{case.backend} takes no NV12" for case in found if case.backend in TORCH]
            graphs = [case for case in found if case.backend not in TORCH]
            found += [dataclasses.replace(case, frame=frame) for case in graphs for frame in frames]
        for reason in dict.fromkeys(left_out):
            say(f"left out: {reason}")
        if not found:
            raise OVSDinoError(f"nothing to time: {'; '.join(dict.fromkeys(left_out))}")
        return found


def sizes(model: str, asked: Sequence[str], image: np.ndarray) -> list[tuple[int, int]]:
    """Return the (H, W) that the network sees: those asked for, else what the pipeline makes of the image.

    Raises:
        OVSDinoError: Unknown model, or not a size.
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
    """Return the image to segment, (H, W, 3) uint8.

    Raises:
        OVSDinoError: It cannot be read; or none was given and scikit-learn, which brings one, is not installed.
    """
    import numpy as np

    from ovsdino.io.images import load_image

    if path is not None:
        return load_image(path)
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise OVSDinoError("no image: give --image FILE, or install scikit-learn, which brings one") from error
    return np.ascontiguousarray(load_sample_image("china.jpg"))


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated list, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


if __name__ == "__main__":
    raise SystemExit(run_script(Latency, "latency.py"))
