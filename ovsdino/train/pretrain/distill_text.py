"""Nano's text tower, distilled from a sentence encoder: `python -m ovsdino.train.pretrain.distill_text --output F`.

Three things are made: the list of phrases (`ovsdino.train.pretrain.phrases`), the space of their rows, and the tower.
The row of a phrase is the teacher's embedding of "a photo of a ...", less the mean row of common nouns, along the D
principal directions of those, length one. Centering takes out what all photo captions share, so that unrelated words
are near orthogonal.

A name of ImageNet-22k has a dictionary's definition too, and its row is half its own, half the definition's: the
encoder knows "a metal post supporting an outdoor lamp" better than "lamppost". Names that the shipped image side was
trained with (`ovsdino.models.grounding`) keep their own, and so do those of the glossary.

The teacher (a MiniLM sentence encoder) and the word list inside it are needed here only.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, read_json, reading, refuse_inputs
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.grounding import grounded_phrases
from ovsdino.models.lexicon import LexiconTextTower, key_bytes, pack
from ovsdino.models.sentence import SentenceEncoder
from ovsdino.models.spelling import stems, text_key, words_of
from ovsdino.models.weights import read_safetensors
from ovsdino.parsing import run_script
from ovsdino.train.config import CommonConfig
from ovsdino.train.pretrain.hypernyms import imagenet_definitions, imagenet_hypernyms
from ovsdino.train.pretrain.phrases import GROUPS, Phrase, phrase_list, read_extra
from ovsdino.train.pretrain.text_distiller import TextDistiller
from ovsdino.train.stopping import Stopped

FREQUENT = 12_000  # entries that a misspelling may mean
ORDER = ("core", "common", "vocabulary", "plural", "named", "part", "composed")  # of the entries
AT_ONCE = 2048  # texts between two lines of progress
Encoder = Callable[[Sequence[str]], Tensor]


def load_teacher() -> tuple[Encoder, list[str]]:
    """Return the sentence encoder, and the whole words of its vocabulary, most frequent first.

    Raises:
        OVSDinoError: It is not installed.
    """
    encoder = SentenceEncoder()
    words = [w for w in encoder.vocabulary if w.isascii() and w.isalpha() and len(w) > 2]

    def encode(texts: Sequence[str]) -> Tensor:
        # bfloat16 takes half the time and leaves the cosine above 0.999.
        with torch.autocast("cpu", torch.bfloat16):
            return encoder([f"a photo of a {text}" for text in texts]).float()

    return encode, words


def teacher_rows(encode: Encoder, texts: Sequence[str], path: Path) -> Tensor:
    """Return the teacher's rows of texts, (n, width) float32; they are kept in a file for the next run.

    Raises:
        OVSDinoError: The file cannot be read or written.
    """
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if path.is_file():
        with reading(path, "file of the teacher's rows", "remove it"), safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("texts") == digest:
                return file.get_tensor("rows").float()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one length share a batch without padding
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        parts.append(encode([texts[i] for i in order[start : start + AT_ONCE]]))
        print(f"encoded {min(start + AT_ONCE, len(texts))} of {len(texts)}", file=sys.stderr, flush=True)
    rows = torch.cat(parts)[torch.tensor(order).argsort()]
    with atomic_write(path) as file:
        file.write(save({"rows": rows.half()}, {"texts": digest}))
    return rows.half().float()


def text_space(rows: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the mean of rows (n, width) and their `dim` principal directions, (width,) and (width, dim)."""
    center = rows.mean(0)
    return center, torch.linalg.svd(rows - center, full_matrices=False).Vh[:dim].T.contiguous()


def read_space(path: Path) -> tuple[Tensor, Tensor]:
    """Return the center and the basis of a space that was written earlier.

    Raises:
        OVSDinoError: The file is missing, damaged, or holds something else.
    """
    state = read_safetensors(path)
    if set(state) != {"center", "basis"}:
        raise OVSDinoError(f"{path}: expected center and basis of a text space, found {sorted(state)}")
    return state["center"].float(), state["basis"].float()


def read_glossary(path: Path) -> dict[str, list[str]]:
    """Return the plain words of each phrase of a glossary.

    Raises:
        OVSDinoError: The file is missing, damaged, or not a mapping from texts to lists of texts.
    """
    tree = read_json(path, "glossary", "see --glossary")
    if not isinstance(tree, dict) or not all(
        isinstance(words, list) and words and all(isinstance(word, str) for word in words) for words in tree.values()
    ):
        raise OVSDinoError(f"{path}: expected a mapping from a phrase to a list of plain words")
    return tree


