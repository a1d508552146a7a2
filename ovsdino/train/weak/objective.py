"""The loss of training on captions and pseudo-masks, as OVS-DINO does it (arXiv 2604.08461): no pixel label anywhere.

With F the backbone's tokens, F' the decoder's, t_u the texts of the step, m the pseudo-masks of an image:

    L = contrast InfoNCE(pool(F'), t)               a region agrees with the texts of its caption
      + mask     BCE + Dice(decode(F', p_m), m)     p_m = mean of F' in m, a classifier that must find m again
      + present  decode(F', t) has each text of a region's caption somewhere in the region
      + pull     p_m is one of them
      + words    decode(F', t) in m is one of them, the same one all over m
      + preserve 1 - cos(p_m, mean of F in m)
      + sam      1 - cos + smooth L1 (S, SAM's embedding)
      + boundary BCE + Dice(boundary logits, edges of the masks)

`decode` is the decoder that answers words at inference, guide and all: what sharpens a mask's embedding here sharpens
a word's there. A region is what a caption speaks of, mostly the whole image. A term is evaluated in two steps: each
process finds its values (for each region, mask or image), then all of them together become one number. The terms with
one value for each mask are weighted and trimmed (`RobustConfig`) over the whole batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.distributed import gather
from ovsdino.models.backbone import normalize
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.sae import Structure
from ovsdino.ops import mask_pool
from ovsdino.train.segmentation import normalized
from ovsdino.train.terms import Term, active
from ovsdino.train.weak.config import RobustConfig, WeakConfig
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
    sam_alignment_loss,
    text_log_prior,
    text_pool_scores,
)
from ovsdino.train.weak.robust import trimmed_weights, weighted_mean


def terms_of(config: WeakConfig, model: OVSDINO) -> list[WeakTerm]:
    """Return the terms of L that a configuration has weights and inputs for.

    Raises:
        OVSDinoError: There is none.
    """
    c, decoder = config.loss, model.decoder
    terms: list[WeakTerm] = [Contrast(c.contrast)]
    if config.data.masks:
        terms += [Mask(c.mask), Present(c.present, c.least), Pull(c.pull), Words(c.words)]
        if decoder is not None and decoder.smd is not None:  # else F' is F
            terms.append(Preserve(c.preserve))
    if decoder is not None:
        terms.append(Sam(c.sam))
        if config.data.masks:
            terms.append(Boundary(c.boundary))
    return active(terms)


@dataclass
class Inputs:
    """A step's images on the device, and what is known of them.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        regions: (B, R, 4), see `WeakBatch`.
        text_rows: (U, width of the text tower), the result of `TextTower.read`.
        positives: (B, R, U) bool, texts of each region's caption.
        masks: (B, M, 4h, 4w) bool pseudo-masks; empty ones stand for none.
        quality: (B, M), 0 where there is no mask.
        sam: (B, 256, h, w) SAM's embedding of the crop; None without the term `sam`.
    """

    images: Tensor
    regions: Tensor
    text_rows: Tensor
    positives: Tensor
    masks: Tensor
    quality: Tensor
    sam: Tensor | None = None


class Outputs:
    """The model's answers to `Inputs`, each computed when a term first asks for it.

    Attributes:
        features: F', F and the structure.
        attention: (B, heads, N), the class token's; None where texts pool (`WeakLossConfig.pool`).
        text: (U, D), rows of length one.
        scale: (), the temperature.
        tokens: (B, N, D), F'.
        cover: (B, R, N), the share of each token that lies in each region.
    """

    def __init__(self, objective: WeakObjective, inputs: Inputs) -> None:
        self.objective, self.inputs = objective, inputs
        config, model = objective.config, objective.model
        with torch.autocast(inputs.images.device.type, torch.bfloat16, enabled=config.optim.bf16):
            images = normalized(model, inputs.images)
            self.attention: Tensor | None = None
            if config.loss.pool == "heads":
                features, self.attention = model.encode_with_attention(images)
            else:
                features = model.encode_image(images)
        self.features = features.float()
        self.text = normalize(model.text_tower.project(inputs.text_rows).float(), dim=-1)
        self.scale = model.log_scale.exp()
        self.tokens = self.features.tokens.flatten(2).transpose(1, 2)
        self.cover = region_cover(inputs.regions, *self.features.tokens.shape[-2:]).flatten(2)

    @property
    def structure(self) -> Structure:
        """The structure encoder's output."""
        assert self.features.structure is not None
        return self.features.structure

    @cached_property
    def soft(self) -> Tensor:
        """(B, M, N), the share of each token that lies in each mask."""
        return F.avg_pool2d(self.inputs.masks.float(), 4).flatten(2)

    @cached_property
    def pooled(self) -> Tensor:
        """(B, M, D), the mean of F' in each mask."""
        return mask_pool(self.tokens, self.soft)[0]

    @cached_property
    def prototypes(self) -> Tensor:
        """(B, M, D), `pooled` with length one."""
        return normalize(self.pooled, dim=-1)

    @cached_property
    def mask_logits(self) -> Tensor:
        """(B, M, 4h, 4w), each mask's classifier on all cells.

        exp(mask_scale) cos - mask_bias: with one mask there is no other class to be compared with, so the cosine needs
        a level.
        """
        own = self.objective
        cosine = self._on_grid(own.model.cosine(self.features, self.prototypes))
        return own.mask_scale.exp() * cosine - own.mask_bias

    @cached_property
    def fine_cover(self) -> Tensor:
        """(B, R, 4h, 4w), the share of each cell that lies in each region."""
        return region_cover(self.inputs.regions, *self.inputs.masks.shape[-2:])

    @cached_property
    def inside(self) -> Tensor:
        """(B, R, M), the share of each mask that lies in each region."""
        masks = self.inputs.masks.flatten(2)
        return mask_pool(self.fine_cover.flatten(2).transpose(1, 2), masks)[0].transpose(1, 2)

    @cached_property
    def answers(self) -> Tensor:
        """(B, U, 4h, 4w), the decoder's logits of the texts."""
        return self._on_grid(self.objective.model.decode(self.features, self.text)).float()

    @cached_property
    def log_prior(self) -> Tensor:
        """(U,), how common each text is, see `text_log_prior`; added to scores in training only."""
        c, every4th = self.objective.config.loss, (..., slice(2, None, 4), slice(2, None, 4))
        return text_log_prior(self.answers[every4th], self.fine_cover[every4th], c.adjust, c.rarest, _total)

    @cached_property
    def log_p(self) -> Tensor:
        """(B, U, 4h, 4w), log probabilities of the texts at each cell."""
        return F.log_softmax(self.answers + self.log_prior[:, None, None], 1)

    def _on_grid(self, logits: Tensor) -> Tensor:
        """Return (B, K, h, w) on the grid of the masks."""
        size = self.inputs.masks.shape[-2:]
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


