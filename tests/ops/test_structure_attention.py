"""structure_attention against loops in numpy, and its backends against one another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ovsdino.ops import dispatch, structure_attention, use_backend
from ovsdino.ops.structure_attention import native_arguments, structure_attention_reference
from tests.ops import bounds
from tests.ops.harness import DTYPES, assert_within, needs_native

NAMES = ("q", "k", "v", "e", "lam", "gate")
BACKENDS = ["reference", "sdpa", "triton"]  # those that some CPU runs
# On the CPU triton runs in its interpreter (conftest.py).
RUNS = [
    pytest.param("sdpa", "cpu", id="sdpa"),
    pytest.param("triton", "cpu", id="triton"),
    *(pytest.param(name, "cuda", id=f"{name}-cuda", marks=pytest.mark.gpu) for name in ("sdpa", "triton", "cuda")),
]
# (tokens, d, dv, r): 48, 64, 15 is the decoder's; r = 16 leaves no spare lane; 100 is not a multiple of 16.
SHAPES = [(1, 48, 64, 15), (33, 40, 32, 3), (40, 64, 64, 16), (65, 48, 64, 15)]
LARGE = [(1025, 48, 64, 15), (1025, 40, 32, 3), (1024, 64, 64, 16), (4096, 48, 64, 15)]


def skip_unless_it_runs(backend: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    reason = dispatch.why_not("structure_attention", backend, device, dtype)
    if reason:
        pytest.skip(reason)


def widest(backend: str) -> torch.dtype:
    """The widest dtype of a backend."""
    return torch.float32 if backend == "triton" else torch.float64


def draw(batch, heads, tokens, d, dv, r, dtype=torch.float64, device="cpu"):
    """Inputs of a trained decoder's size: |e| near 1, lambda up to 2."""
    shape = (batch, heads, tokens)
    q, k, v, e = (torch.randn(*shape, size, dtype=dtype, device=device) for size in (d, d, dv, r))
    e = e / r**0.5
    lam = torch.rand(heads, dtype=dtype, device=device) * 2
    return q, k, v, e, lam, torch.rand(shape, dtype=dtype, device=device)


def draw_keys(batch, heads, tokens, keys, d, dv, r, dtype=torch.float64):
    """q, k, v, e, lam, gate, key_e of as many queries and keys."""
    q, _, _, e, lam, gate = draw(batch, heads, tokens, d, dv, r, dtype)
    _, k, v, key_e, _, _ = draw(batch, heads, keys, d, dv, r, dtype)
    return q, k, v, e, lam, gate, key_e + 0.3


