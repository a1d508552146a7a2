"""The words of dense training, drawn anew at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_text
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.train.dense.config import TextSupervision


class TextBank:
    """Embeddings of the phrases of each class, and of distractor words that name nothing in the images.

    Args:
        model: Whose text tower reads the words.
        names: The classes.
        text: Their phrases.
        dataset: Name of the data set, for messages.
    """

    def __init__(self, model: OVSDINO, names: Sequence[str], text: TextSupervision, dataset: str) -> None:
        unknown = sorted(set(text.names) - set(names))
        if unknown:
            raise OVSDinoError(f"text.names: {unknown[0]!r} is not a class of {dataset}: {', '.join(names)}")
        phrases = [text.names.get(name, (name,)) for name in names]
        leaked = sorted(set(text.exclude) & {p for group in phrases for p in group})
        if leaked:
            raise OVSDinoError(f"text.exclude: {leaked[0]!r} is also a training phrase")
        self.phrases = [model.encode_text(group) for group in phrases]
        self.classes = torch.stack([group[0] for group in self.phrases])
        self.distractors = self.classes[:0]
        self.neighbours = [self.classes[:0] for _ in names]
        if text.vocabulary:
            bank = model.encode_text(read_vocabulary(text.vocabulary, text.exclude))
            nearest = torch.stack([(bank @ group.T).max(1).values for group in self.phrases], 1).amax(1)
            self.distractors = bank[nearest < text.distractor_max_cosine]
            self.neighbours = [bank[near] for near in neighbour_mask(bank, self.phrases, text).T]
        self.num_distractors = text.num_distractors

    def draw(self, generator: torch.Generator, neighbours: float = 0.0) -> Tensor:
        """Return the text rows of a step, (K + n, D): one phrase for each class, then distractors.

        Half of the time a class has its first phrase.

        Args:
            generator: Draws them.
            neighbours: Probability that a class is called by one of its vocabulary neighbors instead.
        """

        def pick(rows: Tensor) -> Tensor:
            return rows[int(torch.randint(len(rows), (), generator=generator))]

        rows = []
        for group, near in zip(self.phrases, self.neighbours, strict=True):
            if neighbours and len(near) and torch.rand((), generator=generator) < neighbours:
                rows.append(pick(near))
            else:
                rows.append(group[0] if torch.rand((), generator=generator) < 0.5 else pick(group))
        count = min(self.num_distractors, len(self.distractors))
        if count:
            picks = torch.randint(len(self.distractors), (count,), generator=generator)
            rows.extend(self.distractors[picks])
        return torch.stack(rows)


def neighbour_mask(bank: Tensor, phrases: Sequence[Tensor], text: TextSupervision) -> Tensor:
    """Return which words can be another name for which class, (n, K) bool.

    Args:
        bank: Rows of the words, (n, D).
        phrases: Rows of each class's phrases, (n_k, D).
        text: How near a neighbor is.
    """
    cosines = torch.stack([(bank @ group.T).max(1).values for group in phrases], 1)
    best = cosines.topk(min(2, len(phrases)), 1)
    clear = best.values[:, 0] >= text.neighbour_min_cosine
    clear &= best.values[:, 0] - best.values[:, -1] >= text.neighbour_margin
    return clear[:, None] & (best.indices[:, :1] == torch.arange(len(phrases), device=bank.device))


def read_vocabulary(path: str, exclude: tuple[str, ...]) -> list[str]:
    """Return the words of a file, one on each line, without those that begin with an excluded one."""
    words = read_text(path, "list of words", "see text.vocabulary").split("\n")
    return [word for word in words if word and not (exclude and word.startswith(exclude))]
