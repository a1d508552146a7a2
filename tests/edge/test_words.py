"""Nano's text tower in NumPy against the one in torch, and the commands that run without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ovsdino.edge import words as edge_words
from ovsdino.edge.bank import TextBank
from ovsdino.errors import OVSDinoError
from ovsdino.models.catalog import CONFIGS
from ovsdino.models.weights import weights_digest
from ovsdino.models.zoo import create_model
from ovsdino.pipeline import Segmenter
from ovsdino.vocabulary import Vocabulary
from tests.support.blocking import BLOCK

ROOT = Path(__file__).resolve().parents[2]
# Kept phrases, parts of phrases, words of n-grams alone, forms, compounds, slips, numbers, signs, an empty name.
NAMES = "road, car|automobile, traffic lights, pedestrain, zorkfish, trafficlight, old grey house wall, 7, 🚗, ångström"
WITHOUT_TORCH = BLOCK.format(blocked={"torch", "timm", "torchvision", "open_clip", "scipy", "huggingface_hub", "yaml"})


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(create_model("nano"))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"{WITHOUT_TORCH}\nfrom ovsdino.cli import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("partition", [None, True])
def test_a_bank_is_that_of_the_model_in_torch(segmenter: Segmenter, partition: bool | None) -> None:
    vocabulary = Vocabulary.of(NAMES)
    bank = edge_words.make_bank(vocabulary, partition)
    expected = segmenter.text_rows(vocabulary, partition)
    np.testing.assert_allclose(bank.padded(), expected.words.numpy(), atol=2e-6)
    assert (bank.contrast is None) == (expected.contrast is None) == bool(partition)
    if bank.contrast is not None and expected.contrast is not None:
        np.testing.assert_allclose(bank.contrast, expected.contrast.numpy(), atol=2e-6)
    assert bank.names == vocabulary.names and bank.words == (1, 2, *[1] * 8)


@pytest.mark.parametrize("names", ["sky", "sky, background", "static=building|tree, road"])
def test_single_rows_and_averages_are_those_of_the_model(segmenter: Segmenter, names: str) -> None:
    vocabulary = Vocabulary.of(names, average=True)
    bank = edge_words.make_bank(vocabulary, partition=True)
    np.testing.assert_allclose(bank.text, segmenter.text_rows(vocabulary, True).numpy(), atol=2e-6)
    default = edge_words.make_bank(vocabulary)
    assert (default.contrast is None) == ("background" in names)


def test_the_digest_says_that_the_bank_belongs_to_the_model(segmenter: Segmenter) -> None:
    assert edge_words.image_digest(edge_words.read_state()) == weights_digest(segmenter.model)


def test_words_without_torch_write_the_bank_that_torch_writes(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    done = command("text", "--classes", NAMES, "--output", str(path), "--json")
    assert done.returncode == 0, done.stderr
    assert "'pedestrain' is not a word that this model knows; it is read as 'pedestrian'" in done.stderr
    told, bank = json.loads(done.stdout), TextBank.load(path)
    assert told["weights"] == bank.weights == weights_digest(segmenter.model)
    np.testing.assert_allclose(bank.padded(), segmenter.text_rows(Vocabulary.of(NAMES)).words.numpy(), atol=2e-6)


def test_models_and_doctor_answer_without_torch() -> None:
    models = command("models", "--json")
    assert models.returncode == 0, models.stderr
    assert [row["name"] for row in json.loads(models.stdout)["models"]] == list(CONFIGS)
    doctor = command("doctor", "--json")
    assert doctor.returncode == 0, doctor.stderr
    report = json.loads(doctor.stdout)
    assert report["ops"] == {} and [device["name"].split(":")[0] for device in report["devices"]] == ["cpu", "cuda"]
    assert report["weights"][0]["state"] == "ok"
    plain = command("doctor")
    assert plain.returncode == 0 and "ops run" not in plain.stdout


def test_words_of_another_model_need_torch() -> None:
    done = command("text", "--classes", "road", "--model", "b14")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this needs torch") and "pip install 'ovsdino[torch]'" in line


def test_the_scripts_of_the_board_show_their_help_without_torch() -> None:
    for script in ("export_trt.py", "quantize.py"):
        run = "import runpy\nsys.argv = [sys.argv[1], '--help']\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        code = f"{WITHOUT_TORCH}\n{run}"
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT / "deploy" / script)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0 and "--output" in done.stdout, done.stderr


def test_no_words_but_those_of_a_lexicon_can_be_encoded_here() -> None:
    with pytest.raises(OVSDinoError, match="b14: no weights are shipped for it"):
        edge_words.make_bank(Vocabulary.of("road"), model="b14")
