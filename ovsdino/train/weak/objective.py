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
      + affinity BCE(exp(-|a_i - a_j|^2), share of the masks of either cell that hold both)
      + structure the same of tokens, exp(-lambda |e_i - e_j|^2)

`decode` is the decoder that answers words at inference, guide and all: what sharpens a mask's embedding here sharpens
a word's there. A region is what a caption speaks of, mostly the whole image. A term is evaluated in two steps: each
process finds its values (for each region, mask or image), then all of them together become one number. The terms with
one value for each mask are weighted and trimmed (`RobustConfig`) over the whole batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.distributed import gather
from ovsdino.models.backbone import normalize
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.prior import text_log_prior
from ovsdino.ops import mask_pool
from ovsdino.train.segmentation import normalized
from ovsdino.train.terms import Term, active
from ovsdino.train.weak import losses
from ovsdino.train.weak.affinity import affinity_loss, far_affinity_loss, grid_affinity_loss
from ovsdino.train.weak.config import RobustConfig, WeakConfig
from ovsdino.train.weak.frozen import encode_maps
from ovsdino.train.weak.robust import trimmed_weights, weighted_mean


@dataclass(frozen=True)
class MaskTerm(Term):
    """A term with one value for each pseudo-mask, (B, M).

    Attributes:
        suspect: A large value says that the mask may be wrong.
    """

    suspect: bool = True


@dataclass(frozen=True)
class WholeTerm(Term):
    """A term with a value for each image (B,), or for each region and text (B, R, U).

    Attributes:
        captions: Its texts are whole captions where a run has both (`Inputs.caption_rows`).
        total: Returns one number, given the values and the positives of all processes.
    """

    captions: bool = False
    total: Callable[[Tensor, Tensor], Tensor] = lambda values, _: values.mean()


