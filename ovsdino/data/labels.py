"""From the ids in a data set's label files to class indices: lookup tables, and COCO's instances painted as labels."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.data.rle import checked_rle, pycocotools_mask
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json, reading
from ovsdino.io.images import MAX_PIXELS

IGNORE_INDEX = 255
BYTE_CLASSES = 255  # values of a byte other than `IGNORE_INDEX`
WIDE_IGNORE_INDEX = 65535  # of data sets with more classes, whose label maps have 16 bits
MAX_CLASSES = 5000  # their confusion matrix takes 200 MB
UNEXPECTED = 254  # table entry of an id that the data set does not have

MAX_OUTLINE = 1_000_000  # pixels around a polygon: pycocotools takes 100 bytes for each

# COCO's 91 thing ids lack these eleven (ids as in the stuff-thing maps, one below COCO's own category ids)
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_THING_IDS = tuple(i for i in range(91) if i not in COCO_GAPS)
COCO_STUFF_IDS = tuple(range(91, 182))
# labelIds of the 19 evaluated classes, in trainId order
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def table(mapping: Mapping[int, int], ignored: Iterable[int] = ()) -> np.ndarray:
    """Return (256,) uint8: class index of each id, 255 for 255 and the ignored ids, `UNEXPECTED` for all others."""
    entries = np.full(256, UNEXPECTED, np.uint8)
    entries[[IGNORE_INDEX, *ignored]] = IGNORE_INDEX
    entries[list(mapping)] = list(mapping.values())
    return entries


def identity(classes: int) -> np.ndarray:
    """Return the table of ids that are class indices."""
    return table({i: i for i in range(classes)})


def reduce_zero(classes: int) -> np.ndarray:
    """Return the table of mmsegmentation's reduce_zero_label: 0 is ignored, the rest move down by one."""
    return table({i + 1: i for i in range(classes)}, ignored=[0])


def cityscapes_ids() -> np.ndarray:
    """Return the table from labelIds 0..33 to trainIds; the 15 classes that are not evaluated are ignored."""
    trained = {label: index for index, label in enumerate(CITYSCAPES_IDS)}
    return table(trained, ignored=[i for i in range(34) if i not in trained])


def coco_stuff_ids() -> np.ndarray:
    """Return the table from ids of the stuff-thing maps to the 171 classes."""
    return table({label: index for index, label in enumerate((*COCO_THING_IDS, *COCO_STUFF_IDS))})


def coco_object_ids() -> np.ndarray:
    """Return the table from ids of the stuff-thing maps to background (stuff and unlabelled pixels) and 80 things."""
    things = {label: index + 1 for index, label in enumerate(COCO_THING_IDS)}
    return table({**dict.fromkeys((*COCO_STUFF_IDS, IGNORE_INDEX), 0), **things})


