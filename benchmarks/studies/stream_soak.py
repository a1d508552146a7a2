"""`ovsdino stream` for minutes on cameras that misbehave: nothing may leak, and what is late must say so.

    python benchmarks/studies/stream_soak.py --seconds 180 --json
    python benchmarks/studies/stream_soak.py --cameras 2 --seconds 600 --json > benchmarks/results/stream_soak.json

Without --engine it exports nano and a smaller nano first, in a process of its own: this one never imports torch, so its
memory is the loop's. Every cycle the camera gives damaged frames, is unplugged, hangs inside read(), and changes its
size, and for a while the larger engine is slowed until the watchdog leaves it. Of several cameras each has its faults
at another time, and the others go on. Memory is that of the process as the system sees it, over the last cycle
against the cycle after warm-up.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.benchmarks.lib.board import cpu_name
from ovsdino.benchmarks.lib.report import ROOT, ReportOptions
from ovsdino.console import say
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import run_script
from ovsdino.stream.cameras import Camera
from ovsdino.stream.capture import Capture, CaptureLimits, Frame, LatestFrame
from ovsdino.stream.loop import Engine, Streams
from ovsdino.stream.result import StreamResult
from ovsdino.stream.watchdog import Watchdog

CLASSES = "sky,building,pole,road,sidewalk,tree,sign,fence,car,pedestrian,bicyclist"
MOST_GROWTH = 0.01
STALL_S = 0.5


@dataclass(frozen=True)
class Fault:
    """A fault of the camera or the engine, from when to when, in shares of a cycle."""

    kind: str
    begin: float
    end: float


FAULTS = (
    Fault("damaged", 0.10, 0.13),
    Fault("unplugged", 0.22, 0.30),
    Fault("hangs", 0.40, 0.50),
    Fault("resized", 0.56, 0.62),
    Fault("slowed", 0.70, 0.78),
)


class Timeline:
    """Tell which fault is on now.

    Args:
        cycle_s: Seconds of a round of all faults.
        shift: Share of a cycle by which they come later.
    """

    def __init__(self, cycle_s: float, shift: float = 0.0) -> None:
        self.cycle_s = cycle_s
        self.start = time.monotonic() + shift * cycle_s

    def fault(self) -> str:
        share = (time.monotonic() - self.start) / self.cycle_s % 1.0
        return next((fault.kind for fault in FAULTS if fault.begin <= share < fault.end), "")


class FaultyCamera:
    """Moving pictures at 30 a second, with the faults of a `Timeline`."""

    live = True
    period_s = 1 / 30

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.number = 0
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        self.pictures = [noise.repeat(size // 12, 0).repeat(size // 12, 1) for size in (360, 480)]

    def open(self) -> None:
        if self.timeline.fault() == "unplugged":
            raise OSError("no such device")

    def grab(self) -> float | None:
        time.sleep(self.period_s)
        while self.timeline.fault() == "hangs":  # as a driver does, deaf to everything
            time.sleep(0.02)
        if self.timeline.fault() == "unplugged":
            raise OSError("the device was unplugged")
        self.number += 1
        return time.monotonic()

    def retrieve(self) -> np.ndarray:
        if self.timeline.fault() == "damaged":
            raise ValueError("bad Huffman code")
        picture = self.pictures[self.timeline.fault() == "resized"]
        return np.roll(picture, 4 * self.number, axis=1)

    def close(self) -> None:
        """Nothing is held."""


class Burdened:
    """An engine that shares its device with another load while the timeline says so."""

    def __init__(self, segmenter: EdgeSegmenter, timeline: Timeline, extra_s: float) -> None:
        self.segmenter, self.timeline, self.extra_s = segmenter, timeline, extra_s
        self.batch = segmenter.batch
        self.calls: dict[int, int] = {}

    def segment(self, image: np.ndarray, **options: Any) -> Any:
        return self.segment_batch([image], **options)[0]

    def segment_batch(self, images: list[np.ndarray], **options: Any) -> list[Any]:
        self.calls[len(images)] = self.calls.get(len(images), 0) + 1
        if self.timeline.fault() == "slowed":
            time.sleep(self.extra_s)
        return self.segmenter.segment_batch(images, **options)


class Memory:
    """Resident bytes of this process, sampled in a thread."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        self.start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(self.every_s):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.samples.append((time.monotonic() - self.start, pages * page))

    def between(self, begin: float, end: float) -> float:
        """Return the median bytes of a stretch of time, in seconds from the start."""
        return statistics.median(size for when, size in self.samples if begin <= when < end)


