"""CLIP's text tower as ONNX: the banks that torch makes, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ovsdino.deploy.export import tower as export
from ovsdino.deploy.export_text import ExportText
from ovsdino.edge.bank import TextBank
from ovsdino.edge.clip_tower import FACTS_KEY, MERGES_KEY, ClipTower, TowerFacts
from ovsdino.errors import OVSDinoError
from ovsdino.models import zoo
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text import TEMPLATES, ClipTextTower
from ovsdino.models.weights import weights_digest
from ovsdino.parsing import run_script
from ovsdino.pipeline import Segmenter
from ovsdino.stream.words import WordReader, bank_of
from ovsdino.vocabulary import Vocabulary
from tests.support import official
from tests.support.blocking import BLOCK
from tests.support.small import small_model

open_clip = pytest.importorskip("open_clip")

WORDS = "road, car|automobile, traffic light, café"
FACTS = TowerFacts(model="b14", weights="0" * 64, embed_dim=4, templates=("a {}.",), contrast=False, cosine=1.0)
WITHOUT_TORCH = BLOCK.format(blocked={"torch", "timm", "torchvision", "open_clip", "scipy", "regex", "ftfy"})


def small_clip() -> Any:
    """Return CLIP with two narrow layers in its text encoder, and no image encoder."""
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["vision_cfg"] = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
    config["text_cfg"].update(layers=2, width=32, heads=2)
    clip = open_clip.CLIP(**config)
    del clip.visual
    return clip.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> OVSDINO:
    model = small_model()
    tower = ClipTextTower(32, weights=None).eval()
    tower.__dict__["clip"] = small_clip(), open_clip.get_tokenizer("ViT-B-16")
    model.text_tower = tower
    return model


@pytest.fixture(scope="module")
def exported(model: OVSDINO) -> bytes:
    data, least = export.export_tower(model)
    assert least > 0.999999
    return data


@pytest.fixture(scope="module")
def file(exported: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tower") / "small_text.onnx"
    path.write_bytes(exported)
    return path


@pytest.mark.parametrize(("words", "partition"), [(WORDS, None), ("sky", None), ("road, sky", False)])
def test_a_bank_is_that_of_the_model_in_torch(
    model: OVSDINO, exported: bytes, words: str, partition: bool | None
) -> None:
    vocabulary = Vocabulary.of(words)
    bank = ClipTower(exported, "small_text.onnx").bank(vocabulary, partition)
    expected = bank_of(Segmenter(model), vocabulary, partition)
    assert (bank.names, bank.words, bank.model, bank.weights) == (
        expected.names,
        expected.words,
        "small",
        weights_digest(model),
    )
    np.testing.assert_allclose(bank.text, expected.text, atol=2e-6)
    assert (bank.contrast is None) == (expected.contrast is None) == (partition is None)
    if bank.contrast is not None and expected.contrast is not None:
        np.testing.assert_allclose(bank.contrast, expected.contrast, atol=2e-6)


def test_the_command_makes_the_bank_without_torch(file: Path, exported: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    code = f"{WITHOUT_TORCH}\nfrom ovsdino.cli import main\nsys.exit(main(sys.argv[1:]))"
    line = ("text", "--tower", str(file), "--classes", WORDS, "--output", str(path), "--json")
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "small"
    expected = ClipTower(exported, "small_text.onnx").bank(WORDS)
    assert np.array_equal(TextBank.load(path).text, expected.text)


def test_a_long_text_is_cut_and_said(exported: bytes, caplog: pytest.LogCaptureFixture) -> None:
    rows = ClipTower(exported, "small_text.onnx").encode(["word " * 90])
    assert rows.shape == (1, 32) and "cut" in caplog.text


def test_words_of_other_weights_are_refused(exported: bytes) -> None:
    tower = ClipTower(exported, "small_text.onnx")

    class Sidecar:
        weights, file, model, grouped = "f" * 64, "b14_fp16.onnx", "b14", False

    with pytest.raises(OVSDinoError, match=r"small_text\.onnx: its words are of other weights than b14_fp16\.onnx"):
        WordReader(Sidecar(), tower=tower)  # type: ignore[arg-type]
    Sidecar.weights = tower.facts.weights
    assert WordReader(Sidecar(), tower=tower)("road, car").names == ("road", "car")  # type: ignore[arg-type]


def test_a_graph_that_departs_is_refused(model: OVSDINO, monkeypatch: pytest.MonkeyPatch, exported: bytes) -> None:
    monkeypatch.setattr(export, "COSINE", 1.1)
    with pytest.raises(OVSDinoError, match=r"departs from PyTorch: cosine 1\.000000, expected 1\.1"):
        export._compare(model.text_tower, exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: {**facts, "format": 2}, "format 2, this version reads 1"),
        (lambda facts: {**facts, "templates": ["road"]}, "templates is not valid"),
        (lambda facts: {**facts, "weights": 3}, "weights is not valid"),
        (lambda facts: {"model": "b14"}, "other facts than expected"),
    ],
)
def test_damaged_facts_are_refused(change: Callable[[dict], dict], message: str) -> None:
    assert TowerFacts.parse(FACTS.to_json()) == FACTS
    with pytest.raises(ValueError, match=message):
        TowerFacts.parse(json.dumps(change(json.loads(FACTS.to_json()))))


def test_another_file_is_refused(tmp_path: Path, exported: bytes) -> None:
    with pytest.raises(OVSDinoError, match=r"absent\.onnx: .*ovsdino export text --model NAME"):
        ClipTower.load(tmp_path / "absent.onnx")
    with pytest.raises(OVSDinoError, match=r"b\.onnx: ONNX Runtime refuses it"):
        ClipTower(b"nothing", "b.onnx")
    graph = onnx.load_from_string(exported)
    for key in (FACTS_KEY, MERGES_KEY):
        kept = {entry.key: entry.value for entry in graph.metadata_props if entry.key != key}
        other = onnx.ModelProto()
        other.CopyFrom(graph)
        onnx.helper.set_model_props(other, kept)
        with pytest.raises(OVSDinoError, match=r"b\.onnx: no text tower"):
            ClipTower(other.SerializeToString(), "b.onnx")


def test_words_that_are_not_clips_need_no_export(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script(ExportText, "export_text.py", ["--model", "nano", "--output", str(tmp_path)]) == 2
    assert "nano: its words are not CLIP's; those of nano need no torch and no export" in capsys.readouterr().err
    monkeypatch.setenv("OVSDINO_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert run_script(ExportText, "export_text.py", ["--model", "b14", "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be had here (OVSDINO_OFFLINE is set and it is not in the cache): fetch it by hand" in line
    assert list(tmp_path.glob("*.onnx")) == []


@pytest.mark.slow
def test_the_published_form_of_clip_is_exported(tmp_path: Path) -> None:
    import torch

    torch.save(official.clip(), tmp_path / "clip.pth")
    model = zoo.build_model("s14", decoder=False)
    tower = ClipTextTower(384, weights=tmp_path / "clip.pth").eval()
    tower.load_state_dict(official.projection(384))
    model.text_tower = tower
    data, least = export.export_tower(model.eval())
    assert least >= 0.9999 and len(data) > 200e6
    found = ClipTower(data, "s14_text.onnx")
    assert found.facts.templates == TEMPLATES and found.facts.model == "s14"
    names = ["cat", "traffic light", "driver's seat"]
    expected = torch.nn.functional.normalize(tower.encode(names), dim=-1).numpy()
    assert (found.encode(names) * expected).sum(1).min() >= 0.9999
