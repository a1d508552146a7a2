"""Run chosen tests on the oldest releases that are supported: Python 3.10, numpy 1.26, and torch 2.5 and 2.8.

    python scripts/test_matrix.py --python python3.10 --folder outputs/matrix --torch 2.5.1 2.8.0 --json matrix.json

Each release gets an environment of its own below the folder, which is removed afterwards unless --keep. An environment
takes some 6 GB where the index has torch with CUDA only. What runs without torch is tested on the last release alone,
which is also what an install without torch is held against (`scripts/torch_free.py`). With --resume the steps that were
green before, by `matrix.json` in the folder, are not repeated. `make test-matrix` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VISION = {"2.5.1": "0.20.1", "2.6.0": "0.21.0", "2.7.1": "0.22.1", "2.8.0": "0.23.0"}  # torchvision of each torch
PACKAGES = (
    *("huggingface_hub", "numpy==1.26.*", "onnx>=1.21", "onnxruntime", "onnxscript", "pillow>=12.2.0", "pyyaml"),
    *("rich", "safetensors", "scikit-image", "scikit-learn", "scipy", "timm>=1.0.20", "torchmetrics"),
    *("expecttest", "hypothesis", "pytest"),
    *("cmake", "ninja", "pybind11", "setuptools>=78.1.1,<82", "wheel"),
)
# Steps of tests: on each release, and on the last.
EACH = {
    "models": ("tests/models", "tests/ops/test_compat.py"),
    "segment": ("tests/test_pipeline.py", "tests/commands/test_segment.py"),
    "export": ("tests/deploy/test_export_onnx.py", "tests/deploy/test_verify.py", "tests/edge/test_segmenter_nano.py"),
}
LAST = {"edge": ("tests/edge", "--ignore=tests/edge/test_segmenter_nano.py")}
# They need open_clip, pycocotools or TensorRT-RTX, which a board has not.
LEFT_OUT = (
    *("--ignore=tests/models/test_official.py", "--ignore=tests/edge/test_segmenter.py"),
    "--deselect=tests/models/test_text.py::test_clip_offline_says_what_to_do",
    "--deselect=tests/commands/test_segment.py::test_files_of_labeling_tools_are_written_with_the_pictures",
)
VERSIONS = """
import importlib.metadata as m, json, platform
names = ("torch", "torchvision", "timm", "numpy", "onnx", "onnxscript", "onnxruntime")
print(json.dumps({"python": platform.python_version(), **{name: m.version(name) for name in names}}))
"""
IMPORT_ALL = """
import importlib, sys
from pathlib import Path
root, failed, count = Path(sys.argv[1]), [], 0
for folder, package in (("ovsdino", "ovsdino"), ("kernels/triton", "ovsdino.kernels"), ("deploy", "ovsdino.deploy"),
                        ("benchmarks", "ovsdino.benchmarks")):
    for path in sorted((root / folder).rglob("*.py")):
        name = ".".join((package, *path.relative_to(root / folder).with_suffix("").parts)).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        if name in ("ovsdino.serve.endpoint", "ovsdino.serve.page"):  # of the extras serve and demo
            continue
        count += 1
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
print(*failed, f"{count - len(failed)} of {count}", sep="\\n")
sys.exit(bool(failed))
"""


class Record:
    """Results of each step of each release, kept in a file so that a later run can go on.

    Args:
        path: The file.
        resume: Read it; otherwise begin anew.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self.runs: dict[str, dict[str, Any]] = {}
        if resume and path.is_file():
            self.runs = json.loads(path.read_text(encoding="utf-8"))

    def green(self, torch: str, step: str) -> bool:
        """Tell whether a step of a release has passed."""
        return bool(self.runs.get(torch, {}).get(step, {}).get("green"))

    def add(self, torch: str, step: str, found: dict[str, Any]) -> None:
        """Take what a step gave, with `green` in it."""
        print(f"torch {torch}, {step}: {json.dumps(found)}", flush=True)
        self.runs.setdefault(torch, {})[step] = found
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps(self.runs, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self._path)

    def report(self) -> dict[str, Any]:
        """Return the steps, ready for JSON, with the tests of each release summed up."""
        for steps in self.runs.values():
            counted = [step for step in steps.values() if "passed" in step]
            steps["tests"] = {key: sum(step[key] for step in counted) for key in ("passed", "skipped", "failed")}
        return {"left_out": list(LEFT_OUT), "torch": self.runs}


def output(*command: str | Path, cwd: Path = ROOT) -> tuple[int, str]:
    """Run a command and return its exit code and what it printed; its errors are shown."""
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> int:
    """Run a command, shown first, and return its exit code."""
    print("+", *command, flush=True)
    return subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **env}, check=False).returncode