def terms_of(config: WeakConfig, model: OVSDINO) -> list[MaskTerm | WholeTerm]:
    """Return the terms of L that a configuration has weights and inputs for.

    Raises:
        OVSDinoError: There is none.
    """
    c, decoder, masks = config.loss, model.decoder, bool(config.data.masks and config.data.masks_per_image)
    terms: list[MaskTerm | WholeTerm] = [
        WholeTerm("contrast", c.contrast, lambda _, o: o.scores, True, losses.info_nce)
    ]
    if masks:
        present = partial(losses.presence_loss, least=c.least)
        terms += [
            MaskTerm("mask", c.mask, lambda b, o: losses.mask_classifier_loss(o.mask_logits, b.masks)),
            WholeTerm("present", c.present, lambda _, o: losses.region_share(o.text_p, o.fine_cover), total=present),
            MaskTerm("pull", c.pull, lambda _, o: o.label_loss(o.prototype_log_p)),
            MaskTerm("words", c.words, lambda _, o: o.label_loss(o.mask_log_p)),
        ]
    if masks and decoder is not None and decoder.smd is not None:  # else F' is F
        terms.append(MaskTerm("preserve", c.preserve, lambda _, o: losses.preservation_loss(o.pooled, o.before), False))
    if decoder is not None:
        terms.append(WholeTerm("sam", c.sam, lambda b, o: _each(losses.sam_alignment_loss, o.aligned, b.sam)))
    if masks and decoder is not None:
        terms.append(
            WholeTerm("boundary", c.boundary, lambda _, o: _each(losses.mask_boundary_loss, o.boundary, o.edges))
        )
        if decoder.config.upsampling == "attention" and decoder.config.score_attention.structure:
            terms.append(WholeTerm("affinity", c.affinity, lambda _, o: o.affinity_loss))
        if decoder.smd is not None and decoder.smd.config.structure:
            terms.append(
                WholeTerm(
                    "structure",
                    c.structure,
                    lambda b, o: grid_affinity_loss(o.structure_distances, o.soft, b.quality),
                )
            )
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
        caption_rows: (V, width of the text tower), captions for the contrast; None where it takes the texts above.
        caption_positives: (B, R, V) bool, each region's caption.
        maps: The frozen backbone's maps of the images where they are kept, see `WeakBatch`.
    """

    images: Tensor
    regions: Tensor
    text_rows: Tensor
    positives: Tensor
    masks: Tensor
    quality: Tensor
    sam: Tensor | None = None
    caption_rows: Tensor | None = None
    caption_positives: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class Outputs:
    """The model's answers to `Inputs`, each computed when a term first asks for it."""

    def __init__(self, objective: WeakObjective, inputs: Inputs) -> None:
        self.objective, self.inputs = objective, inputs
        config, model = objective.config, objective.model
        with torch.autocast(inputs.images.device.type, torch.bfloat16, enabled=config.optim.bf16):
            self.attention: Tensor | None = None  # (B, heads, N), the class token's; None where texts pool
            if inputs.maps:
                features = encode_maps(model, inputs.images, inputs.maps)
            elif config.loss.pool == "heads":
                features, self.attention = model.encode_with_attention(normalized(model, inputs.images))
            else:
                features = model.encode_image(normalized(model, inputs.images))
        self.features = features.float()
        self.text = objective.encoded(inputs.text_rows)  # (U, D)
        self.scale = model.log_scale.exp()
        self.tokens = self.features.tokens.flatten(2).transpose(1, 2)  # (B, N, D)

    @property
    def scores(self) -> Tensor:
        """(B, R, U or V), region against text or caption, times the temperature."""
        tokens, text, positives = self.tokens, self.text, self.inputs.positives
        if self.inputs.caption_rows is not None and self.inputs.caption_positives is not None:
            text, positives = self.objective.encoded(self.inputs.caption_rows), self.inputs.caption_positives
        cover = losses.region_cover(self.inputs.regions, *self.features.tokens.shape[-2:]).flatten(2)
        if self.attention is None:
            return self.scale * losses.text_pool_scores(tokens, text, self.objective.config.loss.sharpness, cover)
        return self.scale * losses.head_scores(losses.head_pool(tokens, self.attention, cover), text, positives)

    # -- masks on the token grid: their means of F' and F

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

    @property
    def before(self) -> Tensor:
        """(B, M, D), the mean of F in each mask."""
        assert self.features.backbone is not None
        return mask_pool(self.features.backbone.flatten(2).transpose(1, 2).detach(), self.soft)[0]

    @property
    def mask_logits(self) -> Tensor:
        """(B, M, 4h, 4w), each mask's classifier on all cells: exp(mask_scale) cos - mask_bias.

        With one mask there is no other class to be compared with, so the cosine needs a level.
        """
        own = self.objective
        cosine = self._on_grid(own.model.cosine(self.features, self.prototypes))
        return own.mask_scale.exp() * cosine - own.mask_bias

    # -- texts on the masks' grid

    @cached_property
    def places(self) -> Tensor:
        """(B, M, h w) or (B, M, 16 h w), the masks where the texts are answered: on the tokens in part, or on cells."""
        return self.soft if self.objective.config.loss.answers == "tokens" else self.inputs.masks.flatten(2)

    @cached_property
    def fine_cover(self) -> Tensor:
        """(B, R, ...), the share of each place of `answers` that lies in each region."""
        return losses.region_cover(self.inputs.regions, *self.answers.shape[-2:])

    @cached_property
    def answers(self) -> Tensor:
        """(B, U, 4h, 4w) the decoder's logits of the texts; (B, U, h, w) before the upsampling."""
        if self.objective.config.loss.answers == "tokens":
            return self.objective.model.coarse_logits(self.features, self.text)
        return self._on_grid(self.objective.model.decode(self.features, self.text)).float()

    @cached_property
    def log_prior(self) -> Tensor:
        """(U,), how common each text is, see `text_log_prior`; added to scores in training only."""
        c = self.objective.config.loss
        every4th = (..., slice(2, None, 4), slice(2, None, 4)) if c.answers == "cells" else (...,)
        return text_log_prior(self.answers[every4th], self.fine_cover[every4th], c.adjust, c.rarest, _total)

    @cached_property
    def log_p(self) -> Tensor:
        """(B, U, ...), log probabilities of the texts at each place of `answers`; last, that of no text."""
        logits = self.answers + self.log_prior[:, None, None]
        if other := self.objective.config.loss.other:
            logits = torch.cat([logits, (other * self.scale).expand_as(logits[:, :1])], 1)
        return F.log_softmax(logits, 1)

    @property
    def text_p(self) -> Tensor:
        """(B, U, ...), probabilities of the texts, without the class of no text."""
        return self.log_p[:, : len(self.text)].exp()

    @property
    def mask_log_p(self) -> Tensor:
        """(B, M, U) or (B, M, U + 1), the mean of `log_p` in each mask."""
        return mask_pool(self.log_p.flatten(2).transpose(1, 2).contiguous(), self.places)[0]

    @property
    def prototype_log_p(self) -> Tensor:
        """(B, M, U), log probabilities of the texts for each mask's embedding."""
        return F.log_softmax(self.scale * self.prototypes @ self.text.T + self.log_prior, -1)

    def label_loss(self, log_p: Tensor) -> Tensor:
        """Return the loss of masks (B, M) whose log probabilities should be those of a text of their regions."""
        cover = self.fine_cover.flatten(2).transpose(1, 2)
        inside = mask_pool(cover, self.places)[0].transpose(1, 2)  # (B, R, M)
        positives = self.inputs.positives
        if log_p.shape[-1] > positives.shape[-1]:  # that of no text belongs to every caption
            positives = torch.cat([positives, positives.any(-1, keepdim=True)], -1)
        return losses.over_regions(losses.partial_label_loss(log_p, positives), inside)

    # -- the structure encoder

    @property
    def boundary(self) -> Tensor:
        """(B, 1, 4h, 4w), boundary logits."""
        assert self.features.structure is not None
        return self.features.structure.boundary

    @property
    def edges(self) -> Tensor:
        """(B, 1, 4h, 4w), their target."""
        return losses.mask_boundaries(self.inputs.masks, self.inputs.quality)

    @property
    def affinity_loss(self) -> Tensor:
        """(B,), of the affinity's neighbors and of pairs far apart, the mean of both."""
        decoder, inputs, c = self.objective.model.decoder, self.inputs, self.objective.config.loss
        assert self.features.structure is not None and decoder is not None
        affinity = decoder.score_attention.embed(self.features.structure.guide)
        near = affinity_loss(affinity, inputs.masks, inputs.quality, c.distances)
        return 0.5 * (near + far_affinity_loss(affinity, inputs.masks, inputs.quality, c.far))

    @property
    def structure_distances(self) -> Tensor:
        """(B, blocks heads, N, N), lambda |e_i - e_j|^2 of each block and head of the SMD."""
        decoder = self.objective.model.decoder
        assert self.features.structure is not None and decoder is not None and decoder.smd is not None
        return decoder.smd.distances(self.features.structure.tokens)

    @property
    def aligned(self) -> Tensor:
        """(B, 256, h, w), the structure tokens in SAM's space."""
        assert self.features.structure is not None and self.objective.alignment is not None
        aligned: Tensor = self.objective.alignment(self.features.structure.tokens)
        return aligned

    def _on_grid(self, logits: Tensor) -> Tensor:
        """Return (B, K, h, w) on the grid of the masks."""
        size = self.inputs.masks.shape[-2:]
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


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

    def encoded(self, rows: Tensor) -> Tensor:
        """Return texts of length one, (U, D), from the rows that the text tower read."""
        return normalize(self.model.text_tower.project(rows).float(), dim=-1)

    def forward(self, batch: Inputs) -> dict[str, Tensor]:
        """Return this process's values of each term, by name."""
        outputs = Outputs(self, batch)
        return {term.name: term(batch, outputs) for term in self.terms}


