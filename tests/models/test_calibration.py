"""Calibrated scores travel in the metadata of a weight file."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from ovsdino.errors import OVSDinoError
from ovsdino.hub import save_pretrained
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.calibration import read_measured, write_measured
from ovsdino.models.novelty import Gaussian
from ovsdino.models.weights import read_safetensors
from ovsdino.models.zoo import build_model, create_model

STATE = {"decoder.a": torch.arange(6.0).half().view(2, 3), "log_scale": torch.tensor(2.5)}


def test_scores_are_kept_by_data_set_and_the_weights_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(seal_safetensors(save(STATE)))
    assert read_measured(path).backgrounds == {}
    write_measured(path, "voc21", background=0.61)
    write_measured(path, "context60", background=0.58)
    write_measured(path, "voc21", background=0.6125)
    assert read_measured(path).backgrounds == {"voc21": 0.6125, "context60": 0.58}
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
        read_measured(tmp_path / "a.safetensors")


def test_no_score_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="background is nan: expected a number"):
        write_measured(tmp_path / "a.safetensors", "voc21", background=float("nan"))


def test_a_shared_model_brings_its_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(build_model("nano").state_dict(), tmp_path / "nano.safetensors")
    write_measured(tmp_path / "nano.safetensors", "voc21", background=0.62)
    model = create_model("nano", checkpoint=tmp_path / "nano.safetensors")
    assert model.backgrounds == {"voc21": 0.62} and create_model("nano").backgrounds == {}
    save_pretrained(model, tmp_path / "shared")
    assert create_model(tmp_path / "shared").backgrounds == {"voc21": 0.62}
    with safe_open(tmp_path / "shared/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["backgrounds"]) == {"voc21": 0.62}
    assert load_file(tmp_path / "shared/model.safetensors").keys() == model.state_dict().keys()


def test_a_temperature_goes_into_the_scale_of_the_logits(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_file({**STATE, "log_scale": torch.tensor(2.5).half()}, path)
    write_measured(path, "camvid", temperature=2.0)
    found = read_safetensors(path)
    assert found["log_scale"].dtype == torch.float32
    assert found["log_scale"].item() == pytest.approx(2.5 - math.log(2), abs=1e-6)
    with pytest.raises(OVSDinoError, match="temperature is 0"):
        write_measured(path, "camvid", temperature=0.0)
    save_file({"decoder.a": STATE["decoder.a"]}, path)
    with pytest.raises(OVSDinoError, match="it has no log_scale"):
        write_measured(path, "camvid", temperature=2.0)


def test_known_images_are_kept_by_data_set(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_file(STATE, path)
    known = Gaussian.fit(np.random.default_rng(0).normal(size=(40, 8)))
    write_measured(path, "camvid", known=known)
    write_measured(path, "voc21", background=0.6)
    found = read_measured(path).known["camvid"]
    points = np.random.default_rng(1).normal(size=(5, 8))
    np.testing.assert_allclose(found.distance(points), known.distance(points), rtol=1e-5)
    assert found.limit == known.limit


@pytest.mark.parametrize("changes", [{"rest": 0.0}, {"limit": -1.0}, {"mean": "?"}, {"variance": None}, {"rest": "x"}])
def test_damaged_images_are_an_error(tmp_path: Path, changes: dict[str, object]) -> None:
    entry = {**Gaussian.fit(np.random.default_rng(0).normal(size=(40, 8))).to_dict(), **changes}
    save_file(STATE, tmp_path / "a.safetensors", {"novelty": json.dumps({"camvid": entry})})
    with pytest.raises(OVSDinoError, match=r"a\.safetensors: not a readable safetensors file"):
        read_measured(tmp_path / "a.safetensors")
