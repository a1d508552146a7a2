"""`evaluate_video` and its command on small clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.cli import main
from ovsdino.data.clips import open_davis
from ovsdino.errors import OVSDinoError
from ovsdino.eval.video import evaluate_video
from ovsdino.pipeline import load


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames each of a numbered data set, and of a DAVIS video: a bright square that moves over noise."""
    pytest.importorskip("cv2")
    root = tmp_path_factory.mktemp("videos")
    generator = np.random.default_rng(0)
    (root / "classes.json").write_text('["sky", "dog"]')
    for index in range(3):
        image = generator.integers(0, 90, (64, 80, 3), dtype=np.uint8)
        mask = np.zeros((64, 80), np.uint8)
        mask[20:44, 20 + 2 * index : 50 + 2 * index] = 1
        image[mask == 1] += 120
        for folder, picture in (
            ("images", image),
            ("labels", mask),
            ("davis2016_val/dog/images", image),
            ("davis2016_val/dog/masks", 255 * mask),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / f"{index:03}.png")
    return root


def test_a_video_with_a_word_gets_j_and_f(root: Path) -> None:
    found = evaluate_video(load("nano", "cpu", short_side=64), open_davis(root), limit=2).to_dict()
    assert found["frames"] == 2 and found["pairs"] == 1 and found["clips"] == {"dog": 2}
    one = found["objects"]["dog"]
    assert one["word"] == "dog" and 0 <= one["j"] <= 1 and 0 <= one["f"] <= 1
    assert found["j"] == one["j"] and found["mvc8"] is None
    with pytest.raises(OVSDinoError, match="limit"):
        evaluate_video(load("nano", "cpu"), open_davis(root), limit=0)


def test_the_command_prints_one_object_with_all_scores(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["eval-video", "--dataset", "folder", "--root", str(root), "--short-side", "64"]
    assert main([*options, "--json", "--no-memory"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["memory"] is False and report["frames"] == 3 and set(report["iou"]) == {"sky", "dog"}
    assert set(report["flicker"]) == {"outside", "inside", "still", "moving", "along_flow"}
    assert main(options) == 0
    assert "temporal consistency" in capsys.readouterr().out
