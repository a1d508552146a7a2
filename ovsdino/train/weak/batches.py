"""Batches of captioned images with pseudo-masks; functions of (seed, position) alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ovsdino.data.captions import CaptionRecord, CaptionSet
from ovsdino.data.masks import MaskStore, decode_one
from ovsdino.data.phrases import phrases, read_phrases
from ovsdino.errors import OVSDinoError
from ovsdino.train.config import check_multiples
from ovsdino.train.image_cache import ImageCache, share_of_machine
from ovsdino.train.weak.config import RobustConfig, WeakDataConfig
from ovsdino.train.weak.robust import agreement_weight, edge_agreement, perturb_masks, quality_weight

SLACK = 1e-3  # pixels by which a box may leave a crop of broken pixels that holds it


@dataclass
class WeakBatch:
    """The images of a step, and what is known of them.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1].
        regions: (B, R, 4) float32, the rectangles that the captions describe: left, top, right, bottom in shares of the
            crop, mirrored with it; without area where there is none. R = 1, the whole crop, unless
            `WeakDataConfig.regions`.
        texts: For each image and region the texts that its caption gives, at least one; none where there is no region.
        captions: Those that the contrast takes: the same ones, or the whole caption (`WeakDataConfig.caption`).
        masks: (B, M, 4h, 4w) bool at four times the token grid; a cell is set when half of it or more is. M = 0 without
            pseudo-masks; an image with fewer has empty ones at the end.
        quality: (B, M) float32, the weight of each mask (`RobustConfig`); 0 where there is none.
        places: (B, 5) float32, left, top, right, bottom of the crop in its image, 0..1, and 1 where it is mirrored.
        sources: (B,) names of the images.
        maps: The frozen backbone's maps of the crops where they are kept (`FrozenImage.maps`), each (B, C, ...); else
            none.
    """

    images: Tensor
    regions: Tensor
    texts: list[list[tuple[str, ...]]]
    captions: list[list[tuple[str, ...]]]
    masks: Tensor
    quality: Tensor
    places: Tensor
    sources: list[str]
    maps: tuple[Tensor, ...] = ()

    def slice(self, rows: slice) -> WeakBatch:
        """Return some of its images."""
        own: dict[str, Any] = {name: part[rows] for name, part in vars(self).items() if name != "maps"}
        own["maps"] = tuple(part[rows] for part in self.maps)
        return WeakBatch(**own)

    @staticmethod
    def collate(samples: Sequence[WeakBatch]) -> WeakBatch:
        """Return several batches as one."""
        *columns, maps = zip(*(vars(sample).values() for sample in samples), strict=True)
        joined: Any = [torch.cat(c) if isinstance(c[0], Tensor) else list(chain(*c)) for c in columns]
        joined.append(tuple(torch.cat(parts) for parts in zip(*maps, strict=True)))
        return WeakBatch(*joined)


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image in pixels, whole ones or not, and whether its columns are reversed."""

    left: float
    top: float
    width: float
    height: float
    mirror: bool

    def holds(self, box: tuple[int, int, int, int]) -> bool:
        """Return whether a box (left, top, width, height) lies in the crop, within a thousandth of a pixel."""
        x, y = box[0] - self.left, box[1] - self.top
        return min(x, y, self.width - x - box[2], self.height - y - box[3]) >= -SLACK

    def place(self, box: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of a box in shares of the crop, mirrored with it."""
        left, top = (box[0] - self.left) / self.width, (box[1] - self.top) / self.height
        right, bottom = left + box[2] / self.width, top + box[3] / self.height
        return (1 - right, top, 1 - left, bottom) if self.mirror else (left, top, right, bottom)

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the crop's part of (H, W, ...), not mirrored; the crop has whole pixels."""
        rows = slice(int(self.top), int(self.top + self.height))
        return array[rows, int(self.left) : int(self.left + self.width)]


class WeakDataset(Dataset[WeakBatch]):
    """One sample for each position: position p is sample `order(p // n)[p % n]`, a new permutation each epoch.

    Raises:
        OVSDinoError: The patch does not divide the crop, there is no vocabulary file, or regions are asked of captions
            without boxes.
    """

    def __init__(
        self,
        captions: CaptionSet,
        masks: MaskStore | None,
        config: WeakDataConfig,
        robust: RobustConfig,
        patch: int,
        seed: int,
    ) -> None:
        check_multiples({"data.height": config.height, "data.width": config.width}, patch)
        if config.area[0] > config.area[1]:
            raise OVSDinoError(f"data.area: expected two shares in (0, 1], the least first, got {list(config.area)}")
        self.captions, self.masks, self.config, self.robust = captions, masks, config, robust
        self.fine = (4 * config.height // patch, 4 * config.width // patch)
        self.seed = seed
        records = [captions.record(i) for i in range(len(captions))] if config.regions else []
        if any(record.box is None for record in records):
            raise OVSDinoError(f"data.regions {config.regions} needs a box with every caption; or set it to 0")
        by_image: dict[str, list[int]] = {}
        for i, record in enumerate(records):
            by_image.setdefault(record.image, []).append(i)
        # The captions of each sample.
        self.groups: Sequence[Sequence[int]] = list(by_image.values()) or [(i,) for i in range(len(captions))]
        self.vocabulary = read_phrases(config.vocabulary) if config.vocabulary else None
        self.jitter = v2.ColorJitter(config.colour, config.colour, 0.7 * config.colour)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        limit = share_of_machine(config.cache_mb, config.workers)
        self._images: ImageCache[np.ndarray] = ImageCache(limit, _bytes_of)

    def index(self, position: int) -> int:
        """Return the index in `groups` of a position of the run."""
        epoch, place = divmod(position, len(self.groups))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.groups)))
        return int(self._order[1][place])

    def __getitem__(self, position: int) -> WeakBatch:
        c, rng = self.config, np.random.default_rng((self.seed, 1, position))
        group = self.groups[self.index(position)]
        records = [self.captions.record(i) for i in group]
        record = records[0]
        image = self._images.get(record.image, lambda: self.captions.read(group[0]))
        height, width = image.shape[:2]
        for left, top, across, down in (r.box for r in records if r.box):
            if left + across > width or top + down > height:
                box = (left, top, across, down)
                raise OVSDinoError(f"{record.image}: the box {box} leaves its {width} x {height} pixels")
        whole = (0, 0, width, height)
        crop = self._crop(whole if c.regions else record.box or whole, rng)
        if c.regions and not any(crop.holds(r.box) for r in records if r.box):
            crop = Crop(*whole, crop.mirror)  # which has a caption
        regions, said = self._regions(records, crop, rng)
        view = torch.from_numpy(crop.of(image).copy()).permute(2, 0, 1)
        masks, quality = self._masks(record.image, (height, width), view, crop, rng)
        view = v2.functional.resize(view, [c.height, c.width], antialias=True)
        if crop.mirror:
            view = v2.functional.horizontal_flip(view)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            view = v2.functional.to_dtype(self.jitter(view), torch.float32, scale=True)
        return self._batch(record.image, (height, width), crop, view[None], (regions, said), (masks, quality))

    def _batch(
        self,
        name: str,
        size: tuple[int, int],
        crop: Crop,
        pixels: Tensor,
        captioned: tuple[Tensor, list[str]],
        masked: tuple[Tensor, Tensor],
        maps: tuple[Tensor, ...] = (),
    ) -> WeakBatch:
        """Return a batch of one sample.

        Args:
            name: Of the image.
            size: Its height and width.
            crop: The part of it that is seen.
            pixels: (1, 3, h, w).
            captioned: Result of `_regions`.
            masked: Masks and their weights.
            maps: Kept features of the crop.
        """
        (regions, said), (masks, quality), (height, width) = captioned, masked, size
        right, bottom = crop.left + crop.width, crop.top + crop.height
        place = [crop.left / width, crop.top / height, right / width, bottom / height, float(crop.mirror)]
        return WeakBatch(
            pixels,
            regions[None],
            [[self.texts(caption) if caption else () for caption in said]],
            [[self.compared(caption) if caption else () for caption in said]],
            masks[None],
            quality[None],
            torch.tensor([place]),
            [name],
            maps,
        )

    def _regions(self, records: list[CaptionRecord], crop: Crop, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Return the captioned rectangles of a crop (R, 4) and a caption of each, "" where there is no region."""
        most = self.config.regions
        if most:
            records = [record for record in records if record.box and crop.holds(record.box)]
            records = [records[i] for i in rng.permutation(len(records))[:most]]
        found = torch.zeros(most or 1, 4)
        if not most:
            found[0, 2:] = 1
        said = [record.captions[int(rng.integers(len(record.captions)))] for record in records]
        for row, record in enumerate(records if most else ()):
            assert record.box is not None
            found[row] = torch.tensor(crop.place(record.box))
        return found, said + [""] * (len(found) - len(said))

    def texts(self, caption: str) -> tuple[str, ...]:
        """Return the texts of a caption: itself, or its phrases; itself where it has none of the vocabulary's."""
        if self.config.caption == "whole":
            return (caption,)
        return phrases(caption, self.vocabulary) or (caption,)

    def compared(self, caption: str) -> tuple[str, ...]:
        """Return the texts of a caption that the contrast takes."""
        return (caption,) if self.config.caption == "both" else self.texts(caption)

    def _crop(self, box: tuple[int, int, int, int], rng: np.random.Generator) -> Crop:
        c, (left, top, width, height) = self.config, box
        aspect = c.width / c.height * math.exp(rng.uniform(-1, 1) * math.log(c.aspect))
        area = rng.uniform(c.area[0], c.area[1]) * width * height
        h = min(height, max(1, round((area / aspect) ** 0.5)))
        w = min(width, max(1, round((area * aspect) ** 0.5)))
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        return Crop(left + int(x), top + int(y), w, h, bool(rng.random() < c.flip))

    def _masks(
        self, name: str, size: tuple[int, int], view: Tensor, crop: Crop, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw masks of the crop, (M, 4h, 4w) bool, with their weights (M,).

        Args:
            name: Of the image.
            size: Its height and width.
            view: (3, h, w), the pixels of the crop.
            crop: A part of the image.
            rng: Draws the masks.
        """
        count = self.config.masks_per_image if self.masks is not None else 0
        masks, quality = torch.zeros(count, *self.fine, dtype=torch.bool), torch.zeros(count)
        if self.masks is None or not count:
            return masks, quality
        row_of = self.masks.of_size(name, size)
        rows = row_of["masks"]
        # The part of each that lies in the crop is estimated from its box: only the drawn ones are decoded.
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        areas = np.array([row["area"] for row in rows], dtype=np.float64)
        across = np.minimum(boxes[:, 0] + boxes[:, 2], crop.left + crop.width) - np.maximum(boxes[:, 0], crop.left)
        down = np.minimum(boxes[:, 1] + boxes[:, 3], crop.top + crop.height) - np.maximum(boxes[:, 1], crop.top)
        inside = areas * across.clip(0) * down.clip(0) / (boxes[:, 2] * boxes[:, 3]).clip(1)
        least = max(1.0, self.config.min_mask_area * crop.width * crop.height)
        likely = np.flatnonzero(inside >= least)
        if not len(likely):
            return masks, quality
        chance = np.sqrt(inside[likely])
        drawn = rng.choice(likely, min(count, len(likely)), replace=False, p=chance / chance.sum())
        whole = torch.from_numpy(np.stack([crop.of(decode_one(row_of, i)) for i in drawn]))
        share = F.interpolate(whole[None].float(), self.fine, mode="area")[0]
        found = (share.flip(-1) if crop.mirror else share) >= 0.5
        weights = torch.ones(len(drawn))
        if self.robust.quality_weights:
            sure = torch.tensor([[rows[i]["predicted_iou"], rows[i]["stability_score"]] for i in drawn])
            weights = quality_weight(sure[:, 0], sure[:, 1])
        if self.robust.agreement:
            weights = weights * agreement_weight(edge_agreement(view[None], whole[None].bool()))[0]
        if self.robust.merge or self.robust.split:
            new = perturb_masks(found.numpy(), weights.numpy(), self.robust.merge, self.robust.split, rng)
            found, weights = torch.from_numpy(new[0]), torch.from_numpy(new[1])
        masks[: len(drawn)], quality[: len(drawn)] = found, weights * found.flatten(1).any(1)
        return masks, quality


def batches(data: WeakDataset, positions: Iterable[Sequence[int]]) -> Iterator[WeakBatch]:
    """Yield a batch for each list of positions, made by `config.workers` processes ahead of their use.

    Raises:
        OVSDinoError: An image or its masks cannot be read.
    """
    loader = DataLoader(
        _Guarded(data),
        batch_sampler=(list(rows) for rows in positions),
        collate_fn=_collate,
        num_workers=data.config.workers,
        persistent_workers=False,
        multiprocessing_context="forkserver" if data.config.workers else None,
    )
    for batch in loader:
        if isinstance(batch, OVSDinoError):
            raise batch
        yield batch


class _Guarded(Dataset[Any]):
    """A data set whose user errors are samples: a worker process would put its traceback into their message."""

    def __init__(self, data: WeakDataset) -> None:
        self.data = data

    def __getitem__(self, position: int) -> WeakBatch | OVSDinoError:
        try:
            return self.data[position]
        except OVSDinoError as error:
            return error


def _collate(samples: Sequence[WeakBatch | OVSDinoError]) -> WeakBatch | OVSDinoError:
    error = next((sample for sample in samples if isinstance(sample, OVSDinoError)), None)
    return error or WeakBatch.collate([sample for sample in samples if isinstance(sample, WeakBatch)])


def _bytes_of(image: np.ndarray) -> int:
    return image.nbytes
