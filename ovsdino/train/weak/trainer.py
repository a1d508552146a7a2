"""Training on captions and pseudo-masks, as OVS-DINO does it (arXiv 2604.08461): no pixel label anywhere.

With F the backbone's tokens, F' the decoder's, t_u the texts of the step, m the pseudo-masks of an image:

    L = contrast InfoNCE(pool(F'), t)               a region agrees with the texts of its caption
      + mask     BCE + Dice(decode(F', p_m), m)     p_m = mean of F' in m, a classifier that must find m again
      + pull     p_m is one of its caption's texts
      + words    decode(F', t) in m is one of them, the same one all over m
      + present  decode(F', t) has each of them somewhere in the region
      + sam      1 - cos + smooth L1 (S, SAM's embedding)
      + boundary BCE + Dice(boundary logits, edges of the masks)
      + preserve 1 - cos(p_m, mean of F in m)

`decode` is the decoder that answers words at inference, guide and all: what sharpens a mask's embedding here sharpens
a word's there. A region is what a caption speaks of, mostly the whole image. The terms that are a value a mask are
weighted and trimmed (`RobustConfig`) over the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.data.captions import open_captions
from ovsdino.data.masks import MaskStore
from ovsdino.data.segmentation import SegmentationDataset, open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import freeze, normalise
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.sae import SAMAlignment, sam_alignment_loss
from ovsdino.models.sam import SAMEncoder
from ovsdino.models.zoo import PROJECTIONS
from ovsdino.ops import mask_pool
from ovsdino.train.config import WeakConfig
from ovsdino.train.distributed import gather, gather_objects
from ovsdino.train.masks.sam import SamOnTheFly, SamSource, SamTargets
from ovsdino.train.trainer import Log, Trainer, normalised
from ovsdino.train.weak.batches import WeakBatch, WeakDataset, batches
from ovsdino.train.weak.losses import (
    head_pool,
    head_scores,
    info_nce,
    mask_boundaries,
    mask_boundary_loss,
    mask_classifier_loss,
    over_regions,
    partial_label_loss,
    presence_loss,
    preservation_loss,
    region_cover,
    region_share,
    text_log_prior,
    text_pool_scores,
)
from ovsdino.train.weak.robust import trimmed_weights, weighted_mean

RAW = ("{}",)  # the template of what is no class name


@dataclass
class Parts:
    """What the objective finds in its images, before anything is averaged; the batch's other images join later.

    Attributes:
        scores: (B, R, U) region against text, times the temperature.
        mask, pull, words, preserve: (B, M) a loss a pseudo-mask.
        share: (B, R, U) the share of each region that is each text.
        boundary, sam: (B,) a loss an image.
        known: (B, M) bool, masks that are there and cover a token.
    """

    scores: Tensor
    mask: Tensor | None = None
    pull: Tensor | None = None
    words: Tensor | None = None
    share: Tensor | None = None
    preserve: Tensor | None = None
    boundary: Tensor | None = None
    sam: Tensor | None = None
    known: Tensor | None = None


class WeakObjective(nn.Module):
    """Images, texts and pseudo-masks in, the parts of the loss out.

    The mask classifier's logits are `exp(mask_scale) cos - mask_bias`: with one mask there is no other class to be
    compared with, so the cosine needs a level.
    """

    def __init__(self, model: OVSDINO, config: WeakConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.mask_scale = nn.Parameter(torch.tensor(10.0).log())
        self.mask_bias = nn.Parameter(torch.tensor(5.0))
        self.alignment = None
        if config.loss.sam and model.decoder is not None:
            assert model.config.sae is not None
            self.alignment = SAMAlignment(model.config.sae.structure_dim)

    def forward(
        self,
        images: Tensor,
        regions: Tensor,
        text_rows: Tensor,
        positives: Tensor,
        masks: Tensor | None = None,
        quality: Tensor | None = None,
        sam: Tensor | None = None,
    ) -> Parts:
        """Finds the parts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            regions: (B, R, 4), see `WeakBatch`.
            text_rows: (U, width of the text tower), what `TextTower.read` gives.
            positives: (B, R, U) bool, texts of each region's caption.
            masks: (B, M, 4h, 4w) bool pseudo-masks; empty ones stand for none.
            quality: (B, M), 0 where there is no mask.
            sam: (B, 256, h, w) SAM's embedding of the crop.
        """
        c, model = self.config.loss, self.model
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.optim.bf16):
            if c.pool == "heads":
                features, attention = model.encode_with_attention(normalised(model, images))
            else:
                features, attention = model.encode_image(normalised(model, images)), None
        features = features.float()
        text = normalise(model.text_tower.project(text_rows).float(), dim=-1)
        scale = model.log_scale.exp()
        tokens = features.tokens.flatten(2).transpose(1, 2)  # (B, N, D)
        cover = region_cover(regions, *features.tokens.shape[-2:]).flatten(2)
        if attention is not None:
            parts = Parts(scale * head_scores(head_pool(tokens, attention, cover), text, positives))
        else:
            parts = Parts(scale * text_pool_scores(tokens, text, c.sharpness, cover))
        structure = features.structure
        if structure is not None and sam is not None and self.alignment is not None:
            predicted = self.alignment.project(structure.tokens)
            parts.sam = torch.stack([sam_alignment_loss(a[None], b[None]) for a, b in zip(predicted, sam, strict=True)])
        if masks is None or quality is None:
            return parts
        soft = F.avg_pool2d(masks.float(), 4).flatten(2)  # (B, M, N): share of each token that lies in the mask
        pooled, area = mask_pool(tokens, soft)
        parts.known = (quality > 0) & (area > 0)
        prototypes = normalise(pooled, dim=-1)
        if c.mask:
            cosine = _resized(model.cosine(features, prototypes), masks)
            parts.mask = mask_classifier_loss(self.mask_scale.exp() * cosine - self.mask_bias, masks)
        if c.pull or c.words or c.present:
            fine = region_cover(regions, *masks.shape[-2:])
            inside = mask_pool(fine.flatten(2).transpose(1, 2), masks.flatten(2))[0].transpose(1, 2)  # (B, R, M)
            answers = _resized(model.decode(features, text), masks).float()
            every4th = (..., slice(2, None, 4), slice(2, None, 4))
            common = text_log_prior(answers[every4th], fine[every4th], c.adjust, c.rarest, _total)
            log_p = F.log_softmax(answers + common[:, None, None], 1)
            parts.share = region_share(log_p.exp(), fine)
            each = mask_pool(log_p.flatten(2).transpose(1, 2).contiguous(), masks.flatten(2))[0]
            parts.words = over_regions(partial_label_loss(each, positives), inside)
            log_p = F.log_softmax(scale * prototypes @ text.T + common, -1)
            parts.pull = over_regions(partial_label_loss(log_p, positives), inside)
        changed = model.decoder is not None and model.decoder.smd is not None  # else F' is F
        if c.preserve and features.backbone is not None and changed:
            before, _ = mask_pool(features.backbone.flatten(2).transpose(1, 2).detach(), soft)
            parts.preserve = preservation_loss(pooled, before)
        if c.boundary and structure is not None:
            target = mask_boundaries(masks, quality)
            pairs = zip(structure.boundary, target, strict=True)
            parts.boundary = torch.stack([mask_boundary_loss(a[None], b[None]) for a, b in pairs])
        return parts


class WeakTrainer(Trainer):
    """Runs a `WeakConfig`."""

    config: WeakConfig

    def __init__(self, config: WeakConfig, log: Log) -> None:
        super().__init__(config, log)
        _check(config, self.ranks.size)
        self.slow_rate = config.projection_rate
        if config.loss.pool == "heads" and self.model.backbone.vit.cls_token is None:
            raise OVSDinoError(f"loss.pool: the ViT of {config.model} has no class token to pool by; take text")
        freeze(self.model.backbone)
        freeze(self.model.text_tower)
        if config.train_alignment:
            for parameter in self._alignment_parameters():
                parameter.requires_grad_(True)
        masks = MaskStore.open(config.data.masks) if config.data.masks else None
        captions = open_captions(config.data.kind, config.data.root, config.data.annotations)
        self.data = WeakDataset(captions, masks, config.data, config.robust, self.model.config.patch_size, config.seed)
        self.val_set = None
        if config.val.root:
            self.val_set = open_dataset(config.val.dataset, config.val.root, config.val.split, byte_labels=True)
        self.prepare(WeakObjective(self.model, config))
        self.sam = self._sam_source()

    def _sam_source(self) -> SamSource | None:
        """Where the targets of `loss.sam` come from."""
        config = self.config
        if not config.loss.sam or self.model.decoder is None:
            return None
        if config.data.sam_targets:
            return SamTargets(config.data.sam_targets)
        if not config.sam_checkpoint:
            raise OVSDinoError(f"loss.sam {config.loss.sam} needs data.sam_targets or sam_checkpoint; or set it to 0")
        encoder = SAMEncoder(config.sam_variant)
        encoder.load(config.sam_checkpoint)
        captions = self.data.captions
        index = {captions.record(i).image: i for i in range(len(captions))}
        return SamOnTheFly(encoder.to(self.device), lambda name: captions.read(index[name]), bf16=config.optim.bf16)

    def _alignment_parameters(self) -> Iterator[nn.Parameter]:
        """The map between image and text space: nano's linear head, or the projection of the CLIP tower."""
        if self.model.backbone.head is not None:
            yield from self.model.backbone.head.parameters()
        else:
            yield from self.model.text_tower.parameters()

    def batches(self, start: int, steps: int) -> Iterator[WeakBatch]:
        size = self.config.batch // self.ranks.size
        own = range(self.ranks.rank * size, (self.ranks.rank + 1) * size)
        yield from batches(self.data, ([step * self.config.batch + i for i in own] for step in range(start, steps)))

    def part(self, batch: WeakBatch, index: int, parts: int) -> WeakBatch:
        size = len(batch.images) // parts
        return batch.slice(slice(index * size, (index + 1) * size))

    def rows(self, texts: list[str]) -> Tensor:
        """Return what the text tower reads, (n, width): captions as they are, not in the templates of class names.

        All texts of a step together and anew at every step, each process its part: so a row depends on the step alone.
        Kept from an earlier step it would have been read in other company, and its last bits would differ after a
        resumption. For b14 at 448 x 448 with one caption an image this is 2.4 % of a step's FLOPs.
        """
        share = -(-len(texts) // self.ranks.size)
        own = texts[self.ranks.rank * share :][:share]
        own += texts[:1] * (share - len(own))
        return gather(self.model.text_tower.read(own, RAW).float().to(self.device))[: len(texts)]

    def losses(self, batch: WeakBatch) -> dict[str, Tensor]:
        said = gather_objects([text for image in batch.texts for texts in image for text in texts])
        words = list(dict.fromkeys(text for part in said for text in part))
        place = {word: i for i, word in enumerate(words)}
        positives = torch.zeros(*batch.regions.shape[:2], len(words), dtype=torch.bool)
        for row, image in enumerate(batch.texts):
            for column, texts in enumerate(image):
                positives[row, column, [place[text] for text in texts]] = True
        masked = batch.masks.shape[1] > 0
        extra = [batch.masks, batch.quality] if masked else [None, None]
        images, regions = batch.images.to(self.device), batch.regions.to(self.device)
        rows, positives = self.rows(words), positives.to(self.device)
        masks, quality = (None if x is None else x.to(self.device) for x in extra)
        sam = None
        if self.sam is not None:
            patch = self.model.config.patch_size
            grid = (images.shape[-2] // patch, images.shape[-1] // patch)
            sam = self.sam.crops(batch.sources, batch.places, grid).to(self.device)
        parts: Parts = self.objective(images, regions, rows, positives, masks, quality, sam)
        return self._weighted(parts, positives, quality)

    def _weighted(self, parts: Parts, positives: Tensor, quality: Tensor | None) -> dict[str, Tensor]:
        """The terms of the whole batch, this process's share of it among the others'."""
        c = self.config.loss
        terms = {"contrast": c.contrast * info_nce(gather(parts.scores), gather(positives))}
        if parts.share is not None and c.present:
            terms["present"] = c.present * presence_loss(gather(parts.share), gather(positives), c.least)
        if parts.sam is not None:
            terms["sam"] = c.sam * gather(parts.sam).mean()
        if parts.boundary is not None:
            terms["boundary"] = c.boundary * gather(parts.boundary).mean()
        found = {"mask": parts.mask, "pull": parts.pull, "words": parts.words, "preserve": parts.preserve}
        each = {name: getattr(c, name) * gather(part).flatten() for name, part in found.items() if part is not None}
        if each and quality is not None and parts.known is not None:
            weights = gather(quality * parts.known).flatten()
            if self.config.robust.trim and self.step >= self.config.robust.trim_after:
                suspect = torch.stack([v.detach() for k, v in each.items() if k != "preserve"]).sum(0)
                weights = trimmed_weights(suspect, weights, self.config.robust.trim)
            terms |= {name: weighted_mean(part, weights) for name, part in each.items()}
        return terms

    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        if self.val_set is None:
            return {}
        return {"val": (self.val_set, self.model.encode_text(self.val_set.names))}

    def slow(self) -> list[nn.Parameter]:
        """A projection that was loaded is trained already."""
        loaded = self.config.projection or self.model.config.name in PROJECTIONS
        return [p for p in self.model.text_tower.parameters() if p.requires_grad] if loaded else []


def _total(x: Tensor) -> Tensor:
    """The sum over all processes."""
    return gather(x[None]).sum(0)


def _resized(logits: Tensor, masks: Tensor) -> Tensor:
    """(B, K, h, w) on the grid of the masks."""
    if logits.shape[-2:] == masks.shape[-2:]:
        return logits
    return F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)


def _check(config: WeakConfig, processes: int) -> None:
    """Refuse a batch that does not divide into the parts of a step."""
    parts = processes * config.optim.accumulate
    if config.batch % parts:
        raise OVSDinoError(
            f"batch: {config.batch} does not divide into {processes} processes times optim.accumulate "
            f"{config.optim.accumulate}; take a multiple of {parts}"
        )
