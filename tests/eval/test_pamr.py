"""PAMR against a loop over pixels and neighbors in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ovsdino.eval.pamr import pamr, pamr_affinity

GOLDEN = Path(__file__).with_name("golden")


def direct(image: np.ndarray, scores: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """Compute the formula pixel by pixel: replicate padding is a clamped index."""
    channels, height, width = image.shape
    for _ in range(iterations):
        out = np.zeros_like(scores)
        for y in range(height):
            for x in range(width):
                stencils = [
                    [
                        (min(max(y + dy * d, 0), height - 1), min(max(x + dx * d, 0), width - 1))
                        for dy in (-1, 0, 1)
                        for dx in (-1, 0, 1)
                    ]
                    for d in dilations
                ]
                # one deviation over all dilations; the pixel itself counts for the deviation only
                spots = [s for stencil in stencils for s in stencil]
                deviation = [np.std([image[c][s] for s in spots], ddof=1) for c in range(channels)]
                neighbors = [s for stencil in stencils for index, s in enumerate(stencil) if index != 4]
                logits = [
                    np.mean(
                        [-abs(image[c, y, x] - image[c][spot]) / (1e-8 + 0.1 * deviation[c]) for c in range(channels)]
                    )
                    for spot in neighbors
                ]
                weights = np.exp(np.array(logits) - max(logits))
                weights /= weights.sum()
                for k in range(len(scores)):
                    out[k, y, x] = sum(w * scores[k][s] for w, s in zip(weights, neighbors, strict=True))
        scores = out
    return scores


@pytest.mark.parametrize(("iterations", "dilations"), [(1, (1,)), (3, (1, 2, 8))])
def test_equal_to_the_direct_derivation(iterations: int, dilations: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image = np.round(rng.random((3, 5, 7)) * 255)
    image[:, :2, :3] = 90  # a flat patch, where the deviation of small dilations is 0
    scores = rng.random((2, 5, 7))
    found = pamr(torch.from_numpy(image), torch.from_numpy(scores), iterations, dilations)
    np.testing.assert_allclose(found.numpy(), direct(image, scores, iterations, dilations), atol=1e-12)


def test_equal_to_what_the_published_code_gives() -> None:
    golden = np.load(GOLDEN / "pamr.npz")
    found = pamr(torch.from_numpy(golden["image"]).float(), torch.from_numpy(golden["masks"]))
    assert np.abs(found.numpy() - golden["refined"]).max() <= 1e-5


def test_classes_in_chunks_give_the_same() -> None:
    image, scores = torch.rand(3, 20, 30) * 255, torch.rand(7, 20, 30)
    assert torch.equal(pamr(image, scores, 2, chunk=3), pamr(image, scores, 2))


def test_affinities_sum_to_one_and_a_flat_score_stays() -> None:
    image = torch.rand(3, 9, 8, dtype=torch.float64) * 255
    affinity = pamr_affinity(image)
    assert affinity.shape == (48, 9, 8)
    torch.testing.assert_close(affinity.sum(0), torch.ones(9, 8, dtype=torch.float64))
    flat = torch.full((1, 9, 8), 0.3, dtype=torch.float64)
    torch.testing.assert_close(pamr(image, flat), flat)


def test_scores_follow_a_color_edge() -> None:
    # black left, white right; the score's edge is two columns off and moves to the colors' edge
    image = torch.zeros(3, 16, 16)
    image[:, :, 8:] = 255
    scores = torch.zeros(1, 16, 16)
    scores[:, :, 6:] = 1
    found = pamr(image, scores, 10, (1, 2))[0]
    assert (found[:, 8:] > 0.99).all() and (found[:, :8].mean() < scores[0, :, :8].mean() + 1e-5)


def test_no_iterations_and_no_classes_are_nothing_to_do() -> None:
    image, scores = torch.rand(3, 4, 4), torch.rand(2, 4, 4)
    assert pamr(image, scores, 0) is scores
    assert pamr(image, scores[:0]).shape == (0, 4, 4)
    with pytest.raises(ValueError, match="expected"):
        pamr(image, torch.rand(2, 4, 5))
