"""Learn rows for words of one's own from the tokens of a few labelled images, with the network as it is.

The network sees each image once. The logit of a word at a token i is linear in the word's row t_k, so one vector stands
for the token:

    L_ik = s x_i . t_k            x_i = F'_i / |F'_i| + W_r mean(G over the token's pixels)

The row of a learned word is normalize(t_k + r_k). The residuals r minimize

    sum_ik w_k p_ik CE_ik / sum_ik w_k p_ik + pull mean_k |r_k|^2,        CE_ik = -log softmax_k(L_i)

where p_ik is the share of class k in the token's pixels. The candidates of the softmax are all words of the data set,
of which only the learned ones move, and the contrast words as one, by their maximum: so a row does not swallow what is
none of the words. The number of steps is chosen on images that were held out, each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.models.backbone import normalize
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.settings import Within
from ovsdino.train.dense.losses import coarse_labels

__all__ = ["LearnConfig", "Problem", "Tokens", "choose_steps", "folds", "learn", "token_shares", "token_vectors"]

LEAST_GAIN = 0.01  # of IoU: images that were chosen to show a word flatter the learning


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """The settings of the learning.

    They were chosen with lite2's aligned head on VOC, ten training images for each of three words: see
    docs/decisions.md.

    Attributes:
        steps: The largest number of steps (Adam on all tokens at once).
        every: Steps between two looks at the images held out.
        rate: Learning rate; rows have length one.
        pull: Weight of the residual's squared length.
        others: Weight of the pixels of words that are not learned, and of none of the words, against those of learned
            words. These are rarer in the images to come than in the ones that were chosen to show them.
        folds: Parts that the images are held out in; with fewer images than twice that, one image at a time.
    """

    steps: Annotated[int, Within(1, 100_000)] = 60
    every: Annotated[int, Within(1, 100_000)] = 5
    rate: Annotated[float, Within(0, 1, above=True)] = 0.01
    pull: Annotated[float, Within(0, 1000)] = 2.0
    others: Annotated[float, Within(0, 1000, above=True)] = 2.0
    folds: Annotated[int, Within(2, 100)] = 5


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens of one image, or of several.

    Attributes:
        vectors: x, (N, D) float32.
        contrast: The largest logit of the contrast words, (N,) float32.
        shares: Share of each word in the token's pixels, (N, K + 1) float32, the last column that of none of them; a
            row of zeros has no label.
    """

    vectors: Tensor
    contrast: Tensor
    shares: Tensor


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The words of a data set, and those of them to learn.

    Attributes:
        text: (K, D) float32, their text rows.
        learned: Indices of the words to learn.
        scale: s, the factor of the cosine.
    """

    text: Tensor
    learned: tuple[int, ...]
    scale: float

    def rows(self, residual: Tensor) -> Tensor:
        """Return the rows of all words, (K, D), given the residuals of the learned ones, (len(learned), D)."""
        at = torch.tensor(self.learned)
        return self.text.index_put((at,), normalize(self.text[at] + residual, dim=-1))

    def logits(self, tokens: Tokens, rows: Tensor) -> Tensor:
        """Return the logits of tokens, (N, K + 1), the last that of none of the words."""
        return torch.cat([self.scale * tokens.vectors @ rows.T, tokens.contrast[:, None]], 1)

    def weighted(self, shares: Tensor, others: float) -> Tensor:
        """Return shares (N, K + 1), those of words that are not learned times a weight."""
        weight = torch.full((shares.shape[1],), others)
        weight[list(self.learned)] = 1.0
        return shares * weight


def token_vectors(model: OVSDINO, features: ImageFeatures) -> tuple[Tensor, Tensor]:
    """Return the vectors that a word's row and a contrast word's row are compared with at the tokens of one image.

    Args:
        model: The model.
        features: Of `OVSDINO.encode_image`, a batch of one.

    Returns:
        x and F' / |F'|, both (h w, D) float32.
    """
    plain = normalize(features.tokens.float())
    full = plain
    if model.decoder is not None and features.structure is not None and model.config.detail:
        guide = F.adaptive_avg_pool2d(features.structure.guide.float(), (plain.shape[-2], plain.shape[-1]))
        full = plain + torch.einsum("bchw,dc->bdhw", guide, model.decoder.detail.weight.float())
    return full[0].flatten(1).T.contiguous(), plain[0].flatten(1).T.contiguous()


def token_shares(labels: Tensor, size: tuple[int, int], classes: int) -> Tensor:
    """Return the share of each class in the labelled pixels of each token.

    Args:
        labels: (H, W) int64 in 0..classes - 1, or 255 for no label.
        size: (h, w), the grid of the tokens.
        classes: The number of classes.

    Returns:
        (h w, classes) float32; rows sum to one, or to zero where no pixel has a label.
    """
    return coarse_labels(labels[None], size, classes)[0].flatten(1).T.contiguous()


def learn(
    problem: Problem,
    parts: Sequence[Tokens],
    steps: int,
    config: LearnConfig,
    look: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return the residuals that were learned.

    Args:
        problem: The words.
        parts: Tokens of the images to learn from.
        steps: The number of steps.
        config: Settings.
        look: Called with the number of steps and the rows (K, D), before the first step and every `config.every`.

    Returns:
        (len(learned), D) float32.
    """
    tokens = joined(parts)
    shares = problem.weighted(tokens.shares, config.others)
    total = shares.sum().clamp_min(1e-6)
    residual = torch.zeros(len(problem.learned), problem.text.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([residual], config.rate)
    for step in range(steps + 1):
        if look is not None and step % config.every == 0:
            look(step, problem.rows(residual.detach()))
        if step == steps:
            break
        optimizer.zero_grad()
        log_p = F.log_softmax(problem.logits(tokens, problem.rows(residual)), 1)
        loss = -(shares * log_p).sum() / total
        (loss + config.pull * residual.square().sum(1).mean()).backward()
        optimizer.step()
    return residual.detach()


def folds(images: int, config: LearnConfig) -> list[list[int]]:
    """Return the images that are held out together: every image once, one at a time where there are few.

    >>> folds(4, LearnConfig())
    [[0], [1], [2], [3]]
    """
    count = images if images < 2 * config.folds else config.folds
    return [list(range(part, images, count)) for part in range(count)]


def choose_steps(
    problem: Problem, parts: Sequence[Tokens], config: LearnConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[int, list[Tensor]]:
    """Return the number of steps after which the images held out are labelled best, 0 where learning does not help.

    Args:
        problem: The words.
        parts: Tokens of each image.
        config: Settings.
        progress: Called with (done, total) after each part that was held out.

    Returns:
        The first multiple of `config.every` at which the mean of the intersection over union is largest, over the
        candidates that are labelled and in tokens of the images held out, weighed by `config.others`; 0 where that
        gains less than a point. And for each of the parts of `folds` the rows of all words (K, D) after so many steps
        without it.
    """
    counts: dict[int, Tensor] = {}
    rows_of: list[dict[int, Tensor]] = []
    parted = folds(len(parts), config)
    for done, out in enumerate(parted):
        held = joined([parts[index] for index in out])
        shares = problem.weighted(held.shares, config.others)
        seen: dict[int, Tensor] = {}
        kept = [part for index, part in enumerate(parts) if index not in out]
        learn(problem, kept, config.steps, config, seen.__setitem__)
        for step, rows in seen.items():
            counts[step] = counts.get(step, torch.zeros(())) + overlaps(problem.logits(held, rows), shares)
        rows_of.append(seen)
        if progress is not None:
            progress(done + 1, len(parted))
    steps = _best(counts)
    return steps, [seen[steps] for seen in rows_of]


def _best(counts: dict[int, Tensor]) -> int:
    """Return the number of steps with the best score, 0 where that is not `LEAST_GAIN` above no step."""
    scores = {step: mean_iou(found) for step, found in counts.items()}
    best = max(scores, key=lambda step: (scores[step], -step))
    return best if scores[best] >= scores[0] + LEAST_GAIN else 0


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Return the tokens of several images as those of one."""
    names = ("vectors", "contrast", "shares")
    return Tokens(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def overlaps(logits: Tensor, shares: Tensor) -> Tensor:
    """Return intersection, union and labels of each candidate in tokens, (3, K + 1) float64.

    Args:
        logits: (N, K + 1).
        shares: (N, K + 1), see `token_shares`.
    """
    shown = F.one_hot(logits.argmax(1), shares.shape[1]).double()
    both, there = (shown * shares).sum(0), shares.double().sum(0)
    return torch.stack([both, (shown * shares.sum(1, keepdim=True)).sum(0) + there - both, there])


def mean_iou(found: Tensor) -> float:
    """Return the mean over the candidates that are in the labels, so that all steps are scored by the same ones."""
    return float((found[0] / found[1].clamp_min(1e-6))[found[2] > 0].mean())
