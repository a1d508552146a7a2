"""Rows are learned from tokens: what the vectors are, that learning helps, and that nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovsdino.pipeline import Segmenter
from ovsdino.train.adapt.learning import (
    LearnConfig,
    Problem,
    Tokens,
    choose_steps,
    folds,
    learn,
    mean_iou,
    overlaps,
    token_shares,
    token_vectors,
)
from tests.support.small import small_model

DIM, SCALE = 16, 20.0


def tokens(seed: int, count: int = 60) -> Tokens:
    """Tokens of three classes: the first two share a text row's direction, the third is none of them."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 3
    vectors = 0.3 * torch.randn(count, DIM, generator=generator)
    vectors[:, 0] += 1.0 * (label < 2)
    vectors[:, 1] += 0.8 * (label == 0)
    vectors[:, 2] += 1.0 * (label == 2)
    vectors = F.normalize(vectors)
    return Tokens(vectors=vectors, contrast=SCALE * vectors[:, 2], shares=F.one_hot(label, 3).float())


@pytest.fixture
def problem() -> Problem:
    """Two words at one and nearly the same place, of which the first is to learn."""
    text = torch.zeros(2, DIM)
    text[:, 0] = 1.0
    text[0, 3] = 0.1
    return Problem(text=F.normalize(text), learned=(0,), scale=SCALE)


def test_a_learned_row_tells_its_tokens_apart_and_the_other_rows_stay(problem: Problem) -> None:
    parts = [tokens(seed) for seed in range(5)]
    steps, held_out = choose_steps(problem, parts, LearnConfig())
    assert steps > 0 and len(held_out) == 5
    rows = problem.rows(learn(problem, parts, steps, LearnConfig()))
    assert torch.equal(rows[1], problem.text[1])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    fresh = tokens(9)
    before, after = (overlaps(problem.logits(fresh, r), fresh.shares) for r in (problem.text, rows))
    gain = after[0] / after[1] - before[0] / before[1]
    assert gain[0] > 0.1 and gain[1] > 0.1 and abs(gain[2]) < 0.1


def test_nothing_to_gain_takes_no_step(problem: Problem) -> None:
    right = Problem(text=F.normalize(torch.eye(DIM)[:2] + torch.eye(DIM)[[1, 0]] * 0.8), learned=(0,), scale=SCALE)
    parts = []
    for seed in range(4):
        noise = 0.01 * torch.randn(30, DIM, generator=torch.Generator().manual_seed(seed))
        label = torch.arange(30) % 2
        vectors = F.normalize(right.text[label] + noise)
        shares = F.one_hot(label, 3).float()
        parts.append(Tokens(vectors=vectors, contrast=torch.full((30,), -1e4), shares=shares))
    assert choose_steps(right, parts, LearnConfig())[0] == 0


def test_the_pull_holds_rows_near_their_text(problem: Problem) -> None:
    parts = [tokens(seed) for seed in range(3)]
    loose, tight = (learn(problem, parts, 50, LearnConfig(pull=pull)).norm() for pull in (0.1, 100.0))
    assert tight < 0.2 * loose


def test_looks_see_the_text_first_and_then_every_few_steps(problem: Problem) -> None:
    seen: dict[int, torch.Tensor] = {}
    learn(problem, [tokens(0)], 7, LearnConfig(every=3), seen.__setitem__)
    assert list(seen) == [0, 3, 6] and torch.equal(seen[0][1], problem.text[1])
    torch.testing.assert_close(seen[0], problem.text)


@pytest.mark.parametrize(("images", "parts"), [(2, 2), (9, 9), (10, 5), (23, 5)])
def test_every_image_is_held_out_once(images: int, parts: int) -> None:
    found = folds(images, LearnConfig())
    assert len(found) == parts and sorted(index for part in found for index in part) == list(range(images))


def test_shares_count_labelled_pixels_and_overlaps_count_tokens() -> None:
    label = torch.tensor([[0, 0, 1, 255], [0, 1, 255, 255]])
    shares = token_shares(label, (1, 2), 3)
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]))
    found, there = overlaps(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), shares), [0.75, 1.25, 0.0]
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.0, 0.0], [2.0, 1.25, 0.0], there], dtype=torch.float64))


def test_a_word_that_no_label_has_is_not_scored() -> None:
    shares = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    without = overlaps(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), shares)
    strayed = overlaps(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), shares)
    assert mean_iou(without) == 1.0 and mean_iou(strayed) == 0.5  # not 0.25, the mean with the strayed word's zero


def test_vectors_times_a_row_are_the_models_logits_at_a_token() -> None:
    model = small_model(upsampling="bilinear")
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.detail.weight, std=0.5)
    segmenter = Segmenter(model)
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    features = segmenter.encode_image(image)
    assert features.structure is not None
    features.tokens = features.tokens[..., :1, :1].expand_as(features.tokens)  # bilinear keeps a constant
    full, plain = token_vectors(model, features)
    text = segmenter.encode_text(["road", "sky"])
    fine = segmenter.decode(features, text)[0]
    expected = F.avg_pool2d(fine, 4).flatten(1).T
    scale = float(model.log_scale.exp())
    torch.testing.assert_close(scale * full @ text.T, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale * plain @ text.T, model.coarse_logits(features, text)[0].flatten(1).T)
