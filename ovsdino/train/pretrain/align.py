"""Align a frozen ImageNet network with words, in closed form: `python -m ovsdino.train.pretrain.align`.

The network's classifier knows 1 000 classes; timm knows what they are called, and their definitions say what they are
kinds of (`hypernyms.py`). With f a position of the frozen final map, l(f) the classifier's logits, and C_w the classes
that a word w is a name of,

    z_w(f) = log mean_{c in C_w} exp l_c(f)

is the evidence for the word. The head H is the ridge regression that lets the word's row e_w of the sentence encoder
give that evidence, on positions of any images, unlabelled; and pictures with one word each, pooled to p, correct it:

    min_H  mean_f |E (H f) - z(f)|^2_v  +  g mean_p |E (H p) - a (k_w - q_w) / sqrt(q_w)|^2_v

where z is centered over the words (what all words share decides nothing), |.|^2_v weights a word by
v_w = sqrt(min(|C_w|, 200)), k_w says whether w is a name of the picture's word, and q_w is the share of the pictures of
which it is. H and the rows being on two sides, the solution is (G + l)^-1 R (E'vE + m)^-1, with G the second moments of
f and p, and R those with their targets. The rows are centered; the center is kept, as the tower's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ovsdino.console import say
from ovsdino.data.captions import open_captions
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, refuse_inputs
from ovsdino.io.sealed import seal_safetensors
from ovsdino.io.tree import ImageSource
from ovsdino.models.backbone import freeze, read_efficientnet
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.sentence import TEMPLATE, SentenceEncoder
from ovsdino.models.zoo import build_model
from ovsdino.parsing import run_script
from ovsdino.pipeline import Segmenter
from ovsdino.train.pretrain.hypernyms import Hypernyms, imagenet_hypernyms

MOST_CLASSES = 200  # more do not raise a word's weight
LEAST_EVIDENCE = -15.0  # below it nothing is told apart
PART = 4096  # positions at once: the evidence for all words of a position is 16 kB


@dataclass
class Moments:
    """Second moments of features (n, C), a one appended, with each other and with targets times rows.

    Attributes:
        features: (C + 1, C + 1).
        targets: (C + 1, D).
        count: n, in shares of which both are kept.
    """

    features: Tensor
    targets: Tensor
    count: int = 0

    @classmethod
    def empty(cls, channels: int, dim: int) -> Moments:
        """Return those of no features."""
        return cls(torch.zeros(channels + 1, channels + 1), torch.zeros(channels + 1, dim))

    def add(self, features: Tensor, goals: Tensor) -> None:
        """Take in features (n, C) and their goals (n, D), weighted targets times rows."""
        ones = F.pad(features, (0, 1), value=1.0)
        self.features += ones.T @ ones
        self.targets += ones.T @ goals
        self.count += len(features)

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return both for one feature, in float64."""
        return self.features.double() / self.count, self.targets.double() / self.count


@dataclass(frozen=True, kw_only=True)
class Words:
    """The vocabulary.

    Attributes:
        names: The words, n.
        member: (1000, n) float32, 1 where a class can be called so.
        weight: v, (n,), its sum one.
        rows: E, (n, D), centered, of length one.
        center: (D,), taken off the rows.
    """

    names: list[str]
    member: Tensor
    weight: Tensor
    rows: Tensor
    center: Tensor

    @classmethod
    def of(cls, table: Hypernyms, encoder: SentenceEncoder) -> Words:
        """Return the words that the classes have."""
        names = sorted({word for synset in table.classes for word in table.words(synset)})
        member = torch.from_numpy(table.membership(names)).float()
        raw = encoder([TEMPLATE.replace("{}", name) for name in names])
        center = raw.mean(0)
        weight = member.sum(0).clamp(max=MOST_CLASSES).sqrt()
        return cls(
            names=names,
            member=member,
            weight=weight / weight.sum(),
            rows=F.normalize(raw - center, dim=-1),
            center=center,
        )

    def evidence(self, logits: Tensor) -> Tensor:
        """Return z of logits (n, 1000), centered: (n, words)."""
        share = (logits - logits.amax(1, keepdim=True)).exp() @ self.member / self.member.sum(0)
        z = share.log().clamp_min(LEAST_EVIDENCE)
        return z - z @ self.weight[:, None]

    def goals(self, targets: Tensor) -> Tensor:
        """Return targets (n, words) times the weighted rows: (n, D)."""
        return (targets * self.weight) @ self.rows


def solve(
    positions: Moments, pictures: Moments, words: Words, *, pull: float, ridge: float, row_ridge: float
) -> tuple[Tensor, Tensor]:
    """Return the head's weight (D, C) and bias (D,); `pull` is g, the ridges are in shares of a mean diagonal entry."""
    g, r = positions.mean()
    if pictures.count:
        more_g, more_r = pictures.mean()
        g, r = g + pull * more_g, r + pull * more_r
    rows = ((words.rows * words.weight[:, None]).T @ words.rows).double()
    left = torch.linalg.solve(_ridged(g, ridge), r)
    head = torch.linalg.solve(_ridged(rows, row_ridge), left.T).float()
    return head[:, :-1].contiguous(), head[:, -1].contiguous()


def _ridged(moments: Tensor, ridge: float) -> Tensor:
    return moments + ridge * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)


