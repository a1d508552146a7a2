"""Batches of dense training: random crops, flips, colors, class mixing; functions of (seed, step) alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.data.datasets import open_dataset
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.train.config import stage_at
from ovsdino.train.dense.config import DataConfig, StageConfig
from ovsdino.train.image_cache import ImageCache, share_of_machine

GRAY = (0.299, 0.587, 0.114)


class BatchSource:
    """Batches cut from the images of a data set, the decoded ones kept in memory up to `config.cache_mb`.

    Raises:
        OVSDinoError: A class of `mix_classes` is not in the data set.
    """

    def __init__(self, dataset: SegmentationDataset, config: DataConfig, stages: tuple[StageConfig, ...], seed: int):
        self.dataset, self.config, self.stages, self.seed = dataset, config, stages, seed
        unknown = next((name for name in config.mix_classes if name not in dataset.names), None)
        if unknown is not None:
            raise OVSDinoError(f"data.mix_classes: {unknown!r} is not a class of the data: {', '.join(dataset.names)}")
        self.mix_ids = torch.tensor([dataset.names.index(n) for n in config.mix_classes], dtype=torch.uint8)
        self._cache: ImageCache[tuple[Tensor, Tensor]] = ImageCache(
            share_of_machine(config.cache_mb, 0), lambda pair: sum(part.nbytes for part in pair)
        )

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, H, W) uint8 and its label (H, W) uint8."""

        def read() -> tuple[Tensor, Tensor]:
            sample = self.dataset[index]
            return torch.from_numpy(sample.image.copy()).permute(2, 0, 1), torch.from_numpy(sample.label)

        return self._cache.get(index, read)

    def class_counts(self, num_classes: int) -> Tensor:
        """Return the labeled pixels of each class, (K,) int64."""
        counts = torch.zeros(num_classes, dtype=torch.int64)
        for index in range(len(self.dataset)):
            counts += torch.bincount(self.pair(index)[1].flatten(), minlength=256)[:num_classes]
        return counts

    def sample(self, index: int, stage: StageConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return one augmented crop: image (3, h, w) float in [0, 1], label (h, w) uint8."""
        image, label = self.pair(index)
        height, width = label.shape
        size = (stage.height, stage.width)
        aspect = size[1] / size[0] * np.exp(rng.uniform(-1, 1) * np.log(self.config.aspect))
        area = rng.uniform(stage.area, 1.0) * height * width
        h = min(height, round((area / aspect) ** 0.5))
        w = min(width, round((area * aspect) ** 0.5))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        crop = image[:, top : top + h, left : left + w].float().div_(255)
        crop = F.interpolate(crop[None], size, mode="bilinear", antialias=True)[0]
        rows = ((torch.arange(size[0]) + 0.5) * h / size[0]).long() + int(top)
        columns = ((torch.arange(size[1]) + 0.5) * w / size[1]).long() + int(left)
        target = label[rows][:, columns]
        if self.config.flip and rng.random() < 0.5:
            crop, target = crop.flip(-1), target.flip(-1)
        return crop, target

    def recolored(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Return an image (3, h, w) in [0, 1] with another brightness, contrast, saturation and white balance."""
        strength = self.config.colour
        if not strength:
            return image
        factor = np.exp(rng.uniform(-1, 1, 3) * strength)
        balance = torch.tensor(np.exp(rng.uniform(-1, 1, 3) * strength * 0.3), dtype=image.dtype)
        image = image * float(factor[0])
        mean = image.mean()
        image = (image - mean) * float(factor[1]) + mean
        gray = (image * torch.tensor(GRAY, dtype=image.dtype)[:, None, None]).sum(0)
        return ((image - gray) * float(factor[2]) + gray).mul(balance[:, None, None]).clamp(0, 1)

    def batch(self, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """Return the images (B, 3, h, w) float in [0, 1] and labels (B, h, w) int64 of a step."""
        rng = np.random.default_rng((self.seed, step))
        stage = stage_at(self.stages, step, steps)
        # The mixed-in pixels come from the next image of the batch: crops of their own would double the work.
        count = len(self.dataset)
        picks = rng.choice(count, stage.batch, replace=count < stage.batch)
        crops = [self.sample(int(i), stage, rng) for i in picks]
        images, labels = [], []
        for i, (image, label) in enumerate(crops):
            if len(self.mix_ids) and rng.random() < self.config.mix:
                other_image, other_label = crops[(i + 1) % len(crops)]
                chosen = self.mix_ids[torch.from_numpy(rng.random(len(self.mix_ids)) < 0.6)]
                mask = torch.isin(other_label, chosen)
                image = torch.where(mask, other_image, image)
                label = torch.where(mask, other_label, label)
            images.append(self.recolored(image, rng))
            labels.append(label)
        return torch.stack(images), torch.stack(labels).long()


def open_training(config: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Return the images to train on, and those kept out of training to choose by: the last ones by name.

    Raises:
        OVSDinoError: See `open_dataset`; too few images for `config.selection`.
    """

    def part(rows: slice) -> SegmentationDataset:
        dataset = open_dataset(config.dataset, config.root, config.train_split, byte_labels=True)
        dataset.entries = tuple(sorted(dataset.entries, key=lambda entry: entry.image))[rows]
        dataset.stems = tuple(entry.stem for entry in dataset.entries)
        return dataset

    if not Path(config.root).is_dir():
        raise OVSDinoError(
            f"data.root: {config.root}: no such folder; it holds the data set (README says how to get one)"
        )
    if not config.selection:
        return open_dataset(config.dataset, config.root, config.train_split, byte_labels=True), None
    total = len(part(slice(None)))
    count = round(config.selection * total)
    if not 0 < count < total:
        raise OVSDinoError(
            f"data.selection {config.selection}: is {count} of {total} training images; take a share "
            "that leaves some on either side"
        )
    return part(slice(total - count)), part(slice(total - count, None))
