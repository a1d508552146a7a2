"""guided_upsample against loops over fine pixels and neighbours in numpy: every backend and instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ovsdino.ops import dispatch, guided_upsample, use_backend
from ovsdino.ops.guided_upsample import (
    _run,
    _run_backward,
    guided_upsample_backward_reference,
    guided_upsample_reference,
)
from tests.ops import bounds
from tests.ops.harness import DEVICES, DTYPES, assert_within, instruction_set, instruction_sets, needs_native

NATIVE = [*instruction_sets(), "cuda body"] if dispatch.native is not None else []
KERNELS = ["reference", *NATIVE]

# batch, classes, channels, h, w, scale: ragged vectors, single rows, columns and pixels, odd and large scales, several
# tiles of columns
SHAPES = [
    (2, 3, 4, 3, 7, 4),
    (1, 2, 1, 6, 1, 2),
    (1, 4, 5, 5, 6, 1),
    (1, 1, 2, 2, 2, 3),
    (1, 9, 3, 1, 1, 19),
    (2, 5, 3, 9, 21, 5),
    (1, 400, 2, 6, 35, 2),
]


def run(kernel: str, *inputs: Tensor | float) -> Tensor:
    """guided_upsample by the reference, the CPU kernels of an instruction set, or the CUDA kernel's body on the CPU."""
    if kernel == "cuda body":
        return _run("host", *inputs[:3], torch.as_tensor(inputs[3]))
    if kernel == "reference":
        with use_backend("reference"):
            return guided_upsample(*inputs)
    with instruction_set(kernel), use_backend("cpu"):
        return guided_upsample(*inputs)


def gradients(kernel: str, outer: Tensor, *inputs: Tensor) -> list[Tensor]:
    """What `run` gives the four inputs for a gradient of its result."""
    if kernel == "cuda body":
        return list(_run_backward("host", outer, *inputs))
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(kernel, *leaves)
    if kernel == "reference":
        return list(torch.autograd.grad(out, leaves, outer))
    with instruction_set(kernel), use_backend("cpu"):
        return list(torch.autograd.grad(out, leaves, outer))


def draw(batch, classes, channels, h, w, scale, dtype=torch.float64):
    logits = torch.randn(batch, classes, h, w, dtype=dtype)
    low = torch.randn(batch, channels, h, w, dtype=dtype) * 0.5
    return logits, low, torch.randn(batch, channels, scale * h, scale * w, dtype=dtype) * 0.5


def limits(kernel: str, inputs: list, outer: Tensor | None = None) -> list[Tensor]:
    """The bounds of the result and, with a gradient of it, of the four gradients."""
    wide = tuple(x.detach().cpu().double() for x in inputs)
    dtype = inputs[0].dtype
    backend = kernel if kernel in ("reference", "cuda body", "native") else "cpu"
    if kernel == "auto":
        backend = "native" if dispatch.native is not None else "reference"
    return bounds.guided(wide, dtype, backend, None if outer is None else outer.cpu().double())


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


