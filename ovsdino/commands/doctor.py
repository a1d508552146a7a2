"""`ovsdino doctor`: versions, native kernels, devices, weights, extras and environment variables of an installation."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ovsdino.console import print_json
from ovsdino.deploy.export.defaults import AGREEMENT
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.native import BACKENDS

__all__ = ["ENVIRONMENT", "Doctor"]

ENVIRONMENT = {
    "OVSDINO_BACKEND": "implementation of the ops: auto (default), reference, sdpa, cpu, triton, cuda",
    "OVSDINO_CUDA": "at installation: auto (default; CUDA kernels if nvcc is found), 0 or 1",
    "OVSDINO_CUDA_ARCHS": "at installation: GPU architectures, for instance 87;90",
    "OVSDINO_DATA": "folder of data sets for `ovsdino eval` and `ovsdino probe` without --root, and for the tests",
    "OVSDINO_OFFLINE": "1: never ask the network for weights; those in the hub's cache are used",
    "TRITON_INTERPRET": "1: Triton kernels run in Python, on CPU tensors too (tests; slow)",
}
_CORE = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "rich", "huggingface_hub")


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Tell what is built, found and missing; the exit code is 2 if something must be fixed.

    With --engine it also runs an engine on its device and compares it with its graph in ONNX Runtime.
    """

    engine: Path | None = None
    """Engine to prove: made by deploy/export_trt.py for this device, or an int8 graph to hold against its float one."""
    graph: Path | None = None
    """With --engine: the .onnx file that it was built from. Default: the one next to it by name."""
    images: Path | None = None
    """With --engine: folder of images to compare on. Default: CamVid val where it is, else 4 synthetic ones."""
    bank: Path | None = None
    """With --engine: text bank to compare on. Default: seeded random rows, and no labels are asked for."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        if self.engine is None and (self.graph or self.images or self.bank):
            raise OVSDinoError("--graph, --images and --bank go with --engine FILE")
        report = examine()
        if self.engine is not None:
            report["engine"], problem = self._proven(self.engine)
            report["problems"] += problem
        if self.json:
            print_json(report)
        else:
            print_report(report)
        return 2 if report["problems"] else 0

    def _proven(self, engine: Path) -> tuple[dict[str, Any], list[str]]:
        """Return the figures of an engine against its graph, and one line where they are too low or it cannot run."""
        from ovsdino.deploy.export.inputs import find_images
        from ovsdino.deploy.export.prove import graph_of, prove

        report: dict[str, Any] = {"file": str(engine), "graph": None, "verified": None}
        try:
            graph = self.graph or graph_of(engine)
            report["graph"] = str(graph)
            found = prove(engine, graph, find_images(self.images, "camvid", None, "val", 20), self.bank)
            report["verified"] = found.to_dict()
            found.check(agreement=None if self.bank is None else AGREEMENT)
        except OVSDinoError as error:
            return report, [one_line(error)]
        return report, []


def examine() -> dict[str, Any]:
    """Return everything `ovsdino doctor` reports, ready for JSON.

    Returns:
        "ovsdino", "python", "platform", "packages", "native", "ops", "devices", "weights", "extras", "environment", and
        "problems": one line for each thing that must be fixed (a missing GPU or extra is none).
    """
    import ovsdino

    native, native_problems = _native()
    weights, weight_problems = _weights()
    environment, environment_problems = _environment()
    return {
        "ovsdino": ovsdino.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "packages": {name: _version(name) for name in _CORE},
        "native": native,
        "ops": _ops(),
        "devices": _devices(),
        "weights": weights,
        "extras": _extras(),
        "environment": environment,
        "problems": native_problems + weight_problems + environment_problems,
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the report as plain text on stdout."""

    def section(title: str, rows: dict[str, str]) -> None:
        for index, (key, value) in enumerate(rows.items()):
            print(f"{title if index == 0 else '':<13}{f'{key}: {value}' if key else value}")

    section("ovsdino", {"": f"{report['ovsdino']}, Python {report['python']}, {report['platform']}"})
    section("packages", {"": ", ".join(f"{k} {v or 'missing'}" for k, v in report["packages"].items())})
    native = report["native"]
    built = ", ".join(f"{k} {v}" for k, v in native["build"].items() if v != "") if native["found"] else native["error"]
    section("native", {"": built if native["found"] else f"missing ({built}); ops run their PyTorch reference"})
    section("ops", {op: ", ".join(f"{d}: {'/'.join(b)}" for d, b in by.items()) for op, by in report["ops"].items()})
    section("devices", {d["name"]: d["description"] for d in report["devices"]})
    section("weights", {w["model"]: f"{w['state']}, {w['bytes'] / 1e6:.1f} MB, {w['file']}" for w in report["weights"]})
    section(
        "extras",
        {
            name: ", ".join(f"{package} {version or 'missing'}" for package, version in packages.items())
            for name, packages in report["extras"].items()
        },
    )
    section(
        "environment",
        {
            name: f"{'not set' if entry['value'] is None else repr(entry['value'])} ({entry['meaning']})"
            for name, entry in report["environment"].items()
        },
    )
    if "engine" in report:
        figures = report["engine"]["verified"] or {}
        told = ", ".join(f"{name} {value}" for name, value in figures.items()) or "not run"
        section("engine", {report["engine"]["file"]: told})
    for problem in report["problems"]:
        print(f"to fix: {problem}")
    if not report["problems"]:
        print("no problems found")


