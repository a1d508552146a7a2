"""Facts of the board: power mode, clocks, JetPack, TensorRT, and the power drawn while something runs.

A fact that a machine does not have is absent from the answer; nothing is guessed. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_cu13")
SMI_QUERY = ("clocks.sm", "clocks.mem", "power.limit", "driver_version")


def board_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return JSON-ready facts of the device.

    Args:
        root: Folder in which /proc, /sys and /etc are looked up.

    Returns:
        Those that can be told of ``board`` (device tree), ``l4t`` and ``jetpack``, ``nvpmodel``, ``cpu_mhz``,
        ``gpu_mhz``, ``governor``, ``packages`` (versions of the inference libraries), ``nvidia_smi``.
    """
    facts: dict[str, Any] = {
        "board": _text(root / "proc/device-tree/model"),
        "l4t": parse_l4t(_text(root / "etc/nv_tegra_release") or ""),
        "jetpack": _answer("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"),
        "nvpmodel": parse_nvpmodel(_answer("nvpmodel", "-q") or ""),
        "cpu_mhz": _mhz(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "gpu_mhz": _mhz(root / "sys/class/devfreq", "*gpu*/cur_freq", 1e6)
        or _mhz(root / "sys/class/devfreq", "*ga10b*/cur_freq", 1e6),
        "packages": versions(),
        "nvidia_smi": parse_smi(
            _answer("nvidia-smi", f"--query-gpu={','.join(SMI_QUERY)}", "--format=csv,noheader") or ""
        ),
    }
    return {name: value for name, value in facts.items() if value}


def cpu_name() -> str:
    """Return the processor's name as the system knows it."""
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of the inference libraries that are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def parse_l4t(text: str) -> str | None:
    """Return the release, as in 36.4.3, from the first line of /etc/nv_tegra_release."""
    found = re.search(r"R(\d+)[^,]*, REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def parse_nvpmodel(text: str) -> str | None:
    """Return the power mode, as in MAXN_SUPER, from the answer of `nvpmodel -q`."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return found[1] if found else None


def parse_smi(text: str) -> dict[str, str]:
    """Return the first GPU's fields of `nvidia-smi --query-gpu`; fields it does not support are left out."""
    values = [value.strip() for value in text.splitlines()[0].split(",")] if text.strip() else []
    pairs = zip(SMI_QUERY, values, strict=False)
    return {name: value for name, value in pairs if value and not value.startswith("[")}


def parse_tegrastats(line: str) -> float | None:
    """Return the module's watts by a line of tegrastats: VDD_IN (Orin NX, Nano), or the sum of AGX Orin's rails."""
    rails = {name: float(now) / 1e3 for name, now in re.findall(r"(V[A-Z0-9_]+) (\d+)mW/\d+mW", line)}
    if not rails:
        return None
    return rails.get("VDD_IN", sum(rails.values()))


def watts() -> tuple[str, list[str], Any] | None:
    """Return name, command (one line for each sample) and parser of the tool that measures power here."""
    if shutil.which("tegrastats"):
        return "tegrastats", ["tegrastats", "--interval", "200"], parse_tegrastats
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--loop-ms=200", "--id=0"]
        return "nvidia-smi", command, _number
    return None


@contextlib.contextmanager
def power(result: dict[str, Any]) -> Iterator[None]:
    """Put ``power_w`` {source, mean, most, samples} of the block into `result`, if something here measures it."""
    source = watts()
    if source is None:
        yield
        return
    name, command, parse = source
    samples: list[float] = []

    def read() -> None:
        for line in process.stdout or ():
            value = parse(line)
            if value is not None:
                samples.append(value)

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        reader.join(timeout=2)
    if samples:
        mean = round(statistics.fmean(samples), 2)
        result["power_w"] = {"source": name, "mean": mean, "most": round(max(samples), 2), "samples": len(samples)}


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; more than the threads disturb the figures."""
    text = _text(Path("/proc/loadavg"))
    return float(text.split()[0]) if text else None


def stamp() -> str:
    """Return the time now, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _number(line: str) -> float | None:
    try:
        return float(line)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _mhz(folder: Path, pattern: str, divisor: float) -> int | None:
    """Return the highest clock of the files that match."""
    found = [_number(_text(path) or "") for path in sorted(folder.glob(pattern))]
    known = [value for value in found if value is not None]
    return round(max(known) / divisor) if known else None


def _answer(*command: str) -> str | None:
    """Return the output of a program, or None without it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
