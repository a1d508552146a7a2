"""Samples of images whose frozen features are kept: windows of whole tokens, mirrored or not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ovsdino.data.captions import CaptionRecord, CaptionSet
from ovsdino.errors import OVSDinoError
from ovsdino.train.weak.batches import SLACK, Crop, WeakBatch, WeakDataset
from ovsdino.train.weak.config import RobustConfig, WeakDataConfig
from ovsdino.train.weak.frozen import FrozenImage, FrozenImages, Window
from ovsdino.train.weak.mask_grids import MaskGrids
from ovsdino.train.weak.robust import agreement_weight, perturb_masks, quality_weight


class CachedDataset(WeakDataset):
    """`WeakDataset` on kept features: images at one scale, windows of `height` x `width` pixels, colors as they are.

    The crops' `area` and `aspect` and the changes of color do not apply. With captioned boxes (`regions`) all windows
    that hold one are equally likely; where none does, all windows are, and the sample has no region.

    Args:
        captions: See `WeakDataset`.
        config: See `WeakDataset`.
        robust: See `WeakDataset`.
        patch: Pixels of a token.
        seed: Of the run.
        frozen: The features of the same images.
        grids: Their masks; None trains without.
    """

    def __init__(
        self,
        captions: CaptionSet,
        config: WeakDataConfig,
        robust: RobustConfig,
        patch: int,
        seed: int,
        frozen: FrozenImages,
        grids: MaskGrids | None,
    ) -> None:
        super().__init__(captions, None, config, robust, patch, seed)
        self.frozen, self.grids = frozen, grids
        self.size = (config.height // patch, config.width // patch)  # of a window, in tokens

    def __getitem__(self, position: int) -> WeakBatch:
        rng = np.random.default_rng((self.seed, 1, position))
        records = [self.captions.record(i) for i in self.groups[self.index(position)]]
        name = records[0].image
        image = self.frozen[name]
        window, crop = self._draw(records, image, rng)
        captioned = self._regions(records, crop, rng)
        masked = self._cells(name, window, rng)
        pixels, maps = image.crop(window)
        return self._batch(name, image.size, crop, pixels, captioned, masked, tuple(maps))

    def _draw(self, records: list[CaptionRecord], image: FrozenImage, rng: np.random.Generator) -> tuple[Window, Crop]:
        """Return a window, and where it lies in the image itself."""
        (rows, columns), (h, w) = image.grid, self.size
        name, boxes = records[0].image, [record.box for record in records if record.box]
        if rows < h or columns < w:
            side = self.config.height // h
            raise OVSDinoError(
                f"{name}: {columns * side} x {rows * side} pixels at its inference size, less than data.width "
                f"{w * side} x data.height {h * side}; lower them, or raise architecture.short_side"
            )
        mirror = bool(rng.random() < self.config.flip)
        down, across = image.size[0] / rows, image.size[1] / columns  # pixels of the image itself in a token
        whole = (0, 0, image.size[1], image.size[0])
        if not self.config.regions and any(box != whole for box in boxes):
            raise OVSDinoError(f"{name}: data.cache_features takes captions of boxes with data.regions above 0 alone")
        fit = np.ones((rows - h + 1, columns - w + 1), bool)
        if self.config.regions:
            x, y, right, bottom = np.array([(b[0], b[1], b[0] + b[2], b[1] + b[3]) for b in boxes]).T
            tops, lefts = np.ogrid[: rows - h + 1, : columns - w + 1]
            above = (tops[..., None] * down <= y + SLACK) & (bottom <= (tops[..., None] + h) * down + SLACK)
            aside = (lefts[..., None] * across <= x + SLACK) & (right <= (lefts[..., None] + w) * across + SLACK)
            held = (above & aside).any(-1)
            fit = held if held.any() else fit
        top, left = (int(v) for v in np.argwhere(fit)[rng.integers(int(fit.sum()))])
        crop = Crop(left * across, top * down, w * across, h * down, mirror)
        return Window(left, top, w, h, mirror), crop

    def _cells(self, name: str, window: Window, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw masks of a window, (M, 4h, 4w) bool, with their weights (M,)."""
        count = self.config.masks_per_image if self.grids is not None else 0
        masks, quality = torch.zeros(count, *self.fine, dtype=torch.bool), torch.zeros(count)
        if self.grids is None or not count:
            return masks, quality
        cells, counts, scores = self.grids[name]
        inside = window.of(counts, 1).flatten(1).sum(1).numpy()
        likely = np.flatnonzero(inside >= max(1.0, self.config.min_mask_area * self.fine[0] * self.fine[1]))
        if not len(likely):
            return masks, quality
        chance = np.sqrt(inside[likely])
        drawn = rng.choice(likely, min(count, len(likely)), replace=False, p=chance / chance.sum())
        found, weights = window.of(cells[torch.from_numpy(drawn)], 4), torch.ones(len(drawn))
        if self.robust.quality_weights:
            weights = quality_weight(*scores[drawn, :2].T)
        if self.robust.agreement:
            weights = weights * agreement_weight(scores[drawn, 2])
        if self.robust.merge or self.robust.split:
            new = perturb_masks(found.numpy(), weights.numpy(), self.robust.merge, self.robust.split, rng)
            found, weights = torch.from_numpy(new[0]), torch.from_numpy(new[1])
        masks[: len(drawn)], quality[: len(drawn)] = found, weights * found.flatten(1).any(1)
        return masks, quality
