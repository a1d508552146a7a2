"""Large and small crops of images, and the places of the small ones in the large ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import v2

from ovsdino.errors import OVSDinoError
from ovsdino.io.tree import ImageSource
from ovsdino.models.config import IMAGENET_MEAN, IMAGENET_STD
from ovsdino.train.image_cache import ImageCache, share_of_machine
from ovsdino.train.pretrain.config import CropStage, SelfDistillConfig


@dataclass
class CropBatch:
    """The crops of a step: B images, L = 2 B large crops, n small crops of each.

    Attributes:
        large: (L, 3, H, W) normalized; crops i and B + i are of one image.
        small: (n L, 3, h, w) normalized; crop k is of large crop k % L.
        places: (n L, 4) float32, left, top, right, bottom of each small crop in its large one, 0..1.
        mirrored: (n L,) bool, small crops whose columns run against those of their large crop.
    """

    large: Tensor
    small: Tensor
    places: Tensor
    mirrored: Tensor

    def to(self, device: torch.device) -> CropBatch:
        """Return it on a device."""
        return CropBatch(*(part.to(device) for part in (self.large, self.small, self.places, self.mirrored)))


class Crops:
    """Large and small crops of images in memory, a function of torch's generator."""

    def __init__(self, config: SelfDistillConfig) -> None:
        sources = [ImageSource(source) for source in config.images]
        self.places = [(source, name) for source in sources for name in source.names]
        if len(self.places) < 2:
            raise OVSDinoError(f"images: {len(self.places)} image in {', '.join(config.images)}; expected two or more")
        self.config = config
        self._cache: ImageCache[Tensor] = ImageCache(share_of_machine(config.cache_mb, 0), lambda image: image.nbytes)
        self.colors = {blur: self._colors(blur) for blur in (0.3, 0.1)}

    def image(self, index: int) -> Tensor:
        """Return an image, (3, H, W) uint8."""
        source, name = self.places[index]
        return self._cache.get(index, lambda: torch.from_numpy(source.read(name).copy()).permute(2, 0, 1))

    def draw(self, stage: CropStage) -> CropBatch:
        """Return the crops of a step."""
        c, count = self.config, min(stage.batch, len(self.places))
        picks = torch.randperm(len(self.places))[:count].tolist() * 2
        large, boxes = zip(*(self._large(self.image(i), stage.large) for i in picks), strict=True)
        small = [
            self._small(self.image(i), box, stage.small)
            for _ in range(c.small_crops)
            for i, box in zip(picks, boxes, strict=True)
        ]
        crops, places, mirrored = zip(*small, strict=True)
        return CropBatch(torch.stack(large), torch.stack(crops), torch.tensor(places), torch.tensor(mirrored))

    def _large(self, image: Tensor, size: int) -> tuple[Tensor, tuple[int, int, int, int, bool]]:
        top, left, height, width = v2.RandomResizedCrop.get_params(image, list(self.config.large_area), [3 / 4, 4 / 3])
        mirror = bool(torch.rand(()) < 0.5)
        return self._view(image, (top, left, height, width), size, mirror, 0.3), (top, left, height, width, mirror)

    def _small(
        self, image: Tensor, within: tuple[int, int, int, int, bool], size: int
    ) -> tuple[Tensor, tuple[float, float, float, float], bool]:
        top, left, height, width, mirrored = within
        side = float(torch.empty(()).uniform_(*self.config.small_area)) ** 0.5
        h, w = max(1, round(side * height)), max(1, round(side * width))
        y = int(torch.randint(height - h + 1, ()))
        x = int(torch.randint(width - w + 1, ()))
        mirror = bool(torch.rand(()) < 0.5)
        crop = self._view(image, (top + y, left + x, h, w), size, mirror, 0.1)
        begin, end = x / width, (x + w) / width
        if mirrored:
            begin, end = 1 - end, 1 - begin
        return crop, (begin, y / height, end, (y + h) / height), mirror != mirrored

    def _view(self, image: Tensor, box: tuple[int, int, int, int], size: int, mirror: bool, blur: float) -> Tensor:
        view = v2.functional.resized_crop(image, *box, [size, size], antialias=True)
        return self.colors[blur](v2.functional.horizontal_flip(view) if mirror else view)

    @staticmethod
    def _colors(blur: float) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.2)], 0.8),  # hue and color tell sky from tree: kept
                v2.RandomGrayscale(0.05),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], blur),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )


def tokens_at(tokens: Tensor, places: Tensor, mirrored: Tensor, side: int) -> Tensor:
    """Return the tokens of large crops where the small crops lie.

    Args:
        tokens: (L, H, W, D).
        places: See `CropBatch`.
        mirrored: See `CropBatch`.
        side: Of the small crops' grid.

    Returns:
        (n L, side, side, D), bilinear, in the order of the small crops' own tokens.
    """
    count, height, width, _ = tokens.shape
    scale = torch.tensor([width, height, width, height], device=tokens.device)
    index = torch.arange(len(places), device=tokens.device) % count
    boxes = torch.cat([index[:, None].float(), places * scale], 1)
    found = roi_align(tokens.permute(0, 3, 1, 2).float(), boxes, side, sampling_ratio=2, aligned=True)
    return torch.where(mirrored[:, None, None, None], found.flip(-1), found).permute(0, 2, 3, 1)


def random_masks(count: int, side: int, ratio: Sequence[float]) -> Tensor:
    """Return masks (count, side, side) bool: blobs of patches in every second one, none in the others.

    A blob is where smooth noise is largest, so neighbors are lost together, as in iBOT's block masks. Its share of the
    patches is drawn between the two of `ratio`.
    """
    coarse = max(2, side // 3)
    noise = F.interpolate(torch.rand(count, 1, coarse, coarse), (side, side), mode="bilinear")[:, 0]
    order = (noise + 0.3 * torch.rand(count, side, side)).flatten(1).argsort(1, descending=True).argsort(1)
    share = torch.empty(count).uniform_(ratio[0], ratio[-1])
    share[torch.arange(count) % 2 == 1] = 0.0
    return (order < (share * side * side).round()[:, None]).view(count, side, side)