def picture_targets(table: Hypernyms, words: Words, captions: Sequence[str], strength: float) -> Tensor:
    """Return a (k - q) / sqrt(q) of pictures with these captions, (pictures, words); 0 for words that none has."""
    place = {word: i for i, word in enumerate(words.names)}
    known = {caption: table.of_word(caption) for caption in dict.fromkeys(captions)}
    k = torch.zeros(len(captions), len(words.names))
    for row, caption in enumerate(captions):
        synset = known[caption]
        called = [caption.lower(), *(table.words(synset) if synset else ())]
        k[row, [place[word] for word in called if word in place]] = 1
    share = k.mean(0)
    return strength * (k - share) / share.clamp_min(1 / len(captions)).sqrt() * (share > 0)


@dataclass(frozen=True, kw_only=True)
class Align:
    """Align lite2's frozen backbone with the sentence encoder's words, in closed form."""

    output: Path
    """File to write (.safetensors): the head and the center of the text rows."""
    backbone_weights: Path
    """File of the backbone's official weights, with its classifier."""
    pictures: Path
    """Folder or zip of pictures of one thing each."""
    captions: Path
    """Lines of {"image", "caption"}: the word of each picture."""
    images: tuple[Path, ...] = ()
    """Folders or zips of other images, whose positions are used without any label."""
    sentence_weights: Path | None = None
    """Folder of the sentence encoder, in place of the installed package's."""
    positions: int = 24000
    """Positions of maps that are used, half from the pictures, half from the other images."""
    picture_side: int = 240
    """Short side of the pictures in pixels."""
    image_side: int = 288
    """Short side of the other images in pixels."""
    pull: float = 0.5
    """Weight g of the pictures' words."""
    strength: float = 1.0
    """Size a of the pictures' targets."""
    ridge: float = 0.5
    """Ridge of the features, in shares of their mean square."""
    row_ridge: float = 0.01
    """Ridge of the text rows, likewise."""
    seed: int = 0
    """Of the positions."""

    def run(self) -> int:
        """Write the head; return the exit code.

        Raises:
            OVSDinoError: A file is missing or does not fit, or the sentence encoder cannot be had.
        """
        refuse_inputs([self.output], [self.backbone_weights, self.captions])
        table = imagenet_hypernyms()
        model = freeze(build_model("lite2", decoder=False))
        model.backbone.load(self.backbone_weights)
        state = read_efficientnet(self.backbone_weights, model.config.backbone.timm_name)
        if "classifier.weight" not in state:
            raise OVSDinoError(f"{self.backbone_weights}: has no classifier, from which the words are learned")
        weight, bias = state["classifier.weight"].float(), state["classifier.bias"].float()
        words = Words.of(table, SentenceEncoder(self.sentence_weights))
        say(f"{len(words.names)} words of {len(table.classes)} classes")

        positions, pictures = (Moments.empty(weight.shape[1], len(words.center)) for _ in range(2))
        said = open_captions("jsonl", self.pictures, self.captions)
        captions = [said.record(i).captions[0] for i in range(len(said))]
        targets = picture_targets(table, words, captions, self.strength)
        pixels = ((said.read(i) for i in range(len(said))), len(said), self.picture_side)
        others = [(source, name) for source in map(ImageSource, self.images) for name in source.names]
        more = ((source.read(name) for source, name in others), len(others), self.image_side)
        generator = torch.Generator().manual_seed(self.seed)
        for (images, count, side), labelled in ((pixels, True), (more, False)):
            wanted = self.positions // (2 if others else 1)
            for index, tokens in enumerate(frozen_tokens(model, images, side)):
                share = (index + 1) * wanted // count - index * wanted // count
                drawn = tokens[torch.randperm(len(tokens), generator=generator)[:share]]
                positions.add(drawn, words.goals(words.evidence(drawn @ weight.T + bias)))
                if labelled:
                    pictures.add(tokens.mean(0, keepdim=True), words.goals(targets[index : index + 1]))
                if (index + 1) % 500 == 0 or index + 1 == count:
                    say(f"{index + 1} of {count} images")
        head, shift = solve(positions, pictures, words, pull=self.pull, ridge=self.ridge, row_ridge=self.row_ridge)
        result = {"backbone.head.weight": head, "backbone.head.bias": shift, "text_tower.center": words.center}
        with atomic_write(self.output) as file:
            file.write(seal_safetensors(save({key: value.half() for key, value in result.items()})))
        print(f"{self.output}: a head of {positions.count} positions and {pictures.count} pictures")
        return 0


@torch.inference_mode()
def frozen_tokens(model: OVSDINO, images: Iterator[np.ndarray], side: int) -> Iterator[Tensor]:
    """Yield the positions of each image's final map before the head, (h w, C) float32.

    Args:
        model: A model with a frozen backbone.
        images: (H, W, 3) uint8.
        side: Short side that they are resized to, in pixels.
    """
    segmenter = Segmenter(model, short_side=side)
    for image in images:
        final, _ = model.backbone.frozen(segmenter.prepare(image), ())
        yield final[0].flatten(1).T


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(Align, "python -m ovsdino.train.pretrain.align", argv)


if __name__ == "__main__":
    raise SystemExit(main())
