"""Pseudo-masks on disk: COCO run lengths in shards of images, each shard whole or absent.

    manifest.json        the generator, the images, and how many of them are in a shard
    shard-00000.jsonl    one line per image: {"image", "height", "width", "masks": [{"segmentation": {"size", "counts"},
                         "area", "bbox" [x, y, w, h], "predicted_iou", "stability_score"}, ...]}

The fields of a mask are those of SA-1B (Kirillov et al. 2023). Image i lies in shard i // shard_size, so what is
missing is known from the names of the files alone, and several processes write side by side.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.data.rle import decode_rle, encode_mask
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, read_json, read_text, reading, remove_orphans
from ovsdino.io.images import MAX_PIXELS

FORMAT = 1
SHARD_SIZE = 32
MAX_SHARDS = 1_000_000  # SA-1B's 11 million images are 344 000
MAX_DECODED = 1 << 33  # pixels of all masks of an image; 200 masks of 24 megapixels are 4.8e9
HEAD = b'{"image":'  # how a line begins
MAX_NAME = 1 << 16  # bytes in which an image's name ends
AGAIN = "remove it and run `ovsdino masks` again"


@dataclass(frozen=True, kw_only=True, eq=False)
class PseudoMask:
    """One mask of an image.

    Attributes:
        mask: (H, W) bool.
        predicted_iou: How good the generator holds it to be, 0..1.
        stability_score: How little it moves when what made it is varied, 0..1.
    """

    mask: np.ndarray
    predicted_iou: float
    stability_score: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a folder of masks; two runs may write into it only if theirs are equal.

    Attributes:
        generator: "sam" or "felzenszwalb".
        settings: All that decides the masks, but for the image.
        images: Number of images.
        names_sha256: Of the images' names in their order.
    """

    generator: str
    settings: dict[str, Any]
    images: int
    names_sha256: str
    shard_size: int = SHARD_SIZE
    format: int = FORMAT

    def check(self) -> None:
        """Refuse values that no run writes.

        Raises:
            ValueError: A field has another type, or is out of its range.
        """
        if not isinstance(self.generator, str) or not isinstance(self.settings, dict):
            raise ValueError("generator must be a name and settings a mapping")
        if not isinstance(self.names_sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", self.names_sha256):
            raise ValueError("names_sha256 must be 64 hexadecimal digits")
        if type(self.images) is not int or type(self.shard_size) is not int or min(self.images, self.shard_size) < 1:
            raise ValueError("images and shard_size must be whole numbers from 1")
        if self.images > MAX_SHARDS * self.shard_size:
            raise ValueError(f"{self.images} images in shards of {self.shard_size}: at most {MAX_SHARDS} shards")


def names_digest(names: Sequence[str]) -> str:
    """Return the SHA-256 of names in order, in hexadecimal."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


class ImageRow(dict[str, Any]):
    """One line of a shard, checked: an image's masks, still run-length coded.

    Attributes:
        source: The file it was read from, for messages.
    """

    source = "masks"


class MaskStore:
    """Read and write a folder of pseudo-masks."""

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._places: dict[str, tuple[int, int]] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> MaskStore:
        """Open an existing folder.

        Raises:
            OVSDinoError: There is no manifest, it is damaged, or it is not of this format.
        """
        path = Path(folder) / "manifest.json"
        tree = read_json(path, "manifest of masks", "make the masks with `ovsdino masks`")
        with reading(path, "manifest of masks", "make the masks with `ovsdino masks`"):
            if tree.get("format", FORMAT) != FORMAT:
                raise OVSDinoError(f"{path}: format {one_line(tree['format'], 20)}, this version reads {FORMAT}")
            manifest = Manifest(**tree)
            manifest.check()
        return cls(folder, manifest)

    @classmethod
    def create(cls, folder: str | Path, manifest: Manifest) -> MaskStore:
        """Open a folder to write into, new or begun by a run of the same manifest.

        Raises:
            OVSDinoError: It holds masks that something else made, or cannot be written.
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
            remove_orphans(store.folder)
            return store
        with atomic_write(path) as file:
            file.write((json.dumps(asdict(manifest), indent=1) + "\n").encode())
        return cls(folder, manifest)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.manifest.images // self.manifest.shard_size)

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"shard-{shard:05d}.jsonl"

    def images_of(self, shard: int) -> range:
        """Return the indices of the images in a shard."""
        size = self.manifest.shard_size
        return range(shard * size, min((shard + 1) * size, self.manifest.images))

    def missing(self) -> list[int]:
        """Return the shards that are not there yet."""
        there = {path.name for path in self.folder.glob("shard-*.jsonl")}
        return [shard for shard in range(self.shards) if self.path(shard).name not in there]

    def write(self, shard: int, rows: Sequence[dict[str, Any]]) -> None:
        """Write one shard, rows as `encode_image` makes them; it appears whole or not at all."""
        with atomic_write(self.path(shard)) as file:
            for row in rows:
                file.write((json.dumps(row, separators=(",", ":")) + "\n").encode())

    def read(self, shard: int) -> list[ImageRow]:
        """Return the images of one shard, masks still run-length coded; see `decode`.

        Raises:
            OVSDinoError: The shard is missing or damaged.
        """
        path = self.path(shard)
        lines = read_text(path, "shard of masks", AGAIN).split("\n")
        if lines[-1:] == [""]:
            del lines[-1]
        expected = len(self.images_of(shard))
        if len(lines) != expected:
            raise OVSDinoError(f"{path}: {len(lines)} images of {expected}; {AGAIN}")
        return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]

    def find(self, name: str) -> ImageRow:
        """Return the row of one image; the first call reads the names of all, later ones that line of its shard.

        Raises:
            OVSDinoError: There is no such image, or its shard is missing or damaged.
        """
        if self._places is None:
            self._places = self._index()
        if name not in self._places:
            raise OVSDinoError(f"{self.folder}: no masks of {name!r}; were they made of these images?")
        shard, offset = self._places[name]
        path = self.path(shard)
        with reading(path, "shard of masks", AGAIN), path.open("rb") as file:
            file.seek(offset)
            row = _row(file.readline().decode(), f"{path}, image {name!r}")
        if row["image"] != name:
            raise OVSDinoError(f"{path}: changed while it was read; start again")
        return row

    def of_size(self, name: str, size: tuple[int, int]) -> ImageRow:
        """Return the row of one image, see `find`, which must be of its height and width.

        Raises:
            OVSDinoError: See `find`; or its masks are of another size.
        """
        row = self.find(name)
        if (row["height"], row["width"]) != size:
            raise OVSDinoError(
                f"{name}: {size[1]} x {size[0]} pixels, its masks {row['width']} x {row['height']}; "
                "were they made of these images?"
            )
        return row

    def _index(self) -> dict[str, tuple[int, int]]:
        """Return shard and byte offset of each image's line."""
        places: dict[str, tuple[int, int]] = {}
        for shard in range(self.shards):
            path, offset = self.path(shard), 0
            with reading(path, "shard of masks", AGAIN), path.open("rb") as file:
                for line in file:
                    name, _ = json.JSONDecoder().raw_decode(line[len(HEAD) : len(HEAD) + MAX_NAME].decode())
                    if not line.startswith(HEAD) or not isinstance(name, str) or name in places:
                        raise ValueError(f"byte {offset}: expected the line of one more image")
                    places[name] = (shard, offset)
                    offset += len(line)
        return places

    def rows(self) -> Iterator[ImageRow]:
        """Yield all images in order; see `read`.

        Raises:
            OVSDinoError: A shard is missing or damaged.
        """
        for shard in range(self.shards):
            yield from self.read(shard)


