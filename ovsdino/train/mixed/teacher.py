"""The teacher: a frozen ImageNet network that says, in words, what each position shows.

Two answers: the distribution of its classifier over the 1 000 classes, which have names; and its features in the
sentence encoder's space, through a linear head (`ovsdino.train.pretrain.align`), for any vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.io.sealed import seal_safetensors
from ovsdino.models.backbone import freeze, normalize, read_efficientnet
from ovsdino.models.sentence import TEMPLATE, SentenceTextTower
from ovsdino.models.weights import read_safetensors
from ovsdino.models.zoo import build_model, load_official
from ovsdino.train.mixed.config import TeacherConfig
from ovsdino.train.pretrain.hypernyms import imagenet_hypernyms


class Teacher(nn.Module):
    """Answers for images, without gradients.

    Args:
        config: Its files.
        words: More words than the classes' own names, for its vocabulary.
        rows_file: Where the sentence encoder's rows of the vocabulary are kept, so that a run that goes on, or goes on
            elsewhere, needs no sentence encoder.

    Attributes:
        names: The names of the 1 000 classes.
        vocabulary: All words: the names, what they are kinds of, and `words`.

    Raises:
        OVSDinoError: A file is missing or does not fit, or the sentence encoder is not installed.
    """

    weight: Tensor
    bias: Tensor
    rows: Tensor

    def __init__(self, config: TeacherConfig, words: list[str], rows_file: Path) -> None:
        super().__init__()
        self.config = config
        table = imagenet_hypernyms()
        self.names = [table.words(synset)[0] for synset in table.classes]
        kinds = {word for synset in table.classes for word in table.words(synset)}
        self.vocabulary = sorted(kinds | set(words))
        self.model = freeze(build_model(config.model, decoder=False))
        load_official(self.model, backbone_weights=config.weights, projection=config.head)
        state = read_efficientnet(config.weights, self.model.config.backbone.timm_name)
        if "classifier.weight" not in state:
            raise OVSDinoError(f"{config.weights}: has no classifier, from which the words are learned")
        self.register_buffer("weight", state["classifier.weight"].float(), persistent=False)
        self.register_buffer("bias", state["classifier.bias"].float(), persistent=False)
        self.register_buffer("rows", self._rows(rows_file), persistent=False)

    def _rows(self, file: Path) -> Tensor:
        """Return the vocabulary's rows (V, D), from the file if it is there."""
        if not file.is_file():
            tower = self.model.text_tower
            assert isinstance(tower, SentenceTextTower)  # read at once: word by word takes ten times as long
            raw = tower.encoder([TEMPLATE.replace("{}", word) for word in self.vocabulary])
            rows = normalize(tower.project(raw), dim=-1)
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as stream:
                stream.write(seal_safetensors(save({"rows": rows.half()})))
        rows = read_safetensors(file)["rows"].float()
        if len(rows) != len(self.vocabulary):
            raise OVSDinoError(f"{file}: has rows of {len(rows)} words, not of {len(self.vocabulary)}; remove it")
        return rows

    @torch.no_grad()
    def forward(self, images: Tensor, drawn: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
        """Return its answers at some positions of normalized images.

        Args:
            images: (B, 3, H, W).
            drawn: Numbers of positions among the B h w of the grid, (n,) int64.
            bf16: Computes the network in bfloat16.

        Returns:
            Probabilities of the classes (n, 1000), and of the vocabulary's words (n, V), float32.
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            final, _ = self.model.backbone.frozen(images, ())
            features = self.model.backbone.finish(final)
        positions = final.permute(0, 2, 3, 1).flatten(0, 2)[drawn].float()
        tokens = normalize(features.permute(0, 2, 3, 1).flatten(0, 2)[drawn].float(), dim=-1)
        classes = F.linear(positions, self.weight, self.bias).softmax(-1)
        return classes, (self.config.scale * tokens @ self.rows.T).softmax(-1)
