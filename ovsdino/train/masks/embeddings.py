"""SAM's image embedding of the part of an image that a crop shows: the target of the structure tokens.

`ovsdino masks --embeddings` keeps the embeddings of whole images in the folder of their masks:

    embeddings-00000.safetensors    the images of shard-00000.jsonl by name, each (256, 64, 64) float16 of SAM's padded
                                    square; the metadata says how many of its rows and columns the image fills
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.ops import roi_align

from ovsdino.data.masks import MaskStore
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write
from ovsdino.io.tree import ImageSource
from ovsdino.models.sam import SAMEncoder
from ovsdino.train.masks.make import Progress, images_by_shard, silent


def filled_cells(height: int, width: int, cells: int, side: int = 1024) -> tuple[float, float]:
    """Return the rows and columns of SAM's grid that an image fills: its longer side becomes `side`, then padding."""
    scale = side / max(height, width)
    return int(height * scale + 0.5) * cells / side, int(width * scale + 0.5) * cells / side


def crop_embedding(embedding: Tensor, filled: tuple[float, float], place: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample the part of an embedding under a crop, bilinearly.

    Args:
        embedding: (256, g, g) of the padded square.
        filled: Rows and columns of it that the image fills, see `filled_cells`.
        place: (5,) left, top, right, bottom in 0..1 of the image, and 1 where the crop is mirrored.
        size: (h, w) wanted.

    Returns:
        (256, h, w) float32.
    """
    rows, columns = filled
    left, top, right, bottom, mirror = place.tolist()
    # Cut first: next to the image's end the padding would be mixed in.
    inside = embedding[None, :, : int(np.ceil(rows)), : int(np.ceil(columns))].float()
    box = torch.tensor([[0.0, left * columns, top * rows, right * columns, bottom * rows]], device=embedding.device)
    part: Tensor = roi_align(inside, box, size, aligned=True)[0]
    return part.flip(-1) if mirror else part


class SamSource(ABC):
    """Whole images' embeddings by name."""

    @abstractmethod
    def embedding(self, name: str) -> tuple[Tensor, tuple[float, float]]:
        """Return (256, g, g) of the padded square, and the rows and columns that the image fills.

        Raises:
            OVSDinoError: There is none, or the image cannot be read.
        """

    def crops(self, names: Sequence[str], places: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the targets of a batch of crops.

        Args:
            names: B images.
            places: (B, 5), see `crop_embedding`.
            size: (h, w) of the token grid.

        Returns:
            (B, 256, h, w) float32.
        """
        pairs = zip(names, places, strict=True)
        return torch.stack([crop_embedding(*self.embedding(name), place, size) for name, place in pairs])


class SamTargets(SamSource):
    """The embeddings of a folder that `ovsdino masks --embeddings` wrote.

    Raises:
        OVSDinoError: There is none, or one is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.places: dict[str, tuple[Path, tuple[float, float]]] = {}
        for path in sorted(self.folder.glob("embeddings-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    filled = json.loads(file.metadata()["filled"])
                    self.places |= {name: (path, (*map(float, filled[name]),)) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                raise OVSDinoError(f"{path}: not SAM's embeddings, or damaged ({one_line(error, 80)})") from error
        if not self.places:
            raise OVSDinoError(f"{folder}: no SAM embeddings here; make them with `ovsdino masks --embeddings`")

    def embedding(self, name: str) -> tuple[Tensor, tuple[float, float]]:
        if name not in self.places:
            raise OVSDinoError(f"{self.folder}: no SAM embedding of {name!r}; were they made of these images?")
        path, filled = self.places[name]
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(name), filled
        except (OSError, SafetensorError) as error:
            raise OVSDinoError(f"{path}: cannot read {name!r} ({one_line(error, 80)})") from error


class SamOnTheFly(SamSource):
    """Embeddings made when they are asked for: nothing on disk, one forward pass of the encoder for each image.

    Args:
        encoder: On its device already.
        read: Returns the image of a name, (H, W, 3) uint8.
        bf16: The encoder computes in bfloat16: on the fly it is most of a step's work, and its float16 shards on
            disk have 11 bits as well.
    """

    def __init__(self, encoder: SAMEncoder, read: Callable[[str], np.ndarray], *, bf16: bool) -> None:
        self.encoder, self.read, self.bf16 = encoder, read, bf16

    @torch.no_grad()
    def embedding(self, name: str) -> tuple[Tensor, tuple[float, float]]:
        image = self.read(name)
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        padded, _ = self.encoder.preprocess(x.to(self.encoder.mean.device))
        with torch.autocast(padded.device.type, torch.bfloat16, enabled=self.bf16):
            found: Tensor = self.encoder.encoder.forward_features(padded)[0].float()
        return found, filled_cells(image.shape[0], image.shape[1], found.shape[-1], self.encoder.img_size)


def write_embeddings(
    source: ImageSource,
    store: MaskStore,
    embed: Callable[[np.ndarray], Tensor],
    part: tuple[int, int] = (0, 1),
    progress: Progress = silent,
    log: Callable[[str], None] = lambda line: None,
) -> None:
    """Write the files of embeddings that are missing in a store.

    `embed` returns (256, 64, 64) of an image (H, W, 3) uint8. Part (i, n) makes every n-th file, from i.
    """
    paths = [store.folder / f"embeddings-{shard:05d}.safetensors" for shard in range(store.shards)]
    missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    for shard, images in images_by_shard(store, missing, part, progress):
        found, filled = {}, {}
        for name in map(source.names.__getitem__, images):
            try:
                image = source.read(name)
                found[name] = embed(image).to("cpu", torch.float16).contiguous()
                filled[name] = filled_cells(image.shape[0], image.shape[1], found[name].shape[-1])
            except OVSDinoError as error:
                log(f"left without embedding: {one_line(error)}")
        with atomic_write(paths[shard]) as file:
            file.write(save(found, {"filled": json.dumps(filled)}))
