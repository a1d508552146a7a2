"""A word starts from known phrases only where they fit its pixels far better."""

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
    assert phrase == "mug" and torch.allclose(row, phrases.rows[0], atol=1e-3)


def test_phrases_that_fit_alike_share_the_row(phrases: Phrases) -> None:
    rows = torch.eye(SIZE)[[0, 1, 2]]  # the third is what the other word shows
    text = torch.stack([torch.eye(SIZE)[5], rows[2]])
    vectors = torch.eye(SIZE)[[0, 1, 0, 1, 2, 2, 2, 2]]
    shares = torch.zeros(8, 3)
    shares[:4, 0] = shares[4:, 1] = 1
    seen = Seen(vectors=vectors, plain=vectors, shares=shares)
    apart = normalize(phrases.contrast * (torch.arange(SIZE) > 5), dim=-1)
    row, phrase = start_of(0, NAMES, text, seen, Phrases(names=phrases.names, rows=rows, contrast=apart), 20.0)
    assert phrase in ("mug", "cup") and torch.allclose(row, normalize(rows[0] + rows[1], dim=-1), atol=1e-3)


def test_without_a_phrase_that_may_be_taken_a_name_keeps_its_row(phrases: Phrases) -> None:
    known = Phrases(names=("highway",), rows=phrases.rows[2:], contrast=phrases.contrast)
    text = torch.stack([normalize(torch.randn(SIZE), dim=-1), phrases.rows[2]])
    row, phrase = start_of(0, NAMES, text, seen_of(text), known, 20.0)
    assert phrase is None and torch.equal(row, text[0])


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
