"""The rows of class lists: several words a class, and contrast rows less those that mean a word."""

from __future__ import annotations

import copy
import pickle
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ovsdino.contrast import NEAR, contrast_phrases, rivals
from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.text import TextTower
from ovsdino.models.text_rows import TextRows
from ovsdino.text_banks import TextBanks
from ovsdino.vocabulary import Vocabulary

D = 64


class Words:
    """A model whose words have seeded directions; some mean nearly the same as others."""

    def __init__(self, contrast: bool = False, same: dict[str, str] | None = None) -> None:
        self.config = SimpleNamespace(contrast=contrast)
        self.text_tower = TextTower()
        self.same = same or {}
        self.calls: list[Any] = []

    def vector(self, word: str) -> Tensor:
        seed = zlib.crc32(word.encode())
        own = torch.randn(D, generator=torch.Generator().manual_seed(seed))
        if word in self.same:
            own = 3 * self.vector(self.same[word]) + own / own.norm()
        return own / own.norm()

    def encode_text(self, texts: Any, templates: Any = None) -> Tensor:
        self.calls.append((texts, templates))
        rows = torch.stack([torch.stack([self.vector(word) for word in group]).mean(0) for group in texts])
        return rows / rows.norm(dim=1, keepdim=True)


def banks(**options: Any) -> TextBanks:
    return TextBanks(Words(**options), torch.device("cpu"))  # type: ignore[arg-type]


def test_a_partition_of_single_words_is_one_row_each() -> None:
    rows = banks().rows(Vocabulary.of("car, sky"), partition=True)
    assert isinstance(rows, Tensor) and rows.shape == (2, D)


def test_rows_are_made_once_a_vocabulary_and_partition() -> None:
    side = banks()
    rows = side.rows(Vocabulary.of("car, sky"), partition=False)
    calls = len(side.model.calls)  # type: ignore[attr-defined]
    assert side.rows(Vocabulary.of("car, sky"), partition=False) is rows
    assert len(side.model.calls) == calls  # type: ignore[attr-defined]
    assert side.rows(Vocabulary.of("car, sky"), partition=True) is not rows
    assert side.rows(Vocabulary.of("sky, car"), partition=False) is not rows


def test_several_words_keep_their_rows_and_are_averaged_on_request() -> None:
    side = banks()
    rows = side.rows(Vocabulary.of("static=building|tree|car, sky"), partition=True)
    assert isinstance(rows, TextRows) and rows.words.shape == (2, 3, D) and rows.contrast is None
    torch.testing.assert_close(rows.words[0, 2], side.model.vector("car"))  # type: ignore[attr-defined]
    assert not rows.words[1, 1:].any()
    averaged = side.rows(Vocabulary.of("static=building|tree|car, sky", average=True), partition=True)
    assert isinstance(averaged, Tensor) and averaged.shape == (2, D)


def test_one_word_in_two_classes_is_allowed() -> None:
    rows = banks().rows(Vocabulary.of({"a": ["car", "bus"], "b": ["car"]}), partition=True)
    assert isinstance(rows, TextRows)
    assert torch.equal(rows.words[0, 0], rows.words[1, 0])


def test_contrast_rows_are_the_phrases_that_no_word_answers_to_by_spelling_or_meaning() -> None:
    side = banks(same={"feu tricolore": "traffic light"})
    vocabulary = Vocabulary.of("vehicle, feu tricolore")
    rows = side.rows(vocabulary, partition=False)
    assert isinstance(rows, TextRows) and rows.contrast is not None
    left = [contrast_phrases()[index] for index in rivals(vocabulary.words)]
    assert "traffic light" in left and "car" not in left
    left.remove("traffic light")
    bank = side.averaged(tuple((phrase,) for phrase in contrast_phrases()))
    expected = bank[[contrast_phrases().index(phrase) for phrase in left]]
    assert rows.contrast.shape == expected.shape
    assert torch.equal(rows.contrast, expected)


def test_what_all_texts_share_does_not_count_as_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's texts have a large common part: without it taken off, every phrase would seem to mean every word."""
    side = banks()
    shared = 5 * torch.ones(D) / D**0.5
    plain = side.model.vector
    monkeypatch.setattr(side.model, "vector", lambda word: torch.nn.functional.normalize(plain(word) + shared, dim=0))
    rows = side.rows(Vocabulary.of("qwertyuiop"), partition=False)
    assert isinstance(rows, TextRows) and rows.contrast is not None
    bank = side.averaged(tuple((phrase,) for phrase in contrast_phrases()))
    assert (bank @ side.averaged((("qwertyuiop",),)).T).min() > NEAR
    assert len(rows.contrast) == len(contrast_phrases())


