"""structure_attention against loops in numpy, and its backends against one another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ovsdino.ops import structure_attention, use_backend
from ovsdino.ops.structure_attention import structure_attention_reference
from tests.ops.harness import DEVICES, DTYPES, assert_twice_as_good

BACKENDS = ["reference", "sdpa"]


def draw(batch, heads, tokens, d, dv, r, dtype=torch.float64, device="cpu"):
    """Inputs of a trained decoder's size: |e| near 1, lambda up to 2."""
    shape = (batch, heads, tokens)
    q, k, v, e = (torch.randn(*shape, size, dtype=dtype, device=device) for size in (d, d, dv, r))
    lam = torch.rand(heads, dtype=dtype, device=device) * 2
    return q, k, v, e, lam, torch.rand(shape, dtype=dtype, device=device)


def by_loops(q, k, v, e, lam, gate, scale) -> np.ndarray:
    """The formula for one token pair at a time."""
    q, k, v, e, lam, gate = (x.double().numpy() for x in (q, k, v, e, lam, gate))
    out = np.zeros(v.shape)
    for b, m, i in np.ndindex(*q.shape[:3]):
        distance = np.array([((e[b, m, i] - e[b, m, j]) ** 2).sum() for j in range(q.shape[2])])
        logits = scale * k[b, m] @ q[b, m, i] - lam[m] * distance
        weights = np.exp(logits - logits.max())
        out[b, m, i] = gate[b, m, i] * (weights @ v[b, m]) / weights.sum()
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_tokens_by_hand(backend: str) -> None:
    # q = k = 0 and lambda |e_0 - e_1|^2 = ln 2: each token weighs itself 2/3 and the other 1/3.
    zeros = torch.zeros(1, 1, 2, 1)
    v, e = torch.tensor([[[[3.0], [0.0]]]]), torch.tensor([[[[0.0], [1.0]]]])
    lam, gate = torch.tensor([math.log(2.0)]), torch.tensor([[[1.0, 0.5]]])
    with use_backend(backend):
        out = structure_attention(zeros, zeros, v, e, lam, gate)
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 0.5]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 5, 4, 2), (1, 2, 1, 4, 6, 3), (1, 1, 12, 8, 8, 1)])
def test_matches_loops(backend: str, shape: tuple[int, ...]) -> None:
    inputs = draw(*shape)
    with use_backend(backend):
        out = structure_attention(*inputs, scale=0.3)
        default = structure_attention(*inputs)
    np.testing.assert_allclose(out.numpy(), by_loops(*inputs, 0.3), rtol=0, atol=1e-12)
    np.testing.assert_allclose(default.numpy(), by_loops(*inputs, shape[3] ** -0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [40, 48, 64])
@pytest.mark.parametrize("tokens", [1, 97, 1025])
def test_error_is_at_most_twice_the_naive_one(device: str, dtype: torch.dtype, d: int, tokens: int) -> None:
    inputs = [x.to(dtype) for x in draw(1, 2, tokens, d, 64, 15, device=device)]
    exact = structure_attention_reference(*(x.double() for x in inputs), d**-0.5)
    naive = structure_attention_reference(*inputs, d**-0.5)
    with use_backend("sdpa"):
        assert_twice_as_good(structure_attention(*inputs), naive, exact)


def test_shift_of_e_costs_no_precision_in_float16() -> None:
    q, k, v, e, lam, gate = (x.half() for x in draw(1, 2, 97, 48, 64, 15))
    inputs = (q, k, v, e + 4, lam, gate)
    exact = structure_attention_reference(*(x.double() for x in inputs), 48**-0.5)
    assert (structure_attention(*inputs).double() - exact).abs().max() < 0.02  # not centred: 0.1 and more


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_give_what_contiguous_ones_give(backend: str) -> None:
    q, k, v, e, lam, gate = draw(2, 3, 9, 8, 16, 3, torch.float32)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, e)]
    assert not strided[0].is_contiguous()
    with use_backend(backend):
        out = structure_attention(*strided, lam, gate)
        torch.testing.assert_close(out, structure_attention(q, k, v, e, lam, gate))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    with use_backend(backend):
        assert structure_attention(*draw(0, 2, 5, 4, 6, 3)).shape == (0, 2, 5, 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_query_stays_in_its_token(backend: str) -> None:
    q, k, v, e, lam, gate = draw(1, 1, 6, 4, 4, 2)
    clean = by_loops(q, k, v, e, lam, gate, 0.5)
    q[0, 0, 2, 1] = math.nan
    with use_backend(backend):
        out = structure_attention(q, k, v, e, lam, gate).numpy()
    if backend == "reference":  # torch's CPU flash kernel gives zeros for a row without a finite logit
        assert np.isnan(out[0, 0, 2]).all()
    np.testing.assert_allclose(np.delete(out, 2, axis=2), np.delete(clean, 2, axis=2), atol=1e-12)


@pytest.mark.parametrize("registered", [False, True])
def test_gradients(registered: bool) -> None:
    inputs = [x.requires_grad_() for x in draw(2, 2, 5, 4, 6, 3)]
    op = torch.ops.ovsdino.structure_attention if registered else structure_attention
    assert torch.autograd.gradcheck(lambda *x: op(*x, 0.4), inputs)


@pytest.mark.parametrize("registered", [False, True])
def test_gradients_without_gate_and_for_some_inputs_only(registered: bool) -> None:
    q, k, v, e, lam, _ = draw(1, 2, 4, 3, 3, 2)
    e.requires_grad_()
    op = torch.ops.ovsdino.structure_attention if registered else structure_attention
    assert torch.autograd.gradcheck(lambda x: op(q, k, v, x, lam, None, 0.4), e)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("sizes", [(48, 64, 15), (40, 32, 3), (64, 64, 15)])
def test_sdpa_backend_holds_no_token_by_token_tensor(sizes: tuple[int, int, int]) -> None:
    inputs = [x.requires_grad_() for x in draw(1, 1, 1024, *sizes, torch.float32)]
    with LargestTensor() as seen, use_backend("sdpa"):
        structure_attention(*inputs).sum().backward()
    assert seen.elements < 1024 * 128
    with LargestTensor() as seen, use_backend("reference"):
        structure_attention(*inputs)
    assert seen.elements >= 1024 * 1024


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_under_bfloat16_autocast(backend: str) -> None:
    inputs = [x.requires_grad_() for x in draw(1, 2, 33, 48, 64, 15, torch.float32)]
    exact = by_loops(*(x.detach() for x in inputs), 48**-0.5)
    with torch.autocast("cpu", torch.bfloat16), use_backend(backend):
        out = structure_attention(*inputs)
    np.testing.assert_allclose(out.detach().float().numpy(), exact, atol=0.05)
    out.float().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize(
    ("name", "change", "shown"),
    [
        ("k", (1, 2, 6, 4), r"\(1, 2, 6, 4\)"),
        ("v", (1, 2, 4, 4), r"v .*\(1, 2, 4, 4\)"),
        ("e", (1, 3, 5, 2), r"e .*\(1, 3, 5, 2\)"),
        ("lam", (3,), r"lam .*\(3,\)"),
        ("gate", (1, 2, 5, 1), r"gate .*\(1, 2, 5, 1\)"),
    ],
)
def test_wrong_shape_is_named(name: str, change: tuple[int, ...], shown: str) -> None:
    inputs = dict(zip(("q", "k", "v", "e", "lam", "gate"), draw(1, 2, 5, 4, 4, 2), strict=True))
    inputs[name] = torch.zeros(change)
    with pytest.raises(ValueError, match=shown):
        structure_attention(**inputs)
