"""Adapted words take the place of their own rows, of nothing else, and only with the model that learned them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovsdino.errors import OVSDinoError
from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.weights import weights_digest
from ovsdino.pipeline import Segmenter
from tests.support.small import small_model

DIM = 32


def adapted(*words: str, model: str = "small", weights: str = "0" * 64, seed: int = 0) -> AdaptedWords:
    generator = torch.Generator().manual_seed(seed)
    text, residual = torch.randn(2, len(words), DIM, generator=generator)
    return AdaptedWords(
        words=words, text=torch.nn.functional.normalize(text), residual=residual, model=model, weights=weights
    )


def test_a_row_is_the_text_and_the_residual_at_length_one() -> None:
    words = adapted("mug", "my desk")
    expected = words.text + words.residual
    torch.testing.assert_close(words.rows, expected / expected.square().sum(1, keepdim=True).sqrt())


def test_only_the_learned_words_get_other_rows_whatever_their_case_and_spaces() -> None:
    words, rows = adapted("mug", "Café table"), torch.randn(4, DIM)
    before = rows.clone()
    placed = words.place(["road", "CAFE\u0301  table", " Mug", "mugs"], rows)
    assert torch.equal(rows, before)
    assert torch.equal(placed[[0, 3]], rows[[0, 3]])
    torch.testing.assert_close(placed[[2, 1]], words.rows)
    assert words.place(["road", "sky"], rows) is rows


def test_a_file_brings_back_all_of_it(tmp_path: Path) -> None:
    words = adapted("mug", "caf\u00e9")
    found = AdaptedWords.load(words.save(tmp_path / "own.safetensors"))
    assert (found.words, found.model, found.weights) == (words.words, words.model, words.weights)
    assert torch.equal(found.text, words.text) and torch.equal(found.residual, words.residual)
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = adapted("mug").save(tmp_path / "own.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(OVSDinoError, match="damaged"):
        AdaptedWords.load(path)


def test_what_is_no_such_file_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(OVSDinoError, match="no such file; make it again with `ovsdino adapt`"):
        AdaptedWords.load(path)
    path.write_bytes(b"not one")
    with pytest.raises(OVSDinoError, match="not a readable file of adapted words"):
        AdaptedWords.load(path)
    save_file({"text": torch.ones(1, 3)}, path, {"format": "1"})
    with pytest.raises(OVSDinoError, match=r"not a file of adapted words of format 1: format '1', tensors text"):
        AdaptedWords.load(path)
    save_file({"text": torch.ones(1, 3), "residual": torch.ones(1, 3)}, path, {"format": "1", "words": '["a", "b"]'})
    with pytest.raises(OVSDinoError, match="not a readable file of adapted words"):
        AdaptedWords.load(path)
    facts = {"format": "1", "words": '["a", "b"]', "model": "nano", "weights": "0"}
    save_file({"text": torch.ones(1, 3), "residual": torch.ones(1, 3)}, path, facts)
    with pytest.raises(OVSDinoError, match=r"a\.safetensors: adapted words: 2 words, text \(1, 3\)"):
        AdaptedWords.load(path)


@pytest.mark.parametrize("words", [("mug", " MUG"), ()])
def test_words_are_some_and_differ(words: tuple[str, ...]) -> None:
    with pytest.raises(OVSDinoError, match=r"a word is there twice|no word"):
        adapted(*words)


def test_no_number_is_no_row() -> None:
    rows = torch.ones(1, DIM)
    with pytest.raises(OVSDinoError, match="not finite"):
        AdaptedWords(words=("mug",), text=rows, residual=rows / 0, model="small", weights="")


def test_newer_rows_win_where_both_files_have_a_word() -> None:
    older, newer = adapted("mug", "desk"), adapted("Desk", "lamp", seed=1)
    merged = older.merged(newer)
    assert merged.words == ("mug", "Desk", "lamp")
    torch.testing.assert_close(merged.rows, torch.cat([older.rows[:1], newer.rows]))


def test_another_models_words_are_refused() -> None:
    model = small_model()
    digest = weights_digest(model)
    adapted("mug", weights=digest).check(model, "small")
    with pytest.raises(OVSDinoError, match="adapted words of nano, but the model is small"):
        Segmenter(model, adapted=adapted("mug", model="nano", weights=digest))
    with pytest.raises(OVSDinoError, match="of other weights of small than these"):
        Segmenter(model, adapted=adapted("mug"))


def test_scores_of_all_other_words_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = small_model()
    path = adapted("mug", weights=weights_digest(model)).save(tmp_path / "own.safetensors")
    plain, own = Segmenter(model), Segmenter(model, adapted=path)
    image = torch.randint(0, 256, (48, 80, 3), dtype=torch.uint8).numpy()
    classes = ["road", "mug", "sky", "a mug"]
    before, after = (segmenter.decode(segmenter.encode_image(image), classes) for segmenter in (plain, own))
    assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-2)
    torch.testing.assert_close(own.encode_text(classes)[1], AdaptedWords.load(path).rows[0])


def test_a_class_of_several_words_takes_the_learned_row_of_one() -> None:
    model = small_model()
    words = adapted("mug", weights=weights_digest(model))
    own = Segmenter(model, adapted=words).encode_text({"cup": ["mug", "beaker"]})
    other = Segmenter(model).encode_text(["beaker"])
    torch.testing.assert_close(own, torch.nn.functional.normalize((words.rows + other) / 2))
