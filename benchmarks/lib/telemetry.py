"""Clocks, temperatures, load and power of the machine, sampled while something is timed.

Sources: tegrastats on a Jetson, nvidia-smi elsewhere, and the files of /sys and /proc on both. A sample is a flat
mapping of numbers, and what a machine does not tell is absent from it:

    cpu_mhz, gpu_mhz, emc_mhz        the fastest core, the GPU, the memory
    cpu_percent, gpu_percent         load, of all cores that are on, of the GPU
    ram_mb, swap_mb                  memory in use
    celsius NAME                     temperature of a sensor
    watts, watts RAIL                drawn by the module, and on its rails
    cooling NAME                     state of a cooling device that slows something down; 0: none

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = [
    "Sample",
    "Watch",
    "fifths",
    "parse_smi_line",
    "parse_tegrastats",
    "read_number",
    "read_text",
    "slowdowns",
    "summary",
    "sys_sample",
    "throttle_counts",
]

Sample = dict[str, float]

INTERVAL_S = 0.5
SMI_FIELDS = ("power.draw", "clocks.sm", "clocks.mem", "temperature.gpu", "utilization.gpu", "memory.used")
SMI_NAMES = ("watts", "gpu_mhz", "emc_mhz", "celsius gpu", "gpu_percent", "gpu_memory_mb")
# The input of the module or board; where there is none, as on AGX Orin, the rails are summed.
WHOLE = ("VDD_IN", "POM_5V_IN", "VIN")
NOT_RAILS = ("RAM", "SWAP", "IRAM", "NC", "APE")
IMPOSSIBLE_C = -200  # tegrastats writes -256C for a sensor whose block is off
FIXED = ("pmic",)  # JetPack 4 writes 100C for it, always
COOLING = re.compile(r"fan|^tegra-fuse|display|backlight", re.IGNORECASE)  # of these no state slows anything down


def parse_tegrastats(line: str) -> Sample:
    """Return all numbers of a line of tegrastats, of JetPack 4 to 7; none of a line that is something else."""
    found: Sample = {}
    for name, used in re.findall(r"\b(RAM|SWAP) (\d+)/\d+MB", line):
        found[f"{name.lower()}_mb"] = float(used)
    cores = re.search(r"\bCPU \[([^]]*)\]", line)
    if cores:
        on = [(float(load), float(mhz or 0)) for load, mhz in re.findall(r"(\d+)%(?:@(\d+))?", cores[1])]
        if on:
            found["cpu_percent"] = round(statistics.fmean(load for load, _ in on), 1)
            found |= {"cpu_mhz": max(mhz for _, mhz in on)} if any(mhz for _, mhz in on) else {}
    for name, load, clocks in re.findall(r"\b(EMC|GR3D)_FREQ (?:(\d+)%)?(?:@\[?([\d,]+))?", line):
        short = {"EMC": "emc", "GR3D": "gpu"}[name]
        found |= {f"{short}_percent": float(load)} if load else {}
        found |= {f"{short}_mhz": max(map(float, clocks.strip(",").split(",")))} if clocks.strip(",") else {}
    for name, degrees in re.findall(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b", line):
        if float(degrees) > IMPOSSIBLE_C and name.lower() not in FIXED:
            found[f"celsius {name.lower()}"] = float(degrees)
    rails = {
        name: int(now) / 1e3
        for name, now in re.findall(r"\b([A-Z][A-Z0-9_]+) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?= |$)", line)
        if name not in NOT_RAILS
    }
    if rails:
        found |= {f"watts {name}": watts for name, watts in rails.items()}
        found["watts"] = next((rails[name] for name in WHOLE if name in rails), round(sum(rails.values()), 3))
    return found


def parse_smi_line(line: str) -> Sample:
    """Return the numbers of a line of `nvidia-smi --query-gpu` with `SMI_FIELDS`, without units."""
    found: Sample = {}
    for name, text in zip(SMI_NAMES, line.split(","), strict=False):
        with contextlib.suppress(ValueError):
            found[name] = float(text)
    return found


def sys_sample(root: Path = Path("/")) -> Sample:
    """Return clocks of the cores, temperatures and cooling states from /sys.

    Args:
        root: Folder in which /sys is looked up.
    """
    found: Sample = {}
    clocks = [read_number(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [clock for clock in clocks if clock is not None]
    if known:
        found["cpu_mhz"] = round(max(known) / 1e3)
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        degrees = read_number(folder / "temp")  # an error where the block is off
        if degrees is not None and degrees > IMPOSSIBLE_C * 1e3:
            name = (read_text(folder / "type") or folder.name).removesuffix("-thermal").removesuffix("-therm").lower()
            if name not in FIXED:
                found[f"celsius {name}"] = max(degrees / 1e3, found.get(f"celsius {name}", -273.0))
    for folder in root.glob("sys/class/thermal/cooling_device*"):
        name, state = read_text(folder / "type") or folder.name, read_number(folder / "cur_state")
        if state is not None and not COOLING.search(name):
            found[f"cooling {name}"] = max(state, found.get(f"cooling {name}", 0.0))
    return found


def throttle_counts(root: Path = Path("/")) -> dict[str, int]:
    """Return how often the machine was slowed down since it started, by reason; what only counts up.

    Orin's over-current events (oc1: low voltage, oc2: average, oc3: instantaneous current) and Intel's thermal ones.

    Args:
        root: Folder in which /sys is looked up.
    """
    found: dict[str, int] = {}
    for path in root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        found[path.name.removesuffix("_event_cnt")] = int(read_number(path) or 0)
    for kind in ("core", "package"):
        counts = root.glob(f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{kind}_throttle_count")
        values = [read_number(path) for path in counts]
        if values:
            found[f"{kind} thermal"] = int(sum(value or 0 for value in values))
    return found


def joules(root: Path = Path("/")) -> float | None:
    """Return the energy counter of the CPU's packages (RAPL), of which differences count; None where it is closed."""
    found = [read_number(path) for path in root.glob("sys/class/powercap/intel-rapl:[0-9]/energy_uj")]
    known = [value for value in found if value is not None]
    return sum(known) / 1e6 if known else None


