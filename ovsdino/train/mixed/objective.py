"""The loss of training on several kinds of images.

For each data set with pixel labels y, t the rows of the classes that this step asks for and c those of the contrast
words, whose scores are one channel, their maximum at each token: with z the fine logits of both,

    cross_entropy  CE(z, y), each class with its weight; what is none of t is the contrast's
    dice           soft Dice of softmax(z) over the classes that are there
    coarse         CE at the tokens, against the shares of the classes in each
    boundary       BCE + Dice(boundary logits, edges of y)
    affinity       co-membership of neighboring cells in the regions of y (`weak/affinity.py`)

and for the others

    pictures       CE of softmax_w(s (1/r) log mean_i exp(r cos(F'_i, t_w))) against the picture's word
    classes        CE(softmax_n(s cos(F'_i, t_n)), the teacher's classifier), at positions where it is sure
    words          CE(softmax_v(s cos(F'_i, t_v)), the teacher's words), at positions of all images
    boundary, affinity of drawn regions
    kept           other words' scores as they were (`kept.py`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.data.segmentation import IGNORE_INDEX
from ovsdino.models.backbone import normalize
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.text_rows import TextRows
from ovsdino.train.dense.losses import boundary_loss, coarse_labels, dice_loss, soft_cross_entropy
from ovsdino.train.mixed.config import MixedConfig
from ovsdino.train.mixed.kept import Kept
from ovsdino.train.mixed.teacher import Teacher
from ovsdino.train.segmentation import encode, normalized
from ovsdino.train.weak.affinity import affinity_loss

REGIONS = 24  # of an image, the largest ones, that the affinity is learned from
DILATIONS = (1, 2, 4)


@dataclass
class LabeledPart:
    """Crops of one data set and the words asked for.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        labels: (B, H, W) int64: the place of a row, K for none of these, 255 where it is not known.
        rows: (K, D) of the classes that are asked for.
        contrast: (C, D), C >= 1.
        weights: (K + 1,), of the classes and of none.
        edges: Whether labels end at edges.
        weight: Of this part.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    contrast: Tensor
    weights: Tensor
    edges: bool
    weight: float


@dataclass
class MixedBatch:
    """A step's images of all kinds.

    Attributes:
        labeled: One part for each data set.
        pictures: Crops (B, 3, s, s) and word numbers (B,), or None.
        regions: Crops (B, 3, H, W) and region numbers (B, H, W), or None.
    """

    labeled: list[LabeledPart]
    pictures: tuple[Tensor, Tensor] | None
    regions: tuple[Tensor, Tensor] | None


