"""The share of each class by a model's own account, and what that takes from its logits (logit adjustment)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["estimate_prior", "prior_offsets", "text_log_prior"]


def prior_offsets(prior: Tensor, tau: float, classes: int) -> Tensor:
    """Return what a prior takes from the logits of each class: tau log prior (Menon et al., ICLR 2021).

    Args:
        prior: (K,) positive; a common factor changes nothing.
        tau: >= 0.
        classes: K.

    Returns:
        (K,) float32.

    Raises:
        ValueError: The shape is another, or a value is out of range.
    """
    if prior.shape != (classes,):
        raise ValueError(f"prior must be ({classes},), one for each class, got {tuple(prior.shape)}")
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau is {tau}: expected a number >= 0")
    if not bool(((prior > 0) & torch.isfinite(prior)).all()):
        raise ValueError(f"prior must be positive and finite, its least is {prior.min().item():g}")
    return tau * prior.float().log()


def text_log_prior(
    logits: Tensor,
    cover: Tensor,
    strength: float,
    least: float,
    add: Callable[[Tensor], Tensor] = lambda x: x,
    rounds: int = 10,
) -> Tensor:
    """Estimate the log of how common each text is, for logit adjustment (Menon et al. 2021).

        prior <- mean over the regions of softmax(logits + strength log prior),  from equal ones

    which is Saerens et al.'s (2002) expectation-maximization for the class prior of unlabeled data, at strength 1.
    With its prior added to the scores in training, and left out at inference, a score says how much more a cell looks
    like the text than cells do on average: a rare text can win.

    Args:
        logits: (B, U, h, w).
        cover: (B, R, h, w) in [0, 1], the share of each cell that lies in the region; every region counts alike.
        strength: 0 gives zeros.
        least: The least prior that is used: those of very rare texts are noise.
        add: Returns the sum of a tensor over all processes.
        rounds: Of the estimate.

    Returns:
        (U,) `strength` times the log prior, without gradient.
    """
    with torch.no_grad():
        flat = cover.float().flatten(2)
        size = flat.sum(-1, keepdim=True)
        weights = (flat / size.clamp_min(1e-6)).sum(1)  # (B, h w)
        count = add((size > 0).sum().float()).clamp_min(1)
        return _expected(logits.detach().float().flatten(2), weights, count, strength, least, add, rounds)


def estimate_prior(logits: Sequence[Tensor], least: float = 1e-3, rounds: int = 10) -> Tensor:
    """Estimate how common each class is over images without labels, as `text_log_prior` does at strength 1.

    Args:
        logits: Of each image, (K, h, w), on a grid of its own; every image counts alike.
        least: The least prior of a class.
        rounds: Of the estimate.

    Returns:
        (K,) float32, the shares of the classes, none below `least`.

    Raises:
        ValueError: There are no images.
    """
    if not logits:
        raise ValueError("logits is empty: a prior needs at least one image")
    with torch.no_grad():
        flat = [image.float().flatten(1) for image in logits]
        weights = torch.cat([image.new_full((image.shape[1],), 1 / max(1, image.shape[1])) for image in flat])
        count = weights.new_tensor(float(len(flat)))
        return _expected(torch.cat(flat, 1)[None], weights[None], count, 1.0, least, lambda x: x, rounds).exp()


def _expected(
    logits: Tensor,
    weights: Tensor,
    count: Tensor,
    strength: float,
    least: float,
    add: Callable[[Tensor], Tensor],
    rounds: int,
) -> Tensor:
    """Return (K,) `strength` times the log prior of logits (B, K, N) whose positions weigh `weights` (B, N)."""
    prior = logits.new_full((logits.shape[1],), 1 / max(1, logits.shape[1]))
    for _ in range(rounds):
        p = (logits + strength * prior.clamp_min(least).log()[:, None]).softmax(1)
        prior = add(torch.einsum("bun,bn->u", p, weights)) / count
    return strength * prior.clamp_min(least).log()
