"""The background's score by image-level words: against a search over all thresholds, and through the commands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ovsdino.cli import main
from ovsdino.data.datasets import open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.eval.calibrate import best_threshold, calibrate, shown_below
from ovsdino.eval.protocol import Protocol
from ovsdino.models.zoo import build_model
from ovsdino.pipeline import load
from ovsdino.timing import Clock
from ovsdino.windows import Batches
from tests.eval.standin import PatchColors
from tests.support.recipe import write_voc


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        shown, there = rng.random((12, 5)).round(2), rng.random((12, 5)) < 0.3
        shown[rng.random((12, 5)) < 0.3] = -np.inf
        there[0, 0] = True

        def f1(threshold: float, shown: np.ndarray = shown, there: np.ndarray = there) -> float:
            found = shown > threshold
            return 2 * (found & there).sum() / (found.sum() + there.sum())

        assert f1(best_threshold(shown, there)) == pytest.approx(max(f1(t) for t in np.arange(-0.005, 1, 0.01)))


def test_a_word_is_shown_while_the_background_leaves_it_its_share() -> None:
    scores = torch.zeros(3, 10, 10)
    scores[0, :, :2] = torch.arange(20.0).view(10, 2) / 100 + 0.5  # largest on 20 pixels, 0.5 to 0.69
    scores[1, :, 2:] = 0.3
    found = shown_below(scores, least=0.05)
    assert found[0] == pytest.approx(0.65) and found[1] == pytest.approx(0.3) and found[2] == -np.inf
    for threshold, expected in ((0.649, True), (0.651, False)):
        assert ((scores[0] > threshold).float().mean() >= 0.05).item() is expected
    assert shown_below(scores, least=0.3)[0] == -np.inf


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(OVSDinoError, match="no image shows any word"):
        best_threshold(np.full((2, 2), -np.inf), np.ones((2, 2), bool))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Pictures whose words have cosine 1 in the square and 0.41 or less on the ground (`PatchColors`)."""
    for split in ("train", "val"):
        write_voc(tmp_path / f"voc21_{split}.zip", 6)
    return tmp_path


def test_a_planted_background_is_told_from_planted_words(voc: Path) -> None:
    """The wrong threshold shows other colors on the ground; the calibrated one shows none."""
    segmenter = SimpleNamespace(
        model=PatchColors(), batches=Batches(), dtype=torch.float32, device=torch.device("cpu"), name="colors"
    )
    segmenter.text_rows = lambda vocabulary, partition: PatchColors().encode_text(vocabulary.texts)
    segmenter.clock = Clock
    protocol = Protocol(short_side=112, window=112, stride=56, background=0.2)
    seen: list[tuple[int, int]] = []
    found = calibrate(
        segmenter,  # type: ignore[arg-type]
        open_dataset("voc21", voc, "train"),
        protocol,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(i, 6) for i in range(1, 7)]
    assert found.f1 == 1.0 and found.f1_before < 0.8 and found.before == 0.2 and found.images == 6
    assert 0.60 < found.background < 0.731  # the sigmoids of 0.41 and 1


def test_only_data_sets_with_a_background_are_calibrated(voc: Path) -> None:
    dataset = open_dataset("voc21", voc, "train")
    with pytest.raises(OVSDinoError, match="no background class"):
        calibrate(None, dataset, Protocol(background=None))  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="limit is 0"):
        calibrate(None, dataset, Protocol(background=0.5), limit=0)  # type: ignore[arg-type]


def test_eval_reads_what_calibrate_wrote(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    file = voc / "run.safetensors"
    save_file(build_model("vit6").state_dict(), file)
    weights = load_file(file)
    line = [
        "--model",
        "vit6",
        "--dataset",
        "voc21",
        "--root",
        str(voc),
        "--checkpoint",
        str(file),
        "--device",
        "cpu",
        "--json",
    ]
    line += ["--short-side", "112", "--window", "112", "--cleaning", "off"]
    assert main(["eval", *line]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["background"] == 0.55
    assert main(["calibrate", *line]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] == str(file) and found["f1"] >= found["f1_before"] and found["before"] == 0.55
    assert main(["eval", *line]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["protocol"]["background"] == found["background"] != 0.55
    assert main(["eval", *line, "--background", "0.4"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"]["background"] == 0.4
    after = load_file(file)
    scale = {name: state.pop("log_scale") for name, state in (("before", weights), ("after", after))}
    assert after.keys() == weights.keys() and all(torch.equal(after[k], v) for k, v in weights.items())
    expected = scale["before"] - math.log(found["temperature"])
    torch.testing.assert_close(scale["after"], expected, atol=1e-4, rtol=0)


def test_confidences_are_calibrated_and_labels_stay(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data set without a background class: the temperature found once is 1 when it is looked for again."""
    torch.manual_seed(6)  # weights that are right by chance at some pixels: the best temperature is not the largest
    file = voc / "run.safetensors"
    save_file(build_model("nano").state_dict(), file)
    (voc / "voc21_train.zip").rename(voc / "voc20_train.zip")
    line = [
        "calibrate",
        "--model",
        "nano",
        "--dataset",
        "voc20",
        "--root",
        str(voc),
        "--device",
        "cpu",
        "--short-side",
        "64",
    ]
    line += ["--checkpoint", str(file)]
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = load("nano", "cpu", checkpoint=file, short_side=64).segment(image, "red,blue")
    assert main([*line, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert "background" not in first and first["ece"] <= first["ece_before"] + 0.05
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "temperature 1.000" in told or "temperature 0.999" in told or "temperature 1.001" in told
    after = load("nano", "cpu", checkpoint=file, short_side=64).segment(image, "red,blue")
    assert (after.labels == before.labels).mean() > 0.999


def test_few_images_say_nothing_of_others(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (voc / "voc21_train.zip").rename(voc / "voc20_train.zip")
    line = ["calibrate", "--dataset", "voc20", "--root", str(voc), "--device", "cpu", "--short-side", "64", "--json"]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["novelty_limit"] is None and found["written"] is None
