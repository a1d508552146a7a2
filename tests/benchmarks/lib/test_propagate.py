"""Propagation below the token: its formula pixel by pixel, and what it keeps."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ovsdino.benchmarks.lib.propagate import propagate


def inputs(classes: int, h: int, w: int, scale: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """Shares that sum to one, some of them 0, and a guide with an edge in it."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1, classes, h, w, generator=generator, dtype=dtype)
    scores = scores * (torch.rand(1, classes, h, w, generator=generator) < 0.7) + 1e-3
    guide = 0.1 * torch.rand(1, 3, scale * h, scale * w, generator=generator, dtype=dtype)
    guide[..., scale * w // 2 :] += 0.5
    return scores / scores.sum(1, keepdim=True), guide


def direct(scores: Tensor, guide: Tensor, steps: int, settings: dict[str, Any]) -> np.ndarray:
    """One level of the formula, pixel by pixel; replicated borders are clamped indices."""
    scale = guide.shape[2] // scores.shape[2]
    p = F.interpolate(scores, scale_factor=scale, mode="bilinear", align_corners=False)[0].numpy()
    s, g = scores[0].numpy(), guide[0].numpy()
    classes, height, width = p.shape
    for step in range(steps):
        out = np.zeros_like(p)
        for y, x in product(range(height), range(width)):
            near = [
                (min(max(y + dy * d, 0), height - 1), min(max(x + dx * d, 0), width - 1))
                for d in settings["dilations"]
                for dy, dx in product((-1, 0, 1), repeat=2)
                if (dy, dx) != (0, 0)
            ]
            weights = np.exp([-settings["beta"] * ((g[:, y, x] - g[:, b, a]) ** 2).sum() for b, a in near])
            for weight, (b, a) in zip(weights / weights.sum(), near, strict=True):
                out[:, y, x] += weight * p[:, b, a]
        p = out ** (1 + (settings["power"] - 1) * step / max(steps - 1, 1))
        for _ in range(settings["rounds"]):
            for y, x in product(range(height), range(width)):
                p[:, y, x] *= s[:, y // scale, x // scale].sum() / p[:, y, x].sum()
            for k, y, x in product(range(classes), range(s.shape[1]), range(s.shape[2])):
                cell = p[k, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale]
                cell *= (s[k, y, x] / cell.mean()) ** settings["strength"]
    return p


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_equal_to_the_formula(strength: float) -> None:
    scores, guide = inputs(3, 2, 3, 4)
    settings = {"beta": 20.0, "dilations": (1, 3), "power": 1.7, "strength": strength, "rounds": 2}
    found = propagate(scores, guide, steps=(4,), **settings)
    np.testing.assert_allclose(found[0].numpy(), direct(scores, guide, 4, settings), atol=1e-12)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([4, 8, 12]),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_mean_over_a_token_is_its_score(
    classes: int, h: int, w: int, scale: int, seed: int, dtype: torch.dtype
) -> None:
    scores, guide = inputs(classes, h, w, scale, seed, dtype)
    found = propagate(scores, guide, steps=(2, 3, 2))
    assert found.shape == (1, classes, scale * h, scale * w) and (found >= 0).all()
    torch.testing.assert_close(F.avg_pool2d(found, scale), scores, rtol=1e-5, atol=1e-7)


def test_totals_other_than_one_and_absent_classes_are_kept() -> None:
    scores, guide = inputs(4, 3, 3, 8)
    scores[:, 2] = 0
    scores[:, :, 1, 1] = 0
    found = propagate(3 * scores, guide, steps=(2, 2))
    torch.testing.assert_close(F.avg_pool2d(found, 8), 3 * scores)
    assert (found[:, 2] == 0).all() and (found[:, :, 8:16, 8:16] == 0).all()


@pytest.mark.parametrize("steps", [(0,), (0, 0, 0)])
def test_no_steps_are_bilinear_upsampling(steps: tuple[int, ...]) -> None:
    scores, guide = inputs(3, 2, 3, 8)
    expected = F.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)
    assert torch.equal(propagate(scores, guide, steps=steps), expected)


def test_constants_stay_constant() -> None:
    scores, guide = inputs(3, 2, 3, 8)
    scores = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).view(1, 3, 1, 1).expand_as(scores)
    found = propagate(scores, guide, steps=(3, 2), power=1.0)
    torch.testing.assert_close(found, scores[..., :1, :1].expand_as(found))


def test_classes_can_be_reordered() -> None:
    scores, guide = inputs(4, 2, 3, 8)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(propagate(scores[:, order], guide), propagate(scores, guide)[:, order])


def test_images_of_a_batch_do_not_meet() -> None:
    pairs = [inputs(3, 2, 3, 8, seed) for seed in (0, 1)]
    together = propagate(*(torch.cat(tensors) for tensors in zip(*pairs, strict=True)))
    torch.testing.assert_close(together, torch.cat([propagate(*pair) for pair in pairs]))


def test_a_mixed_token_is_divided_along_the_edge_of_the_guide() -> None:
    guide = torch.zeros(1, 1, 24, 24)
    guide[..., 11:] = 1
    truth = torch.cat([1 - guide, guide], 1)
    found = propagate(F.avg_pool2d(truth, 8), guide)
    assert torch.equal(found.argmax(1), truth.argmax(1))
    assert (found - truth).abs().max() < 0.02


def test_gradients_are_those_of_finite_differences() -> None:
    scores, guide = (x.requires_grad_() for x in inputs(2, 2, 1, 4))
    for strength in (1.0, 0.5):

        def function(s: Tensor, g: Tensor, strength: float = strength) -> Tensor:
            return propagate(s, g, steps=(1, 2), beta=5.0, dilations=(2,), strength=strength)

        assert torch.autograd.gradcheck(function, (scores, guide))


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 2, 3, 3), (2, 3, 12, 12)), {}, "scores must be"),
        (((1, 2, 3, 3), (1, 3, 12, 16)), {}, "whole multiple of the grid 3x3"),
        (((1, 2, 3, 3), (1, 3, 18, 18)), {}, "divides 6"),
        (((1, 2, 3, 3), (1, 3, 12, 12)), {"steps": ()}, "steps must be"),
        (((1, 2, 3, 3), (1, 3, 12, 12)), {"power": 0.5}, "power must be >= 1"),
        (((1, 2, 3, 3), (1, 3, 12, 12)), {"strength": 1.5}, "strength in 0..1"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propagate(*(torch.zeros(shape) for shape in shapes), **options)


class Propagation(nn.Module):
    def forward(self, scores: Tensor, guide: Tensor) -> Tensor:
        return propagate(scores, guide, steps=(1, 1), dilations=(2,))


def test_the_export_gives_the_same(tmp_path: Any) -> None:
    pytest.importorskip("onnxscript", reason="needs the edge extra")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the edge extra")
    scores, guide = inputs(3, 3, 5, 8, dtype=torch.float32)
    path = tmp_path / "propagation.onnx"
    torch.onnx.export(Propagation().eval(), (scores, guide), path, dynamo=True, opset_version=18, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (scores.numpy(), guide.numpy()), strict=True)))
    np.testing.assert_allclose(found, Propagation()(scores, guide).numpy(), atol=1e-5)
