"""The gate's map and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ovsdino.cli import main
from ovsdino.errors import OVSDinoError
from ovsdino.eval.gate import SHUT, draw_gate, gate_map
from ovsdino.models.zoo import build_model
from ovsdino.pipeline import Segmenter
from tests.support.small import small_model

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


def test_the_map_is_the_gate_of_every_token() -> None:
    model = small_model()
    assert model.decoder is not None and model.decoder.smd is not None
    torch.nn.init.zeros_(model.decoder.smd.gate.weight)
    torch.nn.init.constant_(model.decoder.smd.gate.bias, -1.5)
    found = gate_map(Segmenter(model, short_side=48), IMAGE)
    np.testing.assert_allclose(found, np.full((3, 5), 1 / (1 + np.exp(1.5))), rtol=1e-6)


def test_a_model_without_such_a_gate_is_named() -> None:
    for changes, said in (({"smd": {"gate": "none"}}, "a gate of kind 'none'"), ({"smd": None}, "it has no SMD")):
        with pytest.raises(OVSDinoError, match=f"small: .*{said}"):
            gate_map(Segmenter(small_model(**changes), short_side=48), IMAGE)


def test_the_picture_shows_image_and_map_from_the_least_to_the_largest() -> None:
    gate = np.array([[0.1, 0.2], [0.3, 0.6]], np.float32)
    picture = np.asarray(draw_gate(np.zeros((40, 60, 3), np.uint8), gate))
    left = (picture.shape[1] - 120) // 2
    assert (picture[:40, left : left + 60] == 0).all()
    right = picture[:40, left + 60 : left + 120].astype(float)
    np.testing.assert_allclose(right[10, 10], (0.55 * SHUT).round(), atol=1)
    assert right[30, 50].sum() > right[30, 10].sum() > right[10, 10].sum()


def test_the_command_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    options = ["probe", "--gate", str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--short-side", "64"]
    model = build_model("nano")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert main([*options, "--checkpoint", str(tmp_path / "w.safetensors"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["picture"] == str(tmp_path / "out" / "gate_nano.png")
    assert report["least"] == report["mean"] == report["largest"] == pytest.approx(0.1192, abs=1e-4)
    assert Image.open(report["picture"]).size[0] == 160
