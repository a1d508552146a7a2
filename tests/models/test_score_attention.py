"""Structure attention on class scores: its formula pixel by pixel, its tiles, and its numbers at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.models.config import ScoreAttentionConfig
from ovsdino.models.score_attention import ScoreAttention, score_attention


def inputs(classes: int = 3, h: int = 3, w: int = 4, batch: int = 2, channels: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    scores = 3 * torch.randn(batch, classes, h, w, generator=generator)
    return scores, torch.randn(batch, channels, 4 * h, 4 * w, generator=generator)


def bilinear(scores: Tensor, scale: float = 4.0) -> Tensor:
    return F.interpolate(scores, scale_factor=scale, mode="bilinear", align_corners=False)


def direct(scores: Tensor, embedding: Tensor, gamma: float, strength: float, reach: int) -> np.ndarray:
    """The formula for one image, pixel by pixel, in float64; keys are of the pixel's tile and the eight around."""
    values, keys = bilinear(scores.double(), 2.0)[0].numpy(), F.avg_pool2d(embedding.double(), 2)[0].numpy()
    fine = embedding[0].double().numpy()
    out = np.zeros((scores.shape[1], *fine.shape[1:]))
    for y, x in np.ndindex(*fine.shape[1:]):
        weights, total = 0.0, 0.0
        for v, u in np.ndindex(*keys.shape[1:]):
            if abs(v // (2 * reach) - y // (4 * reach)) > 1 or abs(u // (2 * reach) - x // (4 * reach)) > 1:
                continue
            away = ((v + 0.5) / 2 - (y + 0.5) / 4) ** 2 + ((u + 0.5) / 2 - (x + 0.5) / 4) ** 2
            distance = ((fine[:, y, x] - keys[:, v, u]) ** 2).sum() + gamma**2 * away
            weight = np.exp(-strength * distance)
            weights, total = weights + weight, total + weight * values[:, v, u]
        out[:, y, x] = total / weights
    return out


@pytest.mark.parametrize("reach", [1, 2, 3, 7])
def test_equal_to_the_formula(reach: int) -> None:
    scores, embedding = inputs(h=5, w=4, batch=1)
    found = score_attention(scores, 0.4 * embedding, gamma=0.8, strength=1.7, reach=reach)
    np.testing.assert_allclose(found[0].numpy(), direct(scores, 0.4 * embedding, 0.8, 1.7, reach), atol=2e-5)


def test_queries_at_every_second_pixel_are_upsampled() -> None:
    scores, embedding = inputs()
    half = F.avg_pool2d(embedding, 2)
    expected = score_attention(scores, half.repeat_interleave(2, 2).repeat_interleave(2, 3), gamma=0.0)[..., ::2, ::2]
    torch.testing.assert_close(score_attention(scores, embedding, gamma=0.0, query_stride=2), bilinear(expected, 2.0))


def test_a_second_round_reads_the_first_one_at_the_keys() -> None:
    scores, embedding = inputs(h=4, w=4)
    twice = score_attention(scores, embedding, rounds=2)
    assert not torch.allclose(twice, score_attention(scores, embedding))
    constant = torch.full_like(scores, 2.5)
    torch.testing.assert_close(score_attention(constant, embedding, rounds=2), bilinear(constant))


def test_a_token_that_errs_is_outvoted_by_those_that_look_like_it() -> None:
    embedding = torch.zeros(1, 1, 24, 24)
    embedding[..., 10:] = 10  # an edge in the middle of a token
    truth = torch.cat([1 - embedding / 10, embedding / 10], 1)
    scores = F.avg_pool2d(truth, 4)
    scores[0, :, 2, 1] = torch.tensor([0.4, 0.6])
    found = score_attention(scores, embedding)
    assert torch.equal(found.argmax(1), truth.argmax(1))
    assert bilinear(scores)[0, :, 9, 7].argmax() == 1


def test_scores_of_classes_do_not_meet_and_stay_between_the_least_and_the_largest() -> None:
    scores, embedding = inputs()
    found = score_attention(scores, embedding)
    for index in range(3):
        alone = score_attention(scores[:, index : index + 1], embedding)
        torch.testing.assert_close(found[:, index : index + 1], alone)
    assert (found.amax((2, 3)) <= scores.amax((2, 3)) + 1e-5).all()
    assert (found.amin((2, 3)) >= scores.amin((2, 3)) - 1e-5).all()


def test_images_of_a_batch_do_not_meet() -> None:
    scores, embedding = inputs()
    alone = [score_attention(scores[i : i + 1], embedding[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(score_attention(scores, embedding), torch.cat(alone))


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 2, 3, 3), (2, 3, 12, 12)), {}, "scores must be"),
        (((1, 2, 3, 3), (1, 3, 12, 16)), {}, "even multiple of the grid 3x3"),
        (((1, 2, 3, 3), (1, 3, 9, 9)), {}, "even multiple"),
        (((1, 2, 3, 3), (1, 3, 12, 12)), {"reach": 0}, "reach and rounds must be >= 1"),
        (((1, 2, 3, 3), (1, 3, 12, 12)), {"query_stride": 3}, "query_stride 1 or 2"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_attention(*(torch.zeros(shape) for shape in shapes), **options)


def module(mix: float = 1.0, **changes: Any) -> ScoreAttention:
    torch.manual_seed(0)
    return ScoreAttention(ScoreAttentionConfig(mix=mix, **changes), 6).eval()


def test_fresh_it_is_bilinear_upsampling_bit_for_bit() -> None:
    scores, guide = inputs()
    assert torch.equal(module(0.0)(scores, bilinear(scores), guide), bilinear(scores))


def test_trained_it_is_the_attention_along_its_affinity() -> None:
    it, (scores, guide) = module(), inputs()
    torch.nn.init.constant_(it.log_lambda, 0.7)
    torch.nn.init.constant_(it.gamma, 0.9)
    expected = score_attention(scores, it.embed(guide), gamma=0.9, strength=torch.tensor(0.7).exp())
    torch.testing.assert_close(it(scores, bilinear(scores), guide), expected)
    assert it.embed(guide).shape == (2, 13, 12, 16)


def test_the_control_sees_no_guide() -> None:
    scores, guide = inputs()
    control, other = module(structure=False), torch.randn_like(guide)
    assert [name for name, _ in control.named_parameters()] == ["log_lambda", "gamma", "mix"]
    assert torch.equal(control(scores, bilinear(scores), guide), control(scores, bilinear(scores), other))
    full = module()
    assert not torch.allclose(full(scores, bilinear(scores), guide), full(scores, bilinear(scores), other))
    torch.nn.init.zeros_(full.affinity.weight)  # an affinity of no length is the control
    torch.testing.assert_close(full(scores, bilinear(scores), guide), control(scores, bilinear(scores), guide))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_sixteen_bits_attend_in_float32(dtype: torch.dtype) -> None:
    it, (scores, guide) = module(), inputs()
    scores, guide = scores.to(dtype), guide.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = it(scores, bilinear(scores), guide)
    with torch.no_grad():
        exact = it(scores.float(), bilinear(scores.float()), guide.float())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


def test_a_score_that_is_no_number_is_not_hidden_and_stays_in_its_class_and_image() -> None:
    scores, guide = inputs(batch=2)
    scores[0, 1, 1, 2] = torch.nan
    found = module()(scores, bilinear(scores), guide)
    assert found[0, 1, 4:8, 8:12].isnan().all()
    assert found[1].isfinite().all() and found[0, [0, 2]].isfinite().all()


def test_a_guide_of_thousands_stays_finite_with_its_gradients() -> None:
    scores, guide = inputs()
    it, guide = module(), (1000 * guide).requires_grad_()
    found = it(scores.requires_grad_(), bilinear(scores), guide)
    found.square().sum().backward()
    assert all(x.isfinite().all() for x in (found, scores.grad, guide.grad, *(p.grad for p in it.parameters())))


@pytest.mark.parametrize(("classes", "batch", "h", "w"), [(1, 1, 3, 4), (3, 1, 1, 1), (3, 0, 3, 4), (3, 1, 1, 9)])
def test_one_class_small_grids_and_empty_batches(classes: int, batch: int, h: int, w: int) -> None:
    scores, guide = inputs(classes, h, w, batch)
    fine = scores.new_zeros(batch, classes, 4 * h, 4 * w)
    for changes in ({}, {"query_stride": 2}, {"rounds": 2}, {"reach": 1}):
        found = module(**changes)(scores, fine, guide)
        assert found.shape == fine.shape and found.isfinite().all()
    if (h, w) == (1, 1):
        torch.testing.assert_close(found, scores.expand_as(fine))
