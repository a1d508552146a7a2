"""verify.py: one JSON object, the first layer that departs, and exit code 2 below a threshold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from ovsdino.deploy.export.inputs import synthetic
from ovsdino.deploy.export.publish import publish
from ovsdino.deploy.verify import Verify
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.parsing import run_script
from tests.support.graphs import exported
from tests.support.small import small_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifySmall(Verify):
    """The comparison of a model that the zoo does not know."""

    def load(self) -> OVSDINO:
        return small_model(decoder=False)


def test_figures_and_layers_are_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, images = tmp_path / "small.onnx", tmp_path / "images"
    publish(path, exported(decoder=False))
    images.mkdir()
    Image.fromarray(synthetic(1).pixels[0]).save(images / "a.png")
    arguments = ["--file", str(path), "--images", str(images), "--per-layer", "--json"]
    assert run_script(VerifySmall, "verify.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["file", "verified", "first_departure", "layers"]
    assert report["first_departure"] is None and report["verified"]["images"] == 1
    assert "backbone.vit.blocks.1.attn" in [layer["module"] for layer in report["layers"]]
    assert run_script(VerifySmall, "verify.py", [*arguments, "--cosine", "1.1"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["first_departure"] == report["layers"][0]["module"]
    assert err.splitlines()[-1].startswith("error: the graph departs from PyTorch")


def test_a_graph_is_compared_by_the_runtime_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    path = tmp_path / "small.onnx"
    publish(path, exported(decoder=False))
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(synthetic(1).pixels[0]).save(images / "a.png")
    arguments = ["--file", str(path), "--images", str(images), "--json", "--runtime", "openvino"]
    assert run_script(VerifySmall, "verify.py", arguments) == 0
    assert json.loads(capsys.readouterr().out)["verified"]["cosine"] > 0.9999
