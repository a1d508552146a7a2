"""Regions in the forms of labeling tools: a COCO data set, YOLO's lines, LabelMe's file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ovsdino.data.rle import encode_mask
from ovsdino.regions import Region

__all__ = ["coco", "labelme", "yolo"]

QUARTER = 0.25  # of a pixel: a reader that rounds and one that cuts off both come to the index of the pixel


def coco(
    regions: Sequence[Region], names: Sequence[str], size: tuple[int, int], file_name: str | None, image_id: int = 1
) -> dict[str, Any]:
    """Return a COCO data set of one image, ready for `json.dump`.

    Args:
        regions: One annotation each, with run lengths, which hold holes and separate parts.
        names: The categories, with ids from 1.
        size: (H, W) of the image.
        file_name: Of the image.
        image_id: Of the image; several images are joined by lists of their "images" and "annotations".

    Returns:
        {"images", "categories", "annotations"}; an annotation has its "score" where one is known.

    Raises:
        OVSDinoError: pycocotools is not installed.
    """
    annotations = []
    for number, region in enumerate(regions, 1):
        segmentation, area, box = encode_mask(region.mask)
        annotations.append(
            {
                "id": image_id * 100_000 + number,
                "image_id": image_id,
                "category_id": region.index + 1,
                "segmentation": segmentation,
                "area": area,
                "bbox": box,
                "iscrowd": 0,
                **({} if region.score is None else {"score": round(region.score, 4)}),
            }
        )
    return {
        "images": [{"id": image_id, "file_name": file_name or "", "height": size[0], "width": size[1]}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def yolo(regions: Sequence[Region], size: tuple[int, int]) -> str:
    """Return YOLO's segmentation labels: a line "class x y x y ..." for each connected part, 0..1 of width and height.

    Args:
        regions: Those to write.
        size: (H, W) of the image.

    Raises:
        OVSDinoError: OpenCV is not installed.
    """
    height, width = size
    lines = []
    for region in regions:
        for polygon in region.polygons():
            points = (f"{(x + QUARTER) / width:.7f} {(y + QUARTER) / height:.7f}" for x, y in polygon.tolist())
            lines.append(f"{region.index} {' '.join(points)}\n")
    return "".join(lines)


def labelme(regions: Sequence[Region], size: tuple[int, int], image_path: str | None) -> dict[str, Any]:
    """Return LabelMe's file of one image, ready for `json.dump`; the parts of a region share a group.

    Args:
        regions: Those to write.
        size: (H, W) of the image.
        image_path: Of the image, from the folder of the file.

    Raises:
        OVSDinoError: OpenCV is not installed.
    """
    shapes = []
    for group, region in enumerate(regions, 1):
        for polygon in region.polygons():
            shapes.append(
                {
                    "label": region.name,
                    "points": [[float(x), float(y)] for x, y in polygon.tolist()],
                    "group_id": group,
                    "shape_type": "polygon",
                    "flags": {},
                }
            )
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path or "",
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
