"""export_onnx.py: an export that departs is refused, bad usage is one line, and nothing heavy is imported before."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ovsdino.deploy.export.inputs import synthetic
from ovsdino.deploy.export_onnx import ExportOnnx
from ovsdino.edge.sidecar import Sidecar
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.parsing import run_script
from tests.support.small import small_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSmall(ExportOnnx):
    """The export of a model that the zoo does not know."""

    def load(self) -> OVSDINO:
        return small_model(decoder=False)


def test_an_export_that_departs_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hashed: list[int]
) -> None:
    noise = tmp_path / "images"
    noise.mkdir()
    Image.fromarray(synthetic(1).pixels[0]).save(noise / "a.png")
    arguments = ["--output", str(tmp_path / "out"), "--images", str(noise), "--json"]
    assert run_script(ExportSmall, "export_onnx.py", [*arguments, "--cosine", "1.1"]) == 2
    out, err = capsys.readouterr()
    assert "departs from PyTorch" in json.loads(out)["error"]
    assert err.splitlines()[-1].startswith("error: the graph departs from PyTorch")
    assert not list((tmp_path / "out").iterdir())
    assert run_script(ExportSmall, "export_onnx.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["small_fp32.onnx", "small_fp32.onnx.json"]
    assert report["verified"]["cosine"] > 0.99999
    verified = Sidecar.load(report["onnx"]).verified
    assert verified is not None and verified["images"] == 1
    assert hashed.count(report["bytes"]) == 2  # once in each of the two runs; reading the sidecar hashes nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "giant"], "unknown model 'giant'; available: nano, s14"),
        (["--checkpoint", "no.safetensors"], "no.safetensors: no such file"),
        (["--checkpoint", "no.safetensors", "--random-weights", "0"], "leave out --checkpoint"),
        (["--height", "100"], "height is 100: nano needs a multiple of 16, for instance 96"),
        (["--classes", "0", "5"], "classes is 0..5"),
        (["--classes", "1", "2", "3"], "classes is 1 2 3: expected one number, or least and most"),
        (["--precision", "int4"], "int4"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_script(ExportOnnx, "export_onnx.py", ["--output", str(tmp_path / "out"), *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert message in json.loads(out)["error"]
    assert err.count("\n") == 1 and err.startswith("error: ")
    assert not list(tmp_path.glob("**/*.onnx*"))


def test_an_output_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run_script(ExportOnnx, "export_onnx.py", ["--output", str(tmp_path / "file" / "x.onnx")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("start", [["deploy/export_onnx.py"], ["-m", "ovsdino.deploy.export_onnx"]])
def test_runs_as_a_script_and_as_a_module(start: list[str]) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *start, "--help"], cwd=root, capture_output=True, text=True, check=True)
    assert "--random-weights" in done.stdout


@pytest.mark.parametrize("script", ["export_onnx", "export_trt", "quantize", "verify"])
def test_a_script_imports_nothing_heavy_before_it_runs(script: str) -> None:
    code = f"import sys, ovsdino.deploy.{script}; print(*sorted({{'numpy', 'onnx', 'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
