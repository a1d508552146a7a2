"""The row that the learning of a word starts from: its own, or that of known phrases that fit its pixels far better.

A name of one's own ("my thing 1") says little, and its row lies anywhere. Known phrases that describe the thing are
then the better start. A name that is such a phrase itself keeps its row. Phrases are tried in the word's place on the
tokens of all images: with a row t in place of the word's, J(t) is the mean cross-entropy that
`ovsdino.train.adapt.learning` minimizes, here for each token of the word: J(t) sum_ik w_k p_ik / sum_i w p_i. The row
is the mean of the phrases', each weighted by how well it fits:

    t = normalize(sum_j exp(-J(t_j) / T) t_j)

for the phrase that fits a few images best is often too narrow ("siamese cat"), and the mean of many too wide. It is
taken where J(t_own) - J(t) >= 1, that is where a token of the word gains one nat or more by it. A contrast phrase that
is near to a row does not compete with it, as when the words are used (`ovsdino.text_banks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovsdino.contrast import NEAR, contrast_phrases, rivals
from ovsdino.models.backbone import normalize
from ovsdino.models.grounding import grounded_phrases
from ovsdino.pipeline import Segmenter
from ovsdino.vocabulary import word_key

__all__ = ["Phrases", "Seen", "known_phrases", "start_of"]

TRIED = 48  # phrases whose loss is looked at
GAIN = 1.0  # nats per token of the word from which the phrases are taken
SOFTNESS = 0.07  # T, nats per token of the word: a phrase that fits so much worse has 1 / e of the weight


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The tokens of images before it is known which contrast phrases compete.

    Attributes:
        vectors: x, (N, D) float32, which the words' rows are compared with.
        plain: F' / |F'|, (N, D) float32, which the contrast rows are compared with.
        shares: w_k p_ik, (N, K + 1) float32: each word's share of the token's pixels, weighted.
    """

    vectors: Tensor
    plain: Tensor
    shares: Tensor


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """Phrases that a word may start from, and the contrast's.

    Attributes:
        names: T phrases.
        rows: (T, D) float32, their rows.
        contrast: (C, D) float32, the rows of all contrast phrases.
    """

    names: tuple[str, ...]
    rows: Tensor
    contrast: Tensor

    def near(self, rows: Tensor, others: Tensor) -> Tensor:
        """Return which of some rows mean the same as which of others, less what all phrases share: (R, O) bool."""
        center = self.contrast.mean(0)
        return normalize(rows - center, dim=-1) @ normalize(others - center, dim=-1).T >= NEAR


def known_phrases(segmenter: Segmenter) -> Phrases:
    """Return the phrases that photographs taught, and those of the contrast, as a model reads them."""
    names = tuple(dict.fromkeys((*grounded_phrases(), *contrast_phrases())))
    with torch.inference_mode():
        rows, contrast = (
            segmenter.encode_text([(phrase,) for phrase in phrases]).float().cpu()
            for phrases in (names, contrast_phrases())
        )
    return Phrases(names=names, rows=rows.clone(), contrast=contrast.clone())


def start_of(
    word: int, names: Sequence[str], text: Tensor, seen: Seen, phrases: Phrases, scale: float
) -> tuple[Tensor, str | None]:
    """Return the row that a word starts from, (D,), and the phrase that has most weight in it; None for the word's own.

    Args:
        word: Index of the word.
        names: All K words.
        text: (K, D) float32, their rows.
        seen: The tokens.
        phrases: Those that may be taken; one that means another of the words is not.
        scale: s, the factor of the cosine.
    """
    if word_key(names[word]) in {word_key(name) for name in phrases.names}:
        return text[word], None
    rest = [index for index in range(len(names)) if index != word]
    competing = torch.zeros(len(phrases.contrast), dtype=torch.bool)
    competing[rivals(names[index] for index in rest)] = True
    competing &= ~phrases.near(phrases.contrast, text[rest]).any(1)
    allowed = (~phrases.near(phrases.rows, text[rest]).any(1)).nonzero()[:, 0]
    if not len(allowed):
        return text[word], None
    chosen = allowed[_telling(seen, word, phrases.rows[allowed])]
    per_token = seen.shares.sum() / seen.shares[:, word].sum().clamp_min(1e-6)

    def losses(rows: Tensor, out: Tensor) -> Tensor:
        return per_token * _losses(seen, word, text, rows, phrases.contrast, out | ~competing, scale)

    tried = phrases.rows[chosen]
    fit = losses(tried, phrases.near(tried, phrases.contrast))
    mean = normalize((-fit / SOFTNESS).softmax(0) @ tried, dim=-1)
    both = torch.stack([text[word], mean])
    out = phrases.near(both, phrases.contrast)
    out[0] |= ~torch.zeros_like(competing).index_fill(0, torch.tensor(rivals([names[word]])), True)
    own, gained = losses(both, out).tolist()
    if own - gained < GAIN:
        return text[word], None
    return mean, phrases.names[int(chosen[fit.argmin()])]


def _telling(seen: Seen, word: int, rows: Tensor) -> Tensor:
    """Return the indices of the rows that tell a word's tokens best from all others by the mean cosine."""
    own = seen.shares[:, word]
    rest = seen.shares.sum(1) - own
    inside, outside = (weight / weight.sum().clamp_min(1e-6) @ seen.vectors for weight in (own, rest))
    return (rows @ (inside - outside)).topk(min(TRIED, len(rows))).indices


def _losses(seen: Seen, word: int, text: Tensor, tried: Tensor, contrast: Tensor, out: Tensor, scale: float) -> Tensor:
    """Return the mean cross-entropy with each of T rows in the place of a word's; `out` (T, C) do not compete."""
    labelled = seen.shares.sum(1) > 0
    vectors, shares = seen.vectors[labelled], seen.shares[labelled]
    logits = torch.cat([scale * vectors @ text.T, torch.zeros(len(vectors), 1)], 1)
    rivals_of = scale * seen.plain[labelled] @ contrast.T
    found = []
    for row, taken_out in zip(tried, out, strict=True):
        logits[:, word] = scale * vectors @ row
        logits[:, -1] = rivals_of.masked_fill(taken_out, -1e4).amax(1) if len(contrast) else -1e4
        found.append(-(shares * logits.log_softmax(1)).sum() / shares.sum())
    return torch.stack(found)