class MixedObjective(nn.Module):
    """Images of all kinds in, the weighted terms out.

    Args:
        model: Trained here.
        config: Of the run.
        words: Rows of the pictures' words, (W, D).
        same: (W, W) bool: words that are as good as the same do not compete.
        teacher: None leaves `classes` and `words` out.
        names: Rows of the teacher's classes in the model's text space, (1000, D).
        vocabulary: Rows of the teacher's vocabulary, (V, D).
        kept: What the model answered before; None leaves `kept` out.
    """

    words: Tensor
    same: Tensor
    names: Tensor
    vocabulary: Tensor

    def __init__(
        self,
        model: OVSDINO,
        config: MixedConfig,
        words: Tensor,
        same: Tensor,
        teacher: Teacher | None,
        names: Tensor,
        vocabulary: Tensor,
        kept: Kept | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.teacher, self.kept = teacher, kept
        for name, rows in {"words": words, "same": same, "names": names, "vocabulary": vocabulary}.items():
            self.register_buffer(name, rows, persistent=False)

    def forward(self, batch: MixedBatch) -> dict[str, Tensor]:
        """Return the weighted terms by name."""
        loss = self.config.loss
        terms: dict[str, list[Tensor]] = {}

        def add(name: str, weight: float, value: Tensor) -> None:
            terms.setdefault(name, []).append(weight * value)

        kinds = [part.images for part in batch.labeled]
        kinds += [pair[0] for pair in (batch.pictures, batch.regions) if pair is not None]
        seen, before = self._encoded(kinds)
        rest = seen[len(batch.labeled) :]
        for part, (_, features) in zip(batch.labeled, seen, strict=False):
            for name, value in self._labeled(part, features).items():
                add(name, getattr(loss, name) * part.weight, value)
        if batch.pictures is not None:
            add("pictures", loss.pictures, self._pictures(rest[0][1], batch.pictures[1]))
        if batch.regions is not None:
            for name, value in self._structure(rest[-1][1], batch.regions[1]).items():
                add(name, getattr(loss, name), value)
        if self.teacher is not None:
            for name, value in self._taught(seen).items():
                add(name, getattr(loss, name), value)
        if self.kept is not None:
            add("kept", loss.kept, self.kept(before, [features.tokens for _, features in seen]))
        return {name: torch.stack(values).sum() for name, values in terms.items()}

    def _encoded(self, kinds: list[Tensor]) -> tuple[list[tuple[Tensor, ImageFeatures]], list[Tensor]]:
        """Return each kind's images with their features, and their tokens before the run if it keeps other words.

        Kinds of one size are encoded together.
        """
        found: dict[int, tuple[Tensor, ImageFeatures]] = {}
        before: dict[int, Tensor] = {}
        for size in {images.shape[2:]: None for images in kinds}:
            same = [i for i, images in enumerate(kinds) if images.shape[2:] == size]
            images, sizes = torch.cat([kinds[i] for i in same]), [len(kinds[i]) for i in same]
            if self.kept is None:
                features = encode(self.model, images, self.config.optim.bf16)
            else:
                features, earlier = self._with_kept(images, self.kept)
                before.update(zip(same, earlier.split(sizes), strict=True))
            parts = features.split(sizes)
            found.update({i: (kinds[i], part) for i, part in zip(same, parts, strict=True)})
        return [found[i] for i in range(len(kinds))], [before[i] for i in sorted(before)]

    def _with_kept(self, images: Tensor, kept: Kept) -> tuple[ImageFeatures, Tensor]:
        """Return the features of images in [0, 1], and their tokens before the run; the frozen half runs once."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.optim.bf16):
            prepared = normalized(self.model, images)
            with torch.no_grad():
                final, taps = self.model.backbone.frozen(prepared)
            features = self.model.encode_features(final, taps, prepared)
            assert features.structure is not None
            earlier = kept.tokens(final, features.structure.tokens)
        return features.float(), earlier.float()

    def _labeled(self, part: LabeledPart, features: ImageFeatures) -> dict[str, Tensor]:
        text = TextRows(part.rows[:, None], part.contrast)
        coarse, labels = self.model.coarse_logits(features, text), part.labels[:, ::2, ::2]
        logits = self.model.decode(features, text)
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        share = coarse_labels(part.labels, (coarse.shape[2], coarse.shape[3]), text.maps)
        found = {
            "cross_entropy": F.cross_entropy(logits, labels, part.weights, ignore_index=IGNORE_INDEX),
            "dice": dice_loss(logits.softmax(1), labels, text.maps),
            "coarse": soft_cross_entropy(coarse, share, part.weights),
        }
        if part.edges:
            found |= self._structure(features, part.labels)
        return found

    def _structure(self, features: ImageFeatures, regions: Tensor) -> dict[str, Tensor]:
        if self.model.decoder is None or features.structure is None:
            return {}
        found = {"boundary": boundary_loss(features.structure.boundary, regions)}
        attention = getattr(self.model.decoder, "score_attention", None)
        if attention is not None and attention.config.structure:
            embedding = attention.embed(features.structure.guide)
            masks = region_masks(regions, (embedding.shape[2], embedding.shape[3]))
            weights = masks.flatten(2).any(-1).float()
            found["affinity"] = affinity_loss(embedding, masks, weights, DILATIONS).mean()
        return found

    def _pictures(self, features: ImageFeatures, targets: Tensor) -> Tensor:
        r = self.config.pictures.sharpness
        cosine = normalize(features.tokens).flatten(2).transpose(1, 2) @ self.words.T
        pooled = ((r * cosine).logsumexp(1) - math.log(cosine.shape[1])) / r
        logits = pooled * self.model.log_scale.exp()
        return F.cross_entropy(logits.masked_fill(self.same[targets], float("-inf")), targets)

    def _taught(self, seen: list[tuple[Tensor, ImageFeatures]]) -> dict[str, Tensor]:
        assert self.teacher is not None
        c = self.config.teacher
        total = sum(f.tokens[:, 0].numel() for _, f in seen)
        answers, tokens = [], []
        for size in {images.shape[2:]: None for images, _ in seen}:  # once for all images of a size
            drawn: list[Tensor] = []
            before = 0
            alike = [pair for pair in seen if pair[0].shape[2:] == size]
            for _, features in alike:
                flat = normalize(features.tokens).permute(0, 2, 3, 1).flatten(0, 2)
                count = max(1, round(c.positions * len(flat) / total))
                own = torch.randperm(len(flat), device=flat.device)[:count]
                tokens.append(flat[own])
                drawn.append(own + before)
                before += len(flat)
            images = normalized(self.model, torch.cat([images for images, _ in alike]))
            answers.append(self.teacher(images, torch.cat(drawn), self.config.optim.bf16))
        student = torch.cat(tokens)
        classes, words = (torch.cat(parts) for parts in zip(*answers, strict=True))
        sure = classes.amax(1)  # where the teacher knows nothing, its classes teach nothing
        named = -(classes * F.log_softmax(c.scale * student @ self.names.T, -1)).sum(-1)
        spoken = -(words * F.log_softmax(c.scale * student @ self.vocabulary.T, -1)).sum(-1)
        return {"classes": (sure * named).sum() / sure.sum().clamp_min(1e-6), "words": spoken.mean()}


def region_masks(regions: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the largest regions of region maps as masks of a coarser grid.

    Args:
        regions: (B, H, W) integer, 255 where it is not known.
        size: (h, w) of the grid, read at the middle of each cell.

    Returns:
        (B, REGIONS, h, w) bool; those that an image does not have are empty.
    """
    rows = ((torch.arange(size[0], device=regions.device) + 0.5) * regions.shape[1] / size[0]).long()
    columns = ((torch.arange(size[1], device=regions.device) + 0.5) * regions.shape[2] / size[1]).long()
    cells = regions[:, rows][:, :, columns]
    cells = torch.where(cells == IGNORE_INDEX, 0, cells + 1).clamp_max(IGNORE_INDEX * 4)
    area = torch.zeros(len(cells), IGNORE_INDEX * 4 + 1, device=cells.device)
    area.scatter_add_(1, cells.flatten(1), torch.ones_like(cells, dtype=area.dtype).flatten(1))
    area[:, 0] = 0
    size_of, largest = area.topk(REGIONS, 1)
    return (cells[:, None] == largest[:, :, None, None]) & (size_of > 0)[:, :, None, None]
