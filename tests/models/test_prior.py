"""The class prior: its estimate without labels, and what it takes from logits."""

from __future__ import annotations

import math

import pytest
import torch

from ovsdino.models.prior import estimate_prior, prior_offsets, text_log_prior


def likelihoods(shares: list[float], n: int) -> torch.Tensor:
    """Log likelihoods (3, 1, n) of positions drawn from classes with these shares, right in 8 of 10 cases."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.multinomial(torch.tensor(shares), n, True, generator=generator)
    wrong = torch.rand(n, generator=generator) < 0.2
    seen = torch.where(wrong, (truth + torch.randint(1, 3, (n,), generator=generator)) % 3, truth)
    table = torch.full((3, 3), 0.1) + 0.7 * torch.eye(3)  # p(seen | class)
    return table[:, seen].log()[:, None]


def test_the_shares_of_unlabeled_positions_are_found() -> None:
    shares = [0.7, 0.25, 0.05]
    found = estimate_prior([likelihoods(shares, 30_000)], rounds=100)
    torch.testing.assert_close(found, torch.tensor(shares), atol=0.01, rtol=0)


def test_every_image_counts_alike() -> None:
    one, other = torch.zeros(2, 2, 2), torch.zeros(2, 8, 9)
    one[0], other[1] = 50, 50
    torch.testing.assert_close(estimate_prior([one, other]), torch.tensor([0.5, 0.5]))


def test_it_is_the_estimate_of_training_over_whole_images() -> None:
    logits = torch.randn(3, 4, 5, 6)
    expected = text_log_prior(logits, torch.ones(3, 1, 5, 6), 1.0, 0.01, rounds=7).exp()
    torch.testing.assert_close(estimate_prior(list(logits), least=0.01, rounds=7), expected)


def test_no_prior_is_below_the_least() -> None:
    logits = torch.zeros(2, 4, 4)
    logits[0] = 50
    assert estimate_prior([logits], least=0.02).tolist() == pytest.approx([1.0, 0.02])


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        estimate_prior([])


def test_offsets_are_tau_log_prior() -> None:
    found = prior_offsets(torch.tensor([1.0, math.e, math.e**2]), 0.5, 3)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize(
    ("prior", "tau", "message"),
    [
        (torch.ones(2), 0.5, r"prior must be \(3,\).* got \(2,\)"),
        (torch.ones(1, 3), 0.5, r"prior must be \(3,\)"),
        (torch.tensor([1.0, 0.0, 1.0]), 0.5, "positive and finite, its least is 0"),
        (torch.tensor([1.0, math.nan, 1.0]), 0.5, "positive and finite"),
        (torch.tensor([1.0, math.inf, 1.0]), 0.5, "positive and finite"),
        (torch.ones(3), -1.0, "tau is -1.0"),
        (torch.ones(3), math.nan, "tau is nan"),
    ],
)
def test_what_is_no_prior_is_refused(prior: torch.Tensor, tau: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior_offsets(prior, tau, 3)


def test_the_prior_is_that_of_the_cells() -> None:
    """Two texts, cells of three kinds; the estimate solves prior = mean softmax(logits + log prior)."""
    odds = torch.tensor([[9.0, 1.0], [1.0, 1.0], [1.0, 9.0]])
    kinds = torch.tensor([0] * 12 + [1] * 5 + [2] * 3)
    logits = odds[kinds].log().T.reshape(1, 2, 4, 5)
    everywhere = torch.ones(1, 1, 4, 5)
    prior = text_log_prior(logits, everywhere, 1.0, 1e-6, rounds=200).exp()
    expected = ((odds * prior) / (odds * prior).sum(1, keepdim=True))[kinds].mean(0)
    torch.testing.assert_close(prior, expected, rtol=1e-4, atol=1e-5)
    assert prior[0] > 0.6 and prior.sum().item() == pytest.approx(1, abs=1e-5)
    one = text_log_prior(logits, everywhere, 1.0, 1e-6, rounds=1).exp()
    assert one[0].item() == pytest.approx((12 * 0.9 + 5 * 0.5 + 3 * 0.1) / 20, abs=1e-6)
    assert text_log_prior(logits, everywhere, 0.0, 0.02).tolist() == [0, 0]
    assert text_log_prior(logits, everywhere, 1.0, 0.5, rounds=1)[1].exp().item() == pytest.approx(0.5)


def test_every_region_counts_alike_in_the_prior() -> None:
    logits = torch.tensor([[[[4.0, 0.0, 0.0]], [[0.0, 0.0, 4.0]]]])  # (1, 2, 1, 3)
    cover = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]])  # the third is not a region
    p = torch.sigmoid(torch.tensor(4.0)).item()
    prior = text_log_prior(logits, cover, 1.0, 0.01, rounds=1).exp()
    assert prior.tolist() == pytest.approx([((p + 0.5) / 2 + 1 - p) / 2, ((1 - p + 0.5) / 2 + p) / 2], abs=1e-6)
    halves = [text_log_prior(logits, cover[:, i : i + 1], 1.0, 0.01, lambda x: 2 * x, rounds=1) for i in (0, 1)]
    assert all(torch.isfinite(half).all() for half in halves)
    nothing = text_log_prior(logits, cover[:, 2:], 1.0, 0.02)
    torch.testing.assert_close(nothing, torch.full((2,), 0.02).log())
    assert text_log_prior(logits[:, :0], cover, 1.0, 0.02).shape == (0,)