def total(
    terms: Sequence[MaskTerm | WholeTerm], values: dict[str, Tensor], batch: Inputs, robust: RobustConfig, step: int
) -> dict[str, Tensor]:
    """Return the weighted terms of the whole batch, by name; every process has the same.

    `values` and `batch` are those of this process.
    """
    values = {term.name: gather(values[term.name]) for term in terms}
    positives, weights = gather(batch.positives), gather(batch.quality).flatten()
    compared = positives if batch.caption_positives is None else gather(batch.caption_positives)
    whole = [term for term in terms if isinstance(term, WholeTerm)]
    masked = [term for term in terms if isinstance(term, MaskTerm)]
    each = {term.name: term.weight * values[term.name].flatten() for term in masked}
    suspect = [each[term.name].detach() for term in masked if term.suspect]
    if suspect and robust.trim and step >= robust.trim_after:
        weights = trimmed_weights(torch.stack(suspect).sum(0), weights, robust.trim)
    result = {
        term.name: term.weight * term.total(values[term.name], compared if term.captions else positives)
        for term in whole
    }
    return result | {name: weighted_mean(part, weights) for name, part in each.items()}


def _total(x: Tensor) -> Tensor:
    """Return the sum over all processes."""
    return gather(x[None]).sum(0)


def _each(loss: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, target: Tensor) -> Tensor:
    """Return a loss of each image, (B,); both (B, ...)."""
    return torch.stack([loss(a[None], b[None]) for a, b in zip(predicted, target, strict=True)])
