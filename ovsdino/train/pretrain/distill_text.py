"""Nano's text tower, distilled from a sentence encoder: `python -m ovsdino.train.pretrain.distill_text --output F`.

Target of a word w: the teacher's embedding of "a photo of a w", centered over the word list, cut to its D leading
principal directions, length one. Centering takes out what all photo captions share, so that unrelated words are near
orthogonal. The student sees single words, and adjective-noun and noun-noun phrases. The teacher (a MiniLM sentence
encoder) and the word list inside it are needed here only; nothing of either is shipped.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ovsdino.io.files import atomic_write, read_text, refuse_inputs
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.sentence import SentenceEncoder
from ovsdino.models.text import HashedTextTower
from ovsdino.models.zoo import NANO
from ovsdino.parsing import run_script
from ovsdino.train.config import CommonConfig, OptimConfig
from ovsdino.train.stopping import Stopped
from ovsdino.train.trainer import Trainer

# A word is taken for a visual noun when it lies near one of these.
ANCHORS = (  # noqa: SIM905
    "object animal bird fish insect vehicle boat plant flower fruit food drink furniture clothing building material "
    "landscape person face tool machine device toy weather ground stone metal road room container instrument sport "
    "weapon paper light sign water mountain forest street house kitchen"
).split()
MODIFIERS = (  # noqa: SIM905
    "red green blue white black yellow brown grey old new small large wooden metal stone broken wet parked distant "
    "tall dark bright empty open city street road traffic garden forest snow painted young wild concrete glass"
).split()
BATCH = 512
Encoder = Callable[[Sequence[str]], Tensor]


class TextDistiller(Trainer):
    """Trains a tower to give the teacher's targets; single words are half of every batch.

    Args:
        config: Of the run.
        steps: Of training.
        tower: The student, just made: the state of torch's generator decides the batches.
        names: Words and phrases, n in all, the words first.
        targets: (n, D), rows of length one.
        words: How many of the names are words.
    """

    betas = (0.9, 0.99)
    optim_key = ""

    def __init__(
        self,
        config: CommonConfig,
        steps: int,
        tower: HashedTextTower,
        names: Sequence[str],
        targets: Tensor,
        words: int,
    ) -> None:
        self.draws = torch.Generator().set_state(torch.get_rng_state())
        optim = OptimConfig(steps=steps, lr=4e-3, weight_decay=0.0, warmup=200, clip=math.inf)
        super().__init__(config, optim, print)
        self.tower, self.targets, self.words = tower, targets, words
        self.ids, self.mask = tower.tokenize(names)
        self.prepare(tower)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up times half a cosine to zero."""
        c = self.optim
        return c.lr * min(1.0, (step + 1) / c.warmup) * 0.5 * (1 + math.cos(math.pi * step / c.steps))

    def batches(self, start: int, steps: int) -> Iterator[Tensor]:
        for step in range(steps):
            words = torch.randint(self.words, (BATCH // 2,), generator=self.draws)
            rows = torch.cat([words, torch.randint(len(self.targets), (BATCH // 2,), generator=self.draws)])
            if step >= start:
                yield rows

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        out, goal = F.normalize(self.tower(self.ids[batch], self.mask[batch]), dim=-1), self.targets[batch]
        return {
            "cosine": (1 - (out * goal).sum(-1)).mean(),
            # Keeps the order of similarities, which is what classification by words uses.
            "order": 2.0 * (out @ out.T - goal @ goal.T).square().mean(),
        }

    @torch.no_grad()
    def agreement(self) -> Tensor:
        """Return the cosine of each name to its target, (n,)."""
        parts = zip(self.ids.split(1024), self.mask.split(1024), strict=True)
        fitted = torch.cat([F.normalize(self.tower(ids, mask), dim=-1) for ids, mask in parts])
        return (fitted * self.targets).sum(-1)


def load_teacher() -> tuple[Encoder, list[str]]:
    """Return the sentence encoder, and the whole words of its vocabulary, most frequent first.

    Raises:
        OVSDinoError: It is not installed.
    """
    encoder = SentenceEncoder()
    words = [w for w in encoder.vocabulary if w.isascii() and w.isalpha() and len(w) > 2]
    return lambda phrases: encoder([f"a photo of a {phrase}" for phrase in phrases]), words


def visual_words(encode: Encoder, words: list[str], count: int) -> tuple[list[str], Tensor]:
    """Return the `count` words nearest to an anchor in the centered space, and the center."""
    embedded = encode(words)
    center = embedded.mean(0)
    similarity = F.normalize(embedded - center, dim=-1) @ F.normalize(encode(ANCHORS) - center, dim=-1).T
    best = similarity.max(1).values.topk(count).indices
    return [words[i] for i in sorted(best.tolist())], center


@dataclass(frozen=True, kw_only=True)
class DistillText:
    """Distil nano's text tower from a sentence encoder."""

    output: Path
    """File to write (.safetensors); the words go into one of the same name with .words.txt."""
    extra: Path | None = None
    """Text file of further words and phrases, one on each line."""
    words: int = 6000
    """Visual nouns taken from the teacher's vocabulary."""
    phrases: int = 6000
    """Phrases of a modifier and a word."""
    steps: int = 12000
    """Steps of training."""
    seed: int = 0
    """Of the phrases, the tower and the batches."""

    def run(self) -> int:
        """Train the tower and write it; return the exit code.

        Raises:
            OVSDinoError: The teacher or the list of words is missing, or the output cannot be written.
        """
        words_path = self.output.with_suffix(".words.txt")
        refuse_inputs([self.output, words_path], [self.extra] if self.extra else [])
        torch.manual_seed(self.seed)
        rng = random.Random(self.seed)
        encode, vocabulary = load_teacher()
        words, center = visual_words(encode, vocabulary, self.words)
        extra = read_text(self.extra, "list of words", "see --extra").split("\n") if self.extra else []
        words = list(dict.fromkeys([*words, *(line.strip() for line in extra if line.strip())]))
        phrases = [f"{rng.choice(MODIFIERS)} {rng.choice(words)}" for _ in range(self.phrases)]
        print(f"{len(words)} words, {len(phrases)} phrases", file=sys.stderr)

        raw = encode(words) - center
        basis = torch.linalg.svd(raw, full_matrices=False).Vh[: NANO.embed_dim]
        targets = F.normalize(torch.cat([raw, encode(phrases) - center]) @ basis.T, dim=-1)
        tower = HashedTextTower(NANO.embed_dim, NANO.text.width, NANO.text.buckets)
        begun = time.monotonic()

        def on_step(step: int, steps: int, values: dict[str, float]) -> None:
            if step % 500 == 0 or step == steps:
                seconds = time.monotonic() - begun
                print(f"step {step} loss {values['loss']:.4f} {seconds:.0f} s", file=sys.stderr, flush=True)

        with tempfile.TemporaryDirectory() as folder:
            config = CommonConfig(output=folder, checkpoint_every=self.steps, log_every=self.steps, device="cpu")
            trainer = TextDistiller(config, self.steps, tower, [*words, *phrases], targets, len(words))
            try:
                trainer.run(on_step)
            except Stopped as stopped:
                print(f"{stopped} at step {trainer.step}, nothing written", file=sys.stderr)
                return 128 + stopped.signal
        cosine = trainer.agreement()
        print(
            f"cosine to the teacher: words {cosine[: len(words)].mean():.3f}, phrases {cosine[len(words) :].mean():.3f}"
        )
        with atomic_write(self.output) as file:
            file.write(seal_safetensors(save({k: v.half() for k, v in tower.state_dict().items()})))
        with atomic_write(words_path) as file:
            file.write(("\n".join(words) + "\n").encode())
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(DistillText, "python -m ovsdino.train.pretrain.distill_text", argv)


if __name__ == "__main__":
    raise SystemExit(main())
