"""Regions: connected parts, and polygons that OpenCV and Pillow draw back to the same pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ovsdino.regions import Region, connected_parts


def region(mask: np.ndarray) -> Region:
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    inside = mask[top:bottom, left:right]
    return Region(index=0, name="car", score=None, box=(left, top, right, bottom), inside=inside, size=mask.shape)


def drawn(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [polygon], 1)
    return canvas > 0


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ring = np.zeros((12, 14), bool)
    ring[1:11, 2:13] = True
    ring[3:9, 4:6] = ring[4:7, 8:11] = ring[5, 7] = ring[9, 9] = False
    ring[5, 9] = True  # an island in a hole, a part of its own
    coarse = rng.random((9, 11)) < 0.6
    return {
        "pixel": np.eye(3, dtype=bool)[:, :1],
        "line": np.ones((1, 5), bool),
        "column": np.ones((5, 1), bool),
        "rectangle": np.pad(np.ones((3, 5), bool), 2),
        "holes": ring,
        "noise": rng.random((24, 31)) < 0.55,
        "blobs": np.kron(coarse, np.ones((4, 3), bool)),
        "whole": np.ones((7, 9), bool),
    }


@pytest.mark.parametrize("name", masks())
def test_polygons_are_drawn_back_to_the_same_pixels(name: str) -> None:
    mask = masks()[name]
    polygons = region(mask).polygons()
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)
    assert len(polygons) == len(list(connected_parts(mask)))
    assert all(polygon.dtype == np.int32 and len(polygon) >= 3 for polygon in polygons)


def test_a_rectangle_has_four_corners() -> None:
    (polygon,) = region(masks()["rectangle"]).polygons()
    assert sorted(polygon.tolist()) == [[2, 2], [2, 4], [6, 2], [6, 4]]


def test_a_polygon_with_a_hole_is_drawn_by_pillow() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:18, 3:27] = True
    mask[6:12, 9:15] = False
    (polygon,) = region(mask).polygons()
    canvas = Image.new("1", (30, 20))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon.tolist()], fill=1, outline=1)
    np.testing.assert_array_equal(np.asarray(canvas), mask)


def test_parts_come_by_size_and_small_ones_can_be_left_out() -> None:
    mask = np.zeros((8, 10), bool)
    mask[0, 0] = mask[1, 1] = True  # corners connect
    mask[4:7, 5:9] = True
    parts = list(connected_parts(mask))
    assert [box for box, _ in parts] == [(5, 4, 9, 7), (0, 0, 2, 2)]
    assert [int(inside.sum()) for _, inside in parts] == [12, 2]
    assert len(list(connected_parts(mask, 3))) == 1
    assert list(connected_parts(np.zeros((4, 4), bool))) == []


def test_a_region_knows_its_mask_and_area() -> None:
    mask = masks()["holes"]
    one = region(mask)
    np.testing.assert_array_equal(one.mask, mask)
    assert one.area == mask.sum()
