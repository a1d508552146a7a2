"""Regions by size: hand-made shapes, scikit-image's components, and a direct count."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label as skimage_label

from ovsdino.eval.sizes import SizeRecall, regions

# 120 x 160 = 19 200 pixels: u = 8, small below 64 pixels, thin below a mean width of 4
SHAPE = (120, 160)
NOTHING = np.zeros(SHAPE, bool)


def groups_of(target: np.ndarray, ignore: np.ndarray = NOTHING, index: int = 1) -> list[int]:
    return next(group for found, _, group in regions(target, ignore, 5) if found == index).tolist()


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (7, 9, 0),  # 63 pixels
        (8, 8, 2),  # 64 pixels, 8 wide
        (40, 2, 1),  # a pole, 2 wide
        (40, 3, 1),  # 3 wide: distances 0 1 0, 4/3 + 2 = 3.33
        (40, 4, 1),  # 4 wide, with its ends: 76 of 160 pixels at distance 1 -> 3.9
        (40, 5, 2),
        (2, 40, 1),
        (31, 2, 0),  # 62 pixels: small before thin
        (60, 80, 2),
    ],
)
def test_rectangles_by_hand(rows: int, columns: int, expected: int) -> None:
    target = np.zeros(SHAPE, int)
    target[20 : 20 + rows, 30 : 30 + columns] = 1
    assert groups_of(target) == [expected]


def test_diagonals_touch_and_other_classes_part() -> None:
    target = np.zeros(SHAPE, int)
    target[10:18, 10:18] = 1
    target[18:26, 18:26] = 1  # touches at a corner: one region of 128 pixels
    target[60:64, 60:76] = 1
    target[62, 60:76] = 2  # cuts 4 x 16 in two: 32 and 16 pixels
    assert sorted(groups_of(target)) == [0, 0, 2] and groups_of(target, index=2) == [0]


def test_the_image_border_makes_nothing_thin_but_void_does() -> None:
    target = np.zeros(SHAPE, int)
    target[:, :2] = 1  # 2 columns seen of something that goes on: one border, distances 1 and 0 -> width 4
    assert groups_of(target) == [2]
    void = NOTHING.copy()
    void[:, 40:] = void[:, :38] = True
    assert groups_of(np.ones(SHAPE, int), void) == [1]
    assert groups_of(np.ones(SHAPE, int)) == [2]


def test_recall_by_hand() -> None:
    target = np.zeros(SHAPE, int)
    target[10:14, 10:20] = 1  # small, 40 pixels
    target[10:14, 40:50] = 1  # small, 40 pixels
    target[10:14, 70:80] = 2  # small, 40 pixels
    target[30:70, 30:32] = 2  # thin, 80 pixels
    predicted = target.copy()
    predicted[10:14, 10:15] = 0  # half of the first: not found
    predicted[10:14, 40:44] = 0  # 24 of 40 right: found
    predicted[30:60, 30:32] = 3  # 20 of 80 right
    metric = SizeRecall(4, skip=(0,))
    metric.update(predicted, target, NOTHING)
    found = metric.groups()
    assert found["small"].recall == pytest.approx(((20 + 24) / 80 + 1) / 2)
    assert (found["small"].found, found["small"].regions, found["small"].pixels) == (2 / 3, 3, 120)
    assert (found["thin"].recall, found["thin"].found, found["thin"].regions) == (0.25, 0.0, 1)
    assert (found["large"].recall, found["large"].found, found["large"].regions) == (None, None, 0)  # 0 is skipped


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_scikit_image_and_a_direct_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = np.kron(rng.integers(0, 4, (20, 20)), np.ones((6, 8), int))
    target = np.where(rng.random(SHAPE) < 0.01, rng.integers(0, 4, SHAPE), target)
    ignore = np.kron(rng.random((10, 10)) < 0.05, np.ones((12, 16), bool))
    predicted = np.where(rng.random(SHAPE) < 0.3, rng.integers(0, 5, SHAPE), target)
    metric = SizeRecall(4)
    metric.update(predicted, target, ignore)
    hits = {g: np.zeros(4) for g in ("small", "rest")}
    pixels = {g: np.zeros(4) for g in ("small", "rest")}
    count = 0
    for index in range(4):
        numbers = skimage_label((target == index) & ~ignore, connectivity=2)
        for number in range(1, numbers.max() + 1):
            inside = numbers == number
            group = "small" if inside.sum() < 64 else "rest"
            pixels[group][index] += inside.sum()
            hits[group][index] += (predicted[inside] == index).sum()
            count += 1
    found = metric.groups()
    assert sum(group.regions for group in found.values()) == count
    assert found["small"].recall == pytest.approx((hits["small"] / pixels["small"])[pixels["small"] > 0].mean())
    assert sum(group.pixels for group in found.values()) == (~ignore).sum()
    rest = metric.hits[1] + metric.hits[2]
    np.testing.assert_array_equal(rest, hits["rest"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_degenerate_maps_do_not_fail(shape: tuple[int, int]) -> None:
    metric = SizeRecall(2)
    metric.update(np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool))
    metric.update(np.zeros(shape, int), np.ones(shape, int), np.ones(shape, bool))
    found = metric.groups()
    assert sum(group.pixels for group in found.values()) == shape[0] * shape[1]