# -- the terms --------------------------------------------------------------------------------------------------------


class WeakTerm(Term):
    """A term of L: calling it gives this process's values, `total` one number for the whole batch."""

    @abstractmethod
    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor: ...

    def total(self, values: Tensor, positives: Tensor) -> Tensor:
        """Return the mean.

        Args:
            values: Those of all processes.
            positives: (B, R, U) bool, see `Inputs`, likewise.
        """
        return values.mean()


class MaskTerm(WeakTerm):
    """A term with one value for each pseudo-mask, (B, M)."""

    suspect = True  # a large value says that the mask may be wrong


class Contrast(WeakTerm):
    """Agreement of regions and texts: (B, R, U) scores, then `info_nce`."""

    name = "contrast"

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        tokens, text, cover = outputs.tokens, outputs.text, outputs.cover
        if outputs.attention is None:
            sharpness = outputs.objective.config.loss.sharpness
            return outputs.scale * text_pool_scores(tokens, text, sharpness, cover)
        return outputs.scale * head_scores(head_pool(tokens, outputs.attention, cover), text, batch.positives)

    def total(self, values: Tensor, positives: Tensor) -> Tensor:
        return info_nce(values, positives)


class Mask(MaskTerm):
    """A mask's embedding finds the mask again."""

    name = "mask"

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        return mask_classifier_loss(outputs.mask_logits, batch.masks)


class Present(WeakTerm):
    """The texts of a caption are in their region: (B, R, U) shares of the region, then `presence_loss`."""

    name = "present"

    def __init__(self, weight: float, least: float) -> None:
        super().__init__(weight)
        self.least = least

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        return region_share(outputs.log_p.exp(), outputs.fine_cover)

    def total(self, values: Tensor, positives: Tensor) -> Tensor:
        return presence_loss(values, positives, self.least)


