"""Frozen features of whole images: computed once, kept on disk, read by crops.

A crop of a whole image's features knows what lies around it, as an image at inference does, and costs no network. The
features are float16 and memory-mapped, so all runs of a study share them in the machine's memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, reading
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.pipeline import Segmenter
from ovsdino.train.segmentation import normalized

FORMAT = "1"  # of the files; another one when what they hold changes

Tensors = dict[str, Tensor]
Read = Callable[[str], np.ndarray]
Make = Callable[[str], Tensors]


class TensorFolder:
    """Tensors of images by the image's name, one file for each; several processes may fill and read it at once.

    It holds no reference to what makes the tensors, so that its maps of a gigabyte end with the last use of it.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, Tensors] = {}

    def path(self, name: str) -> Path:
        """Return the file of an image."""
        return self.folder / f"{digest_of(name)[:24]}.safetensors"

    def fill(self, names: Iterable[str], make: Make) -> int:
        """Make what is missing, each process in an order of its own; return how many files it made."""
        missing = [name for name in dict.fromkeys(names) if not self.path(name).is_file()]
        made = 0
        for index in np.random.default_rng(os.getpid()).permutation(len(missing)):
            path = self.path(missing[index])
            if not path.is_file():  # another process may have come first
                with atomic_write(path) as file:
                    file.write(save(make(missing[index])))
                made += 1
        return made

    def get(self, name: str, make: Make) -> Tensors:
        """Return the tensors of an image, mapped from its file, which is made where it is missing."""
        if name not in self._kept:
            self.fill([name], make)
            with reading(self.path(name), "file of frozen features", f"remove {self.folder}"):
                self._kept[name] = load_file(self.path(name))
        return self._kept[name]


@dataclass(frozen=True)
class Window:
    """A rectangle of whole tokens, and whether its columns are reversed.

    Attributes:
        left, top, width, height: In tokens.
    """

    left: int
    top: int
    width: int
    height: int
    mirror: bool = False

    def of(self, maps: Tensor, scale: int) -> Tensor:
        """Return a window's part of (..., H, W), `scale` cells along each side of a token."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        part = maps[..., rows, self.left * scale : (self.left + self.width) * scale]
        return part.flip(-1) if self.mirror else part


@dataclass(frozen=True)
class FrozenImage:
    """An image at its inference size, and what the frozen backbone says of it.

    Attributes:
        size: Height and width of the image itself.
        pixels: (3, H, W) uint8.
        maps: The final map before the backbone's head (map_dim, H/p, W/p) and the taps, float16.
    """

    size: tuple[int, int]
    pixels: Tensor
    maps: tuple[Tensor, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.maps[0].shape[-2], self.maps[0].shape[-1]

    def crop(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Return the pixels of a window (1, 3, h p, w p) in [0, 1] float32, and its maps (1, C, ...) float16."""
        columns = self.grid[1]
        pixels = window.of(self.pixels, self.pixels.shape[-1] // columns)[None].float().div_(255)
        return pixels, [window.of(m, m.shape[-1] // columns)[None] for m in self.maps]


class FrozenImages:
    """The frozen features of a set of images, at the model's inference size.

    Args:
        folder: Of all caches.
        segmenter: Its model's backbone computes them; the head is not part of it.
        source: Folder or file of the images: files of the same name elsewhere are other images.
        read: Returns an image by its name, (H, W, 3) uint8.
    """

    def __init__(self, folder: Path, segmenter: Segmenter, source: str | Path, read: Read) -> None:
        self.segmenter, self.read = segmenter, read
        key = digest_of(FORMAT, frozen_digest(segmenter.model), str(segmenter.short_side), identity(source))
        self.files = TensorFolder(Path(folder) / f"features-{key[:16]}")

    def fill(self, names: Iterable[str]) -> int:
        """Compute what is missing; see `TensorFolder.fill`."""
        return self.files.fill(names, self._make)

    def __getitem__(self, name: str) -> FrozenImage:
        found = self.files.get(name, self._make)
        height, width = found["size"].tolist()
        maps = [found[f"map{i}"] for i in range(len(found) - 2)]
        return FrozenImage((height, width), found["pixels"], tuple(maps))

    def features(self, name: str) -> ImageFeatures:
        """Return the features of a whole image by the model as it is now, batch of one, float32, without gradient."""
        image, model = self[name], self.segmenter.model
        pixels, maps = image.crop(Window(0, 0, image.grid[1], image.grid[0]))
        with torch.no_grad():
            return encode_maps(model, pixels.to(self.segmenter.device), maps)

    @torch.no_grad()
    def _make(self, name: str) -> Tensors:
        image, model = self.read(name), self.segmenter.model
        batch = self.segmenter.prepare(image)
        with torch.autocast(batch.device.type, enabled=False):
            final, taps = model.backbone.frozen(batch)
        mean, std = (torch.tensor(v, device=batch.device)[:, None, None] for v in (model.config.mean, model.config.std))
        pixels = ((batch[0] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        maps = {f"map{i}": m[0].half().cpu().contiguous() for i, m in enumerate([final, *taps])}
        if not all(m.isfinite().all() for m in maps.values()):
            raise OVSDinoError(f"{name}: the backbone's features leave float16's range; train without cache_features")
        return {"pixels": pixels.cpu().contiguous(), "size": torch.tensor(image.shape[:2]), **maps}


def encode_maps(model: OVSDINO, pixels: Tensor, maps: Sequence[Tensor]) -> ImageFeatures:
    """Return the features of windows, float32: pixels (B, 3, H, W) in [0, 1] and their maps, see `FrozenImage.crop`."""
    final, *taps = (m.to(pixels.device, torch.float32) for m in maps)
    images = normalized(model, pixels, torch.contiguous_format if pixels.device.type == "cpu" else torch.channels_last)
    return model.encode_features(final, taps, images).float()


def frozen_digest(model: OVSDINO) -> str:
    """Return a digest of all that decides the frozen features of an image at one size."""
    digest = hashlib.sha256()
    for name, value in model.backbone.state_dict().items():
        if not name.startswith("head."):
            digest.update(name.encode() + b"\0" + value.detach().cpu().contiguous().numpy().tobytes())
    config = {**asdict(model.config.backbone), "mean": model.config.mean, "std": model.config.std}
    return digest_of(digest.hexdigest(), json.dumps(config, sort_keys=True))


def identity(source: str | Path) -> str:
    """Return what tells a source of images from another: its path; of a file also its size and time."""
    path = Path(source).resolve()
    if not path.is_file():
        return str(path)
    state = path.stat()
    return f"{path}:{state.st_size}:{state.st_mtime_ns}"


def digest_of(*parts: str) -> str:
    """Return the SHA-256 of texts in order, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