def read_definitions() -> dict[str, list[str]]:
    """Return the definitions of each name of ImageNet-22k, one for each of its senses, up to the first semicolon."""
    found: dict[str, list[str]] = {}
    names = imagenet_hypernyms().names
    for synset, definition in imagenet_definitions().items():
        for name in names[synset]:
            found.setdefault(" ".join(words_of(name)), []).append(definition.split(";")[0])
    return found


def definitions_of(phrases: Sequence[Phrase], kept: Collection[str]) -> dict[str, list[str]]:
    """Return the definitions of what is read for phrases.

    "Lamp post" has those of "lamppost", and a composed phrase, "wooden signpost", has those of its last noun.

    Args:
        phrases: The phrases.
        kept: Texts whose rows are to stay as they are.
    """
    known, found = read_definitions(), {}
    for phrase in phrases:
        text = " ".join(words_of(phrase.read))
        said = known.get(text) or known.get(text.replace(" ", ""))
        if not said and phrase.group == "composed":
            text = text.split()[-1]
            said = known.get(text)
        if said and text not in kept:
            found[phrase.read] = said
    return found


def make_tower(phrases: Sequence[Phrase], rows: Tensor, width: int, buckets: int) -> LexiconTextTower:
    """Return a tower whose lexicon holds the phrases' rows, its network untrained.

    The core is kept whole. Single words, and common names of two, are entries; those that are read as what they are a
    form of need none.

    Args:
        phrases: In the order of `GROUPS`.
        rows: The teacher's, (n, D) of length one.
        width: See `LexiconTextTower`.
        buckets: See `LexiconTextTower`.
    """
    texts = [" ".join(words_of(phrase.text)) for phrase in phrases]
    kept = [i for i, phrase in enumerate(phrases) if phrase.group == "core"]
    taken = {text_key(texts[i]) for i in kept}
    known = {text for text, phrase in zip(texts, phrases, strict=True) if phrase.group in GROUPS[:4]}
    frequent: list[int] = []
    rare: list[int] = []
    for i in sorted(range(len(phrases)), key=lambda i: ORDER.index(phrases[i].group)):
        group, text = phrases[i].group, texts[i]
        form = group == "plural" and next((s for s in stems(text) if s in known), None) == phrases[i].read
        whole = group != "core" and (" " not in text or group == "common") and not form
        if whole and text_key(text) not in taken:  # of two with the same key the first is found
            taken.add(text_key(text))
            often = group == "common" or (group == "vocabulary" and len(frequent) < FREQUENT)
            (frequent if often else rare).append(i)
    entries = frequent + rare
    sizes = {"entries": len(entries), "common": len(frequent), "kept": len(kept)}
    tower = LexiconTextTower(rows.shape[1], width, buckets, **sizes)
    largest = rows[kept].abs().amax(1, keepdim=True)
    stored = F.normalize(rows[entries, :width], dim=-1)
    scale = stored.std(0).half().float()
    tower.load_state_dict(
        {
            **tower.state_dict(),
            "keys": key_bytes([texts[i] for i in entries]),
            "codes": pack(stored, scale),
            "scale": scale,
            "kept_keys": key_bytes([texts[i] for i in kept]),
            "kept_rows": (rows[kept] / largest * 127).round().to(torch.int8),
        }
    )
    return tower