class Witness:
    """Look at every result for itself, apart from what the loop counts."""

    def __init__(self, deadline_ms: float) -> None:
        self.deadline_ms = deadline_ms
        self.results = self.late = self.unmarked = self.disordered = self.misshapen = 0
        self.sequences: dict[int | None, int] = {}

    def __call__(self, result: StreamResult) -> None:
        late = 1e3 * (result.finished - result.frame.captured) > self.deadline_ms
        self.results += 1
        self.late += late
        self.unmarked += late != result.stale
        self.disordered += result.frame.sequence <= self.sequences.get(result.camera, 0)
        self.misshapen += result.labels.shape != result.frame.pixels.shape[:2]
        self.sequences[result.camera] = result.frame.sequence


def soak(
    large: Path, small: Path, bank: Path, *, seconds: float, cycles: int = 6, threads: int = 1, cameras: int = 1
) -> dict[str, Any]:
    """Run the loop and return the report, ready for JSON.

    Args:
        large: Exported model.
        small: Smaller exported model of the same classes.
        bank: Text bank of both.
        seconds: Length of the test; the first two cycles are warm-up.
        cycles: Rounds of all faults, at least 4.
        threads: CPU threads of each engine.
        cameras: Number of cameras.
    """
    cycle_s = seconds / cycles
    engines = [EdgeSegmenter(path, bank, threads=threads) for path in (large, small)]
    usual_ms = usual_time(engines[0]) * min(cameras, engines[0].batch)
    deadline_ms = max(60.0, 4 * usual_ms)
    timelines = [Timeline(cycle_s, place / cameras) for place in range(cameras)]
    watchdog = Watchdog(2, deadline_ms, window=10 * cameras, misses=2 * cameras, recover_s=cycle_s / 20)
    burdened = Burdened(engines[0], timelines[0], 1.5 * deadline_ms / 1e3)
    pair = [Engine("large", burdened, {"scores": False}), Engine("small", engines[1], {"scores": False})]
    sources = [_camera(timeline, cycle_s, deadline_ms) for timeline in timelines]
    stream = Streams(sources, pair, watchdog=watchdog, seconds=seconds, report_s=cycle_s, say=say)
    witness = Witness(deadline_ms)
    with Memory(min(1.0, cycle_s / 20)) as memory:
        summary = stream.run(witness)
    before, after = memory.between(2 * cycle_s, 3 * cycle_s), memory.between(seconds - cycle_s, seconds)
    growth = after / before - 1
    checks = {
        **_checks(summary, witness, cycles),
        f"memory grew by less than {MOST_GROWTH:.0%}": growth < MOST_GROWTH,
    }
    return {
        "machine": {"cpu": cpu_name(), "arch": platform.machine(), "threads": threads},
        "seconds": seconds,
        "cycle_s": cycle_s,
        "usual_ms": round(usual_ms, 3),
        "summary": summary,
        "calls_by_batch": {str(size): count for size, count in sorted(burdened.calls.items())},
        "rss_mb": {
            "after_warm_up": round(before / 1e6, 3),
            "at_the_end": round(after / 1e6, 3),
            "growth_percent": round(100 * growth, 3),
            "by_cycle": [round(memory.between(n * cycle_s, (n + 1) * cycle_s) / 1e6, 3) for n in range(cycles)],
        },
        "threads_at_the_end": threading.active_count(),
        "checks": checks,
        "passed": all(checks.values()),
    }


def _camera(timeline: Timeline, cycle_s: float, deadline_ms: float) -> Camera:
    slot: LatestFrame[Frame] = LatestFrame()
    limits = CaptureLimits(stall_s=min(STALL_S, cycle_s / 40), backoff_s=(0.05, 0.5))
    capture = Capture(lambda: FaultyCamera(timeline), slot, limits=limits, say=say)
    return Camera(capture, slot, "faulty", deadline_ms)