def by_loops(q, k, v, e, lam, gate, scale, key_e=None) -> np.ndarray:
    """The formula for one query and key at a time."""
    key_e = e if key_e is None else key_e
    q, k, v, e, lam, gate, key_e = (x.double().numpy() for x in (q, k, v, e, lam, gate, key_e))
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, m, i in np.ndindex(*q.shape[:3]):
        distance = np.array([((e[b, m, i] - key_e[b, m, j]) ** 2).sum() for j in range(k.shape[2])])
        logits = scale * k[b, m] @ q[b, m, i] - lam[m] * distance
        weights = np.exp(logits - logits.max())
        out[b, m, i] = gate[b, m, i] * (weights @ v[b, m]) / weights.sum()
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_tokens_by_hand(backend: str) -> None:
    # q = k = 0 and lambda |e_0 - e_1|^2 = ln 2: each token weighs itself 2/3 and the other 1/3.
    skip_unless_it_runs(backend)
    zeros = torch.zeros(1, 1, 2, 1)
    v, e = torch.tensor([[[[3.0], [0.0]]]]), torch.tensor([[[[0.0], [1.0]]]])
    lam, gate = torch.tensor([math.log(2.0)]), torch.tensor([[[1.0, 0.5]]])
    with use_backend(backend):
        out = structure_attention(zeros, zeros, v, e, lam, gate)
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 0.5]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 5, 4, 2), (1, 2, 1, 4, 6, 3), (1, 1, 12, 8, 8, 1)])
@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0, 1e-6, None])
def test_matches_loops(backend: str, shape: tuple[int, ...], scale: float | None) -> None:
    skip_unless_it_runs(backend)
    inputs = draw(*shape, widest(backend))
    with use_backend(backend):
        out = structure_attention(*inputs, scale=scale)
    scale = shape[3] ** -0.5 if scale is None else scale
    exact = torch.from_numpy(by_loops(*inputs, scale))
    bound = bounds.attention(tuple(x.double() for x in inputs), scale, inputs[0].dtype, backend)
    assert_within(out, exact, bound[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_query_and_three_keys_by_hand(backend: str) -> None:
    # q = 0, lambda = ln 2, the keys at squared distances 0, 1 and 2: they weigh 4/7, 2/7 and 1/7.
    skip_unless_it_runs(backend)
    q, k = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 3, 1)
    v, e = torch.tensor([[[[7.0], [0.0], [14.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    key_e = torch.tensor([[[[1.0, 1.0], [1.0, 2.0], [0.0, 2.0]]]])
    with use_backend(backend):
        out = structure_attention(q, k, v, e, torch.tensor([math.log(2.0)]), torch.tensor([[[0.5]]]), key_e=key_e)
    torch.testing.assert_close(out.flatten(), torch.tensor([3.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(2, 2, 3, 9), (1, 2, 9, 4), (1, 1, 5, 1)])
@pytest.mark.parametrize("scale", [-0.3, None])
def test_keys_of_other_tokens_match_loops(backend: str, sizes: tuple[int, ...], scale: float | None) -> None:
    skip_unless_it_runs(backend)
    *inputs, key_e = draw_keys(*sizes, 8, 4, 2, widest(backend))
    with use_backend(backend):
        out = structure_attention(*inputs, scale=scale, key_e=key_e)
    scale = 8**-0.5 if scale is None else scale
    exact = torch.from_numpy(by_loops(*inputs, scale, key_e))
    wide = tuple(x.double() for x in (*inputs, key_e))
    assert_within(out, exact, bounds.attention(wide, scale, out.dtype, backend)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_keys_of_the_same_tokens_are_the_op_without_them(backend: str, dtype: torch.dtype) -> None:
    """The output to the bit; the gradient of e is the sum of both structures'."""
    skip_unless_it_runs(backend)
    inputs = draw(1, 1, 33, 8, 16, 3, dtype)
    grad = torch.randn(1, 1, 33, 16, dtype=dtype)
    with use_backend(backend):
        one = run_and_differentiate(structure_attention, inputs, grad)
        both = run_and_differentiate(lambda *x: structure_attention(*x[:6], key_e=x[6]), [*inputs, inputs[3]], grad)
    assert torch.equal(one[0], both[0])
    both[4] = both[4] + both.pop()
    most = 1e-5 if dtype == torch.float32 else 2e-2
    for name, a, b in zip(NAMES, one[1:], both[1:], strict=True):
        torch.testing.assert_close(a, b, atol=most * float(a.abs().max()), rtol=0, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_queries_leave_keys_without_a_gradient(backend: str) -> None:
    skip_unless_it_runs(backend)
    *inputs, key_e = draw_keys(1, 2, 0, 5, 4, 6, 3, torch.float32)
    with use_backend(backend):
        out, *grads = run_and_differentiate(
            lambda *x: structure_attention(*x[:6], key_e=x[6]), [*inputs, key_e], torch.ones(1, 2, 0, 6)
        )
    assert out.shape == (1, 2, 0, 6) and [x.shape for x in grads] == [x.shape for x in (*inputs, key_e)]
    assert not any(x.any() for x in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shift_of_both_structures_costs_no_precision_in_float16(backend: str) -> None:
    skip_unless_it_runs(backend)
    q, k, v, e, lam, gate, key_e = (x.half() for x in draw_keys(1, 2, 20, 70, 48, 64, 15))
    inputs = (q, k, v, e + 4, lam, gate)
    wide = [x.double() for x in (*inputs, key_e + 4)]
    exact = structure_attention_reference(*wide[:6], 48**-0.5, wide[6])
    with use_backend(backend):
        found = structure_attention(*inputs, key_e=key_e + 4)
    assert (found.double() - exact).abs().max() < 0.02


def run_and_differentiate(function, inputs, grad) -> list[Tensor]:
    """The output and the gradients of all inputs that are there."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    wanted = [x for x in leaves if x is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def assert_meets_the_bound(backend: str, inputs: list, scale: float) -> None:
    """Output and all gradients are as near the float64 reference as rounding allows."""

    def reference(*x: Tensor | None) -> Tensor:
        return structure_attention_reference(*x, scale)

    grad, wide = torch.randn_like(inputs[2]), [x if x is None else x.double() for x in inputs]
    exact = run_and_differentiate(reference, wide, grad.double())
    limits = bounds.attention(tuple(wide), scale, inputs[0].dtype, backend, grad.double())
    with use_backend(backend):
        got = run_and_differentiate(lambda *x: structure_attention(*x, scale=scale), inputs, grad)
    names = ("out", *(name for name, x in zip(NAMES, inputs, strict=True) if x is not None))
    for name, a, b, bound in zip(names, got, exact, limits, strict=True):
        assert_within(a, b, bound, name)


@pytest.mark.parametrize(("backend", "device"), RUNS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_error_is_within_what_rounding_explains(backend: str, device: str, dtype: torch.dtype, index: int) -> None:
    skip_unless_it_runs(backend, device, dtype)
    shapes = SHAPES if device == "cpu" else [*SHAPES[:1], *LARGE]
    tokens, *sizes = shapes[index]
    inputs = [x.to(dtype) for x in draw(1, 2, tokens, *sizes, device=device)]
    assert_meets_the_bound(backend, inputs, sizes[0] ** -0.5)


SMALL = (37, 48, 64, 15)


@pytest.mark.parametrize(("backend", "device"), RUNS)
@pytest.mark.parametrize("change", ["no gate", "lambda 0", "lambda tiny", "scale < 0", "e far from 0", "odd sizes"])
def test_bound_holds_at_the_corners(backend: str, device: str, change: str) -> None:
    dtype = torch.float16
    skip_unless_it_runs(backend, device, dtype)
    tokens, *sizes = (45, 56, 24, 13) if change == "odd sizes" else SMALL
    q, k, v, e, lam, gate = draw(1, 2, tokens, *sizes, device=device)
    if change == "no gate":
        gate = None
    if change in ("lambda 0", "lambda tiny"):
        lam = lam * (0.0 if change == "lambda 0" else 1e-4)
    if change == "e far from 0":
        e = e + 4.0
    inputs = [x if x is None else x.to(dtype) for x in (q, k, v, e, lam.float(), gate)]
    assert_meets_the_bound(backend, inputs, -0.1 if change == "scale < 0" else 0.15)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1e3, 1e6, 1e12])
def test_huge_lambda_leaves_each_token_to_itself(device: str, dtype: torch.dtype, strength: float) -> None:
    skip_unless_it_runs("triton", device)
    q, k, v, e, lam, gate = draw(1, 2, *SMALL, device=device)
    lam = torch.full_like(lam, strength, dtype=torch.float32)
    inputs = [*(x.to(dtype) for x in (q, k, v, e)), lam, gate.to(dtype)]
    with use_backend("triton"):
        out, *grads = run_and_differentiate(structure_attention, inputs, torch.ones_like(inputs[2]))
    torch.testing.assert_close(out, inputs[2] * inputs[5].unsqueeze(-1))
    assert all(x.isfinite().all() for x in grads)


def test_shift_of_e_costs_no_precision_in_float16() -> None:
    q, k, v, e, lam, gate = (x.half() for x in draw(1, 2, 97, 48, 64, 15))
    inputs = (q, k, v, e + 4, lam, gate)
    exact = structure_attention_reference(*(x.double() for x in inputs), 48**-0.5)
    assert (structure_attention(*inputs).double() - exact).abs().max() < 0.02  # not centred: 0.1 and more


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["tokens first", "channels first", "slices", "broadcast"])
def test_strided_inputs_give_what_contiguous_ones_give(backend: str, layout: str) -> None:
    skip_unless_it_runs(backend)
    q, k, v, e, lam, gate = draw(2, 3, 9, 8, 16, 3, torch.float32)
    if layout == "broadcast":
        q, k, v, e, gate = (x[:1].expand_as(x) for x in (q, k, v, e, gate))
    plain = [x.contiguous() for x in (q, k, v, e)]
    if layout == "tokens first":
        strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain]
        gate = gate.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "channels first":
        strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in plain]
    elif layout == "slices":
        strided = list(torch.cat(plain, -1).split([8, 8, 16, 3], -1))
        lam, gate = torch.stack([lam, lam], 1)[:, 0], torch.stack([gate, gate], 3)[..., 1]
    else:
        strided = [q, k, v, e]
    assert not any(x.is_contiguous() for x in strided)
    grad = torch.randn(2, 9, 3, 16).transpose(1, 2)
    with use_backend(backend):
        found = run_and_differentiate(structure_attention, [*strided, lam, gate], grad)
        expected = run_and_differentiate(
            structure_attention, [*plain, lam.contiguous(), gate.contiguous()], grad.contiguous()
        )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_of_any_strides() -> None:
    skip_unless_it_runs("triton")
    inputs = [x.requires_grad_() for x in draw(1, 2, 9, 8, 16, 3, torch.float32)]
    with use_backend("triton"):
        summed = torch.autograd.grad(structure_attention(*inputs).sum(), inputs)  # a gradient expanded from one value
        dense = torch.autograd.grad(structure_attention(*inputs), inputs, torch.ones(1, 2, 9, 16))
    for a, b in zip(summed, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 5, 4, 6, 3), (2, 2, 0, 4, 6, 3)])
def test_empty_batch(backend: str, shape: tuple[int, ...]) -> None:
    skip_unless_it_runs(backend)
    inputs = draw(*shape, torch.float32)
    with use_backend(backend):
        out, *grads = run_and_differentiate(structure_attention, inputs, torch.ones(*shape[:3], 6))
    assert out.shape == (*shape[:3], 6)
    assert [x.shape for x in grads] == [x.shape for x in inputs] and not grads[4].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_a_query_stays_in_its_token(backend: str) -> None:
    skip_unless_it_runs(backend)
    q, k, v, e, lam, gate = draw(1, 1, 40, 4, 4, 2, widest(backend))
    exact = torch.from_numpy(by_loops(q, k, v, e, lam, gate, 0.5))
    bound = bounds.attention(tuple(x.double() for x in (q, k, v, e, lam, gate)), 0.5, q.dtype, backend)[0]
    q[0, 0, 2, 1] = math.nan
    with use_backend(backend):
        out = structure_attention(q, k, v, e, lam, gate)
    if backend != "sdpa":  # torch's CPU flash kernel gives zeros for a row without a finite logit
        assert out[0, 0, 2].isnan().all()
    others = [i for i in range(40) if i != 2]
    assert_within(out[:, :, others], exact[:, :, others], bound[:, :, others])


@pytest.mark.parametrize(("backend", "device"), RUNS)
@pytest.mark.parametrize("name", ["k", "v", "e"])
def test_nan_in_a_key_reaches_every_token(backend: str, device: str, name: str) -> None:
    skip_unless_it_runs(backend, device, torch.float16)
    inputs = dict(zip(NAMES, (x.half() for x in draw(1, 1, 40, 48, 64, 15, device=device)), strict=True))
    inputs[name][0, 0, 35] = math.nan
    with use_backend(backend):
        out = structure_attention(**inputs)
    assert out.isnan().any(-1).all() or backend == "sdpa"


@pytest.mark.parametrize("registered", [False, True])
def test_gradients(registered: bool) -> None:
    inputs = [x.requires_grad_() for x in draw(2, 2, 5, 4, 6, 3)]
    op = torch.ops.ovsdino.structure_attention if registered else structure_attention
    with use_backend("sdpa"):
        assert torch.autograd.gradcheck(lambda *x: op(*x, 0.4), inputs)


@pytest.mark.parametrize("registered", [False, True])
def test_gradients_without_gate_and_for_some_inputs_only(registered: bool) -> None:
    q, k, v, e, lam, _ = draw(1, 2, 4, 3, 3, 2)
    e.requires_grad_()
    op = torch.ops.ovsdino.structure_attention if registered else structure_attention
    with use_backend("sdpa"):
        assert torch.autograd.gradcheck(lambda x: op(q, k, v, x, lam, None, 0.4), e)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opaque_op_has_the_gradients_of_its_backend(backend: str) -> None:
    skip_unless_it_runs(backend)
    inputs = draw(1, 2, 9, 8, 16, 3, torch.float32)
    grad = torch.randn(1, 2, 9, 16)

    def opaque(*x: Tensor) -> Tensor:
        return torch.ops.ovsdino.structure_attention(*x, 0.4, backend)

    with use_backend(backend):
        expected = run_and_differentiate(lambda *x: structure_attention(*x, scale=0.4), inputs, grad)
    for a, b in zip(run_and_differentiate(opaque, inputs, grad), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("backend", "device"), RUNS)
def test_gradients_are_the_same_bits_at_every_run(backend: str, device: str) -> None:
    if backend == "sdpa":
        pytest.skip("torch's CUDA backward adds in any order")
    skip_unless_it_runs(backend, device, torch.float16)
    tokens = 40 if device == "cpu" else 1025
    inputs = [x.half() for x in draw(1, 2, tokens, 48, 64, 15, device=device)]
    grad = torch.randn_like(inputs[2])
    with use_backend(backend):
        first, second = (run_and_differentiate(structure_attention, inputs, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_one_graph_with_gradients(backend: str) -> None:
    skip_unless_it_runs(backend)
    inputs = draw(1, 2, 9, 8, 16, 3, torch.float32)
    grad = torch.randn(1, 2, 9, 16)
    torch._dynamo.reset()
    compiled = torch.compile(structure_attention, fullgraph=True, backend="aot_eager")
    with use_backend(backend):
        found = run_and_differentiate(compiled, inputs, grad)
        expected = run_and_differentiate(structure_attention, inputs, grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@needs_native
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sizes", [(48, 64, 15), (44, 30, 3)])
def test_native_kernel_takes_what_it_is_handed(sizes: tuple[int, int, int], gated: bool) -> None:
    d, dv, r = sizes
    mixed = torch.randn(2, 5, 3, 2 * d + dv, dtype=torch.float16).transpose(1, 2)
    q, k, v = mixed.split([d, d, dv], -1)
    e, lam, gate = torch.randn(2, 3, 5, r), torch.rand(3, dtype=torch.float16), torch.rand(2, 3, 5)
    op, out, _alive = native_arguments(q, k, v, e, lam, gate if gated else None, 0.1)
    dispatch.native.structure_attention_check(op)
    assert (op.batch, op.heads, op.tokens, op.rank) == (2, 3, 5, r) and (op.gate != 0) == gated
    assert out.shape[:3] == v.shape[:3] and out.shape[3] >= dv
    assert (op.q == q.data_ptr()) == (d == 48)  # the decoder's slices go in as they are
    with pytest.raises(ValueError, match=r"rank|r "):
        dispatch.native.structure_attention_check(native_arguments(q, k, v, mixed, lam, None, 0.1)[0])
    with pytest.raises(AttributeError):
        op.colour = 1


def test_compiled_code_is_not_the_exporters_form() -> None:
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    with use_backend("sdpa"):
        torch.compile(structure_attention, fullgraph=True, backend=backend)(*draw(1, 2, 9, 8, 16, 3, torch.float32))
    assert any("scaled_dot_product_attention" in name for name in found)
    assert not any("softmax" in name for name in found)


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor any operator returned."""

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
    *few, key_e = [x.requires_grad_() for x in draw_keys(1, 1, 256, 2048, *sizes, torch.float32)]
    with LargestTensor() as seen, use_backend("sdpa"):
        structure_attention(*few, key_e=key_e).sum().backward()
    assert seen.elements < 2048 * 128


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_under_bfloat16_autocast(backend: str) -> None:
    skip_unless_it_runs(backend)
    inputs = [x.requires_grad_() for x in draw(1, 2, 33, 48, 64, 15, torch.float32)]
    exact = by_loops(*(x.detach() for x in inputs), 48**-0.5)
    with torch.autocast("cpu", torch.bfloat16), use_backend(backend):
        out = structure_attention(*inputs)
    assert out.dtype == torch.bfloat16 or backend == "reference"
    np.testing.assert_allclose(out.detach().float().numpy(), exact, atol=0.05)
    out.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in inputs)


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


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"key_e": None}, r"keys of other tokens need key_e"),
        ({"key_e": torch.zeros(1, 2, 6, 2)}, r"key_e .*k's \(1, 2, 7\).*\(1, 2, 6, 2\)"),
        ({"key_e": torch.zeros(1, 2, 7, 3, dtype=torch.float64)}, r"key_e must have 2 coordinates .*\(1, 2, 7, 3\)"),
        ({"key_e": torch.zeros(1, 2, 7, 2)}, r"key_e must have .* torch.float64 as e, got .* torch.float32"),
        ({"v": torch.zeros(1, 2, 5, 4, dtype=torch.float64)}, r"v must be .*k's \(1, 2, 7\), got \(1, 2, 5, 4\)"),
        ({"e": torch.zeros(1, 2, 7, 2, dtype=torch.float64)}, r"e must be .*q's \(1, 2, 5\), got \(1, 2, 7, 2\)"),
        ({"k": torch.zeros(1, 2, 7, 3, dtype=torch.float64)}, r"q and k must be .* \(1, 2, 7, 3\)"),
        ({"gate": torch.zeros(1, 2, 7, dtype=torch.float64)}, r"gate must be \(1, 2, 5\)"),
        (
            {name: torch.zeros(1, 2, 0, 4 if name != "key_e" else 2).double() for name in ("k", "v", "key_e")},
            r"at least one key .*\(1, 2, 0, 4\)",
        ),
    ],
)
def test_wrong_shape_of_keys_is_named(change: dict[str, Tensor | None], shown: str) -> None:
    inputs = dict(zip((*NAMES, "key_e"), draw_keys(1, 2, 5, 7, 4, 4, 2), strict=True))
    with pytest.raises(ValueError, match=shown):
        structure_attention(**{**inputs, **change})
