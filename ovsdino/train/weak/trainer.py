"""Training on captions and pseudo-masks; `ovsdino.train.weak.objective` has the loss."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ovsdino.data.captions import CaptionSet, open_captions
from ovsdino.data.datasets import open_dataset
from ovsdino.data.masks import MaskStore
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.distributed import gather, gather_objects
from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import freeze
from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.models.sam import SAMEncoder
from ovsdino.models.zoo import PROJECTIONS
from ovsdino.pipeline import Segmenter
from ovsdino.train.masks.embeddings import SamOnTheFly, SamSource, SamTargets
from ovsdino.train.segmentation import SegmentationTrainer
from ovsdino.train.trainer import Log
from ovsdino.train.weak.batches import WeakBatch, WeakDataset, batches
from ovsdino.train.weak.cached import CachedDataset
from ovsdino.train.weak.config import WeakConfig
from ovsdino.train.weak.frozen import FrozenImages
from ovsdino.train.weak.mask_grids import MaskGrids
from ovsdino.train.weak.objective import Inputs, WeakObjective, total

RAW = ("{}",)  # the template of a text that is not a class name


class WeakTrainer(SegmentationTrainer):
    """Runs a `WeakConfig`."""

    config: WeakConfig

    def __init__(self, config: WeakConfig, log: Log) -> None:
        super().__init__(config, log)
        _check(config, self.ranks.size)
        if config.loss.pool == "heads" and not self.model.backbone.has_class_token:
            raise OVSDinoError(f"loss.pool: the backbone of {config.model} has no class token to pool by; take text")
        freeze(self.model.backbone)
        freeze(self.model.text_tower)
        if config.train_alignment:
            for parameter in self._alignment_parameters():
                parameter.requires_grad_(True)
        masks = MaskStore.open(config.data.masks) if config.data.masks else None
        captions = open_captions(config.data.kind, config.data.root, config.data.annotations)
        patch, seed = self.model.config.patch_size, config.seed
        self.frozen: FrozenImages | None = None
        if config.data.cache_features:
            self.frozen, grids = self._kept(captions, masks)
            self.data: WeakDataset = CachedDataset(
                captions, config.data, config.robust, patch, seed, self.frozen, grids
            )
        else:
            self.data = WeakDataset(captions, masks, config.data, config.robust, patch, seed)
        self.val_set = None
        if config.val.root:
            self.val_set = open_dataset(config.val.dataset, config.val.root, config.val.split, byte_labels=True)
        if self.frozen is not None and self.device.type == "cpu":
            # The gradient of a GroupNorm of (4, 32, 48, 64) takes 0.3 ms, with the channels last 4.1 (one core).
            self.memory_format, self.fused = torch.contiguous_format, True
        objective = WeakObjective(self.model, config)
        self.terms = objective.terms
        self.prepare(objective)
        self.sam = self._sam_source()

    def _kept(self, captions: CaptionSet, masks: MaskStore | None) -> tuple[FrozenImages, MaskGrids | None]:
        """Return the kept features of the training images and the grids of their masks, all there."""
        config, names = self.config, [captions.record(i).image for i in range(len(captions))]
        if config.loss.pool == "heads":
            raise OVSDinoError("data.cache_features keeps no attention of a class token: set loss.pool to text")
        place = {name: i for i, name in enumerate(names)}
        folder, segmenter = Path(config.data.cache_features), Segmenter(self.model, self.device)
        frozen = FrozenImages(folder, segmenter, config.data.root, lambda name: captions.read(place[name]))
        grids = None
        if masks is not None and config.data.masks_per_image:
            grids = MaskGrids(folder, masks, frozen, self.model.config.patch_size)
        for what, kept in (("frozen features", frozen), ("grids of masks", grids)):
            if kept is not None and (made := kept.fill(names)):
                self.log(f"{folder}: made {what} of {made} images")
        return frozen, grids

    def _sam_source(self) -> SamSource | None:
        """Return the source of the targets of `loss.sam`."""
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
        """Yield those of the map between image and text space: the linear head, or CLIP's projection."""
        if self.model.backbone.head is not None:
            yield from self.model.backbone.head.parameters()
        else:
            yield from self.model.text_tower.parameters()

    def batches(self, start: int, steps: int) -> Iterator[WeakBatch]:
        size = self.config.batch // self.ranks.size
        own = range(self.ranks.rank * size, (self.ranks.rank + 1) * size)
        positions = ([step * self.config.batch + i for i in own] for step in range(start, steps))
        if self.frozen is None:
            yield from batches(self.data, positions)
        for rows in positions:  # none is left where the loader made them; kept features need no process of their own
            yield WeakBatch.collate([self.data[position] for position in rows])

    def part(self, batch: WeakBatch, index: int, parts: int) -> WeakBatch:
        size = len(batch.images) // parts
        return batch.slice(slice(index * size, (index + 1) * size))

    def losses(self, batch: WeakBatch) -> dict[str, Tensor]:
        inputs = self.inputs(batch)
        values: dict[str, Tensor] = self.objective(inputs)
        return total(self.terms, values, inputs, self.config.robust, self.step)

    def inputs(self, batch: WeakBatch) -> Inputs:
        """Return a batch on the device, the texts of its captions as rows."""
        words = _of_all(batch.texts)
        words += self.distractors(words)
        captions = _of_all(batch.captions) if self.config.data.caption == "both" else []
        names = list(dict.fromkeys([*words, *captions]))
        rows, place = self.rows(names), {name: i for i, name in enumerate(names)}
        sam = None
        if self.sam is not None:
            patch = self.model.config.patch_size
            grid = (batch.images.shape[-2] // patch, batch.images.shape[-1] // patch)
            sam = self.sam.crops(batch.sources, batch.places, grid).to(self.device)
        return Inputs(
            images=batch.images.to(self.device),
            maps=batch.maps,
            regions=batch.regions.to(self.device),
            text_rows=rows[: len(words)],
            positives=_positives(batch.texts, words).to(self.device),
            masks=batch.masks.to(self.device),
            quality=batch.quality.to(self.device),
            sam=sam,
            caption_rows=rows[[place[caption] for caption in captions]] if captions else None,
            caption_positives=_positives(batch.captions, captions).to(self.device) if captions else None,
        )

    def distractors(self, words: list[str]) -> list[str]:
        """Return up to `data.distractors` phrases of other captions, a function of the seed and the step."""
        count = self.config.data.distractors
        if not count or not words:
            return []
        rng = np.random.default_rng((self.config.seed, 2, self.step))
        own = set(words)
        order = rng.permutation(len(self.phrases))
        return [self.phrases[i] for i in order if self.phrases[i] not in own][:count]

    @functools.cached_property
    def phrases(self) -> list[str]:
        """The different texts of all captions, in their order."""
        captions = self.data.captions
        records = (captions.record(i) for i in range(len(captions)))
        said = (text for record in records for caption in record.captions for text in self.data.texts(caption))
        return list(dict.fromkeys(said))

    def rows(self, texts: list[str]) -> Tensor:
        """Return the text tower's input, (n, width): captions as they are, not in the templates of class names.

        All texts of a step together and anew at every step, each process its part: so a row depends on the step alone.
        Kept from an earlier step it would have been read in other company, and its last bits would differ after a
        resumption. For b14 at 448 x 448 with one caption an image this is 2.4 % of a step's FLOPs.
        """
        if not texts:
            raise OVSDinoError(
                "a step without a caption: no captioned box fits into its crops; raise data.height and width"
            )
        share = -(-len(texts) // self.ranks.size)
        own = texts[self.ranks.rank * share :][:share]
        own += texts[:1] * (share - len(own))
        # The words of a sentence encoder are phrases in its own template, as at inference; captions are as they are.
        named = self.model.config.text.kind == "sentence" and self.config.data.caption == "phrases"
        return gather(self.model.text_tower.read(own, None if named else RAW).float().to(self.device))[: len(texts)]

    def class_text(self, data: SegmentationDataset) -> Tensor:
        """Return the text of a data set's classes (K, D), without a background."""
        with torch.no_grad():
            return self.model.encode_text(data.names[1:] if data.has_background else data.names).to(self.device)

    def image_features(self, name: str) -> ImageFeatures:
        """Return the features of a whole training image by the model as it is now."""
        if self.frozen is not None:
            return self.frozen.features(name)
        captions = self.data.captions
        index = next(i for i in range(len(captions)) if captions.record(i).image == name)
        return Segmenter(self.model, self.device).encode_image(captions.read(index))

    def val_features(self) -> Iterator[tuple[int, ImageFeatures]]:
        """Yield the validation images by their number, with their features by the model as it is now."""
        assert self.val_set is not None
        images, stems = self.val_set, {stem: i for i, stem in enumerate(self.val_set.stems)}
        segmenter = Segmenter(self.model, self.device)
        if not self.config.data.cache_features:
            for index in range(len(images)):
                yield index, segmenter.encode_image(images[index].image)
            return
        folder = Path(self.config.data.cache_features)
        kept = FrozenImages(folder, segmenter, images.source, lambda stem: images[stems[stem]].image)
        kept.fill(stems)
        for stem, index in stems.items():
            yield index, kept.features(stem)

    def val_label(self, index: int) -> np.ndarray:
        """Return the labels of a validation image."""
        assert self.val_set is not None
        return self.val_set[index].label

    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        if self.val_set is None:
            return {}
        if self.val_set.has_background:
            raise OVSDinoError(
                "eval_every: a data set with a background is scored by `ovsdino ablate` alone; set it to 0"
            )
        return {"val": (self.val_set, self.model.encode_text(self.val_set.names))}

    def own_rates(self) -> dict[nn.Parameter, float]:
        """Return also the rate of a projection, or of lite2's head, that was loaded: it is trained already."""
        rates = super().own_rates()
        if self.config.projection or self.model.config.name in PROJECTIONS:
            rates |= {p: self.config.projection_rate for p in self._alignment_parameters() if p.requires_grad}
        return rates


def _of_all(texts: list[list[tuple[str, ...]]]) -> list[str]:
    """Return the different texts of the images and regions of all processes, in their order."""
    said = gather_objects([text for image in texts for region in image for text in region])
    return list(dict.fromkeys(text for part in said for text in part))


def _positives(texts: list[list[tuple[str, ...]]], names: list[str]) -> Tensor:
    """Return which of U names each region has: (B, R, U) bool."""
    place = {name: i for i, name in enumerate(names)}
    positives = torch.zeros(len(texts), len(texts[0]), len(names), dtype=torch.bool)
    for row, image in enumerate(texts):
        for column, region in enumerate(image):
            positives[row, column, [place[text] for text in region]] = True
    return positives


def _check(config: WeakConfig, processes: int) -> None:
    """Refuse a batch that does not divide into the parts of a step."""
    parts = processes * config.optim.accumulate
    if config.batch % parts:
        raise OVSDinoError(
            f"batch: {config.batch} does not divide into {processes} processes times optim.accumulate "
            f"{config.optim.accumulate}; take a multiple of {parts}"
        )
