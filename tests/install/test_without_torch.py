"""A real environment without torch, of Python 3.10 where there is one: what a robot's engineer calls there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.deploy.export_onnx import ExportOnnx
from ovsdino.edge.bank import TextBank
from ovsdino.pipeline import load
from tests.install.sandbox import ROOT, Environment, attempt, check

SEGMENT = """
import sys
import numpy as np
from ovsdino.edge import EdgeSegmenter
segmenter = EdgeSegmenter(sys.argv[1], sys.argv[2], threads=1, runtime="onnxruntime")
np.save(sys.argv[4], segmenter.segment(sys.argv[3]).labels)
print(*sorted({"torch", "timm", "cv2", "scipy"} & set(sys.modules)))
"""


def old_python() -> str:
    """Return Python 3.10, as JetPack 6 has it, else this one."""
    found = shutil.which("python3.10")
    works = found is not None and attempt(found, "-c", "import venv, ensurepip").returncode == 0
    return found if found is not None and works else sys.executable


@pytest.mark.slow
def test_the_runtime_serves_a_robot_without_torch(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "robot"
    check(old_python(), "-m", "venv", folder)
    robot = Environment(folder)
    output = check(robot.python, "-m", "pip", "install", source, "numpy<2", "onnx", PATH="/usr/bin:/bin", CC="", CXX="")
    installed = check(robot.python, "-m", "pip", "list", "--format", "freeze").lower()
    assert "ovsdino==" in installed and not any(f"\n{name}==" in installed for name in ("torch", "timm", "scipy"))
    assert "error" not in output.lower()

    def ovsdino(*arguments: str | Path) -> str:
        return check(folder / "bin" / "ovsdino", *arguments, cwd=tmp_path)

    pixels = np.asarray(Image.open(ROOT / "docs" / "china_overlay.png").convert("RGB").resize((464, 352)))
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.fromarray(pixels).save(frames / "one.png")
    ExportOnnx(model="nano", output=tmp_path / "nano.onnx", height=352, width=464).run()
    words = "sky, temple|house, tree"
    assert "no problems found" in ovsdino("doctor")
    assert json.loads(ovsdino("models", "--json"))["models"][0]["name"] == "nano"
    ovsdino("text", "--classes", words, "--output", "bank.safetensors")
    told = ovsdino("stream", frames, "--engine", "nano.onnx", "--bank", "bank.safetensors", "--every-frame", "--json")
    assert json.loads(told.splitlines()[-1])["results"] == 1
    script = check(robot.python, source / "deploy" / "export_trt.py", "--help", cwd=tmp_path)
    assert "--onnx" in script
    line = attempt(folder / "bin" / "ovsdino", "segment", frames / "one.png", "--classes", words, cwd=tmp_path).stdout
    assert "pip install 'ovsdino[torch]'" in line

    arguments = (tmp_path / "nano.onnx", tmp_path / "bank.safetensors", frames / "one.png", tmp_path / "labels.npy")
    assert check(robot.python, "-c", SEGMENT, *arguments, cwd=tmp_path).strip() == ""
    expected = load("nano", "cpu").segment(pixels, words).labels
    assert (np.load(tmp_path / "labels.npy") == expected).mean() >= 0.9999
    assert TextBank.load(tmp_path / "bank.safetensors").words == (1, 2, 1)
