"""guided_upsample against loops over fine pixels and neighbours in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ovsdino.ops import guided_upsample
from ovsdino.ops.guided_upsample import guided_upsample_reference
from tests.ops.harness import DEVICES, DTYPES, assert_twice_as_good


def draw(batch, classes, channels, h, w, scale, dtype=torch.float64):
    logits = torch.randn(batch, classes, h, w, dtype=dtype)
    low = torch.randn(batch, channels, h, w, dtype=dtype) * 0.5
    return logits, low, torch.randn(batch, channels, scale * h, scale * w, dtype=dtype) * 0.5


def by_loops(logits: Tensor, low: Tensor, high: Tensor, beta: float) -> np.ndarray:
    """The formula for one fine pixel and one coarse neighbour at a time."""
    logits, low, high = (x.double().numpy() for x in (logits, low, high))
    h, w = logits.shape[2:]
    scale = high.shape[2] // h
    out = np.zeros((*logits.shape[:2], *high.shape[2:]))
    for b, y, x in np.ndindex(high.shape[0], *high.shape[2:]):
        total = 0.0
        for i in range(max(y // scale - 2, 0), min(y // scale + 3, h)):
            for j in range(max(x // scale - 2, 0), min(x // scale + 3, w)):
                squared = ((high[b, :, y, x] - low[b, :, i, j]) ** 2).sum()
                distance = ((y + 0.5) / scale - (i + 0.5)) ** 2 + ((x + 0.5) / scale - (j + 0.5)) ** 2
                weight = math.exp(-beta * squared - distance)
                out[b, :, y, x] += weight * logits[b, :, i, j]
                total += weight
        out[b, :, y, x] /= total
    return out


def test_two_cells_by_hand() -> None:
    # Scale 1, guides all equal: the own cell weighs 1, its one neighbour e^-1.
    logits, guide = torch.tensor([[[[1.0, 0.0]]]]), torch.zeros(1, 1, 1, 2)
    own = 1 / (1 + math.exp(-1.0))
    torch.testing.assert_close(guided_upsample(logits, guide, guide, 3.0), torch.tensor([[[[own, 1 - own]]]]))
    # A guide that differs by 1 between the cells takes another factor e^-beta off the neighbour.
    guide = torch.tensor([[[[0.0, 1.0]]]])
    own = 1 / (1 + math.exp(-1.0 - 3.0))
    torch.testing.assert_close(guided_upsample(logits, guide, guide, 3.0), torch.tensor([[[[own, 1 - own]]]]))


def test_one_cell_is_copied() -> None:
    logits = torch.randn(2, 5, 1, 1)
    out = guided_upsample(logits, torch.randn(2, 3, 1, 1), torch.randn(2, 3, 4, 4), 2.0)
    torch.testing.assert_close(out, logits.expand(-1, -1, 4, 4))


@pytest.mark.parametrize("shape", [(2, 3, 4, 3, 7, 4), (1, 2, 1, 6, 1, 2), (1, 4, 5, 5, 6, 1), (1, 1, 2, 2, 2, 3)])
@pytest.mark.parametrize("beta", [0.0, 1.7])
def test_matches_loops(beta: float, shape: tuple[int, ...]) -> None:
    inputs = draw(*shape)
    expected = by_loops(*inputs, beta)
    np.testing.assert_allclose(guided_upsample(*inputs, beta).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(
        guided_upsample(*inputs, torch.tensor(beta, dtype=torch.float64)).numpy(), expected, atol=1e-12
    )


def test_sharp_guide_keeps_each_side_of_an_edge() -> None:
    # Left half and right half differ in guide and logits; the fine edge lies inside a coarse cell's width.
    logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).expand(1, 1, 4, 4)
    low = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    high = torch.tensor([0.0] * 7 + [1.0] * 9).expand(1, 1, 16, 16)
    out = guided_upsample(logits, low, high, 50.0)
    torch.testing.assert_close(out, torch.where(high > 0.5, -4.0, 4.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_twice_the_naive_one(device: str, dtype: torch.dtype) -> None:
    logits, low, high = (x.to(device, dtype) for x in draw(1, 5, 8, 9, 11, 4))
    exact = torch.from_numpy(by_loops(logits.cpu(), low.cpu(), high.cpu(), 1.5))

    def naive() -> Tensor:  # distances and softmax in the low precision
        padded = [torch.nn.functional.pad(x, (2, 2, 2, 2)) for x in (low, logits, torch.ones_like(low[:, :1]))]
        scores, values = [], []
        for dy in range(5):
            for dx in range(5):
                near = [
                    p[..., dy : dy + 9, dx : dx + 11].repeat_interleave(4, 2).repeat_interleave(4, 3) for p in padded
                ]
                rows = (torch.arange(36, device=device) % 4 + 0.5) / 4 - 0.5 - (dy - 2)
                columns = (torch.arange(44, device=device) % 4 + 0.5) / 4 - 0.5 - (dx - 2)
                distance = (rows.square()[:, None] + columns.square()[None]).to(dtype)
                score = -1.5 * (high - near[0]).square().sum(1, keepdim=True) - distance
                scores.append(score.masked_fill(near[2] == 0, -math.inf))
                values.append(near[1])
        weights = torch.stack(scores).softmax(0)
        return (weights * torch.stack(values)).sum(0)

    assert_twice_as_good(guided_upsample(logits, low, high, 1.5).cpu(), naive().cpu(), exact)


@pytest.mark.parametrize("registered", [False, True])
def test_gradients(registered: bool) -> None:
    inputs = [x.requires_grad_() for x in draw(2, 2, 3, 3, 2, 2)]
    beta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    op = torch.ops.ovsdino.guided_upsample if registered else guided_upsample
    assert torch.autograd.gradcheck(op, (*inputs, beta))


def test_strided_inputs() -> None:
    inputs = draw(2, 3, 4, 3, 5, 2, torch.float32)
    strided = [x.to(memory_format=torch.channels_last) for x in inputs]
    torch.testing.assert_close(guided_upsample(*strided, 1.0), guided_upsample(*inputs, 1.0))
    torch.testing.assert_close(
        guided_upsample(*(x[:, :, :, ::2] for x in draw(1, 2, 2, 3, 6, 2)), 1.0).shape, torch.Size([1, 2, 6, 6])
    )


def test_empty_batch() -> None:
    assert guided_upsample(*draw(0, 3, 4, 3, 5, 2), 1.0).shape == (0, 3, 6, 10)


def test_nan_stays_within_two_cells() -> None:
    logits, low, high = draw(1, 2, 3, 7, 7, 2)
    clean = guided_upsample(logits, low, high, 1.0)
    logits[0, 0, 0, 0] = math.nan
    out = guided_upsample(logits, low, high, 1.0)
    assert out[0, 0, :6, :6].isnan().all()
    torch.testing.assert_close(out[0, 1], clean[0, 1])
    torch.testing.assert_close(out[0, 0, 6:], clean[0, 0, 6:])
    torch.testing.assert_close(out[0, 0, :, 6:], clean[0, 0, :, 6:])


def test_runs_under_bfloat16_autocast() -> None:
    inputs = [x.requires_grad_() for x in draw(1, 3, 8, 5, 6, 4, torch.float32)]
    beta = torch.tensor(1.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = guided_upsample(*inputs, beta)
    np.testing.assert_allclose(out.detach().float().numpy(), by_loops(*(x.detach() for x in inputs), 1.0), atol=0.05)
    out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*inputs, beta))


def test_reference_is_the_public_function() -> None:
    inputs = draw(1, 2, 3, 3, 4, 2)
    assert torch.equal(guided_upsample(*inputs, 1.0), guided_upsample_reference(*inputs, 1.0))


@pytest.mark.parametrize(
    ("logits", "low", "high", "shown"),
    [
        ((3, 4, 4), (1, 2, 4, 4), (1, 2, 8, 8), r"logits .*\(3, 4, 4\)"),
        ((1, 3, 4, 4), (1, 2, 4, 5), (1, 2, 8, 8), r"guide_lo .*\(1, 2, 4, 5\)"),
        ((1, 3, 4, 4), (1, 2, 4, 4), (1, 3, 8, 8), r"guide_hi .*\(1, 3, 8, 8\)"),
        ((1, 3, 4, 4), (1, 2, 4, 4), (1, 2, 8, 12), r"guide_hi .*\(8, 12\)"),
        ((1, 3, 4, 4), (1, 2, 4, 4), (1, 2, 9, 9), r"guide_hi .*\(9, 9\)"),
    ],
)
def test_wrong_shape_is_named(logits, low, high, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        guided_upsample(torch.zeros(logits), torch.zeros(low), torch.zeros(high), 1.0)