@pytest.mark.parametrize("shape", SHAPES[:-1])
@pytest.mark.parametrize("beta", [0.0, 1.7])
def test_matches_loops_in_float64(beta: float, shape: tuple[int, ...]) -> None:
    inputs = draw(*shape)
    expected = by_loops(*inputs, beta)
    np.testing.assert_allclose(guided_upsample(*inputs, beta).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(
        guided_upsample(*inputs, torch.tensor(beta, dtype=torch.float64)).numpy(), expected, atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [0.0, 1.7])
def test_kernels_match_loops(beta: float, shape: tuple[int, ...]) -> None:
    inputs = draw(*shape, dtype=torch.float32)
    exact, bound = torch.from_numpy(by_loops(*inputs, beta)), limits("native", [*inputs, torch.tensor(beta)])
    for kernel in KERNELS:
        assert_within(run(kernel, *inputs, beta), exact, bound[0], kernel)


def test_sharp_guide_keeps_each_side_of_an_edge() -> None:
    # Left half and right half differ in guide and logits; the fine edge lies inside a coarse cell's width.
    logits = torch.tensor([4.0, 4.0, -4.0, -4.0]).expand(1, 1, 4, 4)
    low = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    high = torch.tensor([0.0] * 7 + [1.0] * 9).expand(1, 1, 16, 16)
    out = guided_upsample(logits, low, high, 50.0)
    torch.testing.assert_close(out, torch.where(high > 0.5, -4.0, 4.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["auto", *NATIVE])
def test_error_is_within_what_rounding_explains(kernel: str, dtype: torch.dtype, device: str) -> None:
    if kernel != "auto" and device != "cpu":
        pytest.skip("runs on the CPU")
    logits, low, high = (x.to(device, dtype) for x in draw(1, 5, 8, 9, 11, 4))
    exact = torch.from_numpy(by_loops(logits.cpu(), low.cpu(), high.cpu(), 1.5))
    got = guided_upsample(logits, low, high, 1.5) if kernel == "auto" else run(kernel, logits, low, high, 1.5)
    assert_within(got, exact, limits(kernel, [logits, low, high, torch.tensor(1.5)])[0])


@pytest.mark.parametrize("registered", [False, True])
def test_gradients(registered: bool) -> None:
    inputs = [x.requires_grad_() for x in draw(2, 2, 3, 3, 2, 2)]
    beta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    op = torch.ops.ovsdino.guided_upsample if registered else guided_upsample
    assert torch.autograd.gradcheck(op, (*inputs, beta))


@pytest.mark.parametrize("shape", SHAPES)
def test_closed_form_of_the_gradients(shape: tuple[int, ...]) -> None:
    inputs = [*draw(*shape), torch.tensor(0.8, dtype=torch.float64)]
    outer = torch.randn(shape[0], shape[1], shape[3] * shape[5], shape[4] * shape[5], dtype=torch.float64)
    expected = gradients("reference", outer, *inputs)
    torch.testing.assert_close(list(guided_upsample_backward_reference(outer, *inputs)), expected)


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_the_kernels(shape: tuple[int, ...]) -> None:
    inputs = [*draw(*shape, dtype=torch.float32), torch.tensor(0.8)]
    outer = torch.randn(shape[0], shape[1], shape[3] * shape[5], shape[4] * shape[5])
    exact = gradients("reference", outer.double(), *(x.double() for x in inputs))
    found = limits("native", inputs, outer)
    for kernel in NATIVE:
        for a, b, bound in zip(gradients(kernel, outer, *inputs), exact, found[1:], strict=True):
            assert a.dtype == torch.float32
            assert_within(a, b, bound, kernel)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["auto", *NATIVE])
def test_error_of_the_gradients_is_within_what_rounding_explains(kernel: str, dtype: torch.dtype, device: str) -> None:
    if kernel != "auto" and device != "cpu":
        pytest.skip("runs on the CPU")
    inputs = [x.to(device, dtype) for x in (*draw(2, 5, 8, 9, 11, 4), torch.tensor(1.5))]
    outer = torch.randn(2, 5, 36, 44, device=device).to(dtype)
    leaves = [x.requires_grad_() for x in inputs]
    if kernel == "auto":
        got = torch.autograd.grad(guided_upsample(*leaves), leaves, outer)
    else:
        got = gradients(kernel, outer, *leaves)
    exact = gradients("reference", outer.double(), *(x.detach().double() for x in leaves))
    for name, a, b, bound in zip(
        ("logits", "guide_lo", "guide_hi", "beta"), got, exact, limits(kernel, inputs, outer)[1:], strict=True
    ):
        assert_within(a, b, bound, name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_strided_inputs(kernel: str) -> None:
    inputs = draw(2, 3, 4, 3, 5, 2, torch.float32)
    outer = torch.randn(2, 3, 6, 10)
    beta = torch.tensor(1.0)
    expected, expected_gradients = run(kernel, *inputs, beta), gradients(kernel, outer, *inputs, beta)
    assert expected.is_contiguous()
    bound, *bound_gradients = (2 * x for x in limits(kernel, [*inputs, beta], outer))  # two orders of the same sums
    last = [x.to(memory_format=torch.channels_last) for x in inputs]
    cropped = [torch.nn.functional.pad(x, (3, 1, 2, 5))[:, :, 2:-5, 3:-1] for x in inputs]
    stepped = [x.repeat_interleave(2, 3)[:, :, :, ::2] for x in inputs]
    for strided in (last, cropped, stepped):
        assert_within(run(kernel, *strided, beta), expected.double(), bound)
        found = gradients(kernel, outer.to(memory_format=torch.channels_last), *strided, beta)
        for a, b, most in zip(found, expected_gradients, bound_gradients, strict=True):
            assert_within(a, b.double(), most)
    one = [x[:1].expand(2, -1, -1, -1) for x in inputs]
    assert_within(run(kernel, *one, beta), expected[:1].expand(2, -1, -1, -1).double(), bound[:1])
    found = gradients(kernel, outer[:1, :1, :1, :1].expand(2, 3, 6, 10), *inputs, beta)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("kernel", KERNELS)
def test_logits_and_guides_may_differ_in_dtype(kernel: str) -> None:
    if kernel == "reference":
        pytest.skip("plain ops want one dtype outside autocast")
    logits, low, high = draw(1, 3, 4, 5, 6, 4, torch.float32)
    expected = by_loops(logits, low.bfloat16(), high, 1.0)
    out = run(kernel, logits, low.bfloat16(), high, torch.tensor(1.0, dtype=torch.float64))
    assert out.dtype == torch.float32
    bound = limits(kernel, [logits, low.bfloat16(), high, torch.tensor(1.0)])
    assert_within(out, torch.from_numpy(expected), bound[0])
    grads = gradients(kernel, torch.randn(out.shape), logits, low.bfloat16(), high, torch.tensor(1.0))
    assert [x.dtype for x in grads] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_batch(kernel: str) -> None:
    inputs = draw(0, 3, 4, 3, 5, 2, torch.float32)
    assert run(kernel, *inputs, 1.0).shape == (0, 3, 6, 10)


@needs_native
def test_gradients_of_an_empty_batch_are_empty() -> None:
    inputs = (*draw(0, 3, 4, 3, 5, 2, torch.float32), torch.tensor(1.0))
    grads = torch.ops.ovsdino.guided_upsample_backward(torch.zeros(0, 3, 6, 10), *inputs)
    assert [x.shape for x in grads] == [x.shape for x in inputs] and grads[3] == 0


@needs_native
def test_no_class_and_no_channel() -> None:
    logits, low, high = torch.randn(1, 3, 4, 5), torch.zeros(1, 0, 4, 5), torch.zeros(1, 0, 8, 10)
    # Without channels only the distance counts, as with guides that are all equal.
    expected = guided_upsample(logits, torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 8, 10), 1.0)
    torch.testing.assert_close(guided_upsample(logits, low, high, 1.0), expected)
    assert guided_upsample(logits[:, :0], low, high, 1.0).shape == (1, 0, 8, 10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_stays_within_two_cells(kernel: str) -> None:
    logits, low, high = draw(1, 2, 3, 7, 7, 2, torch.float32)
    clean = run(kernel, logits, low, high, 1.0)
    broken = logits.clone()
    broken[0, 0, 0, 0] = math.nan
    out = run(kernel, broken, low, high, 1.0)
    assert out[0, 0, :6, :6].isnan().all()
    torch.testing.assert_close(out[0, 1], clean[0, 1])
    torch.testing.assert_close(out[0, 0, 6:], clean[0, 0, 6:])
    torch.testing.assert_close(out[0, 0, :, 6:], clean[0, 0, :, 6:])
    broken = low.clone()
    broken[0, 1, 0, 0] = math.nan
    out = run(kernel, logits, broken, high, 1.0)
    assert out[0, :, :6, :6].isnan().all() and not out[0, :, 6:].isnan().any() and not out[0, :, :, 6:].isnan().any()
    broken = high.clone()
    broken[0, 2, 5, 9] = math.nan
    where = run(kernel, logits, low, broken, 1.0).isnan()
    assert where[0, :, 5, 9].all() and where.sum() == 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_infinite_logits_give_what_the_formula_gives(bad: float, kernel: str) -> None:
    logits, low, high = draw(1, 3, 3, 7, 7, 2, torch.float32)
    logits[0, 1] = bad
    out = run(kernel, logits, low, high, 1.0)
    assert (out[0, 1] == bad).all() and out[0, ::2].isfinite().all()
    # A guide so far off that the weight is 0: 0 * inf is NaN.
    logits, low = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    logits[0, 0, 2, 2], low[0, 0, 2, 2] = bad, 100.0
    assert run(kernel, logits, low, torch.zeros(1, 1, 5, 5), 1.0).isnan().all()


@needs_native
def test_same_bits_again_and_with_any_number_of_threads() -> None:
    inputs = (*draw(2, 12, 8, 20, 40, 4, torch.float32), torch.tensor(1.2))
    outer = torch.randn(2, 12, 80, 160)
    threads = torch.get_num_threads()
    first = [guided_upsample(*inputs), *gradients(instruction_sets()[-1], outer, *inputs)]
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = guided_upsample(*leaves)
            again = [out, *torch.autograd.grad(out, leaves, outer)]
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 13),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(1, 40),
        st.integers(1, 6),
    ),
    beta=st.floats(0, 5),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape, beta, seed) -> None:
    torch.manual_seed(seed)
    inputs = [*draw(*shape, dtype=torch.float32), torch.tensor(beta)]
    outer = torch.randn(shape[0], shape[1], shape[3] * shape[5], shape[4] * shape[5])
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = guided_upsample(*leaves)
    found = [out, *torch.autograd.grad(out, leaves, outer)]
    wide = [x.double() for x in inputs]
    with use_backend("reference"):
        exact = [guided_upsample(*wide), *guided_upsample_backward_reference(outer.double(), *wide)]
    for a, b, bound in zip(found, exact, limits("auto", inputs, outer), strict=True):
        assert_within(a, b, bound)


