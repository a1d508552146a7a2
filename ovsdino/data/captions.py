"""Read images with captions, each of the whole image or of a box in it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.data.tar_index import REMEDY, TEXTS, Member, expand_shards, index_tar, read_member
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json, read_text, reading
from ovsdino.io.images import MAX_PIXELS, SUFFIXES, load_image
from ovsdino.io.tree import ImageSource


@dataclass(frozen=True)
class CaptionRecord:
    """One image and its captions.

    Attributes:
        image: Its name in the set, which is also its name in a `MaskStore` made of the same images.
        captions: At least one.
        box: The part of the image that they speak of, left, top, width, height in pixels; None for all of it.
    """

    image: str
    captions: tuple[str, ...]
    box: tuple[int, int, int, int] | None = None


class CaptionSet(ABC):
    """Give captioned images by number, their records in memory."""

    def __init__(self, records: list[CaptionRecord]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> CaptionRecord:
        """Return the names and captions, without the image."""
        return self.records[index]

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Return the whole image, (H, W, 3) uint8.

        Raises:
            OVSDinoError: It cannot be read.
        """


class ListedCaptions(CaptionSet):
    """Read images in a folder or zip."""

    def __init__(self, source: ImageSource, records: list[CaptionRecord]) -> None:
        super().__init__(records)
        self.source = source

    def read(self, index: int) -> np.ndarray:
        """Return the whole image; see `CaptionSet.read`."""
        return self.source.read(self.records[index].image)


class TarCaptions(CaptionSet):
    """Read images in tars."""

    def __init__(self, records: list[CaptionRecord], places: list[tuple[Path, Member]]) -> None:
        super().__init__(records)
        self.places = places

    def read(self, index: int) -> np.ndarray:
        """Return the whole image; see `CaptionSet.read`."""
        path, member = self.places[index]
        return load_image(read_member(path, member), name=f"{path}: {member.name}")


def open_captions(kind: str, root: str | Path, annotations: str | Path) -> CaptionSet:
    """Open captioned images of one of the kinds below.

    Args:
        kind: "jsonl" is a folder or zip of images and a file of lines {"image", "caption" or "captions", "box"}, the
            box optional and in pixels. "coco" is COCO's own folder: annotations/captions_<split>.json and <split>/.
            "webdataset" is tars of key.jpg (or another format) with key.txt or key.json {"caption", "box"}.
        root: The images; the folder above them for "coco"; that of the tars for "webdataset".
        annotations: The file of captions; the split for "coco"; a pattern of the tars' names for "webdataset", see
            `expand_shards`.

    Raises:
        OVSDinoError: The kind is unknown, a file is missing, a line is damaged, or a caption has no image.
    """
    if kind == "jsonl":
        return read_jsonl(root, annotations)
    if kind == "coco":
        return read_coco(root, str(annotations))
    if kind == "webdataset":
        return read_tars(root, str(annotations))
    raise OVSDinoError(f"data.kind: expected jsonl, coco or webdataset, got {kind!r}")


def read_jsonl(root: str | Path, path: str | Path) -> ListedCaptions:
    """Read a file of captions and its images; see `open_captions`."""
    source = ImageSource(root)
    known = set(source.names)
    records = []
    # Not splitlines: JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(read_text(path, "file of captions", REMEDY).split("\n"), 1):
        if not line.strip():
            continue
        with reading(f"{path}, line {number}", "captioned image"):
            record = _record(json.loads(line))
        if record.image not in known:
            raise OVSDinoError(f"{path}, line {number}: {root} has no image {record.image!r}")
        records.append(record)
    if not records:
        raise OVSDinoError(f"{path}: no caption in it")
    return ListedCaptions(source, records)


