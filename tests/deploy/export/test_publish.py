"""Exports appear whole: file and sidecar as one, whatever interrupts, and one export at a time in a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ovsdino.deploy.export.publish import publish
from ovsdino.deploy.quantize import Quantize
from ovsdino.edge.sidecar import Sidecar, pending_path, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import lock_folder
from ovsdino.parsing import run_script
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[3]

FIGURES = {"cosine": 1.0, "label_agreement": 1.0, "images": 1}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.graph(tmp_path / "tiny.onnx")


def test_file_and_sidecar_get_their_names_together(tmp_path: Path) -> None:
    path, model = tmp_path / "deep" / "new.onnx", tiny.graph(tmp_path / "tiny.onnx")
    written = publish(path, tiny.another(model).proven(FIGURES))
    assert sorted(path.parent.iterdir()) == [path, sidecar_path(path)]
    sidecar = Sidecar.load(path)
    assert sidecar == written and sidecar.read(path) == b"another graph"
    assert sidecar.file == "new.onnx" and sidecar.bytes == 13
    assert sidecar.verified is not None and sidecar.verified["cosine"] == 1.0


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_an_interrupted_export_leaves_a_pair_that_fits(
    model: Path, rename: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, exported = {path.name: path.read_bytes() for path in model.parent.iterdir()}, tiny.another(model)
    done: list[Path] = []
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        done.append(target)
        if len(done) == rename:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(model, exported)
    if rename < 3:
        assert {path.name: path.read_bytes() for path in model.parent.iterdir()} == before
    else:
        assert Sidecar.load(model).read(model) == exported.data


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "taken.onnx"
    folder.mkdir()
    model = tiny.graph(tmp_path / "tiny.onnx")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OVSDinoError, match="cannot write: is a folder"):
        publish(folder, tiny.another(model))
    assert sorted(tmp_path.iterdir()) == before and not list(folder.iterdir())


def test_a_file_is_hashed_once_and_its_sidecar_written_once(
    model: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tiny.another(model)
    assert hashed.count(13) == 1
    renamed: list[str] = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        renamed.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    publish(model, exported.proven(FIGURES))
    assert hashed.count(13) == 1
    assert renamed == [".tiny.onnx.json.pending", "tiny.onnx", "tiny.onnx.json"]


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_kill_at_any_of_the_renames_leaves_a_pair_that_fits(model: Path, rename: int) -> None:
    """The renames are the waiting sidecar's own, the file's, the sidecar's; the old pair is whole until the second."""
    old = model.read_bytes()
    code = f"""
import os, signal
from pathlib import Path
from ovsdino.deploy.export.publish import publish
from tests.support import tiny
real, done, path = os.replace, [], Path({str(model)!r})
exported = tiny.another(path)
def replace(*names):
    done.append(names)
    if len(done) == {rename}: os.kill(os.getpid(), signal.SIGKILL)
    real(*names)
os.replace = replace
publish(path, exported)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert Sidecar.load(model).read(model) == (old if rename < 3 else b"another graph")
    publish(model, tiny.another(model))  # and the next export is not in its way
    assert Sidecar.load(model).read(model) == b"another graph"
    assert not pending_path(model).exists()


def test_a_waiting_sidecar_of_another_file_is_not_taken(model: Path) -> None:
    before = Sidecar.load(model)
    for text in ("{", "[]", '{"sha256": 5}', sidecar_path(model).read_text().replace(before.sha256, "0" * 64)):
        pending_path(model).write_text(text)
        assert Sidecar.load(model) == before


def test_a_second_export_in_the_folder_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--input", str(model), "--calibration", str(model.parent)]
    with lock_folder(model.parent, "export"):
        assert run_script(Quantize, "quantize.py", arguments) == 2
    err = capsys.readouterr().err
    assert "another export is writing to this folder" in err and err.count("\n") == 1


def test_an_export_does_not_replace_its_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model.read_bytes()
    arguments = ["--input", str(model), "--calibration", str(model.parent), "--output", str(model)]
    assert run_script(Quantize, "quantize.py", arguments) == 2
    assert "would replace an input" in capsys.readouterr().err and model.read_bytes() == before


def test_an_interrupt_during_the_imports_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "deploy/quantize.py", "--input", str(tmp_path / "no.onnx")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "numpy" in line:  # torch and ONNX come after it
                process.send_signal(signal.SIGINT)
                break
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == 130 and rest == ["error: interrupted\n"]
