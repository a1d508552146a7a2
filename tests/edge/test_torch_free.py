"""The runtime where torch and the like cannot be imported, and where they are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny
from tests.support.blocking import BLOCK

ROOT = Path(__file__).resolve().parents[2]

ALLOW = """
import sys

class Allow:
    def find_spec(self, name, path=None, target=None):
        package = name.split(".")[0]
        if package not in sys.stdlib_module_names and package not in {"ovsdino", "numpy", "PIL", "safetensors"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Allow())
"""

SEGMENT = """
import sys
import numpy as np
from ovsdino.edge import EdgeSegmenter
from ovsdino.native import native

segmenter = EdgeSegmenter(sys.argv[1], sys.argv[2], threads=1)
result = segmenter.segment(np.load(sys.argv[3]))
np.save(sys.argv[4], result.labels)
print("native" if native else "numpy", *sorted({"torch", "timm", "open_clip", "torchvision"} & set(sys.modules)))
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A graph, a bank, an image, and where the labels go."""
    tiny.graph(tmp_path / "tiny.onnx")
    tiny.bank("road", "car", "sky").save(tmp_path / "bank.safetensors")
    np.save(tmp_path / "image.npy", np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    return [str(tmp_path / name) for name in ("tiny.onnx", "bank.safetensors", "image.npy", "labels.npy")]


def run(python: str, code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [python, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def labels_here(files: list[str]) -> np.ndarray:
    from ovsdino.edge import EdgeSegmenter

    return EdgeSegmenter(files[0], files[1], threads=1).segment(np.load(files[2])).labels


@pytest.mark.parametrize(
    "path",
    [path for folder in ("edge", "stream") for path in sorted((ROOT / "ovsdino" / folder).rglob("*.py"))],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_file_is_imported_with_numpy_pillow_and_safetensors_alone(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    loaded = f"import {module}\nprint(*sorted({{'torch', 'timm', 'scipy', 'rich'}} & set(sys.modules)))"
    assert run(sys.executable, ALLOW + loaded, PYTHONPATH=str(ROOT)) == ""


def test_the_names_that_scripts_import_are_the_same_class() -> None:
    code = """
from ovsdino.deploy.trt_runtime import EdgeSegmenter as Runtime
from ovsdino.edge import EdgeSegmenter, TextBank
from ovsdino.results import Segmentation
import numpy as np
print(Runtime is EdgeSegmenter, Segmentation(labels=np.zeros((2, 2), np.uint8), names=("road",)).fractions)
"""
    assert run(sys.executable, ALLOW + code, PYTHONPATH=str(ROOT)) == "True (1.0,)"


def test_runs_where_torch_cannot_be_imported(files: list[str]) -> None:
    block = BLOCK.format(blocked={"torch", "timm", "open_clip", "torchvision", "scipy", "rich"})
    out = run(sys.executable, block + SEGMENT, *files, PYTHONPATH=str(ROOT))
    assert out in ("native", "numpy")
    assert np.array_equal(np.load(files[3]), labels_here(files))


def test_an_engine_is_compared_with_its_graph_without_torch(files: list[str]) -> None:
    code = """
import sys
import numpy as np
from ovsdino.deploy.export.compare import compare_engine
from ovsdino.deploy.export.inputs import Images, bank_rows
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export_trt import ExportTrt
graph, images = Exported.read(sys.argv[1]), Images((np.load(sys.argv[3]),), (), "one image")
found = compare_engine(graph, graph, images, bank_rows(graph.sidecar, sys.argv[2]))
print(round(found.cosine, 6), found.label_agreement, found.source, *sorted({"torch", "timm"} & set(sys.modules)))
"""
    block = BLOCK.format(blocked={"torch", "timm", "open_clip", "torchvision", "scipy"})
    assert run(sys.executable, block + code, *files, PYTHONPATH=str(ROOT)) == "1.0 1.0 one image"


def test_without_native_code_the_labels_are_the_same(files: list[str]) -> None:
    block = BLOCK.format(blocked={"torch", "timm", "open_clip", "ovsdino._C"})
    assert run(sys.executable, block + SEGMENT, *files, PYTHONPATH=str(ROOT)) == "numpy"
    assert (np.load(files[3]) == labels_here(files)).mean() > 0.999


def test_runs_in_an_environment_of_four_packages(files: list[str], tmp_path: Path) -> None:
    """A fresh environment that holds numpy, Pillow, safetensors and onnxruntime alone."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    site = next((home / "lib").glob("python*/site-packages"))
    for package in ("numpy", "PIL", "safetensors", "onnxruntime"):
        origin = Path(str(__import__(package).__file__)).parent
        for part in (package, f"{package}.libs", "pillow.libs" if package == "PIL" else ""):
            if part and (origin.parent / part).exists():
                (site / part).symlink_to(origin.parent / part)
    (site / "ovsdino").mkdir()
    for entry in (*(ROOT / "ovsdino").iterdir(), ROOT / "deploy"):
        (site / "ovsdino" / entry.name).symlink_to(entry)
    python = str(home / "bin" / "python")
    environment = {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}
    missing = (
        "import importlib.util as u; print(*[n for n in ('torch', 'timm', 'open_clip', 'scipy') if u.find_spec(n)])"
    )
    assert run(python, missing, **environment) == ""
    assert run(python, SEGMENT, *files, **environment) in ("native", "numpy")
    assert np.array_equal(np.load(files[3]), labels_here(files))