class Pull(MaskTerm):
    """A mask's embedding is one of the texts."""

    name = "pull"

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        log_p = F.log_softmax(outputs.scale * outputs.prototypes @ outputs.text.T + outputs.log_prior, -1)
        return over_regions(partial_label_loss(log_p, batch.positives), outputs.inside)


class Words(MaskTerm):
    """The decoder's answer in a mask is one of the texts."""

    name = "words"

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        cells = outputs.log_p.flatten(2).transpose(1, 2).contiguous()
        log_p, _ = mask_pool(cells, batch.masks.flatten(2))
        return over_regions(partial_label_loss(log_p, batch.positives), outputs.inside)


class Preserve(MaskTerm):
    """A mask's embedding stays as it was before the decoder."""

    name = "preserve"
    suspect = False

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        assert outputs.features.backbone is not None
        before, _ = mask_pool(outputs.features.backbone.flatten(2).transpose(1, 2).detach(), outputs.soft)
        return preservation_loss(outputs.pooled, before)


class Sam(WeakTerm):
    """Distance of the structure tokens from SAM's embedding, (B,)."""

    name = "sam"

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        assert outputs.objective.alignment is not None and batch.sam is not None
        return _each(sam_alignment_loss, outputs.objective.alignment(outputs.structure.tokens), batch.sam)


class Boundary(WeakTerm):
    """The boundary logits follow the masks' edges, (B,)."""

    name = "boundary"

    def __call__(self, batch: Inputs, outputs: Outputs) -> Tensor:
        return _each(mask_boundary_loss, outputs.structure.boundary, mask_boundaries(batch.masks, batch.quality))


# -- the sum ----------------------------------------------------------------------------------------------------------


class WeakObjective(nn.Module):
    """Images, texts and pseudo-masks in, each term's values out."""

    def __init__(self, model: OVSDINO, config: WeakConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.mask_scale = nn.Parameter(torch.tensor(10.0).log())
        self.mask_bias = nn.Parameter(torch.tensor(5.0))
        self.alignment = None
        if config.loss.sam and model.decoder is not None:
            assert model.config.sae is not None
            project = nn.Conv2d(model.config.sae.structure_dim, 256, 1)
            self.alignment = nn.Sequential(OrderedDict(project=project))  # the name that checkpoints have
        self.terms = terms_of(config, model)

    def forward(self, batch: Inputs) -> dict[str, Tensor]:
        """Return this process's values of each term, by name."""
        outputs = Outputs(self, batch)
        return {term.name: term(batch, outputs) for term in self.terms}


def total(
    terms: Sequence[WeakTerm], values: dict[str, Tensor], batch: Inputs, robust: RobustConfig, step: int
) -> dict[str, Tensor]:
    """Return the weighted terms of the whole batch, by name; every process has the same.

    Args:
        terms: Of L.
        values: Of this process.
        batch: Of this process.
        robust: How masks that may be wrong are weighed.
        step: Of the run.
    """
    values = {name: gather(own) for name, own in values.items()}
    positives = gather(batch.positives)
    whole = [term for term in terms if not isinstance(term, MaskTerm)]
    result = {term.name: term.weight * term.total(values[term.name], positives) for term in whole}
    masked = [term for term in terms if isinstance(term, MaskTerm)]
    if masked:
        each = {term.name: term.weight * values[term.name].flatten() for term in masked}
        weights = gather(batch.quality).flatten()
        suspect = [each[term.name].detach() for term in masked if term.suspect]
        if suspect and robust.trim and step >= robust.trim_after:
            weights = trimmed_weights(torch.stack(suspect).sum(0), weights, robust.trim)
        result |= {name: weighted_mean(part, weights) for name, part in each.items()}
    return result


def _total(x: Tensor) -> Tensor:
    """Return the sum over all processes."""
    return gather(x[None]).sum(0)


def _each(loss: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor) -> Tensor:
    """Return a loss of each image, (B,); both (B, ...)."""
    return torch.stack([loss(a[None], b[None]) for a, b in zip(predicted, target, strict=True)])