def _checks(summary: dict[str, Any], witness: Witness, cycles: int) -> dict[str, bool]:
    """Return what must hold, of each camera where it is a camera's."""
    cameras = summary.get("cameras", [summary])

    def each(least: dict[str, int]) -> bool:
        return all(camera[name] >= count for camera in cameras for name, count in least.items())

    return {
        "ended at the limit": summary["ended"] == "seconds",
        "every late result is marked stale, and no other": witness.unmarked == 0 and witness.late == summary["stale"],
        "some results were late": summary["stale"] > 0,
        "newest frame each time, in order": witness.disordered == 0 and each({"dropped": 1}),
        "labels at the size of the frame": witness.misshapen == 0 and each({"size_changes": 2 * (cycles - 1)}),
        "every hang was left behind": each({"stalls": cycles - 1}),
        "every unplugging was survived": each({"reconnects": 2 * (cycles - 1)}),
        "damaged frames were counted": each({"corrupt": cycles - 1}),
        "fell back and returned": min(summary["degradations"], summary["recoveries"]) >= cycles - 1,
        "all frames accounted for": all(
            0 <= one["captured"] - one["frames"] - one["dropped"] - one["failed"] <= 2 for one in cameras
        ),
    }


def usual_time(segmenter: EdgeSegmenter) -> float:
    """Return the median milliseconds of a frame."""
    image, times = np.zeros((360, 480, 3), np.uint8), []
    for _ in range(6):
        begun = time.monotonic()
        segmenter.segment(image, scores=False)
        times.append(1e3 * (time.monotonic() - begun))
    return statistics.median(times[1:])


def export(folder: Path, cameras: int = 1) -> tuple[Path, Path, Path]:
    """Export the nano model at its own size and at a smaller one, for so many frames at once, and write their bank."""
    files = folder / "large.onnx", folder / "small.onnx", folder / "bank.safetensors"
    script = str(ROOT / "deploy" / "export_onnx.py")
    batch = ["--batch", "1", str(cameras)] if cameras > 1 else []
    commands = [
        [script, "--model", "nano", "--output", str(files[0]), *batch],
        [script, "--model", "nano", "--height", "192", "--width", "256", "--output", str(files[1]), *batch],
        ["-m", "ovsdino", "text", "--classes", CLASSES, "--output", str(files[2])],
    ]
    for command in commands:
        done = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise OVSDinoError(f"exit code {done.returncode} of python {' '.join(command)}")
    return files


@dataclass(frozen=True, kw_only=True)
class StreamSoak(ReportOptions):
    """Run the stream loop on cameras that misbehave; the exit code is 1 where a check failed."""

    seconds: float = 180.0
    """Length of the test."""
    engine: Path | None = None
    """Exported model; without it nano is exported first."""
    fallback: Path | None = None
    """Smaller exported model."""
    bank: Path | None = None
    """Text bank of both."""
    threads: int = 1
    """CPU threads of an engine."""
    cameras: int = 1
    """Number of cameras."""

    def run(self) -> int:
        report = self.report()
        self.publish(report, text)
        return 0 if report["passed"] else 1

    def report(self) -> dict[str, Any]:
        """Return the report of the soak.

        Raises:
            OVSDinoError: Not all files given, or too short.
        """
        if not self.seconds >= 12:
            raise OVSDinoError(f"--seconds is {self.seconds}: expected 12 or more, for six cycles of all faults")
        if not self.cameras >= 1:
            raise OVSDinoError(f"--cameras is {self.cameras}: expected 1 or more")
        given = [path for path in (self.engine, self.fallback, self.bank) if path is not None]
        if len(given) == 3:
            return soak(*given, seconds=self.seconds, threads=self.threads, cameras=self.cameras)
        if given:
            raise OVSDinoError("give --engine, --fallback and --bank together, or none to export nano")
        with tempfile.TemporaryDirectory() as folder:
            files = export(Path(folder), self.cameras)
            return soak(*files, seconds=self.seconds, threads=self.threads, cameras=self.cameras)


def text(report: dict[str, Any]) -> str:
    """Return the checks and the memory as lines."""
    lines = [f"{'ok  ' if good else 'FAIL'} {name}" for name, good in report["checks"].items()]
    return "\n".join([*lines, f"memory {report['rss_mb']['after_warm_up']} -> {report['rss_mb']['at_the_end']} MB"])


if __name__ == "__main__":
    raise SystemExit(run_script(StreamSoak, "stream_soak.py"))