class IdCount:
    """Count the pixels of each id in label maps whose ids are class indices.

    Args:
        classes: K.
        ignore_index: The id of pixels without a label.

    Attributes:
        pixels: Id and its number of pixels.
    """

    def __init__(self, classes: int, ignore_index: int = IGNORE_INDEX) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.pixels: Counter[int] = Counter()

    def update(self, raw: np.ndarray) -> None:
        """Add a label map, (H, W) integers."""
        if raw.dtype == np.uint8:
            counts = np.bincount(raw.ravel(), minlength=1)
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(raw, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.pixels[value] += count

    def problems(self) -> list[str]:
        """Return the signs that the ids are not class indices, one line each."""
        seen, count = set(self.pixels), self.classes
        if seen and not any(0 <= value < count for value in seen):
            return [f"no pixel of the labels holds a class: expected ids 0 to {count - 1}, found {_listed(seen)}"]
        if seen == {0, 255} and self.ignore_index == 255 and count > 1:
            return [
                f"the labels hold only 0 and 255, and the {self._share([255])} that are 255 count as no label: in a "
                "mask of 0 and 255 write 1 for 255"
            ]
        if count in seen and seen <= {*range(1, count + 1), self.ignore_index}:
            return [
                f"the labels hold 1 to {count} and never 0, and the {self._share([count])} that are {count} count as "
                f"no label: ids are class indices, 0 to {count - 1}, so take 1 from each"
            ]
        return []

    def notes(self) -> list[str]:
        """Return the share of the pixels that is ignored, one line per reason."""
        lines = []
        foreign = [value for value in self.pixels if not 0 <= value < self.classes and value != self.ignore_index]
        if foreign:
            lines.append(f"{self._share(foreign)} hold ids that are not a class ({_listed(foreign)}): ignored")
        if self.pixels[self.ignore_index]:
            lines.append(f"{self._share([self.ignore_index])} hold {self.ignore_index}, which is not a label: ignored")
        return lines

    def _share(self, values: Iterable[int]) -> str:
        part = sum(self.pixels[value] for value in values) / self.pixels.total()
        return f"{part:.1%} of the label pixels"


def _listed(values: Iterable[int]) -> str:
    ordered = sorted(values)
    return ", ".join(map(str, ordered[:10])) + (", ..." if len(ordered) > 10 else "")


class CocoInstances:
    """Instance annotations of a COCO split, painted as background and 80 things.

    COCO's instances overlap and their file gives no order, so we choose one: crowd regions first, then larger before
    smaller, so that a cup stays visible on its table.

    Args:
        path: `instances_<split>.json`.

    Raises:
        OVSDinoError: It is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data = read_json(path, "file of COCO instance annotations", "fetch it again")
        self.images: dict[str, tuple[int, int, int]] = {}
        self.annotations: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        with reading(path, "file of COCO instance annotations"):
            for image in data["images"]:
                height, width = int(image["height"]), int(image["width"])
                if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
                    raise ValueError(f"an image of {width}x{height} pixels; expected 1 to {MAX_PIXELS:,}")
                self.images[str(image["file_name"])] = (int(image["id"]), height, width)
            for annotation in data["annotations"]:
                self.annotations[int(annotation["image_id"])].append(annotation)

    def paint(self, file_name: str) -> np.ndarray:
        """Return the labels of an image, (H, W) uint8: 0 background, 1..80 things.

        Raises:
            OVSDinoError: pycocotools is missing, the image is not in the file, or an annotation is broken.
        """
        coco = pycocotools_mask()
        if file_name not in self.images:
            raise OVSDinoError(f"{self.path}: has no image {file_name}")
        identity, height, width = self.images[file_name]
        classes = {label + 1: index + 1 for index, label in enumerate(COCO_THING_IDS)}
        layers = []
        for annotation in self.annotations[identity]:
            number = annotation.get("id") if isinstance(annotation, dict) else None
            where = f"{self.path}: annotation {number}"
            with reading(where, "COCO instance"):
                try:
                    code = _run_lengths(annotation["segmentation"], height, width, coco)
                except OVSDinoError as error:  # run lengths that do not fit
                    raise OVSDinoError(f"{where}: {error}") from error
                index = classes[annotation["category_id"]]
                layers.append((not annotation.get("iscrowd"), -int(coco.area(code)), index, code))
        label = np.zeros((height, width), np.uint8)
        for *_, index, code in sorted(layers, key=lambda layer: layer[:2]):
            label[coco.decode(code) > 0] = index
        return label


def _run_lengths(segmentation: Any, height: int, width: int, coco: Any) -> Any:
    """Return pycocotools' code of polygons or run lengths, checked first: its C code trusts its input.

    What of a polygon lies outside the image is cut off after it is filled, as pycocotools does.
    """
    if isinstance(segmentation, dict):
        return checked_rle(segmentation, height, width)
    polygons = []
    for points in segmentation:
        values = [float(v) for v in points]
        if len(values) < 6 or len(values) % 2 or not all(map(math.isfinite, values)):
            raise ValueError("a polygon needs three points or more")
        corners = np.array(values).reshape(-1, 2)
        outline = float(np.abs(corners - np.roll(corners, 1, axis=0)).sum())
        if np.abs(corners).max() > MAX_OUTLINE or outline > MAX_OUTLINE:
            raise ValueError(f"a polygon whose outline or corners exceed {MAX_OUTLINE:,} pixels")
        polygons.append(values)
    if not polygons:
        raise ValueError("no polygon")
    return coco.merge(coco.frPyObjects(polygons, height, width))