def prepare(python: str, torch: str, folder: Path) -> Path:
    """Make an environment with one torch and this checkout, and return its interpreter."""
    inner = folder / "bin" / "python"
    pip = (inner, "-m", "pip", "install", "--quiet")
    vision = VISION.get(torch)
    steps: tuple[tuple[str | Path, ...], ...] = (
        (python, "-m", "venv", folder),
        (*pip, "--upgrade", "pip"),
        (*pip, f"torch=={torch}", f"torchvision=={vision}" if vision else "torchvision", *PACKAGES),
        (*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT),
    )
    for step in steps:
        if run(*step, OVSDINO_CUDA="0"):
            raise SystemExit(f"error: torch {torch}: the environment could not be made")
    return inner


def installs(python: Path) -> dict[str, Any]:
    """Return which packages pip would install with this checkout, alone and with torch's extra: it alone is right."""
    changed = {}
    for extra in ("", "[torch]"):
        command = ("install", "--dry-run", "--report", "-", "--quiet", "-e", f"{ROOT}{extra}")
        code, text = output(python, "-m", "pip", *command)
        changed[f"-e .{extra}"] = [] if code else [entry["metadata"]["name"] for entry in json.loads(text)["install"]]
    return {"changed": changed, "green": all(names == ["ovsdino"] for names in changed.values())}


def imports(python: Path, folder: Path) -> dict[str, Any]:
    """Return how many modules of the checkout can be imported."""
    code, text = output(python, "-c", IMPORT_ALL, ROOT, cwd=folder)
    *failed, imported = text.splitlines() or [""]
    return {"imported": imported, "failures": failed, "green": code == 0}


def tests(python: Path, folder: Path, paths: tuple[str, ...]) -> dict[str, Any]:
    """Run some tests and return how many passed, were skipped and failed."""
    table, started = folder / "tests.xml", time.monotonic()
    table.unlink(missing_ok=True)
    code = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={table}", *LEFT_OUT, *paths)
    counts = dict.fromkeys(("tests", "skipped", "failures", "errors"), 0)
    if table.is_file():
        for suite in ElementTree.parse(table).getroot().iter("testsuite"):
            counts = {key: value + int(suite.get(key, 0)) for key, value in counts.items()}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    seconds = round(time.monotonic() - started)
    return {"passed": passed, "skipped": counts["skipped"], "failed": failed, "seconds": seconds, "green": code == 0}


def torch_free(python: Path, without: str, folder: Path) -> dict[str, Any]:
    """Return what an install without torch gives, held against the release in `python`; see `scripts/torch_free.py`."""
    report, work = folder / "torch-free.json", folder / "torch-free"
    script = ROOT / "scripts" / "torch_free.py"
    code = run(python, script, "--python", without, "--folder", work, "--json", report)
    found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    return {**{key: found[key] for key in ("pixels", "differing") if key in found}, "green": code == 0}


def steps_of(python: Path, without: str, folder: Path, last: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the steps of a release by name.

    Args:
        python: Interpreter that has it.
        without: Interpreter of an environment without torch.
        folder: For what the steps write.
        last: It is the last release.
    """
    groups = {**EACH, **(LAST if last else {})}
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": lambda: {**json.loads(output(python, "-c", VERSIONS)[1]), "green": True},
        "imports": partial(imports, python, folder),
        "installs": partial(installs, python),
        **{name: partial(tests, python, folder, paths) for name, paths in groups.items()},
    }
    return {**steps, "torch_free": partial(torch_free, python, without, folder)} if last else steps


def main() -> int:
    """Make the environments one after the other and run the steps in each."""
    parser = argparse.ArgumentParser(description="run chosen tests on old releases of torch, numpy and Python")
    parser.add_argument("--python", default="python3.10", help="interpreter of the environments")
    parser.add_argument("--torch", nargs="+", default=["2.5.1", "2.8.0"], help="releases of torch")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "matrix", help="folder of the environments")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and take those that are there")
    parser.add_argument("--resume", action="store_true", help="leave out the steps that were green before")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / "matrix.json", arguments.resume)
    for torch in arguments.torch:
        last = torch == arguments.torch[-1]
        inside = folder / f"torch-{torch}"
        python = inside / "bin" / "python"
        steps = steps_of(python, arguments.python, inside, last)
        missing = [name for name in steps if not record.green(torch, name)]
        try:
            if missing and not (arguments.keep and python.exists()):
                prepare(arguments.python, torch, inside)
            for name in missing:
                record.add(torch, name, steps[name]())
        finally:
            if not arguments.keep:
                shutil.rmtree(inside, ignore_errors=True)
    failed = [f"{t} {step}" for t, steps in record.runs.items() for step, found in steps.items() if not found["green"]]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record.report(), indent=1) + "\n", encoding="utf-8")
    print(f"failed: torch {', '.join(failed)}" if failed else f"green: torch {', '.join(arguments.torch)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