def _version(package: str) -> str | None:
    from importlib import metadata  # 60 ms, which every command would pay

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> tuple[dict[str, Any], list[str]]:
    from ovsdino.native import native, native_error

    if native is None:
        return {"found": False, "error": native_error, "build": {}}, []
    return {"found": True, "error": "", "build": dict(native.build_info())}, []


def _torch() -> ModuleType | None:
    """Return torch, None where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch


def _ops() -> dict[str, dict[str, list[str]]]:
    """Return for each op the backends that can run, by device type, the preferred one first; none without torch."""
    torch = _torch()
    if torch is None:
        return {}
    from ovsdino.ops import dispatch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {op: {d: dispatch.available(op, d) for d in devices} for op in dispatch.OP_BACKENDS}


def _devices() -> list[dict[str, str]]:
    from ovsdino.edge.runtimes import available_threads, fastest_runtime

    torch = _torch()
    what = f"{available_threads()} threads"
    if torch is not None:
        what = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    runtimes = ", ".join(f"{precision} by {fastest_runtime('nano', precision)}" for precision in ("float32", "int8"))
    found = [{"name": "cpu", "description": f"{what}; exported graphs of nano: {runtimes}"}]
    if torch is None:
        return [*found, _edge_device()]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        size = properties.total_memory / 2**30
        what = f"{properties.name}, compute capability {properties.major}.{properties.minor}, {size:.0f} GiB"
        found.append({"name": f"cuda:{index}", "description": what})
    if len(found) == 1:
        found.append({"name": "cuda", "description": "none (torch sees no CUDA device)"})
    return found


def _edge_device() -> dict[str, str]:
    """Return the GPU that engines would run on, which needs no torch."""
    from ovsdino.edge.tensorrt_graph import device_sm

    try:
        return {"name": "cuda:0", "description": f"{device_sm(0)}, for engines"}
    except OVSDinoError as error:
        return {"name": "cuda", "description": f"none ({one_line(error, 120)})"}


def _weights() -> tuple[list[dict[str, Any]], list[str]]:
    """Return the shipped weight files, held against their manifest, and one line for each problem."""
    from ovsdino.io.files import sha256_of
    from ovsdino.models import shipped

    rows, problems = [], []
    for name, entry in shipped.manifest().items():
        path = shipped.WEIGHTS / entry.file
        if not path.is_file():
            state = "missing"
        elif sha256_of(path) != entry.sha256:
            state = "damaged"
        else:
            state = "ok"
        rows.append({"model": name, "file": str(path), "bytes": entry.bytes, "state": state})
        if state != "ok":
            problems.append(f"{path}: {state}; reinstall ovsdino")
    if not rows:
        problems.append(f"{shipped.MANIFEST}: no shipped weights; reinstall ovsdino")
    return rows, problems


def _extras() -> dict[str, dict[str, str | None]]:
    """Return the version of each extra's packages, None where one is missing; nothing if ovsdino is not installed."""
    from importlib import metadata

    try:
        requirements = metadata.requires("ovsdino") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        match = re.match(r"\s*([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if match and match[1] != "ovsdino":  # an extra that takes another one in
            extras.setdefault(match[2], {})[match[1]] = _version(match[1])
    return extras


def _environment() -> tuple[dict[str, dict[str, str | None]], list[str]]:
    report: dict[str, dict[str, str | None]] = {
        name: {"value": os.environ.get(name), "meaning": meaning} for name, meaning in ENVIRONMENT.items()
    }
    problems = []
    backend = os.environ.get("OVSDINO_BACKEND")
    if backend and backend not in BACKENDS:
        problems.append(f"OVSDINO_BACKEND={backend}: expected one of {', '.join(BACKENDS)}")
    cuda = os.environ.get("OVSDINO_CUDA")
    if cuda and cuda not in ("auto", "0", "1"):
        problems.append(f"OVSDINO_CUDA={cuda}: expected auto, 0 or 1")
    data = os.environ.get("OVSDINO_DATA")
    if data and not os.path.isdir(data):
        problems.append(f"OVSDINO_DATA={data}: no such folder")
    return report, problems
