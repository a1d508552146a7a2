"""Distance of images to the known ones, against the covariance written out."""

import numpy as np
import pytest

from ovsdino.models.novelty import Gaussian, novelty

D = 12


def cloud(n: int, seed: int = 0) -> np.ndarray:
    """Points with a few long axes and a small rest."""
    random = np.random.default_rng(seed)
    scale = np.array([5, 4, 3, *[0.5] * (D - 3)])
    return 2 + random.normal(size=(n, D)) * scale


def test_the_distance_is_mahalanobis_of_the_covariance_that_was_kept():
    points = cloud(200)
    known = Gaussian.fit(points, rank=3)
    covariance = known.basis.T @ np.diag(known.variance - known.rest) @ known.basis + known.rest * np.eye(D)
    off = cloud(7, seed=1) - known.mean
    expected = np.sqrt(np.einsum("nd,de,ne->n", off, np.linalg.inv(covariance), off) / D)
    np.testing.assert_allclose(known.distance(cloud(7, seed=1)), expected, rtol=1e-4)
    np.testing.assert_allclose(np.sort(known.variance), np.sort(np.array([9, 16, 25])), rtol=0.5)


def test_images_of_the_set_are_below_one_and_others_above():
    known = {"a": Gaussian.fit(cloud(400)), "b": Gaussian.fit(cloud(400, seed=3) + 40)}
    assert np.mean(novelty(known, cloud(300, seed=5)) < 1) > 0.95
    assert np.mean(novelty(known, cloud(300, seed=6) + 40) < 1) > 0.95  # the nearest set counts
    assert novelty(known, cloud(50, seed=7) + 15).min() > 1.5


def test_the_limit_comes_from_images_that_were_left_out():
    """Few images in many dimensions are nearer to their own mean than left-out ones are."""
    points = np.random.default_rng(0).normal(size=(24, 100))
    known = Gaussian.fit(points)
    assert known.limit > known.distance(points).max()


def test_images_of_one_color_and_too_few_images():
    flat = Gaussian.fit(np.ones((20, D)))
    assert np.isfinite(flat.distance(np.zeros((1, D)))).all()
    with pytest.raises(ValueError, match="3 images: novelty needs at least 4"):
        Gaussian.fit(np.ones((3, D)))