class Upsampler(torch.nn.Module):
    def forward(self, logits: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return guided_upsample(logits, low, high, 1.5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_exporters_and_tracers_see_plain_ops() -> None:
    inputs = draw(1, 2, 3, 4, 5, 2, torch.float32)
    for strict in (False, True):
        program = torch.export.export(Upsampler(), tuple(inputs), strict=strict)
        targets = {str(node.target) for node in program.graph.nodes}
        assert any("softmax" in target for target in targets) and not any("ovsdino" in target for target in targets)
        torch.testing.assert_close(program.module()(*inputs), guided_upsample(*inputs, 1.5))
    traced = torch.jit.trace(Upsampler(), inputs)
    assert "aten::softmax" in str(traced.graph) and "ovsdino::" not in str(traced.graph)


def test_runs_under_bfloat16_autocast() -> None:
    inputs = [x.requires_grad_() for x in draw(1, 3, 8, 5, 6, 4, torch.float32)]
    beta = torch.tensor(1.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = guided_upsample(*inputs, beta)
    np.testing.assert_allclose(out.detach().float().numpy(), by_loops(*(x.detach() for x in inputs), 1.0), atol=0.05)
    out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (*inputs, beta))


def test_float64_runs_the_reference() -> None:
    inputs = draw(1, 2, 3, 3, 4, 2)
    assert torch.equal(guided_upsample(*inputs, 1.0), guided_upsample_reference(*inputs, 1.0))


@needs_native
def test_float64_has_no_kernel() -> None:
    with use_backend("cpu"), pytest.raises(ValueError, match="float64"):
        guided_upsample(*draw(1, 2, 3, 3, 4, 2), 1.0)


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


def test_wrong_device_dtype_and_gradient_are_named() -> None:
    logits, low, high = draw(1, 3, 2, 4, 4, 2, torch.float32)
    with pytest.raises(ValueError, match=r"guide_lo must be floating .*int64"):
        guided_upsample(logits, low.long(), high, 1.0)
    with pytest.raises(ValueError, match=r"guide_hi must be on cpu .*meta"):
        guided_upsample(logits, low, high.to("meta"), 1.0)
    with pytest.raises(ValueError, match=r"grad must be \(1, 3, 8, 8\)"):
        torch.ops.ovsdino.guided_upsample_backward(logits, logits, low, high, torch.tensor(1.0))