def encode_image(name: str, size: tuple[int, int], masks: Sequence[PseudoMask]) -> dict[str, Any]:
    """Return one line of a shard; masks (H, W) of size (height, width), largest first."""
    rows = []
    for mask in sorted(masks, key=lambda m: -int(m.mask.sum())):
        segmentation, area, box = encode_mask(mask.mask)
        rows.append(
            {
                "segmentation": segmentation,
                "area": area,
                "bbox": [int(v) for v in box],
                "predicted_iou": round(mask.predicted_iou, 4),
                "stability_score": round(mask.stability_score, 4),
            }
        )
    return {"image": name, "height": size[0], "width": size[1], "masks": rows}


def decode(row: Mapping[str, Any]) -> np.ndarray:
    """Return the masks of one image's row, (M, H, W) bool.

    Raises:
        OVSDinoError: A mask's run lengths are not those of this image, or there are more masks than fit in memory.
    """
    count, height, width = len(row["masks"]), row["height"], row["width"]
    if count * height * width > MAX_DECODED:
        where = getattr(row, "source", "masks")
        raise OVSDinoError(f"{where}: {count} masks of {height}x{width} pixels; at most {MAX_DECODED} pixels at once")
    masks = np.zeros((count, height, width), dtype=bool)
    for index in range(count):
        masks[index] = decode_one(row, index)
    return masks


def decode_one(row: Mapping[str, Any], index: int) -> np.ndarray:
    """Return one mask of an image's row, (H, W) uint8, 0 or 1.

    Raises:
        OVSDinoError: Its run lengths are not those of this image, or do not have its area.
    """
    mask = row["masks"][index]
    try:
        found = decode_rle(mask["segmentation"], row["height"], row["width"])
        if (area := int(np.count_nonzero(found))) != mask["area"]:
            raise OVSDinoError(f"run lengths: {area} pixels, the area says {one_line(mask['area'], 20)}")
    except OVSDinoError as error:
        raise OVSDinoError(f"{getattr(row, 'source', 'masks')}: mask {index}: {error}; {AGAIN}") from error
    return found


def _row(line: str, where: str) -> ImageRow:
    """Return a line of a shard, all but its run lengths checked: those are when they are decoded."""
    with reading(where, "line of masks", AGAIN):
        row = ImageRow(json.loads(line))
        height, width = row["height"], row["width"]
        if not isinstance(row["image"], str) or type(height) is not int or type(width) is not int:
            raise ValueError("expected the image's name and its height and width in pixels")
        if min(height, width) < 0 or height * width > MAX_PIXELS:
            raise ValueError(f"an image of {one_line(height, 20)}x{one_line(width, 20)} pixels")
        for index, mask in enumerate(row["masks"]):
            numbers = [mask["area"], mask["predicted_iou"], mask["stability_score"], *mask["bbox"]]
            finite = all(type(v) in (int, float) and abs(v) <= MAX_PIXELS for v in numbers)
            if not finite or len(mask["bbox"]) != 4 or not isinstance(mask["segmentation"], dict):
                raise ValueError(f"mask {index}: expected area, bbox, two scores and run lengths")
            left, top, across, down = mask["bbox"]
            if min(mask["bbox"]) < 0 or left + across > width or top + down > height:
                raise ValueError(f"mask {index}: bbox {mask['bbox']} leaves the image of {height}x{width}")
    row.source = where
    return row
