"""Training of nano's text tower: the network over a lexicon's rows is taught to give the teacher's rows of phrases."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.models.lexicon import LexiconTextTower
from ovsdino.models.spelling import WORDS_MAX
from ovsdino.train.config import CommonConfig, OptimConfig
from ovsdino.train.pretrain.phrases import GROUPS, Phrase
from ovsdino.train.trainer import Trainer

BATCH = 1024
ORDERED = 256  # phrases whose similarities to one another are compared
SHARES = {"core": 0.2, "common": 0.2, "named": 0.25, "vocabulary": 0.05, "composed": 0.25, "plural": 0.04, "part": 0.01}
BY_GRAMS = 0.2  # share of the words that are read by their n-grams alone, half of them misspelt
SLIPS = 2  # misspellings of each word


class TextDistiller(Trainer):
    """Trains the network of a tower to give the teacher's rows.

    A phrase is shown as the tower reads it, by its longest parts in the lexicon or word by word. Some of the words are
    shown by their character n-grams, as a word is that nobody knows.

    Args:
        config: Of the run.
        steps: Of training.
        tower: The student, with its lexicon.
        phrases: What is learnt.
        rows: The teacher's, (n, D) of length one.
        written: Called at every checkpoint.
    """

    betas = (0.9, 0.99)
    optim_key = ""

    def __init__(
        self,
        config: CommonConfig,
        steps: int,
        tower: LexiconTextTower,
        phrases: Sequence[Phrase],
        rows: Tensor,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        optim = OptimConfig(steps=steps, lr=2e-3, weight_decay=0.0, warmup=min(200, steps), clip=math.inf)
        super().__init__(config, optim, print)
        self.tower, self.goals, self.written = tower, rows, written
        self.members = {
            group: torch.tensor([i for i, phrase in enumerate(phrases) if phrase.group == group]) for group in GROUPS
        }
        places: dict[str, int] = {}
        self.shown = torch.full((2, len(phrases), WORDS_MAX), -1)
        for row, phrase in enumerate(phrases):
            words = tower.reading(phrase.text).words
            for way, parts in enumerate((longest_parts(tower, words), words)):
                ids = [places.setdefault(part, len(places)) for part in parts]
                self.shown[way, row, : len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            self.stored = torch.stack([tower.row(part) if tower.knows(part) else tower.scale * 0 for part in places])
        self.unknown = torch.tensor([not tower.knows(part) for part in places])
        rng = random.Random(config.seed)
        self.pieces = torch.stack(
            [tower.pieces([*places]), *(tower.pieces([misspelt(part, rng) for part in places]) for _ in range(SLIPS))]
        ).int()
        self.prepare(tower)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up times half a cosine to zero."""
        c = self.optim
        return c.lr * min(1.0, (step + 1) / c.warmup) * 0.5 * (1 + math.cos(math.pi * step / c.steps))

    def batches(self, start: int, steps: int) -> Iterator[Tensor]:
        """Yield the phrases of each step; see `Trainer.batches`."""
        groups = [group for group in GROUPS if len(self.members[group])]
        chances = torch.tensor([SHARES[group] for group in groups])
        for step in range(start, steps):
            draws = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
            counts = torch.multinomial(chances, BATCH, replacement=True, generator=draws).bincount(
                minlength=len(groups)
            )
            parts = zip(groups, counts.tolist(), strict=True)
            drawn = [self.members[g][torch.randint(len(self.members[g]), (n,), generator=draws)] for g, n in parts]
            yield torch.cat(drawn)[torch.randperm(BATCH, generator=draws)]

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        """Return one minus the cosine to the teacher, and the error of the similarities among phrases."""
        ids = self.shown[torch.randint(2, (len(batch),)), batch]
        out, goal = F.normalize(self.tower(*self.inputs(ids, BY_GRAMS)), dim=-1), self.goals[batch]
        parts = zip(out.split(ORDERED), goal.split(ORDERED), strict=True)
        pairs = [(a @ a.T - b @ b.T).square().mean() for a, b in parts]
        return {
            "cosine": (1 - (out * goal).sum(-1)).mean(),
            # Keeps the order of similarities, which is what classification by words uses.
            "order": 2.0 * torch.stack(pairs).mean(),
        }

    def inputs(self, ids: Tensor, by_grams: float) -> tuple[Tensor, Tensor]:
        """Return the rows (n, parts, width) and the mask (n, parts) of phrases given by the ids of their parts."""
        ids = ids[:, : int((ids >= 0).sum(1).max())]
        mask = ids >= 0
        rows = self.stored[ids.clamp_min(0)]
        spelled = mask & ((torch.rand(ids.shape) < by_grams) | self.unknown[ids.clamp_min(0)])
        which = torch.randint(2 * SLIPS, (int(spelled.sum()),)) - SLIPS + 1 if by_grams else torch.zeros(1).long()
        pieces = self.pieces[which.clamp_min(0), ids[spelled]].long()
        return rows.masked_scatter(spelled.unsqueeze(-1), self.tower.gram_rows(pieces)), mask

    @torch.no_grad()
    def agreement(self) -> Tensor:
        """Return the cosine of each phrase, as the network makes it of its parts, to the teacher's row, (n,)."""
        out = [F.normalize(self.tower(*self.inputs(ids, 0.0)), dim=-1) for ids in self.shown[0].split(1024)]
        return (torch.cat(out) * self.goals).sum(-1)

    def state(self) -> dict[str, Any]:
        """Return the network's weights; see `Trainer.state`."""
        return {"tower": {name: value.detach() for name, value in self.trained.items()}}

    def take_up(self, state: dict[str, Any]) -> None:
        """Load what `state` returned; see `Trainer.take_up`."""
        if {name: value.shape for name, value in state["tower"].items()} != {
            name: value.shape for name, value in self.trained.items()
        }:
            raise self.foreign()
        self.tower.load_state_dict(state["tower"], strict=False)

    def save(self) -> None:
        """Write the checkpoint, and the tower as it is."""
        super().save()
        self.written()


def longest_parts(tower: LexiconTextTower, words: Sequence[str]) -> list[str]:
    """Return the longest stored parts of a phrase, the whole phrase not among them unless it is one word."""
    parts = tower.parts(words)
    if len(parts) > 1 or len(words) == 1:
        return parts
    return min((tower.parts(words[:cut]) + tower.parts(words[cut:]) for cut in range(1, len(words))), key=len)


def misspelt(word: str, rng: random.Random) -> str:
    """Return a word with one letter missing, doubled, wrong or swapped with the next; a short word as it is."""
    if len(word) < 4:
        return word
    i = rng.randrange(len(word) - 1)
    a, b = word[:i], word[i:]
    return rng.choice(
        (a + b[1:], a + b[0] + b, a + rng.choice(string.ascii_lowercase) + b[1:], a + b[1] + b[0] + b[2:])
    )
