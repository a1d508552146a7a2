"""Distance of an image to the images that a model knows: a Gaussian of mean-pooled features for each data set.

The Gaussian is that of probabilistic PCA (Tipping and Bishop 1999): a mean, the leading directions with a variance
each, and one variance for all the rest. Its Mahalanobis distance is cheap, and a few hundred images suffice for it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["RANK", "Gaussian", "novelty"]

RANK = 32
FOLDS = 8  # one of which is left out at a time
# Share of an even variance in the covariance: else directions in which a few images hardly vary count too much.
SHRINK = 0.1
QUANTILE = 0.99  # of the distances of images that were left out, which `limit` is


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """The mean-pooled features of a data set's images.

    Attributes:
        mean: (D,) float32.
        basis: (r, D) float32, orthonormal rows: the leading directions.
        variance: (r,) float32 along them.
        rest: Variance along any other direction.
        limit: Distance that one in a hundred of the data set's own images exceeds.
    """

    mean: np.ndarray
    basis: np.ndarray
    variance: np.ndarray
    rest: float
    limit: float = 1.0

    def distance(self, pooled: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distances (n,) of mean-pooled features (n, D), per square root of D."""
        off = pooled - self.mean
        along = (off @ self.basis.T) ** 2
        beyond = np.maximum((off**2).sum(1) - along.sum(1), 0)
        squared = (along / self.variance).sum(1) + beyond / self.rest
        found: np.ndarray = np.sqrt(squared / len(self.mean))
        return found

    @classmethod
    def fit(cls, pooled: np.ndarray, rank: int = RANK) -> Gaussian:
        """Return the Gaussian of images.

        The limit comes from images that were left out: every eighth one is measured by the Gaussian of the others.

        Args:
            pooled: (n, D) mean-pooled features, n >= 4.
            rank: Directions with a variance of their own, at most.

        Raises:
            ValueError: There are fewer than four images.
        """
        if len(pooled) < 4:
            raise ValueError(f"{len(pooled)} images: novelty needs at least 4")
        exact = pooled.astype(np.float64)
        fold = np.arange(len(pooled)) % FOLDS
        left_out = [_fitted(exact[fold != i], rank).distance(exact[fold == i]) for i in np.unique(fold)]
        whole = _fitted(exact, rank)
        limit = float(np.quantile(np.concatenate(left_out), QUANTILE))
        return cls(
            mean=whole.mean.astype(np.float32),
            basis=whole.basis.astype(np.float32),
            variance=whole.variance.astype(np.float32),
            rest=whole.rest,
            limit=limit,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, arrays as base64 text, for the metadata of a weight file."""
        arrays = {name: _encoded(getattr(self, name)) for name in ("mean", "basis", "variance")}
        return {**arrays, "rest": self.rest, "limit": self.limit}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gaussian:
        """Return what `to_dict` gave.

        Raises:
            KeyError: A part is missing.
            TypeError: A part is of another type.
            ValueError: A part is damaged.
        """
        mean, variance = _decoded(data["mean"]), _decoded(data["variance"])
        basis = _decoded(data["basis"]).reshape(len(variance), len(mean))
        found = cls(mean=mean, basis=basis, variance=variance, rest=float(data["rest"]), limit=float(data["limit"]))
        numbers = np.concatenate([mean, basis.ravel(), variance, [found.rest, found.limit]])
        if not np.isfinite(numbers).all() or not (variance > 0).all() or found.rest <= 0 or found.limit <= 0:
            raise ValueError("a number is not finite, or a variance not positive")
        return found


def novelty(known: Mapping[str, Gaussian], pooled: np.ndarray) -> np.ndarray:
    """Return how far images are from the nearest data set, in units of its limit: (n,), above 1 for an unusual one.

    Args:
        known: The Gaussians by data set, at least one.
        pooled: (n, D) mean-pooled features.
    """
    found: np.ndarray = np.min([one.distance(pooled) / one.limit for one in known.values()], axis=0)
    return found


def _fitted(pooled: np.ndarray, rank: int) -> Gaussian:
    mean = pooled.mean(0)
    _, scale, rows = np.linalg.svd(pooled - mean, full_matrices=False)
    variances = scale**2 / max(1, len(pooled) - 1)
    rank = min(rank, len(pooled) // 4)
    even = float(variances.sum()) / pooled.shape[1] + 1e-12  # images of one color have no variance at all
    rest = float(variances[rank:].sum()) / max(1, pooled.shape[1] - rank)
    shrunk = (1 - SHRINK) * np.append(variances[:rank], rest) + SHRINK * even
    return Gaussian(mean=mean, basis=rows[:rank], variance=shrunk[:-1], rest=float(shrunk[-1]))


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
