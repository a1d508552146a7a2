"""The images of a step: labeled crops, pictures with a word, drawn regions; functions of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ovsdino.data.bsds import open_bsds
from ovsdino.data.captions import open_captions
from ovsdino.errors import OVSDinoError
from ovsdino.io.ahead import read_ahead
from ovsdino.train.dense.batches import BatchSource, bytes_of, random_crop, recolored
from ovsdino.train.dense.config import DataConfig
from ovsdino.train.image_cache import ImageCache, share_of_machine
from ovsdino.train.mixed.config import EdgeSet, PictureSet

VARIED = DataConfig()  # aspect, flip, color
CACHE_MB = 4096  # of decoded images

Pair = tuple[Tensor, Tensor]


class PictureSource:
    """Square crops of pictures, and the number of each one's word.

    Args:
        config: The pictures.
        seed: Of the run.
        workers: See `BatchSource`.

    Attributes:
        words: The different words, in order.
    """

    def __init__(self, config: PictureSet, seed: int, workers: int = 0) -> None:
        self.config, self.seed = config, seed
        self.captions = open_captions("jsonl", config.root, config.annotations)
        said = [self.captions.record(i).captions[0].lower() for i in range(len(self.captions))]
        self.words = sorted(set(said))
        place = {word: i for i, word in enumerate(self.words)}
        self.targets = torch.tensor([place[word] for word in said])
        self._cache: ImageCache[tuple[Tensor, ...]] = ImageCache(share_of_machine(CACHE_MB, workers), bytes_of)

    def batch(self, step: int) -> Pair:
        """Return crops (B, 3, side, side) in [0, 1] and word numbers (B,) int64."""
        rng = np.random.default_rng((self.seed, step, 1))
        c = self.config
        picks = rng.choice(len(self.captions), c.batch, replace=len(self.captions) < c.batch)
        images = []
        for index in picks.tolist():
            (image,) = self._cache.get(index, lambda i=index: (_tensor(self.captions.read(i)),))  # type: ignore[misc]
            crop, _ = random_crop(
                image, image[0], (c.side, c.side), c.area, VARIED, rng
            )  # a channel in place of labels
            images.append(recolored(crop, VARIED.colour, rng))
        return torch.stack(images), self.targets[torch.from_numpy(picks)]


class EdgeSource:
    """Crops of images, and the regions that one person drew, anew at each step.

    Args:
        config: The images.
        seed: Of the run.
        workers: See `BatchSource`.
    """

    def __init__(self, config: EdgeSet, seed: int, workers: int = 0) -> None:
        self.config, self.seed = config, seed
        self.images = open_bsds(config.root, "train")
        self._cache: ImageCache[tuple[Tensor, ...]] = ImageCache(share_of_machine(CACHE_MB, workers), bytes_of)

    def batch(self, step: int) -> Pair:
        """Return crops (B, 3, h, w) in [0, 1] and region numbers (B, h, w) int32."""
        rng = np.random.default_rng((self.seed, step, 2))
        c = self.config
        images, regions = [], []
        for index in rng.choice(len(self.images), c.batch, replace=len(self.images) < c.batch).tolist():
            image, drawn = self._cache.get(index, lambda i=index: self._read(i))  # type: ignore[misc]
            one = drawn[int(rng.integers(len(drawn)))]
            crop, region = random_crop(image, one, (c.height, c.width), c.area, replace(VARIED, aspect=1.5), rng)
            images.append(recolored(crop, VARIED.colour, rng))
            regions.append(region)
        return torch.stack(images), torch.stack(regions)

    def _read(self, index: int) -> Pair:
        sample = self.images[index]
        return _tensor(sample.image), torch.from_numpy(sample.segments.astype(np.int32))


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


class Steps(Dataset["dict[str, Pair] | OVSDinoError"]):
    """The images of every step, by the name of their source; a user error is an item, not a worker's traceback."""

    def __init__(self, labels: Mapping[str, BatchSource], others: Mapping[str, PictureSource | EdgeSource], steps: int):
        self.labels, self.others, self.steps = labels, others, steps

    def __getitem__(self, step: int) -> dict[str, Pair] | OVSDinoError:
        try:
            found = {name: source.batch(step, self.steps) for name, source in self.labels.items()}
            found |= {name: source.batch(step) for name, source in self.others.items()}
            return {name: (packed(images), answers) for name, (images, answers) in found.items()}
        except OVSDinoError as error:
            return error


def packed(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8: a quarter of the bytes on their way to this process and to a GPU."""
    return (images * 255).round_().to(torch.uint8)


def batches(data: Steps, start: int, workers: int, pinned: bool = False) -> Iterator[dict[str, Pair]]:
    """Yield the images of the steps from `start` on, made by other processes, or by a thread if `workers` is 0.

    Args:
        data: All steps.
        start: The first that is made.
        workers: Number of processes.
        pinned: Copied by a thread to where a GPU reads them while the caller goes on; with `workers` alone.

    Raises:
        OVSDinoError: An image cannot be read.
    """
    numbers = range(start, data.steps)
    items = (
        DataLoader(
            data, None, sampler=numbers, num_workers=workers, multiprocessing_context="forkserver", pin_memory=pinned
        )
        if workers
        else read_ahead(data.__getitem__, numbers)
    )
    for item in items:
        if isinstance(item, OVSDinoError):
            raise item
        yield item
