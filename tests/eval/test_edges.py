"""Thinning and ODS F against cases worked out by hand and loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from ovsdino.errors import OVSDinoError
from ovsdino.eval.edges import BoundaryScore, match_strongest, spread, thin


def test_thinning_keeps_the_crest_of_a_blurred_line() -> None:
    x = torch.arange(21.0)
    ridge = torch.exp(-0.5 * ((x - 8) / 2) ** 2).expand(15, 21)
    for turned, line in ((ridge, (slice(None), 8)), (ridge.T, (8, slice(None)))):
        kept = thin(turned) > float("-inf")
        expected = torch.zeros_like(kept)
        expected[line] = True
        assert torch.equal(kept, expected)


def test_thinning_keeps_a_diagonal_one_pixel_wide() -> None:
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    kept = thin(torch.exp(-0.25 * (y - x) ** 2))[4:-4, 4:-4] > float("-inf")
    assert torch.equal(kept, torch.eye(16, dtype=torch.bool))


def test_of_two_equal_pixels_across_a_crest_one_stays() -> None:
    x = torch.arange(20.0)
    ridge = torch.exp(-0.5 * ((x - 9.5) / 2) ** 2).expand(16, 20)  # columns 9 and 10 are equally strong
    for turned in (ridge, ridge.T):
        kept = thin(turned) > float("-inf")
        assert kept.sum() == 16 and len(torch.unique(kept.nonzero()[:, 1 if turned is ridge else 0])) == 1


def test_a_flat_map_has_no_crest() -> None:
    assert not (thin(torch.full((9, 9), 0.3)) > float("-inf")).any()


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.3, 4.34])
def test_spread_is_the_largest_value_in_the_disk(radius: float) -> None:
    values = torch.rand(9, 13)
    y, x = np.mgrid[:9, :13]
    expected = np.array(
        [[values.numpy()[(y - i) ** 2 + (x - j) ** 2 <= radius**2].max() for j in range(13)] for i in range(9)]
    )
    assert np.array_equal(spread(values, radius).numpy(), expected)


def line(column: int, strength: float = 1.0) -> torch.Tensor:
    """(60, 80): diagonal 100, so 0.75 pixels of tolerance; a blurred vertical line."""
    x = torch.arange(80.0)
    return (strength * torch.exp(-0.5 * ((x - column) / 1.5) ** 2)).expand(60, 80)


def drawn(*columns: int) -> torch.Tensor:
    marked = torch.zeros(len(columns), 60, 80, dtype=torch.bool)
    for person, column in enumerate(columns):
        marked[person, :, column] = True
    return marked


def test_a_perfect_line_scores_one_and_a_wrong_one_nothing() -> None:
    for column, f in ((20, 1.0), (22, 0.0)):
        score = BoundaryScore()
        score.update(line(column), drawn(20, 20))
        assert score.best().f == pytest.approx(f)


def test_a_partner_is_shared_by_nearest_only() -> None:
    # 240 x 320: 3 pixels of tolerance. Lines at 20 (strength 1) and 25 (0.8); one person drew 23, within 3 of both, and
    # another 60. Threshold 1: precision 1, recall 1/2, F 2/3. Threshold 0.5: recall 1/2, and one to one only half of
    # the pixels are right.
    x = torch.arange(320.0)
    lines = [s * torch.exp(-((x - c) ** 2)) for c, s in ((20, 1.0), (25, 0.8))]
    strength = (lines[0] + lines[1]).expand(240, 320)
    marked = torch.zeros(2, 240, 320, dtype=torch.bool)
    marked[0, :, 23] = marked[1, :, 60] = True
    for matching, both in (("one-to-one", 0.5), ("nearest", 2 / 3)):
        score = BoundaryScore(matching)  # type: ignore[arg-type]
        score.update(strength, marked)
        assert score.best().f == pytest.approx(2 / 3)
        assert score.resampled(0.5, np.array([[0]]))[0] == pytest.approx(both)


def test_every_threshold_has_a_largest_matching() -> None:
    # against scipy's maximum matching of the pixels above each threshold, which knows no strengths
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = np.unique(rng.integers(0, 14, (60, 2)), axis=0)
        drawn = np.unique(rng.integers(0, 14, (25, 2)), axis=0)
        strengths = rng.integers(0, 6, len(points)).astype(np.float32)
        matched = match_strongest(points, strengths, drawn, 2.0)
        close = ((points[:, None] - drawn[None]) ** 2).sum(-1) <= 4
        for threshold in range(7):
            graph = csr_matrix(close & (strengths >= threshold)[:, None])
            largest = (maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()
            assert (strengths[matched] >= threshold).sum() == largest
    assert len(match_strongest(points[:0], strengths[:0], drawn, 2.0)) == 0
    assert len(match_strongest(points, strengths, drawn + 100, 2.0)) == 0
    with pytest.raises(OVSDinoError, match="expected one-to-one or nearest"):
        BoundaryScore("both")  # type: ignore[arg-type]


def test_several_annotators_by_hand() -> None:
    # Lines at 20 (strength 1) and 50 (0.5). Two people drew 20, a third drew 60.
    # threshold 1: precision 60/60, recall 120/180 -> F 0.8; threshold 0.5: precision 60/120, recall 120/180 -> F 0.571
    score = BoundaryScore()
    score.update(line(20) + line(50, 0.5), drawn(20, 20, 60))
    best = score.best()
    assert (best.f, best.precision, best.recall) == pytest.approx((0.8, 1.0, 2 / 3))


def test_one_threshold_for_all_images() -> None:
    # Image 1: right line of strength 1. Image 2: right line of 0.3, wrong one of 0.6.
    # All three: precision 2/3, recall 1 -> 0.8; the strongest alone: precision 1, recall 1/2 -> 2/3; two: 1/2, 1/2.
    score = BoundaryScore()
    score.update(line(20), drawn(20))
    score.update(line(30, 0.3) + line(60, 0.6), drawn(30))
    best = score.best()
    assert (best.f, best.precision, best.recall) == pytest.approx((0.8, 2 / 3, 1.0))


def test_no_boundary_anywhere_scores_zero() -> None:
    score = BoundaryScore()
    score.update(torch.zeros(20, 30), torch.zeros(2, 20, 30, dtype=torch.bool))
    assert score.best().f == 0.0


def test_resampled_images_by_hand() -> None:
    # Image 1 is perfect, image 2 has one wrong line and misses its own.
    score = BoundaryScore()
    score.update(line(20), drawn(20))
    score.update(line(60), drawn(30))
    best = score.best()
    assert best.threshold == pytest.approx(1.0) and best.f == pytest.approx(0.5)
    found = score.resampled(best.threshold, np.array([[0, 0], [0, 1], [1, 1]]))
    assert found == pytest.approx([1.0, 0.5, 0.0])
