"""`ovsdino train --init`: a folder of one's own, laid out, checked and trained on from the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ovsdino.cli import main
from ovsdino.train.start import read_config
from ovsdino.train.template import config_path, shipped_configs


def fill(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            labels = (np.arange(64)[None] > 20 + 10 * (name == "b")) * np.ones((48, 1), np.uint8)
            pixels = np.where(labels[..., None] > 0, (200, 40, 40), (40, 40, 200)) + rng.integers(-9, 9, (48, 64, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / "images" / f"{name}.png")
            Image.fromarray(labels.astype(np.uint8)).save(folder / split / "labels" / f"{name}.png")


def test_a_folder_is_laid_out_and_trained_on_from_the_shipped_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    assert main(["train", "--init", str(folder), "--classes", "sky, red wall"]) == 0
    assert f"ovsdino train {folder}/config.yaml" in capsys.readouterr().out
    assert json.loads((folder / "classes.json").read_text()) == ["sky", "red wall"]
    fill(folder)
    assert main(["data", "check", "folder", "--root", str(folder)]) == 0
    capsys.readouterr()
    small = ["stages=[{height: 64, width: 64, batch: 1}]", "optim.warmup=1"]
    assert main(["train", str(folder / "config.yaml"), "--steps", "2", *small]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["step"] == 2 and last["output"] == str(folder / "run")
    trained = load_file(folder / "run" / "last.safetensors")
    assert trained and all(np.isfinite(value).all() for value in trained.values() if value.dtype.kind == "f")


def test_what_is_there_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--init", str(tmp_path)]) == 2
    assert "--classes 'road, car, sky'" in capsys.readouterr().err
    (tmp_path / "classes.json").write_text('["road"]')
    assert main(["train", "--init", str(tmp_path)]) == 0
    before = (tmp_path / "config.yaml").read_text()
    assert main(["train", "--init", str(tmp_path)]) == 2 and "it is there already" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_shipped_configuration_is_found_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"nano", "vit6"} <= set(shipped_configs())
    assert read_config(config_path("nano"))["model"] == "nano"
    assert main(["train", "nothing"]) == 2
    assert "nothing: no such file, and no shipped configuration: ablation, " in capsys.readouterr().err
    assert main(["train"]) == 2 and "see ovsdino train --help" in capsys.readouterr().err
