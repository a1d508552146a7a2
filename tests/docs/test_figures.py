"""The figures of README are those of the files that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.docs.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def result(name: str) -> Any:
    """Return what a file of benchmarks/results/ holds."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_rows_of_the_results_are_their_file() -> None:
    rows = re.findall(r"^\| .*?, (\d+) images.* \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| `([\w ]+)` \|$", README, re.M)
    assert len(rows) == 4
    measured = result("words_nano.json")["datasets"]
    for images, *shown, name in rows:
        found = measured[name]
        keys = ("miou", "pixel_accuracy", "boundary_f1")
        assert [float(value) for value in shown] == pytest.approx([100 * found[key] for key in keys], abs=0.0501)
        assert found["images"] == int(images)


def test_every_result_file_that_readme_names_is_there() -> None:
    named = set(re.findall(r"`(\w+\.json)`", README)) - {"config.json", "manifest.json"}
    assert named and {name for name in named if not (ROOT / "benchmarks" / "results" / name).is_file()} == set()


def test_the_model_is_as_large_as_readme_says() -> None:
    manifest = json.loads((ROOT / "ovsdino" / "weights" / "manifest.json").read_text())["nano"]
    assert f"{manifest['parameters'] / 1e6:.2f} M parameters" in README
    assert f"{manifest['bytes'] / 1e6:.1f} MB" in README


@pytest.mark.parametrize(("photograph", "column"), [("astronaut.png", 0), ("camera.png", 1)])
def test_the_pictures_show_what_the_model_finds(photograph: str, column: int) -> None:
    import skimage.data

    import ovsdino

    words = re.findall(r"^\| `(person, .*)` \| `(person, .*)` \|$", README, re.M)[0][column]
    missing = {"astronaut.png": {"cat", "car"}, "camera.png": {"dog"}}[photograph]
    result = ovsdino.segment(Path(skimage.data.__file__).with_name(photograph), words)
    assert {name for name, found in zip(result.names, result.found, strict=True) if not found} == missing
    shown = np.asarray(Image.open(ROOT / "docs" / "pictures" / f"{Path(photograph).stem}_overlay.jpg"), dtype=int)
    drawn = result.plot().astype(int)
    assert shown.shape == drawn.shape
    # a JPEG departs by a few levels, borders by more; another label of the picture's words would be 30 and more
    assert (np.abs(shown - drawn).max(axis=2) > 60).mean() < 0.01, "ovsdino segment made another picture: make it anew"


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 150
