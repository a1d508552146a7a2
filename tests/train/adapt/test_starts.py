"""A word starts from a known phrase only where that phrase fits its pixels far better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovsdino.contrast import contrast_phrases
from ovsdino.models.backbone import normalize
from ovsdino.train.adapt.starts import Phrases, Seen, start_of

SIZE = 32
NAMES = ("my thing 1", "road")


@pytest.fixture(scope="module")
def phrases() -> Phrases:
    torch.manual_seed(0)
    contrast = normalize(torch.randn(len(contrast_phrases()), SIZE), dim=-1)
    names = ("mug", "cup", "highway")
    return Phrases(names=names, rows=normalize(torch.randn(3, SIZE), dim=-1), contrast=contrast)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(4)


def seen_of(rows: Tensor) -> Seen:
    """Return eight tokens of each of two words, near the rows (2, D), and eight that have no label."""
    noise = 0.01 * torch.randn(24, SIZE)
    vectors = normalize(torch.cat([rows[[0] * 8], rows[[1] * 8], torch.randn(8, SIZE)]) + noise, dim=-1)
    shares = torch.zeros(24, 3)
    shares[:8, 0] = shares[8:16, 1] = 1
    return Seen(vectors=vectors, plain=vectors, shares=shares)


def test_a_name_that_says_nothing_starts_from_the_phrase_that_fits_its_pixels(phrases: Phrases) -> None:
    text = normalize(torch.randn(2, SIZE), dim=-1)
    row, phrase = start_of(0, NAMES, text, seen_of(torch.stack([phrases.rows[0], text[1]])), phrases, 20.0)
    assert phrase == "mug" and torch.equal(row, phrases.rows[0])


def test_a_name_that_fits_keeps_its_row(phrases: Phrases) -> None:
    text = normalize(torch.randn(2, SIZE), dim=-1)
    row, phrase = start_of(0, NAMES, text, seen_of(text), phrases, 20.0)
    assert phrase is None and torch.equal(row, text[0])


def test_a_phrase_that_means_another_of_the_words_is_not_taken(phrases: Phrases) -> None:
    text = torch.stack([normalize(torch.randn(SIZE), dim=-1), phrases.rows[2]])
    _, phrase = start_of(0, NAMES, text, seen_of(phrases.rows[[2, 2]]), phrases, 20.0)
    assert phrase != "highway"


def test_a_contrast_phrase_near_to_the_row_does_not_compete(phrases: Phrases) -> None:
    text = normalize(torch.randn(2, SIZE), dim=-1)
    known = Phrases(names=("mug",), rows=phrases.contrast[20:21], contrast=phrases.contrast)
    _, phrase = start_of(0, NAMES, text, seen_of(torch.stack([phrases.contrast[20], text[1]])), known, 20.0)
    assert phrase == "mug"