def cpu_ticks(root: Path = Path("/")) -> tuple[float, float] | None:
    """Return the ticks that all cores were busy, and all ticks, since the start."""
    text = read_text(root / "proc/stat")
    if text is None or not text.startswith("cpu "):
        return None
    ticks = [float(word) for word in text.splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def source() -> tuple[str, list[str], Callable[[str], Sample]] | None:
    """Return name, command (a line for each sample) and parser of the tool that tells of the GPU here."""
    if shutil.which("tegrastats"):
        return "tegrastats", ["tegrastats", "--interval", str(round(INTERVAL_S * 1e3))], parse_tegrastats
    if shutil.which("nvidia-smi"):
        query = f"--query-gpu={','.join(SMI_FIELDS)}"
        loop = f"--loop-ms={round(INTERVAL_S * 1e3)}"
        return "nvidia-smi", ["nvidia-smi", query, "--format=csv,noheader,nounits", loop, "--id=0"], parse_smi_line
    return None


class Watch:
    """Sample the machine from `__enter__` to `__exit__`, twice a second, in threads that read and wait.

    Attributes:
        source: The tool, or "/sys" alone.
        samples: Pairs of the time (`time.monotonic`, seconds) and the sample.

    Args:
        root: Folder in which /sys and /proc are looked up.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.samples: list[tuple[float, Sample]] = []
        self.source = "/sys"
        self._root = root
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Watch:
        tool = source()
        jobs: list[Callable[[], None]] = [self._poll]
        if tool is not None:
            self.source, command, parse = tool
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            jobs.append(lambda: self._read(parse))
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=2)

    def between(self, start: float, end: float) -> list[Sample]:
        """Return the samples of a span of `time.monotonic`."""
        return [sample for when, sample in list(self.samples) if start <= when <= end]

    def _read(self, parse: Callable[[str], Sample]) -> None:
        assert self._process is not None
        for line in self._process.stdout or ():
            self._keep(parse(line))

    def _poll(self) -> None:
        energy, ticks, then = joules(self._root), cpu_ticks(self._root), time.monotonic()
        while not self._ended.wait(INTERVAL_S):
            sample, now = sys_sample(self._root), time.monotonic()
            energy, before = joules(self._root), energy
            if energy is not None and before is not None and energy >= before and self._process is None:
                sample["watts"] = (energy - before) / (now - then)
            ticks, counted = cpu_ticks(self._root), ticks
            if ticks is not None and counted is not None and ticks[1] > counted[1]:
                sample["cpu_percent"] = round(100 * (ticks[0] - counted[0]) / (ticks[1] - counted[1]), 1)
            then = now
            self._keep(sample)

    def _keep(self, sample: Sample) -> None:
        if sample:
            self.samples.append((time.monotonic(), sample))


def summary(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Return of each number the least, median and largest value, and the median of the first and the last fifth."""
    columns: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            columns.setdefault(name, []).append(value)
    found = {}
    for name, values in columns.items():
        first, last = fifths(values)
        parts = {"least": min(values), "median": statistics.median(values), "most": max(values)}
        found[name] = {key: round(value, 2) for key, value in {**parts, "first": first, "last": last}.items()}
    return found


def fifths(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last fifth, of at least one value each."""
    count = max(len(values) // 5, 1)
    return statistics.median(values[:count]), statistics.median(values[-count:])


def slowdowns(
    numbers: Mapping[str, Mapping[str, float]], before: Mapping[str, int], after: Mapping[str, int]
) -> list[str]:
    """Return the signs, a sentence each, that the machine was slowed down while it was sampled.

    Args:
        numbers: See `summary`.
        before: See `throttle_counts`.
        after: The same at the end.
    """
    found = [f"{name}: {after[name] - count} events" for name, count in before.items() if after.get(name, 0) > count]
    for name, values in numbers.items():
        if name.startswith("cooling ") and values["most"] > 0:
            found.append(f"{name.removeprefix('cooling ')} was slowed down, state {values['most']:g}")
        if name in ("cpu_mhz", "gpu_mhz", "emc_mhz") and values["last"] < 0.9 * values["first"]:
            found.append(f"{name} fell from {values['first']:g} to {values['last']:g}")
    return found


def read_number(path: Path) -> float | None:
    """Return the number that a file holds, None where there is none."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def read_text(path: Path) -> str | None:
    """Return the text of a file without its ends of spaces and NULs, None where it is empty or cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None
