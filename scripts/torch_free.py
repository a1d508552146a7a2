"""Install the runtime alone, without torch, and hold what it does against the pipeline in torch.

    python scripts/torch_free.py --python python3.10 --data data --json benchmarks/results/torch_free.json

An interpreter that has torch runs this script: it exports nano and labels the pictures. Then `pip install` of this
checkout, without an extra, makes an environment of the other interpreter. There `doctor`, `text`, `models`, `stream`
and `export_trt.py --help` run as a user types them, and the labels that `stream` wrote are counted against those of
torch. No compiler is used either, unless --native. The environment is removed afterwards unless --keep. The last
release of `make test-matrix` runs it too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WORDS = "sky,building,pole,road,sidewalk,tree,sign,fence,car,pedestrian,bicyclist"
LEAST_AGREEMENT = 0.9999
VERSIONS = """
import importlib.metadata as m, importlib.util as u, json, platform
from ovsdino.native import native
print(json.dumps({
    "python": platform.python_version(), "native": native is not None,
    "torch": u.find_spec("torch") is not None, "timm": u.find_spec("timm") is not None,
    "packages": {name: m.version(name) for name in ("numpy", "onnxruntime", "pillow", "safetensors")},
}))
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """Run a command, shown first, and return what it printed; end the script where it fails."""
    print("+", *command, flush=True)
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: exit code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def pictures(folder: Path, data: Path | None, every: int) -> str:
    """Write the pictures to label as PNG files, in order, and say which they are."""
    folder.mkdir(parents=True)
    if data is None:
        from sklearn.datasets import load_sample_images

        # 4:3, as the graph is: it squeezes other images, where the pipeline in torch keeps their ratio.
        images = [np.asarray(one)[:360, :480] for one in load_sample_images().images]
        source = "parts of the pictures of scikit-learn"
    else:
        from ovsdino.data.datasets import open_dataset

        dataset = open_dataset("camvid", data)
        images = [dataset.read(index)[0] for index in range(0, len(dataset), every)]
        source = f"CamVid val, every {every}th"
    for number, image in enumerate(images, 1):
        Image.fromarray(image).save(folder / f"{number:08d}.png")
    return source


def labels_of_torch(folder: Path) -> dict[str, np.ndarray]:
    """Return nano's labels in torch, float32 on the CPU, by file name."""
    import ovsdino

    segmenter = ovsdino.load("nano", device="cpu", dtype="float32")
    return {path.name: segmenter.segment(path, WORDS.split(",")).labels for path in sorted(folder.iterdir())}


def prepare(python: str, numpy: str, work: Path, native: bool) -> Path:
    """Make an environment with this checkout and what it asks for, and return its interpreter."""
    source, folder = work / "source", work / "environment"
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "outputs", "runs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)  # pip would build in the checkout itself
    run(python, "-m", "venv", folder)
    inner = folder / "bin" / "python"
    compiler = {} if native else {"CXX": str(work / "no-compiler")}
    run(inner, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    run(inner, "-m", "pip", "install", "--quiet", source, f"numpy=={numpy}", OVSDINO_CUDA="0", **compiler)
    return inner


def commands(python: Path, work: Path, images: Path) -> list[str]:
    """Run what a board's user types, and return the commands; the labels lie in `work/labels`."""
    ovsdino = python.parent / "ovsdino"
    bank, labels = work / "bank.safetensors", work / "labels"
    lines: tuple[tuple[str | Path, ...], ...] = (
        (ovsdino, "doctor", "--json"),
        (ovsdino, "models"),
        (ovsdino, "text", "--classes", WORDS, "--output", bank),
        (python, ROOT / "deploy" / "export_trt.py", "--help"),
        (
            ovsdino,
            "stream",
            images,
            "--engine",
            work / "nano.onnx",
            "--bank",
            bank,
            "--every-frame",
            "--labels",
            labels,
        ),
    )
    for line in lines:
        run(*line, cwd=work)
    return [" ".join(Path(part).name if isinstance(part, Path) else part for part in line) for line in lines]


def compare(expected: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    """Count the pixels whose labels are the same."""
    shares, differing, pixels = [], 0, 0
    for name, labels in expected.items():
        with Image.open(folder / name) as picture:
            found = np.asarray(picture)
        differing += int((found != labels).sum())
        pixels += labels.size
        shares.append(float((found == labels).mean()))
    agreement = 1 - differing / pixels
    return {"pixels": pixels, "differing": differing, "agreement": agreement, "least_of_an_image": min(shares)}


def measure(
    python: str, numpy: str, work: Path, *, data: Path | None = None, every: int = 10, native: bool = False
) -> dict[str, Any]:
    """Return the report, ready for JSON.

    Args:
        python: Interpreter of the environment without torch.
        numpy: Its release of numpy, as pip takes it.
        work: Folder for all that is written; it is made anew.
        data: Folder with CamVid, see `open_dataset`; None: pictures of scikit-learn.
        every: Which images of CamVid val.
        native: Compile the CPU kernels; otherwise NumPy does their work.
    """
    import torch

    shutil.rmtree(work, ignore_errors=True)
    images = work / "images"
    source = pictures(images, data, every)
    run(sys.executable, ROOT / "deploy" / "export_onnx.py", "--model", "nano", "--output", work / "nano.onnx")
    expected = labels_of_torch(images)
    inner = prepare(python, numpy, work, native)
    facts = json.loads(run(inner, "-c", VERSIONS, cwd=work))
    ran = commands(inner, work, images)
    return {
        "images": source,
        "count": len(expected),
        "reference": {"torch": torch.__version__, "python": platform.python_version(), "dtype": "float32"},
        "environment": facts,
        "commands": ran,
        **compare(expected, work / "labels"),
    }


def main() -> int:
    """Make the report, print it, and return 1 where torch is there after all or labels differ."""
    parser = argparse.ArgumentParser(description="run the runtime where torch is not installed, against torch")
    parser.add_argument("--python", default="python3.10", help="interpreter of the environment without torch")
    parser.add_argument("--numpy", default="1.26.*", help="its release of numpy")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "torch-free", help="folder to work in")
    parser.add_argument("--data", type=Path, help="folder with CamVid; default: two pictures of scikit-learn")
    parser.add_argument("--every", type=int, default=10, help="which images of CamVid val")
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument("--native", action="store_true", help="compile the CPU kernels as well")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    arguments = parser.parse_args()
    work = arguments.folder.absolute()
    try:
        options = {"data": arguments.data, "every": arguments.every, "native": arguments.native}
        report = measure(arguments.python, arguments.numpy, work, **options)
    finally:
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.json is not None:
        part = arguments.json.with_name(f"{arguments.json.name}.part")  # the package may be absent here
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, arguments.json)
    absent = not (report["environment"]["torch"] or report["environment"]["timm"])
    return int(not absent or report["agreement"] < LEAST_AGREEMENT)


if __name__ == "__main__":
    sys.exit(main())
