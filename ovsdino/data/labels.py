"""From the ids in a data set's label files to class indices: lookup tables, and COCO's instances painted as labels."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.errors import OVSDinoError, one_line

IGNORE_INDEX = 255
UNEXPECTED = 254  # table entry of an id that the data set does not have

# COCO's 91 thing ids lack these eleven (ids as in the stuff-thing maps, one below COCO's own category ids)
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_THING_IDS = tuple(i for i in range(91) if i not in COCO_GAPS)
COCO_STUFF_IDS = tuple(range(91, 182))
# labelIds of the 19 evaluated classes, in trainId order
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def table(mapping: Mapping[int, int], ignored: Iterable[int] = ()) -> np.ndarray:
    """(256,) uint8: class index of each id, 255 for 255 and the ignored ids, `UNEXPECTED` for all others."""
    entries = np.full(256, UNEXPECTED, np.uint8)
    entries[[IGNORE_INDEX, *ignored]] = IGNORE_INDEX
    entries[list(mapping)] = list(mapping.values())
    return entries


def identity(classes: int) -> np.ndarray:
    """Ids are class indices."""
    return table({i: i for i in range(classes)})


def reduce_zero(classes: int) -> np.ndarray:
    """mmseg's reduce_zero_label: 0 is ignored, the rest move down by one."""
    return table({i + 1: i for i in range(classes)}, ignored=[0])


def cityscapes_ids() -> np.ndarray:
    """labelIds 0..33 to trainIds; the 15 classes that are not evaluated are ignored."""
    trained = {label: index for index, label in enumerate(CITYSCAPES_IDS)}
    return table(trained, ignored=[i for i in range(34) if i not in trained])


def coco_stuff_ids() -> np.ndarray:
    """Ids of the stuff-thing maps to the 171 classes."""
    return table({label: index for index, label in enumerate((*COCO_THING_IDS, *COCO_STUFF_IDS))})


def coco_object_ids() -> np.ndarray:
    """Ids of the stuff-thing maps to background and 80 things: stuff and unlabelled pixels are background."""
    things = {label: index + 1 for index, label in enumerate(COCO_THING_IDS)}
    return table({**dict.fromkeys((*COCO_STUFF_IDS, IGNORE_INDEX), 0), **things})


class CocoInstances:
    """Instance annotations of a COCO split, painted as background and 80 things.

    COCO's instances overlap and their file gives no order, so we choose one: crowd regions first, then larger before
    smaller, so that a cup stays visible on its table.

    Args:
        path: `instances_<split>.json`.

    Raises:
        OVSDinoError: not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise OVSDinoError(f"{path}: cannot read the annotations: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise OVSDinoError(f"{path}: not JSON: {one_line(error, 100)}; fetch it again") from error
        self.images: dict[str, tuple[int, int, int]] = {}
        self.annotations: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        try:
            for image in data["images"]:
                size = int(image["height"]), int(image["width"])
                self.images[str(image["file_name"])] = (int(image["id"]), *size)
            for annotation in data["annotations"]:
                self.annotations[int(annotation["image_id"])].append(annotation)
        except (TypeError, KeyError, ValueError) as error:
            raise OVSDinoError(f"{path}: no COCO instance annotations ({one_line(repr(error), 80)})") from error

    def paint(self, file_name: str) -> np.ndarray:
        """(H, W) uint8: 0 background, 1..80 things.

        Raises:
            OVSDinoError: pycocotools is missing, the image is not in the file, or an annotation is broken.
        """
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise OVSDinoError(
                "painting COCO's instances needs pycocotools: pip install 'ovsdino[train]' or pip install pycocotools"
            ) from error
        if file_name not in self.images:
            raise OVSDinoError(f"{self.path}: has no image {file_name}")
        identity, height, width = self.images[file_name]
        classes = {label + 1: index + 1 for index, label in enumerate(COCO_THING_IDS)}
        layers = []
        for annotation in self.annotations[identity]:
            try:
                code = _run_lengths(annotation["segmentation"], height, width, coco)
                layers.append(
                    (not annotation.get("iscrowd"), -int(coco.area(code)), classes[annotation["category_id"]], code)
                )
            except (TypeError, KeyError, ValueError, IndexError) as error:
                number = annotation.get("id") if isinstance(annotation, dict) else None
                raise OVSDinoError(
                    f"{self.path}: annotation {number} is broken: {one_line(repr(error), 80)}"
                ) from error
        label = np.zeros((height, width), np.uint8)
        for *_, index, code in sorted(layers, key=lambda layer: layer[:2]):
            label[coco.decode(code) > 0] = index
        return label


def _run_lengths(segmentation: Any, height: int, width: int, coco: Any) -> Any:
    """pycocotools' code of polygons or uncompressed run lengths, checked first: its C code trusts its input."""
    if isinstance(segmentation, dict):
        counts = [int(v) for v in segmentation["counts"]] if isinstance(segmentation["counts"], list) else None
        if counts is None or list(segmentation["size"]) != [height, width]:
            raise ValueError("run lengths of another size, or compressed")
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise ValueError("run lengths do not fill the image")
        return coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    polygons = []
    for points in segmentation:
        values = [float(v) for v in points]
        if len(values) < 6 or len(values) % 2 or not all(map(math.isfinite, values)):
            raise ValueError("a polygon needs three points or more")
        corners = np.array(values).reshape(-1, 2).clip(0, (width, height))
        polygons.append(corners.ravel().tolist())
    if not polygons:
        raise ValueError("no polygon")
    return coco.merge(coco.frPyObjects(polygons, height, width))
