"""The programs of examples/ and the notebook, run as a reader runs them: no arguments, an empty folder."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ovsdino.models.adapted import AdaptedWords

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SLOW = {"own_classes", "without_torch"}  # a training in small, and an export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("sklearn", reason="the photographs come with scikit-learn")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return out.getvalue()


def test_every_program_is_short_and_tested() -> None:
    programs = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(programs) == 6 and max(programs.values()) < 40
    tests = Path(__file__).read_text()
    page = (EXAMPLES / "README.md").read_text()
    assert all(f'run("{name}"' in tests or name in SLOW for name in programs)
    assert all(f"({name}.py)" in page for name in programs)


def test_a_photograph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("photograph", monkeypatch)
    assert "sky: " in out and "temple: " in out and "not found: person" in out
    assert Image.open(folder / "china_overlay.png").width == 640
    assert Image.open(folder / "china_labels.png").size == (640, 427)


def test_a_video(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("video", monkeypatch)
    assert out.count("frame ") == 5 and all("sky" in line for line in out.splitlines())
    assert len(list(folder.glob("frame_*.jpg"))) == 5


def test_several_vocabularies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("several_vocabularies", monkeypatch)
    assert "encoded once" in out and "made by people" in out
    assert len(list(folder.glob("vocabulary_*_overlay.png"))) == 3


def test_a_batch_to_coco(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    run("batch_to_coco", monkeypatch)
    data = coco.COCO(folder / "annotations.json")
    assert {image["file_name"] for image in data.imgs.values()} == {"china.jpg", "flower.jpg"}
    sky = data.loadAnns(data.getAnnIds(imgIds=[1], catIds=data.getCatIds(catNms=["sky"])))
    assert 0.3 < sum(one["area"] for one in sky) / (640 * 427) < 0.5
    assert all(one["area"] == data.annToMask(one).sum() for one in data.anns.values())


@pytest.mark.slow
def test_own_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("own_classes", monkeypatch)
    assert AdaptedWords.load(folder / "adapted.safetensors").words == ("dahlia",)
    before, after = (float(part) for part in out.split("held out ")[1].split("\n")[0].split(" -> "))
    assert after > 0.8 > before


@pytest.mark.slow
def test_without_torch(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = subprocess.run([sys.executable, EXAMPLES / "without_torch.py"], capture_output=True, text=True, check=True)
    assert "torch was imported: False" in done.stdout and "sky " in done.stdout
    assert (folder / "without_torch_overlay.png").is_file()


def display(value: Any) -> str | None:
    """The kind of output that a notebook keeps of a cell's last value."""
    if value is None:
        return None
    return "image/png" if getattr(value, "_repr_png_", lambda: None)() else "text/plain"


def test_the_notebook_shows_what_its_cells_give(folder: Path) -> None:
    book = json.loads((EXAMPLES / "tour.ipynb").read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    names: dict[str, Any] = {}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(tree, "tour.ipynb", "exec"), names)
            value = None if last is None else eval(compile(ast.Expression(last.value), "tour.ipynb", "eval"), names)  # type: ignore[attr-defined]
        kept = {kind for output in cell["outputs"] for kind in output.get("data", {"stream": 0})}
        assert ("stream" in kept) == bool(out.getvalue())
        shown = display(value)
        assert (shown in kept) if shown else kept <= {"stream"}
