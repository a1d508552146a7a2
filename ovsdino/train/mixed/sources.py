"""Pictures with a word and images with drawn regions, as batches; functions of (seed, step) alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ovsdino.data.bsds import open_bsds
from ovsdino.data.captions import open_captions
from ovsdino.train.dense.batches import random_crop, recolored
from ovsdino.train.dense.config import DataConfig
from ovsdino.train.image_cache import ImageCache
from ovsdino.train.mixed.config import EdgeSet, PictureSet

VARIED = DataConfig()  # aspect, flip, color
CACHE = 4_000_000_000  # bytes of decoded images


class PictureSource:
    """Square crops of pictures, and the number of each one's word.

    Args:
        config: The pictures.
        seed: Of the run.
        device: Where decoded pictures are kept and varied.

    Attributes:
        words: The different words, in order.
    """

    def __init__(self, config: PictureSet, seed: int, device: torch.device | str) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.captions = open_captions("jsonl", config.root, config.annotations)
        said = [self.captions.record(i).captions[0].lower() for i in range(len(self.captions))]
        self.words = sorted(set(said))
        place = {word: i for i, word in enumerate(self.words)}
        self.targets = [place[word] for word in said]
        self._cache: ImageCache[Tensor] = ImageCache(CACHE, lambda image: image.nbytes)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return crops (B, 3, side, side) in [0, 1] and word numbers (B,) int64."""
        rng = np.random.default_rng((self.seed, step, 1))
        c = self.config
        picks = rng.choice(len(self.captions), c.batch, replace=len(self.captions) < c.batch)
        images = []
        for index in picks:
            image = self._cache.get(int(index), lambda i=int(index): self._read(i))  # type: ignore[misc]
            empty = image[0]  # in place of labels
            crop, _ = random_crop(image, empty, (c.side, c.side), c.area, VARIED, rng)
            images.append(recolored(crop, VARIED.colour, rng))
        targets = torch.tensor([self.targets[int(i)] for i in picks])
        return torch.stack(images), targets.to(self.device)

    def _read(self, index: int) -> Tensor:
        return torch.from_numpy(self.captions.read(index).copy()).permute(2, 0, 1).to(self.device)


class EdgeSource:
    """Crops of images, and the regions that one person drew, anew at each step.

    Args:
        config: The images.
        seed: Of the run.
        device: Where decoded images are kept and varied.
    """

    def __init__(self, config: EdgeSet, seed: int, device: torch.device | str) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.images = open_bsds(config.root, "train")
        self._cache: ImageCache[tuple[Tensor, Tensor]] = ImageCache(CACHE, lambda pair: sum(p.nbytes for p in pair))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return crops (B, 3, h, w) in [0, 1] and region numbers (B, h, w) int64."""
        rng = np.random.default_rng((self.seed, step, 2))
        c = self.config
        images, regions = [], []
        for index in rng.choice(len(self.images), c.batch, replace=len(self.images) < c.batch):
            image, drawn = self._cache.get(int(index), lambda i=int(index): self._read(i))  # type: ignore[misc]
            one = drawn[int(rng.integers(len(drawn)))]
            crop, region = random_crop(image, one, (c.height, c.width), c.area, replace(VARIED, aspect=1.5), rng)
            images.append(recolored(crop, VARIED.colour, rng))
            regions.append(region)
        return torch.stack(images), torch.stack(regions).long()

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.images[index]
        image = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)
        return image.to(self.device), torch.from_numpy(sample.segments.astype(np.int32)).to(self.device)
