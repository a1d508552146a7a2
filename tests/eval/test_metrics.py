"""Scores against values worked out by hand and against a direct derivation over sets of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ovsdino.eval.boundary import BoundaryF1, BoundaryIoU, contour, trimap
from ovsdino.eval.metrics import SegmentationMetrics


def summary(
    pairs: list[tuple[np.ndarray, np.ndarray]], names: tuple[str, ...] = ("a", "b", "c")
) -> SegmentationMetrics:
    metrics = SegmentationMetrics(names)
    for predicted, target in pairs:
        metrics.update(predicted, target)
    return metrics


def test_iou_by_hand() -> None:
    target = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
    predicted = np.array([[0, 1, 1, 1], [0, 0, 0, 0]], np.uint8)
    # a: hits 3, predicted 4 (one more is ignored), labelled 4 -> 3/5; b: hits 2, predicted 3, labelled 3 -> 2/4
    found = summary([(predicted, target)]).summary()
    assert found.iou == {"a": pytest.approx(3 / 5), "b": pytest.approx(2 / 4), "c": None}
    assert found.miou == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert found.pixel_accuracy == pytest.approx(5 / 7)


def test_unions_are_summed_over_the_data_set_not_averaged_over_images() -> None:
    small = (np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8))
    large = (np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8))
    # a: hits 1 + 20, union 2 + 20; b: hits 0, union 1
    found = summary([small, large], ("a", "b")).summary()
    assert found.iou == {"a": pytest.approx(21 / 22), "b": 0.0}


def test_background_predictions_are_errors_of_the_labelled_class() -> None:
    target = np.zeros((2, 2), np.uint8)
    predicted = np.array([[0, 0], [0, 2]], np.uint8)  # 2 is background for two classes
    found = summary([(predicted, target)], ("a", "b")).summary()
    assert found.iou == {"a": 0.75, "b": None} and found.pixel_accuracy == 0.75


def test_a_perfect_prediction_scores_one_and_nothing_to_score_gives_none() -> None:
    target = np.zeros((20, 20), np.uint8)
    target[:, 10:] = 1
    found = summary([(target, target)]).summary()
    assert (found.miou, found.pixel_accuracy, found.boundary_f1, found.boundary_iou) == (1.0, 1.0, 1.0, 1.0)
    empty = summary([(target, np.full((20, 20), 255, np.uint8))]).summary()
    assert (empty.miou, empty.pixel_accuracy, empty.boundary_f1, empty.boundary_iou) == (None, None, None, None)


def test_a_map_of_one_class_has_no_boundary_f1() -> None:
    flat = np.zeros((9, 9), np.uint8)
    found = summary([(flat, flat)]).summary()
    assert found.miou == 1.0 and found.boundary_f1 is None and found.boundary_iou == 1.0


def test_wrong_shapes_and_values_are_refused() -> None:
    metrics = SegmentationMetrics(("a", "b"))
    with pytest.raises(ValueError, match="expected the same"):
        metrics.update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="target holds"):
        metrics.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 2, np.uint8))
    with pytest.raises(ValueError, match="predicted holds"):
        metrics.update(np.full((2, 2), 3, np.uint8), np.zeros((2, 2), np.uint8))


def halves(height: int, width: int, column: int) -> np.ndarray:
    labels = np.zeros((height, width), np.uint8)
    labels[:, column:] = 1
    return labels


@pytest.mark.parametrize(
    ("shift", "expected"),
    # 60x80: diagonal 100, tolerance 0.75 -> only the same pixel counts. A straight border moved by one column: the
    # contour of a is column 39 against 40, none matches. At tolerance 0.02 (2 pixels) a shift of 1
    # matches all, of 2 none.
    [(0, (1.0, 1.0)), (1, (0.0, 1.0)), (2, (0.0, 0.0))],
)
def test_boundary_f1_of_a_shifted_border(shift: int, expected: tuple[float, float]) -> None:
    target, predicted = halves(60, 80, 40), halves(60, 80, 40 + shift)
    for tolerance, score in zip((0.0075, 0.02), expected, strict=True):
        metric = BoundaryF1(2, tolerance)
        metric.update(predicted, target, np.zeros((60, 80), bool))
        np.testing.assert_allclose(metric.per_class(), [score, score])


def test_boundary_f1_precision_and_recall_by_hand() -> None:
    # 30x40: diagonal 50, tolerance 0.0075 -> exact match. b is a 3x3 block, predicted as its upper 2 rows.
    target = np.zeros((30, 40), np.uint8)
    target[10:13, 10:13] = 1
    predicted = target.copy()
    predicted[12] = 0
    metric = BoundaryF1(2)
    metric.update(predicted, target, np.zeros((30, 40), bool))
    # contour of b: target 8 of 9 pixels (all but the center), predicted all 6; the predicted center is not in the
    # target's contour: 5 hits. precision 5/6, recall 5/8 -> F1 = 2 * 5 / (6 + 8)
    assert metric.per_class()[1] == pytest.approx(10 / 14)


def test_a_class_found_only_in_one_map_scores_zero_there() -> None:
    target, predicted = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    predicted[5:9, 5:9] = 1
    metric = BoundaryF1(3)
    metric.update(predicted, target, np.zeros((30, 40), bool))
    per_class = metric.per_class()
    assert per_class[0] == 0.0 and per_class[1] == 0.0 and np.isnan(per_class[2])


def test_boundary_iou_by_hand() -> None:
    # 30x40, ratio 0.02 -> d = 1: the rim of a block is its outer ring. Target 6x6 (ring 20), predicted 6x6 moved by one
    # column. Rings: the target's columns 10..15, the prediction's 11..16, rows 10..15. They share the top and bottom
    # rows in columns 11..15 (10 pixels), and nothing else: 10 / (20 + 20 - 10).
    target, predicted = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
    target[10:16, 10:16] = 1
    predicted[10:16, 11:17] = 1
    metric = BoundaryIoU(2)
    metric.update(predicted, target, np.zeros((30, 40), bool))
    assert metric.per_class()[1] == pytest.approx(10 / 30)


def test_the_image_border_counts_for_boundary_iou_but_void_does_not() -> None:
    whole = np.zeros((30, 40), np.uint8)
    metric = BoundaryIoU(1)
    metric.update(whole, whole, np.zeros((30, 40), bool))
    assert metric.union[0] == 2 * 40 + 2 * 28  # the frame, one pixel wide
    void = np.zeros((30, 40), bool)
    void[10:20, 10:20] = True
    again = BoundaryIoU(1)
    again.update(whole, whole, void)
    assert again.union[0] == metric.union[0]
    assert not contour(whole, void).any()


def direct_contour(labels: np.ndarray, ignore: np.ndarray, index: int) -> set[tuple[int, int]]:
    height, width = labels.shape
    found = set()
    for y in range(height):
        for x in range(width):
            if labels[y, x] != index or ignore[y, x]:
                continue
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width and not ignore[a, b]]
            if any(labels[a, b] != index for a, b in inside):
                found.add((y, x))
    return found


def direct_f1(predicted: np.ndarray, target: np.ndarray, ignore: np.ndarray, index: int, theta: float) -> float:
    truth, found = direct_contour(target, ignore, index), direct_contour(predicted, ignore, index)
    if not truth and not found:
        return math.nan

    def near(point: tuple[int, int], others: set[tuple[int, int]]) -> bool:
        return point in others or any(math.dist(point, other) < theta for other in others)

    precision = sum(near(p, truth) for p in found) / len(found) if found else 0.0
    recall = sum(near(p, found) for p in truth) / len(truth) if truth else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def direct_rim(mask: np.ndarray, ignore: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of the mask with something else (void apart, outside included) within the box of the distance."""
    height, width = mask.shape
    rim = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            box = [(a, b) for a in range(y - distance, y + distance + 1) for b in range(x - distance, x + distance + 1)]
            inner = all(0 <= a < height and 0 <= b < width and (mask[a, b] or ignore[a, b]) for a, b in box)
            rim[y, x] = mask[y, x] and not ignore[y, x] and not inner
    return rim


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(17, 23), (1, 30), (12, 1)])
def test_boundary_scores_equal_the_direct_derivation(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (-(-shape[0] // 4), -(-shape[1] // 4)))
    target = np.kron(coarse, np.ones((4, 4), int))[: shape[0], : shape[1]]
    predicted = np.where(rng.random(shape) < 0.1, rng.integers(0, 3, shape), target)
    ignore = rng.random(shape) < 0.05
    diagonal = math.hypot(*shape)
    f1 = BoundaryF1(3, tolerance=2.5 / diagonal)
    f1.update(predicted, target, ignore)
    np.testing.assert_allclose(
        f1.per_class(), [direct_f1(predicted, target, ignore, index, 2.5) for index in range(3)], atol=1e-12
    )
    iou = BoundaryIoU(3, ratio=2 / diagonal)
    iou.update(predicted, target, ignore)
    for index in range(3):
        truth = direct_rim(target == index, ignore, 2)
        found = direct_rim(predicted == index, ignore, 2)
        assert (iou.intersection[index], iou.union[index]) == ((truth & found).sum(), (truth | found).sum())


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 1.5, 2.0, 4.5, 5.0, 80.0])
def test_distances_are_euclidean_and_strictly_below_the_tolerance(tolerance: float) -> None:
    rng = np.random.default_rng(int(tolerance * 2))
    target, predicted = (rng.random((2, 13, 19)) < 0.06).astype(int)
    ignore = np.zeros((13, 19), bool)
    metric = BoundaryF1(2, tolerance=tolerance / math.hypot(13, 19))
    metric.update(predicted, target, ignore)
    expected = [direct_f1(predicted, target, ignore, index, tolerance) for index in range(2)]
    np.testing.assert_allclose(metric.per_class(), expected, atol=1e-12)


def test_iou_agrees_with_a_count_over_sets_on_random_maps() -> None:
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(4):
        target = rng.integers(0, 5, (15, 14)).astype(np.uint8)
        target[rng.random(target.shape) < 0.2] = 255
        pairs.append((rng.integers(0, 6, target.shape).astype(np.uint8), target))
    metrics = SegmentationMetrics(tuple("abcde"))
    for predicted, target in pairs:
        metrics.update(predicted, target)
    for index, value in enumerate(metrics.confusion.iou()):
        hits = sum(((p == index) & (t == index)).sum() for p, t in pairs)
        union = sum((((p == index) & (t != 255)) | (t == index)).sum() for p, t in pairs)
        assert value == pytest.approx(hits / union)


def degenerate_and_random_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    flat, noise = np.zeros((12, 9), np.uint8), rng.integers(0, 4, (12, 9)).astype(np.uint8)
    void = np.full((12, 9), 255, np.uint8)
    speckled = np.where(rng.random((12, 9)) < 0.3, 255, noise).astype(np.uint8)
    column = rng.integers(0, 4, (30, 1)).astype(np.uint8)
    return [(flat, noise), (noise, flat), (noise, void), (flat, speckled), (noise, speckled), (column, column[::-1])]


def test_confusion_iou_and_accuracy_equal_those_of_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix, jaccard_score

    pairs = degenerate_and_random_pairs()
    metrics = summary(pairs, ("a", "b", "c", "d"))
    predicted = np.concatenate([p[t != 255] for p, t in pairs])
    target = np.concatenate([t[t != 255] for _, t in pairs])
    np.testing.assert_array_equal(
        metrics.confusion.counts[:4, :4], confusion_matrix(target, predicted, labels=range(4))
    )
    found = metrics.summary()
    per_class = jaccard_score(target, predicted, labels=range(4), average=None)
    np.testing.assert_allclose(list(found.iou.values()), per_class)
    assert found.miou == pytest.approx(per_class.mean())
    assert found.pixel_accuracy == pytest.approx((target == predicted).mean())


@pytest.mark.parametrize("index", range(6))
def test_boundary_scores_equal_distance_transforms_and_erosions_of_scipy(index: int) -> None:
    from scipy.ndimage import binary_erosion, distance_transform_edt

    predicted, target = degenerate_and_random_pairs()[index]
    ignore, height, width = target == 255, *target.shape
    f1, iou = BoundaryF1(4, 2.5 / math.hypot(height, width)), BoundaryIoU(4, 2 / math.hypot(height, width))
    f1.update(predicted, target, ignore)
    iou.update(predicted, target, ignore)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    for c in range(4):
        # a contour pixel goes when the mask, void and the outside counted in, is eroded by a cross
        edges = [
            (m == c) & ~ignore & ~binary_erosion((m == c) | ignore, cross, border_value=1) for m in (target, predicted)
        ]
        if edges[0].any() and edges[1].any():
            near = [distance_transform_edt(~edge) < 2.5 for edge in edges]
            precision, recall = near[0][edges[1]].mean(), near[1][edges[0]].mean()
            expected = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        else:
            expected = 0.0 if edges[0].any() or edges[1].any() else math.nan
        np.testing.assert_allclose(f1.per_class()[c], expected)
        rims = [
            (m == c) & ~ignore & ~binary_erosion((m == c) | ignore, np.ones((5, 5), bool)) for m in (target, predicted)
        ]
        assert (iou.intersection[c], iou.union[c]) == ((rims[0] & rims[1]).sum(), (rims[0] | rims[1]).sum())


def test_sums_of_parts_add_up_to_the_whole() -> None:
    pairs = degenerate_and_random_pairs()
    whole, left, right = (summary(part, ("a", "b", "c", "d")) for part in (pairs, pairs[:2], pairs[2:]))
    for total, more in zip(left.sums(), right.sums(), strict=True):
        total += more
    assert left.summary() == whole.summary()


def test_the_trimap_holds_what_lies_near_a_contour_by_hand() -> None:
    # two classes meet between columns 4 and 5; column 9 is void, and its border is not a contour
    target = np.repeat(np.array([[0] * 5 + [1] * 4 + [255]], np.uint8), 3, 0)
    near = trimap(target, target == 255, 2)
    assert near.tolist() == [[False, False, True, True, True, True, True, True, False, False]] * 3
    diagonal = trimap(np.triu(np.ones((9, 9), np.uint8)), np.zeros((9, 9), bool), 1.2)
    assert diagonal[4].tolist() == [False, False, True, True, True, True, False, False, False]
    flat = np.zeros((4, 4), np.uint8)
    assert not trimap(flat, flat == 255).any()


def test_miou_in_the_trimap_counts_nothing_else() -> None:
    target = np.zeros((20, 60), np.uint8)
    target[:, 30:] = 1  # the contour is columns 29 and 30, the trimap 21 to 38
    far, near = target.copy(), target.copy()
    far[:, :10], near[:, 29] = 1, 1
    assert summary([(far, target)], ("a", "b")).summary().trimap_miou == 1.0
    found = summary([(near, target)], ("a", "b")).summary().trimap_miou
    assert found == pytest.approx((8 / 9 + 9 / 10) / 2)
