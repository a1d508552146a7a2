"""`ovsdino segment` where torch is not installed: the labels of torch, and a sentence where torch is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.cli import main
from tests.support.blocking import BLOCK

CLI = BLOCK.format(blocked={"torch", "torchvision", "timm", "scipy"}) + "from ovsdino.cli import main\n"


def without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    code = f"{CLI}sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    path: Path = tmp_path_factory.mktemp("picture") / "china.png"
    Image.fromarray(image[::2, ::2]).save(path)
    return path


def test_the_labels_are_those_of_torch(photograph: Path, tmp_path: Path) -> None:
    words = ["segment", photograph, "--classes", "sky,temple,tree", "--short-side", "176"]
    done = without_torch(*words, "--output", tmp_path / "free")
    assert done.returncode == 0, done.stderr
    assert main([*map(str, words), "--device", "cpu", "--output", str(tmp_path / "torch")]) == 0
    free, torch = (np.array(Image.open(tmp_path / name / "china_labels.png")) for name in ("free", "torch"))
    assert (free == torch).mean() >= 0.9999


@pytest.mark.parametrize("option", [("--window", "352"), ("--model", "b14"), ("--device", "cuda")], ids=lambda o: o[0])
def test_what_needs_torch_says_so(photograph: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    done = without_torch("segment", photograph, "--classes", "sky", "--output", tmp_path, *option)
    assert done.returncode == 2
    assert "error: this needs torch, which is not installed: pip install 'ovsdino[torch]'" in done.stderr
