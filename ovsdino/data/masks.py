"""Pseudo-masks on disk: COCO run lengths in shards of images, each shard whole or absent.

    manifest.json        what made the masks, of which images, in shards of how many
    shard-00000.jsonl    one line an image: {"image", "height", "width", "masks": [{"segmentation": {"size", "counts"},
                         "area", "bbox" [x, y, w, h], "predicted_iou", "stability_score"}, ...]}

The fields of a mask are those of SA-1B (Kirillov et al. 2023). Image i lies in shard i // shard_size, so what is
missing is known from the names of the files alone, and several processes write side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write

FORMAT = 1
SHARD_SIZE = 32
MAX_NAME = 4096  # bytes in which an image's name ends


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoMask:
    """One mask of an image.

    Attributes:
        mask: (H, W) bool.
        predicted_iou: how good the generator holds it to be, 0..1.
        stability_score: how little it moves when what made it is varied, 0..1.
    """

    mask: np.ndarray
    predicted_iou: float
    stability_score: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of masks is; two runs may write into it only if theirs are equal.

    Attributes:
        generator: "sam" or "felzenszwalb".
        settings: all that decides the masks beside the image.
        images: number of images.
        names_sha256: of the images' names in their order.
    """

    generator: str
    settings: dict[str, Any]
    images: int
    names_sha256: str
    shard_size: int = SHARD_SIZE
    format: int = FORMAT


def names_digest(names: Sequence[str]) -> str:
    """SHA-256 of names in order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


class MaskStore:
    """A folder of pseudo-masks."""

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._places: dict[str, tuple[int, int]] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> MaskStore:
        """An existing folder.

        Raises:
            OVSDinoError: no manifest there, or not one of this format.
        """
        path = Path(folder) / "manifest.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            manifest = Manifest(**tree)
        except OSError as error:
            raise OVSDinoError(f"{path}: no masks here ({error.strerror}); make them with `ovsdino masks`") from error
        except (ValueError, TypeError) as error:
            raise OVSDinoError(f"{path}: not a manifest of masks ({error})") from error
        if manifest.format != FORMAT:
            raise OVSDinoError(f"{path}: format {manifest.format}, this version reads {FORMAT}")
        return cls(folder, manifest)

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> MaskStore:
        """A folder to write into, new or begun by a run of the same manifest.

        Raises:
            OVSDinoError: it holds masks that something else made.
        """
        path = Path(folder) / "manifest.json"
        if path.exists():
            store = cls.open(folder)
            old, new = asdict(store.manifest), json.loads(json.dumps(asdict(manifest)))
            for key in new:
                if old[key] != new[key]:
                    raise OVSDinoError(
                        f"{folder}: its masks were made with {key} {old[key]}, this run has {new[key]}; "
                        "choose another --output"
                    )
            return store
        with atomic_write(path) as file:
            file.write((json.dumps(asdict(manifest), indent=1) + "\n").encode())
        return cls(folder, manifest)

    @property
    def shards(self) -> int:
        return -(-self.manifest.images // self.manifest.shard_size)

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.jsonl"

    def images_of(self, shard: int) -> range:
        """Indices of the images in a shard."""
        size = self.manifest.shard_size
        return range(shard * size, min((shard + 1) * size, self.manifest.images))

    def missing(self) -> list[int]:
        """Shards that are not there yet."""
        return [shard for shard in range(self.shards) if not self.path(shard).exists()]

    def write(self, shard: int, rows: Sequence[dict[str, Any]]) -> None:
        """One shard, rows as `encode_image` makes them; appears whole or not at all."""
        with atomic_write(self.path(shard)) as file:
            for row in rows:
                file.write((json.dumps(row, separators=(",", ":")) + "\n").encode())

    def read(self, shard: int) -> list[dict[str, Any]]:
        """The images of one shard, masks still run-length coded; see `decode`.

        Raises:
            OVSDinoError: the shard is missing or damaged.
        """
        path = self.path(shard)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        except OSError as error:
            raise OVSDinoError(f"{path}: {error.strerror}; run `ovsdino masks` again, it goes on") from error
        except ValueError as error:
            raise OVSDinoError(f"{path}: damaged ({error}); remove it and run `ovsdino masks` again") from error
        if len(rows) != len(self.images_of(shard)):
            expected = len(self.images_of(shard))
            raise OVSDinoError(f"{path}: {len(rows)} images of {expected}; remove it and run `ovsdino masks` again")
        return rows

    def find(self, name: str) -> dict[str, Any]:
        """The row of one image; the first call reads the names of all, later ones that line of its shard.

        Raises:
            OVSDinoError: no such image here, or its shard is missing or damaged.
        """
        if self._places is None:
            self._places = self._index()
        if name not in self._places:
            raise OVSDinoError(f"{self.folder}: no masks of {name!r}; were they made of these images?")
        shard, offset = self._places[name]
        try:
            with self.path(shard).open("rb") as file:
                file.seek(offset)
                row: dict[str, Any] = json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise OVSDinoError(f"{self.path(shard)}: changed while it was read ({error})") from error
        return row

    def _index(self) -> dict[str, tuple[int, int]]:
        """Shard and byte offset of each image's line."""
        places, head = {}, b'{"image":'
        for shard in range(self.shards):
            try:
                data = self.path(shard).read_bytes()
            except OSError as error:
                raise OVSDinoError(
                    f"{self.path(shard)}: {error.strerror}; run `ovsdino masks` again, it goes on"
                ) from error
            offset = 0
            for line in data.splitlines(keepends=True):
                try:
                    name, _ = json.JSONDecoder().raw_decode(
                        line[len(head) : len(head) + MAX_NAME].decode(errors="replace")
                    )
                except ValueError as error:
                    raise OVSDinoError(
                        f"{self.path(shard)}: damaged ({error}); remove it and run `ovsdino masks` again"
                    ) from error
                places[str(name)] = (shard, offset)
                offset += len(line)
        return places

    def rows(self) -> Iterator[dict[str, Any]]:
        """All images in order; see `read`.

        Raises:
            OVSDinoError: a shard is missing or damaged.
        """
        for shard in range(self.shards):
            yield from self.read(shard)


def encode_image(name: str, size: tuple[int, int], masks: Sequence[PseudoMask]) -> dict[str, Any]:
    """One line of a shard; masks (H, W) of size (height, width), largest first."""
    rle = _pycocotools()
    rows = []
    for mask in sorted(masks, key=lambda m: -int(m.mask.sum())):
        code = rle.encode(np.asfortranarray(mask.mask.astype(np.uint8)))
        rows.append(
            {
                "segmentation": {"size": list(size), "counts": code["counts"].decode("ascii")},
                "area": int(rle.area(code)),
                "bbox": [int(v) for v in rle.toBbox(code)],
                "predicted_iou": round(mask.predicted_iou, 4),
                "stability_score": round(mask.stability_score, 4),
            }
        )
    return {"image": name, "height": size[0], "width": size[1], "masks": rows}


def decode(row: dict[str, Any]) -> np.ndarray:
    """(M, H, W) bool: the masks of one image's row."""
    masks = np.zeros((len(row["masks"]), row["height"], row["width"]), dtype=bool)
    for index, mask in enumerate(row["masks"]):
        masks[index] = decode_one(mask)
    return masks


def decode_one(mask: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8, 0 or 1: one mask of a row."""
    code = mask["segmentation"]
    found: np.ndarray = _pycocotools().decode([{"size": code["size"], "counts": code["counts"].encode("ascii")}])
    return found[:, :, 0]


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise OVSDinoError("pseudo-masks need pycocotools: pip install 'ovsdino[train]'") from error
    return mask