def test_a_row_of_zeros_stands_for_a_contrast_of_which_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovsdino.text_banks.rivals", lambda words: [])
    rows = banks().rows(Vocabulary.of("car"), partition=False)
    assert isinstance(rows, TextRows) and rows.maps == 2
    assert rows.contrast is not None and rows.contrast.shape == (1, D) and not rows.contrast.any()


@pytest.mark.parametrize(
    ("contrast", "asked", "classes", "expected"),
    [
        (False, None, "car", True),
        (True, None, "car", False),
        (True, None, "car, Background", True),
        (True, True, "car", True),
        (False, False, "car", False),
    ],
)
def test_a_partition_is_as_asked_or_as_the_model_was_made(
    contrast: bool, asked: bool | None, classes: str, expected: bool
) -> None:
    assert banks(contrast=contrast).partition(asked, Vocabulary.of(classes)) is expected


def test_the_contrast_vocabulary_is_encoded_once() -> None:
    side = banks()
    for classes in ("car", "sky", "car"):
        side.rows(Vocabulary.of(classes), partition=False)
    assert len(side.model.calls) == 3  # type: ignore[attr-defined]


def test_templates_reach_the_model() -> None:
    side = TextBanks(Words(), torch.device("cpu"), ("a {}.",))  # type: ignore[arg-type]
    side.rows(Vocabulary.of("car"), partition=True)
    assert side.model.calls[0][1] == ("a {}.",)  # type: ignore[attr-defined]


def test_copies_share_nothing_and_keep_their_rows() -> None:
    side = banks()
    rows = side.rows(Vocabulary.of("car"), partition=True)
    for other in (copy.deepcopy(side), pickle.loads(pickle.dumps(side))):
        assert torch.equal(other.rows(Vocabulary.of("car"), partition=True), rows)
        assert len(other.model.calls) == 1


class Learnt(TextTower):
    """A tower that knows "car" and reads "caar" as it."""

    def familiarity(self, names: Any) -> Tensor:
        return torch.tensor([{"car": 1.0, "caar": 0.75}.get(name, 0.0) for name in names])

    def read_as(self, name: str) -> str:
        return "car" if name == "caar" else name


def test_a_word_that_is_not_known_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Words()
    model.text_tower = Learnt()
    banks = TextBanks(model, torch.device("cpu"))  # type: ignore[arg-type]
    for classes in ("car,blorfing", "blorfing,caar|zzz"):
        banks.averaged(Vocabulary.of(classes).texts)
        banks.rows(Vocabulary.of(classes), True)
    assert [record.getMessage() for record in caplog.records] == [
        "'blorfing' is not a word that this model knows; its mask means little",
        "'caar' is not a word that this model knows; it is read as 'car'",
        "'zzz' is not a word that this model knows; its mask means little",
    ]
    assert banks.familiarity(Vocabulary.of("blorfing,caar|zzz,car")) == (0.0, 0.75, 1.0)
    assert len(caplog.records) == 3


def test_a_tower_that_cannot_tell_knows_every_word(caplog: pytest.LogCaptureFixture) -> None:
    banks = TextBanks(Words(), torch.device("cpu"))  # type: ignore[arg-type]
    assert banks.familiarity(Vocabulary.of("qwertyuiop")) == (1.0,) and not caplog.records


def test_an_adapted_word_is_known(caplog: pytest.LogCaptureFixture) -> None:
    model, row = Words(), torch.eye(D)[:1]
    model.text_tower = Learnt()
    adapted = AdaptedWords(words=("blorfing",), text=row, residual=row, model="nano", weights="")
    banks = TextBanks(model, torch.device("cpu"), adapted=adapted)  # type: ignore[arg-type]
    assert banks.familiarity(Vocabulary.of("Blorfing,zzz")) == (1.0, 0.0) and len(caplog.records) == 1


def test_the_memory_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovsdino.text_banks.KNOWN", 10)
    banks = TextBanks(Words(), torch.device("cpu"))  # type: ignore[arg-type]
    for start in range(0, 40, 4):
        words = [f"word {index}" for index in range(start, start + 4)]
        assert len(banks.familiarity(Vocabulary.of(words))) == 4
        assert len(banks._known) <= 10
