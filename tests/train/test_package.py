"""Trained weights are put into the package with their entry in the manifest."""

import hashlib
import json
import re

import pytest
from safetensors.torch import save_file

from ovsdino.models import shipped, weights
from ovsdino.models.calibration import read_measured
from ovsdino.models.zoo import build_model
from ovsdino.train.package import main


@pytest.fixture
def nano_bytes():
    """The bytes of nano's weights."""
    return (shipped.WEIGHTS / "nano.safetensors").read_bytes()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's manifest, in a folder of its own."""
    (tmp_path / "manifest.json").write_bytes(shipped.MANIFEST.read_bytes())
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    monkeypatch.setattr(shipped, "MANIFEST", tmp_path / "manifest.json")
    return tmp_path


def test_the_file_is_copied_and_its_entry_replaced(package, capsys):
    save_file({k: v.half() for k, v in build_model("nano").state_dict().items()}, package / "last.safetensors")
    assert main([str(package / "last.safetensors"), "--name", "nano"]) == 0
    data = (package / "nano.safetensors").read_bytes()
    assert data == (package / "last.safetensors").read_bytes()
    entry = json.loads((package / "manifest.json").read_text())["nano"]
    assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
    size, parameters = len(data) / 1e6, entry["parameters"] / 1e6
    assert capsys.readouterr().out == f"nano.safetensors: {size:.2f} MB, {parameters:.2f} M parameters\n"


def test_a_copy_is_calibrated_on_training_images(nano_bytes, package, capsys, data_root):
    run = package / "last.safetensors"
    run.write_bytes(nano_bytes)
    before = run.read_bytes()
    assert main([str(run), "--calibrate", "camvid", "voc21", "--root", str(data_root), "--limit", "4"]) == 0
    assert run.read_bytes() == before
    written = package / "nano.safetensors"
    temperature = float(re.search(r"^temperature (\S+);", capsys.readouterr().out)[1])
    old, new = (weights.read_safetensors(path)["log_scale"].double().exp().item() for path in (run, written))
    assert old / new == pytest.approx(temperature, abs=1e-3)
    assert set(read_measured(written).known) == {"camvid+voc21"}


def test_weights_of_another_model_are_refused_and_nothing_is_written(package, capsys):
    save_file(build_model("nano").text_tower.state_dict(), package / "text.safetensors")
    before = (package / "manifest.json").read_bytes()
    assert main([str(package / "text.safetensors")]) == 2
    assert "text.safetensors" in capsys.readouterr().err
    assert (package / "manifest.json").read_bytes() == before and not (package / "nano.safetensors").exists()