@dataclass(frozen=True, kw_only=True)
class DistillText:
    """Distil nano's text tower from a sentence encoder."""

    output: Path
    """File to write (.safetensors). With it: .phrases.txt, .space.safetensors, .teacher.safetensors (its rows, for
    the next run) and the folder .run (the checkpoint; the same command continues from it)."""
    extra: tuple[Path, ...] = ()
    """Files of further phrases to be known whole: text with one on each line (after a colon others, # begins a remark),
    JSON from a class to its words, or a zip that holds captions.jsonl."""
    glossary: Path | None = None
    """JSON from a phrase to the plain words that it means, where the teacher reads it wrongly ("lorry": ["truck"]). Its
    row is that of the words' mean, and it is known whole."""
    space: Path | None = None
    """Center and basis of an earlier run (.safetensors); by default they are computed."""
    embed_dim: int = 256
    """Columns of a row."""
    width: int = 192
    """Columns of a row in the lexicon."""
    buckets: int = 4096
    """Rows of the table of character n-grams."""
    steps: int = 6000
    """Steps of training."""
    seed: int = 0
    """Of the composed phrases, the network and the batches."""

    def run(self) -> int:
        """Train the tower and write it; return the exit code.

        Raises:
            OVSDinoError: The teacher or a list of phrases is missing, or the output cannot be written.
        """
        written = {name: self.output.with_suffix(f".{name}") for name in ("phrases.txt", "space.safetensors")}
        read = [*self.extra, *(path for path in (self.space, self.glossary) if path)]
        refuse_inputs([self.output, *written.values()], read)
        encode, vocabulary = load_teacher()
        meanings = read_glossary(self.glossary) if self.glossary else {}
        extra = [*(phrase for path in self.extra for phrase in read_extra(path)), *meanings]
        phrases = phrase_list(vocabulary, imagenet_hypernyms(), imagenet_definitions().values(), extra, self.seed)
        counts = ", ".join(f"{sum(p.group == group for p in phrases)} {group}" for group in GROUPS)
        print(f"{len(phrases)} phrases: {counts}", file=sys.stderr)

        means = (word for words in meanings.values() for word in words)
        defined = definitions_of(phrases, {*grounded_phrases(), *meanings})
        print(f"{len(defined)} have a definition", file=sys.stderr)
        clauses = (clause for said in defined.values() for clause in said)
        texts = list(dict.fromkeys([*(phrase.read for phrase in phrases), *means, *clauses]))
        raw = teacher_rows(encode, texts, self.output.with_suffix(".teacher.safetensors"))
        place = {text: i for i, text in enumerate(texts)}
        common = list(dict.fromkeys(place[phrase.read] for phrase in phrases if phrase.group in ("core", "common")))
        plain = {text: raw[[place[word] for word in words]].mean(0) for text, words in meanings.items()}
        for text, row in plain.items():
            raw[place[text]] = row
        center, basis = read_space(self.space) if self.space else text_space(raw[common], self.embed_dim)
        known = F.normalize((raw - center) @ basis, dim=-1)
        own = known.clone()
        for text, said in defined.items():
            meaning = F.normalize(own[[place[clause] for clause in said]].mean(0), dim=-1)
            known[place[text]] = F.normalize(own[place[text]] + meaning, dim=-1)
        rows = known[torch.tensor([place[phrase.read] for phrase in phrases])]
        with atomic_write(written["phrases.txt"]) as file:
            file.write("".join(f"{phrase.group}\t{phrase.text}\n" for phrase in phrases).encode())
        with atomic_write(written["space.safetensors"]) as file:
            file.write(seal_safetensors(save({"center": center, "basis": basis.contiguous()})))

        torch.manual_seed(self.seed)
        tower = make_tower(phrases, rows, self.width, self.buckets)
        return self._train(tower, phrases, rows)

    def _train(self, tower: LexiconTextTower, phrases: Sequence[Phrase], rows: Tensor) -> int:
        """Train a tower, from its checkpoint where there is one; return the exit code."""
        begun = time.monotonic()

        def on_step(step: int, steps: int, values: dict[str, float]) -> None:
            if step % 100 == 0 or step == steps:
                seconds = time.monotonic() - begun
                print(f"step {step} loss {values['loss']:.4f} {seconds:.0f} s", file=sys.stderr, flush=True)

        def written() -> None:
            state = {k: v.half() if v.is_floating_point() else v for k, v in tower.state_dict().items()}
            with atomic_write(self.output) as file:
                file.write(seal_safetensors(save(state)))

        folder = str(self.output.with_suffix(".run"))
        config = CommonConfig(output=folder, seed=self.seed, checkpoint_every=500, log_every=100, device="cpu")
        trainer = TextDistiller(config, self.steps, tower, phrases, rows, written)
        trainer.resume()
        try:
            trainer.run(on_step)
        except Stopped as stopped:
            print(f"{stopped} at step {trainer.step}; the same command continues", file=sys.stderr)
            return 128 + stopped.signal
        written()
        cosine = trainer.agreement()
        for group, members in trainer.members.items():
            if len(members):
                print(f"{group}: {len(members)} phrases, cosine to the teacher {cosine[members].mean():.3f}")
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(DistillText, "python -m ovsdino.train.pretrain.distill_text", argv)


if __name__ == "__main__":
    raise SystemExit(main())
