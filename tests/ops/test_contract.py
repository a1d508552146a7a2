"""What every op promises on every backend: one suite over the table of `tests.ops.table`.

pytest tests/ops/test_contract.py --hypothesis-profile=long      2 000 random shapes a row instead of 20
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ovsdino import ops
from ovsdino.ops import dispatch
from tests.ops.harness import assert_within
from tests.ops.table import OPS, Op, Row, outputs, poison, rng, rows, to, turned, with_gaps

every_row = pytest.mark.parametrize("row", rows())
every_registered_row = pytest.mark.parametrize("row", rows(bodies=False, dtypes=[torch.float32]))


def differentiable(names: Any) -> list[Any]:
    return [row for row in names if row.values[0].op.differentiable]


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        assert torch.equal(x.nan_to_num(nan=-1e3), y.nan_to_num(nan=-1e3))


def close(row: Row, arguments: tuple, got: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> None:
    """Equal up to another order of sums: as far apart as two results that are both within the bound of the exact one.

    Args:
        row: what ran.
        arguments: its arguments.
        got: a result.
        others: another, or the same of a part of the batch, expanded.
    """
    for x, y in zip(got, others, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
    if row.op.bound is None:
        for x, y in zip(got, others, strict=True):
            if x.is_floating_point():
                torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3)
            else:
                assert (x != y).sum() <= x.numel() / 1000
        return
    for x, y, bound in zip(got, others, row.bound(arguments), strict=True):
        eps = torch.finfo(y.dtype).eps
        assert_within(x, y.cpu().double(), 2 * bound + eps * y.cpu().abs())


@every_row
def test_error_is_within_what_rounding_explains(row: Row) -> None:
    for shape in row.op.shapes:
        row.compare(row.inputs(shape))


@pytest.mark.parametrize("row", rows(dtypes=[torch.float32]))
@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_any_shape(row: Row, data: st.DataObject, seed: int) -> None:
    shape = data.draw(row.op.any_shape)
    rng(seed)
    row.compare(row.inputs(shape))


@every_row
@pytest.mark.parametrize("layout", [with_gaps, turned], ids=["gaps", "turned"])
def test_strided_inputs_give_what_contiguous_ones_give(row: Row, layout) -> None:
    arguments = row.inputs(row.op.shapes[1])
    strided = tuple(layout(x) if isinstance(x, Tensor) and x.dim() > 1 else x for x in arguments)
    close(row, arguments, row.run(*strided), row.run(*arguments))


@every_row
def test_expanded_batch_gives_each_the_same(row: Row) -> None:
    arguments = row.inputs(row.op.shapes[1])
    single = tuple(x[:1] if i in row.op.batched else x for i, x in enumerate(arguments))
    expanded = tuple(x.expand(3, *x.shape[1:]) if i in row.op.batched else x for i, x in enumerate(single))
    expected = tuple(x.expand(3, *x.shape[1:]) for x in row.run(*single))
    close(row, expanded, row.run(*expanded), expected)


@every_row
def test_empty_batch(row: Row) -> None:
    arguments = row.inputs((0, *row.op.shapes[1][1:]))
    one = row.run(*row.inputs((1, *row.op.shapes[1][1:])))
    for got, like in zip(row.run(*arguments), one, strict=True):
        assert got.shape == (0, *like.shape[1:]) and got.dtype == like.dtype


@pytest.mark.parametrize("row", [row for row in rows() if row.values[0].op.nan])
def test_nan_goes_where_the_policy_says(row: Row) -> None:
    clean = row.inputs(row.op.shapes[1])
    poisoned, bad, same = poison(clean, row.op)
    # The policy may change more than the NaN (which masks are empty): compare with the same inputs, the NaN made 0.
    zeroed = tuple(x.nan_to_num(0.0) if isinstance(x, Tensor) and x.is_floating_point() else x for x in poisoned)
    got, expected = row.run(*poisoned)[0].cpu(), row.run(*zeroed)[0].cpu()
    assert got[bad].isnan().all()
    if got.is_floating_point():
        torch.testing.assert_close(got[same], expected[same])
    else:
        assert torch.equal(got[same], expected[same])


@every_row
def test_same_bits_again(row: Row) -> None:
    arguments = row.inputs(row.op.shapes[2])
    same_bits(row.run(*arguments), row.run(*arguments))


def gradients(row: Row, arguments: tuple, weights: list[Tensor]) -> list[Tensor]:
    """Of the sum of outputs times weights, in the differentiable arguments, both directions by the backend."""
    leaves = [x.detach().clone().requires_grad_(i in row.op.differentiable) if isinstance(x, Tensor) else x
              for i, x in enumerate(arguments)]  # fmt: skip
    with ops.use_backend(row.backend):
        got = outputs(row.op.call(*leaves))
        loss = sum((x * w.to(x)).sum() for x, w in zip(got, weights, strict=True))
        return list(torch.autograd.grad(loss, [leaves[i] for i in row.op.differentiable]))


def exact_gradients(op: Op, arguments: tuple, weights: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(i in op.differentiable) if isinstance(x, Tensor) else x
              for i, x in enumerate(arguments)]  # fmt: skip
    loss = sum((x * w.to(x)).sum() for x, w in zip(outputs(op.oracle(*leaves)), weights, strict=True))
    return list(torch.autograd.grad(loss, [leaves[i] for i in op.differentiable]))


@pytest.mark.parametrize("row", differentiable(rows(bodies=False)))
def test_error_of_the_gradients_is_within_what_rounding_explains(row: Row) -> None:
    arguments = row.inputs(row.op.shapes[1])
    results = row.run(*arguments)
    weights = [torch.randn(x.shape).to(x.dtype) for x in results]
    exact = exact_gradients(row.op, to(arguments, "cpu", torch.float64), weights)
    found = gradients(row, arguments, weights)
    limits = row.bound(arguments, tuple(weights))[len(results) :]
    for i, got, true in zip(row.op.differentiable, found, exact, strict=True):
        assert_within(got, true, limits[i], f"gradient of argument {i}")


@pytest.mark.parametrize("row", differentiable(rows(bodies=False, dtypes=[torch.float32])))
def test_same_bits_of_the_gradients_again(row: Row) -> None:
    arguments = row.inputs(row.op.shapes[1])
    weights = [torch.randn(x.shape) for x in row.run(*arguments)]
    same_bits(tuple(gradients(row, arguments, weights)), tuple(gradients(row, arguments, weights)))


@pytest.mark.parametrize("row", differentiable(rows(bodies=False, dtypes=[torch.float64])))
def test_gradcheck(row: Row) -> None:
    small = {"structure_attention": (1, 2, 5, 4, 6, 3), "structure_attention, keys": (1, 2, 4, 5, 4, 6, 3)}
    arguments = row.inputs(small.get(row.name, row.op.shapes[0]))
    leaves = tuple(x.requires_grad_(i in row.op.differentiable) if isinstance(x, Tensor) else x
                   for i, x in enumerate(arguments))  # fmt: skip
    if row.name.startswith("mask_pool") and leaves[1].is_floating_point():
        # An empty mask has no derivative: a little weight would make its mean jump.
        leaves = (leaves[0], (leaves[1].detach() + 0.1).requires_grad_())
    assert torch.autograd.gradcheck(row.run, leaves)


@every_registered_row
def test_compiles_in_one_graph(row: Row) -> None:
    arguments = row.inputs(row.op.shapes[1])
    torch._dynamo.reset()
    compiled = torch.compile(row.op.call, fullgraph=True, backend="aot_eager")
    with ops.use_backend(row.backend):
        close(row, arguments, outputs(compiled(*arguments)), row.run(*arguments))


def graphed() -> list[Any]:
    """The kernels of ours on CUDA; a reference may copy constants from the host, which no graph can hold."""
    kernels = [row for row in rows(bodies=False) if row.values[0].device == "cuda"]
    return [row for row in kernels if row.values[0].backend != "reference"]


@pytest.mark.gpu
@pytest.mark.parametrize("row", graphed())
def test_replays_from_a_cuda_graph(row: Row) -> None:
    arguments = row.inputs(row.op.shapes[1])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        row.run(*arguments)  # warm up: workspaces, autotuning
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = row.run(*arguments)
    fresh = row.inputs(row.op.shapes[1])
    for old, new in zip(arguments, fresh, strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    same_bits(captured, row.run(*fresh))


def test_every_op_is_in_the_table() -> None:
    assert {name.split(",")[0] for name in OPS} == set(dispatch.OP_BACKENDS)
