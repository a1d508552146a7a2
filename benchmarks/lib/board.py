"""Facts of the board: power mode, clocks, JetPack, TensorRT; and what of them makes its figures doubtful.

A fact that a machine does not have is absent from the answer; nothing is guessed. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovsdino.benchmarks.lib.telemetry import read_number, read_text

PACKAGES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_cu13")
SMI_QUERY = ("clocks.sm", "clocks.mem", "power.limit", "driver_version")


def board_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return JSON-ready facts of the device.

    Args:
        root: Folder in which /proc, /sys and /etc are looked up.

    Returns:
        Those that can be told of ``board`` (device tree), ``l4t`` and ``jetpack``, ``nvpmodel``, ``cpu_mhz``,
        ``gpu_mhz``, ``cpu_mhz_range`` and ``gpu_mhz_range`` ([least, most] that the clock may be), ``governor``,
        ``packages`` (versions of the inference libraries), ``nvidia_smi``.
    """
    facts: dict[str, Any] = {
        "board": read_text(root / "proc/device-tree/model"),
        "l4t": parse_l4t(read_text(root / "etc/nv_tegra_release") or ""),
        "jetpack": _answer("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack"),
        "nvpmodel": parse_nvpmodel(_answer("nvpmodel", "-q") or ""),
        "cpu_mhz": _mhz(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq", 1e3),
        "cpu_mhz_range": _range(root / "sys/devices/system/cpu/cpu0/cpufreq", "scaling_{}_freq", 1e3),
        "governor": read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "gpu_mhz": max(filter(None, (_mhz(path, "cur_freq", 1e6) for path in _gpus(root))), default=None),
        "gpu_mhz_range": next(filter(None, (_range(path, "{}_freq", 1e6) for path in _gpus(root))), None),
        "packages": versions(),
        "nvidia_smi": parse_smi(
            _answer("nvidia-smi", f"--query-gpu={','.join(SMI_QUERY)}", "--format=csv,noheader") or ""
        ),
    }
    return {name: value for name, value in facts.items() if value}


def cpu_name() -> str:
    """Return the processor's name as the system knows it."""
    for line in (read_text(Path("/proc/cpuinfo")) or "").splitlines():
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


def doubts(facts: Mapping[str, Any], threads: int) -> list[str]:
    """Return why figures of this machine may not be its best or not come again, a sentence each with the remedy.

    Args:
        facts: See `board_facts`; ``load_average`` of before too, if it is known.
        threads: CPU threads that will be busy.
    """
    found = []
    low, high = facts.get("cpu_mhz_range", (0, 0))
    if facts.get("governor", "performance") != "performance" and low < high:
        found.append(
            f"governor is {facts['governor']}: the CPU's clock follows the load, {low} to {high} MHz; "
            "fix it with jetson_clocks, or `cpupower frequency-set -g performance`"
        )
    mode = facts.get("nvpmodel", "MAXN")
    if not mode.startswith("MAXN"):
        found.append(f"nvpmodel is {mode}: this board has a faster mode, see `grep POWER_MODEL /etc/nvpmodel.conf`")
    low, high = facts.get("gpu_mhz_range", (0, 0))
    if low < high:
        found.append(f"jetson_clocks is off: the GPU's clock follows the load, {low} to {high} MHz")
    load = facts.get("load_average")
    if load is not None and load > 0.5:
        found.append(f"load average {load:g} before the first call: other processes want the {threads} CPU threads too")
    return found


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; more than the threads disturb the figures."""
    text = read_text(Path("/proc/loadavg"))
    return float(text.split()[0]) if text else None


def stamp() -> str:
    """Return the time now, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _gpus(root: Path) -> list[Path]:
    """Return the folders of a Jetson's GPU: gpu on Xavier and before, ga10b on Orin, gb10b on Thor."""
    folder = root / "sys/class/devfreq"
    return [path for name in ("gpu", "ga10b", "gb10b") for path in sorted(folder.glob(f"*{name}*"))]


def _range(folder: Path, name: str, divisor: float) -> list[int] | None:
    """Return the least and the most that a clock may be, in MHz."""
    low, high = (read_number(folder / name.format(end)) for end in ("min", "max"))
    return None if low is None or high is None else [round(low / divisor), round(high / divisor)]


def _mhz(folder: Path, pattern: str, divisor: float) -> int | None:
    """Return the highest clock of the files that match."""
    found = [read_number(path) for path in sorted(folder.glob(pattern))]
    known = [value for value in found if value is not None]
    return round(max(known) / divisor) if known else None


def _answer(*command: str) -> str | None:
    """Return the output of a program, or None without it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
