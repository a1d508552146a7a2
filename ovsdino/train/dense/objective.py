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
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
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


@dataclass
class Outputs:
    """The model's answers.

    Attributes:
        features: Of the images.
        logits: (B, K + n, H/2, W/2): a pole of three pixels keeps its label at half the resolution, at a quarter of
            the cost.
        coarse: (B, K + n, h, w) on the token grid; None without a decoder.
        weights: (K,) of the classes.
    """

    features: ImageFeatures
    logits: Tensor
    coarse: Tensor | None
    weights: Tensor


class CrossEntropy(Term):
    """Class-weighted cross-entropy; a distractor has no weight, and no pixel."""

    name = "cross_entropy"

    def __call__(self, batch: DenseBatch, outputs: Outputs) -> Tensor:
        weights = F.pad(outputs.weights, (0, len(batch.text) - len(outputs.weights)))
        return F.cross_entropy(outputs.logits, batch.labels[:, ::2, ::2], weights, ignore_index=IGNORE_INDEX)


class Dice(Term):
    """See `dice_loss`."""

    name = "dice"

    def __call__(self, batch: DenseBatch, outputs: Outputs) -> Tensor:
        return dice_loss(outputs.logits.softmax(1), batch.labels[:, ::2, ::2], len(outputs.weights))


class Coarse(Term):
    """Cross-entropy on the token grid, before the decoder sharpens."""

    name = "coarse"

    def __call__(self, batch: DenseBatch, outputs: Outputs) -> Tensor:
        assert outputs.coarse is not None
        height, width = outputs.coarse.shape[2:]
        share = coarse_labels(batch.labels, (height, width), len(outputs.weights))
        return soft_cross_entropy(outputs.coarse, share, outputs.weights)


class Boundary(Term):
    """See `boundary_loss`."""

    name = "boundary"

    def __call__(self, batch: DenseBatch, outputs: Outputs) -> Tensor:
        assert outputs.features.structure is not None
        return boundary_loss(outputs.features.structure.boundary, batch.labels)


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
        terms: list[Term] = [CrossEntropy(c.cross_entropy), Dice(c.dice)]
        if model.decoder is not None:
            terms += [Coarse(c.coarse), Boundary(c.boundary)]
        self.terms = active(terms)

    def forward(self, batch: DenseBatch) -> dict[str, Tensor]:
        """Return the weighted terms by name."""
        features = encode(self.model, batch.images, self.config.optim.bf16)
        logits = self.model.decode(features, batch.text)
        size = (batch.labels.shape[1] // 2, batch.labels.shape[2] // 2)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        coarse = self.model.coarse_logits(features, batch.text) if features.structure is not None else None
        return weighted(self.terms, batch, Outputs(features, logits, coarse, self.weights))
