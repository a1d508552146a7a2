"""The loss of training on pixel labels.

With y the labels, t the texts of the step (K classes, then distractors that name nothing in the images):

    L = cross_entropy  CE(decode(F', t), y), each class with its weight
      + dice           soft Dice of softmax(decode(F', t)) over the classes that are there
      + coarse         CE(scale cos(F', t), shares of the classes in each token)
      + boundary       BCE + Dice(boundary logits, edges of y)

The last two need a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.data.segmentation import IGNORE_INDEX
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.train.dense.config import DenseConfig
from ovsdino.train.dense.losses import boundary_loss, coarse_labels, dice_loss, soft_cross_entropy
from ovsdino.train.segmentation import encode
from ovsdino.train.terms import Term, active, weighted


@dataclass
class DenseBatch:
    """A step's crops and words.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        labels: (B, H, W) int64.
        text: (K + n, D), rows of the K classes, then of distractors.
    """

    images: Tensor
    labels: Tensor
    text: Tensor


class Outputs:
    """The model's answers to a `DenseBatch`, and the labels at their sizes.

    Attributes:
        logits: (B, K + n, H/2, W/2): a pole of three pixels keeps its label at half the resolution, at a quarter of
            the cost.
        labels: (B, H/2, W/2).
        coarse: (B, K + n, h, w), the token grid; with `boundary` (B, 1, 4h, 4w) only where there is a decoder.
        share: (B, K, h, w), of the classes in each token.
    """

    def __init__(self, model: OVSDINO, batch: DenseBatch, num_classes: int, bf16: bool) -> None:
        features = encode(model, batch.images, bf16)
        self.labels = batch.labels[:, ::2, ::2]
        size = (batch.labels.shape[1] // 2, batch.labels.shape[2] // 2)
        logits = model.decode(features, batch.text)
        self.logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        if features.structure is not None:
            self.boundary = features.structure.boundary
            self.coarse = model.coarse_logits(features, batch.text)
            self.share = coarse_labels(batch.labels, (self.coarse.shape[2], self.coarse.shape[3]), num_classes)


class DenseObjective(nn.Module):
    """Crops, labels and words in, the weighted terms out.

    Args:
        model: Trained here.
        config: Of the run.
        weights: (K,) of the classes.
    """

    weights: Tensor

    def __init__(self, model: OVSDINO, config: DenseConfig, weights: Tensor) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.register_buffer("weights", weights, persistent=False)
        c = config.loss
        terms = [
            Term("cross_entropy", c.cross_entropy, self._cross_entropy),
            Term("dice", c.dice, lambda _, o: dice_loss(o.logits.softmax(1), o.labels, len(weights))),
        ]
        if model.decoder is not None:
            terms += [
                Term("coarse", c.coarse, lambda _, o: soft_cross_entropy(o.coarse, o.share, self.weights)),
                Term("boundary", c.boundary, lambda batch, o: boundary_loss(o.boundary, batch.labels)),
            ]
        self.terms = active(terms)

    def forward(self, batch: DenseBatch) -> dict[str, Tensor]:
        """Return the weighted terms by name."""
        outputs = Outputs(self.model, batch, len(self.weights), self.config.optim.bf16)
        return weighted(self.terms, batch, outputs)

    def _cross_entropy(self, batch: DenseBatch, outputs: Outputs) -> Tensor:
        weights = F.pad(self.weights, (0, len(batch.text) - len(self.weights)))  # no pixel is a distractor's
        return F.cross_entropy(outputs.logits, outputs.labels, weights, ignore_index=IGNORE_INDEX)
