"""Calibrated scores travel in the metadata of a weight file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from ovsdino.errors import OVSDinoError
from ovsdino.hub import save_pretrained
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.calibration import read_backgrounds, write_background
from ovsdino.models.weights import read_safetensors
from ovsdino.models.zoo import build_model, create_model

STATE = {"decoder.a": torch.arange(6.0).half().view(2, 3), "log_scale": torch.tensor(2.5)}


def test_scores_are_kept_by_data_set_and_the_weights_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(seal_safetensors(save(STATE)))
    assert read_backgrounds(path) == {}
    write_background(path, "voc21", 0.61)
    write_background(path, "context60", 0.58)
    write_background(path, "voc21", 0.6125)
    assert read_backgrounds(path) == {"voc21": 0.6125, "context60": 0.58}
    found = read_safetensors(path)  # checks the hash
    assert found.keys() == STATE.keys() and all(torch.equal(found[k], v) for k, v in STATE.items())
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(OVSDinoError, match="damaged"):
        read_safetensors(path)


@pytest.mark.parametrize("entry", ['{"voc21": "high"}', "[0.5]", "{", '{"voc21": NaN}'])
def test_a_damaged_entry_is_an_error(tmp_path: Path, entry: str) -> None:
    save_file(STATE, tmp_path / "a.safetensors", {"backgrounds": entry})
    with pytest.raises(OVSDinoError, match=r"a\.safetensors: not a readable safetensors file"):
        read_backgrounds(tmp_path / "a.safetensors")


def test_no_score_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="background is nan: expected a number"):
        write_background(tmp_path / "a.safetensors", "voc21", float("nan"))


def test_a_shared_model_brings_its_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(build_model("nano").state_dict(), tmp_path / "nano.safetensors")
    write_background(tmp_path / "nano.safetensors", "voc21", 0.62)
    model = create_model("nano", checkpoint=tmp_path / "nano.safetensors")
    assert model.backgrounds == {"voc21": 0.62} and create_model("nano").backgrounds == {}
    save_pretrained(model, tmp_path / "shared")
    assert create_model(tmp_path / "shared").backgrounds == {"voc21": 0.62}
    with safe_open(tmp_path / "shared/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["backgrounds"]) == {"voc21": 0.62}
    assert load_file(tmp_path / "shared/model.safetensors").keys() == model.state_dict().keys()
