"""Background cleaning against a derivation in plain loops, for both readings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovsdino.eval.background import clean_background


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def direct(scores: np.ndarray, tokens: np.ndarray, logits: np.ndarray, text: np.ndarray, released: bool) -> np.ndarray:
    """One window: scores (K, h, w), tokens (D, h, w), logits (M, N), text (K, D)."""
    classes, height, width = scores.shape
    patches = tokens.reshape(len(tokens), -1)
    heads = logits if released else np.stack([softmax(row) for row in logits])
    similarity = np.empty((len(heads), classes))
    for m, head in enumerate(heads):
        pooled = sum(head[n] * patches[:, n] for n in range(patches.shape[1]))
        pooled /= np.sqrt((pooled**2).sum())
        for k in range(classes):
            similarity[m, k] = pooled @ text[k]
    if released:
        weights = np.stack([softmax(similarity[:, k]) for k in range(classes)], axis=1)
    else:
        weights = np.stack([softmax(similarity[m]) for m in range(len(heads))])
    maps = np.stack([softmax(weights[:, k] @ heads / weights[:, k].sum()) for k in range(classes)])
    low, high = maps.min(), maps.max()
    maps = (maps - low) / max(high, high - low)
    maps = maps * (scores.max() - scores.min()) + scores.min()
    return (scores + 0.2 * maps.reshape(classes, height, width)) / 1.2


@pytest.mark.parametrize("cleaning", ["protocol", "released"])
def test_equal_to_the_direct_derivation_window_by_window(cleaning: str) -> None:
    rng = np.random.default_rng(0)
    scores, tokens = rng.random((2, 3, 4, 5)), rng.normal(size=(2, 8, 4, 5))
    logits, text = rng.normal(size=(2, 6, 20)) * 2, rng.normal(size=(3, 8))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    tensors = [torch.from_numpy(x) for x in (scores, tokens, logits, text)]
    found = clean_background(*tensors, cleaning=cleaning)  # type: ignore[arg-type]
    for row in range(2):
        expected = direct(scores[row], tokens[row], logits[row], text, cleaning == "released")
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-12)


def test_the_readings_differ_and_no_weight_changes_nothing() -> None:
    scores, tokens, logits = torch.rand(1, 2, 3, 3), torch.randn(1, 4, 3, 3), torch.randn(1, 2, 9)
    text = torch.nn.functional.normalize(torch.randn(2, 4), dim=-1)
    one, other = (clean_background(scores, tokens, logits, text, cleaning=c) for c in ("protocol", "released"))
    assert (one - other).abs().max() > 1e-4
    torch.testing.assert_close(clean_background(scores, tokens, logits, text, weight=0.0), scores)


def test_finer_scores_take_the_map_at_their_own_grid() -> None:
    scores, tokens, logits = torch.rand(1, 2, 12, 12), torch.randn(1, 4, 3, 3), torch.zeros(1, 2, 9)
    text = torch.nn.functional.normalize(torch.randn(2, 4), dim=-1)
    # equal attention everywhere: the map is flat, its minimum taken away leaves the floor of the scores
    expected = (scores + 0.2 * scores.min()) / 1.2
    torch.testing.assert_close(clean_background(scores, tokens, logits, text), expected)


def test_wrong_shapes_are_refused() -> None:
    scores, tokens, text = torch.rand(1, 2, 3, 3), torch.randn(1, 4, 3, 3), torch.randn(2, 4)
    with pytest.raises(ValueError, match="does not cover"):
        clean_background(scores, tokens, torch.zeros(1, 2, 8), text)
    with pytest.raises(ValueError, match="cleaning"):
        clean_background(scores, tokens, torch.zeros(1, 2, 9), text, cleaning="off")
