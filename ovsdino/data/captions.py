"""Images with captions; nothing but a box says where anything is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.data.images import ImageSource
from ovsdino.errors import OVSDinoError, one_line


@dataclass(frozen=True)
class CaptionRecord:
    """One image and what is said of it.

    Attributes:
        image: its name in the set, which is also its name in a `MaskStore` made of the same images.
        captions: at least one.
        box: the part of the image that they speak of, left, top, width, height in pixels; None for all of it.
    """

    image: str
    captions: tuple[str, ...]
    box: tuple[int, int, int, int] | None = None


class CaptionSet(ABC):
    """Captioned images by number."""

    @abstractmethod
    def __len__(self) -> int:
        """How many."""

    @abstractmethod
    def record(self, index: int) -> CaptionRecord:
        """The names and captions, without the image."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The whole image, (H, W, 3) uint8.

        Raises:
            OVSDinoError: it cannot be read.
        """


class ListedCaptions(CaptionSet):
    """Records in memory, images in a folder or zip."""

    def __init__(self, source: ImageSource, records: list[CaptionRecord]) -> None:
        self.source, self.records = source, records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> CaptionRecord:
        return self.records[index]

    def read(self, index: int) -> np.ndarray:
        return self.source.read(self.records[index].image)


def open_captions(kind: str, root: str | Path, annotations: str | Path) -> CaptionSet:
    """Captioned images of one of the kinds below.

    Args:
        kind: "jsonl" is a folder or zip of images and a file of lines {"image", "caption" or "captions", "box"}, the
            box optional and in pixels.
        root: the images.
        annotations: the file of captions.

    Raises:
        OVSDinoError: unknown kind, something missing, a damaged line, a caption without its image.
    """
    if kind == "jsonl":
        return read_jsonl(root, annotations)
    raise OVSDinoError(f"data.kind: expected jsonl, got {kind!r}")


def read_jsonl(root: str | Path, path: str | Path) -> ListedCaptions:
    """A file of captions and its images; see `open_captions`."""
    source = ImageSource(root)
    known = set(source.names)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OVSDinoError(f"{path}: cannot read the captions ({one_line(error, 80)}; data.annotations)") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _record(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OVSDinoError(f"{path}, line {number}: no captioned image ({one_line(error, 80)})") from error
        if record.image not in known:
            raise OVSDinoError(f"{path}, line {number}: {root} has no image {record.image!r}")
        records.append(record)
    if not records:
        raise OVSDinoError(f"{path}: no caption in it")
    return ListedCaptions(source, records)


def _record(row: dict[str, Any]) -> CaptionRecord:
    captions = row.get("captions", [row["caption"]] if "caption" in row else [])
    if not isinstance(row["image"], str) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise ValueError('expected {"image": name, "caption": text}')
    box = row.get("box")
    if box is not None:
        left, top, width, height = (int(v) for v in box)
        if left < 0 or top < 0 or width < 1 or height < 1:
            raise ValueError(f"box {box}: expected left, top, width, height in pixels")
        return CaptionRecord(row["image"], tuple(captions), (left, top, width, height))
    return CaptionRecord(row["image"], tuple(captions))