def read_coco(root: str | Path, split: str) -> ListedCaptions:
    """Read a split of COCO with its captions, images in the order of the file; see `open_captions`."""
    path = Path(root, "annotations", f"captions_{split}.json")
    tree = read_json(path, "file of COCO's captions", REMEDY)
    source = ImageSource(Path(root, split))
    known = set(source.names)
    captions: dict[Any, list[str]] = {}
    records = []
    for number, row in enumerate(_rows(tree, "annotations", path)):
        with reading(f"{path}: annotations[{number}]", "caption of COCO"):
            captions.setdefault(row["image_id"], []).append(row["caption"].strip())
    for number, row in enumerate(_rows(tree, "images", path)):
        with reading(f"{path}: images[{number}]", "image of COCO"):
            if row["id"] in captions:  # images without a caption are left out
                records.append(_record({"image": row["file_name"], "captions": captions.pop(row["id"])}))
    if captions:
        raise OVSDinoError(f"{path}: a caption of image {next(iter(captions))!r}, which `images` does not list")
    missing = next((record.image for record in records if record.image not in known), None)
    if missing is not None:
        raise OVSDinoError(f"{path}: {source.source} has no image {missing!r}")
    if not records:
        raise OVSDinoError(f"{path}: no caption in it")
    return ListedCaptions(source, records)


def read_tars(root: str | Path, pattern: str) -> TarCaptions:
    """Read tars of images with captions, in the order of the names and of the files in them; see `open_captions`."""
    records: list[CaptionRecord] = []
    places: list[tuple[Path, Member]] = []
    homes: dict[str, Path] = {}
    for path in expand_shards(root, pattern):
        images: dict[str, Member] = {}
        texts: dict[str, dict[str, Member]] = {}
        for member in index_tar(path):
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key, ending = f"{folder}{slash}{stem}", f".{ending.lower()}"
            if ending in SUFFIXES:
                if key in images:
                    raise OVSDinoError(f"{path}: {key} has two images, {images[key].name} and {member.name}")
                images[key] = member
            elif ending in TEXTS:
                texts.setdefault(key, {})[ending] = member
        for key in dict.fromkeys([*images, *texts]):
            if key not in images:
                raise OVSDinoError(f"{path}: {key} has a caption and no image")
            image = images[key]
            record = _tar_record(path, key, image.name, texts.get(key, {}))
            if image.name in homes:
                raise OVSDinoError(f"{path}: {image.name} is in {homes[image.name]} too; names tell images apart")
            homes[image.name] = path
            records.append(record)
            places.append((path, image))
    if not records:
        raise OVSDinoError(f"{root}: no captioned image in {pattern!r} (data.annotations)")
    return TarCaptions(records, places)


def _tar_record(path: Path, key: str, image: str, texts: dict[str, Member]) -> CaptionRecord:
    """Return the record of a key, from its .json or else its .txt."""
    row: dict[str, Any] = {}
    with reading(f"{path}: {key}", "captioned image (.txt or .json)"):
        if ".json" in texts:
            tree = json.loads(texts[".json"].text or "")
            row = {k: tree[k] for k in ("caption", "captions", "box") if tree.get(k) is not None}
        if ".txt" in texts and not row.keys() & {"caption", "captions"}:
            row["caption"] = (texts[".txt"].text or "").strip()
        return _record(row | {"image": image})


def _rows(tree: Any, key: str, path: Path) -> list[Any]:
    """Return one of the lists of a COCO file."""
    rows = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(rows, list):
        raise OVSDinoError(f"{path}: not a readable file of COCO's captions: no list `{key}`; {REMEDY}")
    return rows


def _record(row: dict[str, Any]) -> CaptionRecord:
    captions = row.get("captions", [row["caption"]] if "caption" in row else [])
    if not isinstance(row["image"], str) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError('expected {"image": name, "caption": text}')
    box = row.get("box")
    if box is not None:
        if any(type(v) not in (int, float) for v in box):
            raise ValueError(f"box {box}: expected numbers")
        left, top, width, height = (int(v) for v in box)
        if min(left, top) < 0 or min(width, height) < 1 or max(left, top, width, height) > MAX_PIXELS:
            raise ValueError(f"box {box}: expected left, top, width, height in pixels")
        return CaptionRecord(row["image"], tuple(captions), (left, top, width, height))
    return CaptionRecord(row["image"], tuple(captions))
