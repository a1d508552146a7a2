"""Run chosen tests on the oldest releases that are supported: Python 3.10, numpy 1.26, and torch 2.5 and 2.8.

    python scripts/test_matrix.py --python python3.10 --folder outputs/matrix --torch 2.5.1 2.8.0

Each release gets an environment of its own below the folder, which is removed afterwards unless --keep. An environment
takes some 6 GB where the index has torch with CUDA only. The last release is also what an install without torch is held
against (`scripts/torch_free.py`). `make test-matrix` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VISION = {"2.5.1": "0.20.1", "2.6.0": "0.21.0", "2.7.1": "0.22.1", "2.8.0": "0.23.0"}  # torchvision of each torch
PACKAGES = (
    *("huggingface_hub", "numpy==1.26.*", "onnx>=1.21", "onnxruntime", "onnxscript", "pillow>=12.2.0", "pyyaml"),
    *("rich", "safetensors", "scikit-image", "scikit-learn", "scipy", "timm>=1.0.20", "torchmetrics"),
    *("expecttest", "hypothesis", "pytest"),
    *("cmake", "ninja", "pybind11", "setuptools>=78.1.1,<82", "wheel"),
)
TESTS = (
    *("tests/models", "tests/edge", "tests/ops/test_compat.py"),
    *("tests/test_pipeline.py", "tests/commands/test_segment.py"),
    *("tests/deploy/test_export_onnx.py", "tests/deploy/test_verify.py"),
)
# They need open_clip, pycocotools or TensorRT-RTX, which a board has not.
LEFT_OUT = (
    *("--ignore=tests/models/test_official.py", "--ignore=tests/edge/test_segmenter.py"),
    "--deselect=tests/models/test_text.py::test_clip_offline_says_what_to_do",
    "--deselect=tests/commands/test_segment.py::test_files_of_labeling_tools_are_written_with_the_pictures",
)
# torch 2.5 cannot export a batch norm ("'tuple' object has no attribute 'dtype'"), and these export nano.
CANNOT = {"2.5.1": ("--ignore=tests/edge/test_segmenter_nano.py",)}
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
        count += 1
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
print(f"imported {count - len(failed)} of {count} modules", *failed, sep="\\n")
sys.exit(bool(failed))
"""


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


def leaves_alone(python: Path) -> bool:
    """Tell whether pip would install this checkout, alone and with torch's extra, and change no other package."""
    for extra in ("", "[torch]"):
        command = (python, "-m", "pip", "install", "--dry-run", "--report", "-", "--quiet", "-e", f"{ROOT}{extra}")
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr)
            return False
        changed = [entry["metadata"]["name"] for entry in json.loads(done.stdout)["install"]]
        print(f"pip install -e .{extra} would change: {', '.join(changed)}", flush=True)
        if changed != ["ovsdino"]:
            return False
    return True


def main() -> int:
    """Make the environments one after the other and run the tests in each."""
    parser = argparse.ArgumentParser(description="run chosen tests on old releases of torch, numpy and Python")
    parser.add_argument("--python", default="python3.10", help="interpreter of the environments")
    parser.add_argument("--torch", nargs="+", default=["2.5.1", "2.8.0"], help="releases of torch")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "matrix", help="folder of the environments")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and take those that are there")
    arguments = parser.parse_args()
    failed = []
    for torch in arguments.torch:
        folder = arguments.folder.absolute() / f"torch-{torch}"
        python = folder / "bin" / "python"
        try:
            if not (arguments.keep and python.exists()):
                python = prepare(arguments.python, torch, folder)
            imported = run(python, "-c", IMPORT_ALL, ROOT, cwd=folder)
            tested = run(
                python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LEFT_OUT, *CANNOT.get(torch, ()), *TESTS
            )
            if imported or tested or not leaves_alone(python):
                failed.append(torch)
            if torch == arguments.torch[-1]:
                free = arguments.folder.absolute() / "torch-free"
                alone = (python, ROOT / "scripts" / "torch_free.py", "--python", arguments.python, "--folder", free)
                if run(*alone):
                    failed.append("none")
        finally:
            if not arguments.keep:
                shutil.rmtree(folder, ignore_errors=True)
    print(f"failed: torch {', '.join(failed)}" if failed else f"green: torch {', '.join(arguments.torch)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
