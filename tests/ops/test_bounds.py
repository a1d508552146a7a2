"""The error bounds themselves: they hold for any order of sums, and what is not a rounding is beyond them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops import bounds
from tests.ops.harness import assert_within
from tests.ops.table import OPS, Row, outputs, to

BOUNDED = [name for name, op in OPS.items() if op.bound is not None]


def results(name: str, arguments: tuple, weights: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients by the reference, in the dtype of the arguments."""
    op = OPS[name]
    leaves = [
        x.detach().clone().requires_grad_(i in op.differentiable) if isinstance(x, Tensor) else x
        for i, x in enumerate(arguments)
    ]
    found = outputs(op.oracle(*leaves))
    loss = sum((x * w.to(x)).sum() for x, w in zip(found, weights, strict=True))
    return [*(x.detach() for x in found), *torch.autograd.grad(loss, [leaves[i] for i in op.differentiable])]


def case(name: str) -> tuple[Row, tuple, list[Tensor], list[Tensor], list[Tensor]]:
    """A float32 row, its arguments, weights of the outputs, the exact outputs and gradients, and their bounds."""
    row = Row(name, "reference", "cpu", torch.float32)
    arguments = row.inputs(row.op.shapes[1])
    weights = [torch.randn(x.shape) for x in outputs(row.op.oracle(*arguments))]
    exact = results(name, to(arguments, dtype=torch.float64), weights)
    limits = row.bound(arguments, tuple(weights))
    count = len(weights)
    return row, arguments, weights, exact, limits[:count] + [limits[count + i] for i in range(len(exact) - count)]


@pytest.mark.parametrize("name", BOUNDED)
def test_an_error_three_times_the_bound_is_caught_in_every_output_and_gradient(name: str) -> None:
    _, arguments, weights, exact, limits = case(name)
    for i, (got, true, most) in enumerate(zip(results(name, arguments, weights), exact, limits, strict=True)):
        assert_within(got, true, most)
        allowed = most + bounds.EPS * true.abs()
        worst = int(allowed.argmax())  # where an error is hardest to see
        if allowed.flatten()[worst] == 0:
            continue  # areas of hard masks: exact
        planted = true.float().flatten()
        planted[worst] += 3 * allowed.flatten()[worst]
        with pytest.raises(AssertionError, match=f"result {i} element {worst}"):
            assert_within(planted.view_as(true), true, most, f"result {i}")


@pytest.mark.parametrize("name", BOUNDED)
def test_inputs_that_were_rounded_to_bfloat16_are_caught_in_every_output_and_gradient(name: str) -> None:
    """A kernel that keeps one operand too narrow is 2^16 units off, wherever it does so."""
    _, arguments, weights, exact, limits = case(name)
    narrow = to(to(arguments, dtype=torch.bfloat16), dtype=torch.float64)
    for i, (got, true, most) in enumerate(zip(results(name, narrow, weights), exact, limits, strict=True)):
        if torch.equal(got, true):
            continue  # areas and gradients that do not depend on what was rounded
        with pytest.raises(AssertionError):
            assert_within(got.float(), true, most, f"result {i}")


def one_by_one(terms: Tensor) -> Tensor:
    """The sum over the last dimension, each partial sum rounded to float32."""
    total = torch.zeros(terms.shape[:-1])
    for term in terms.unbind(-1):
        total = total + term
    return total


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "one by one": one_by_one,
    "from the end": lambda x: one_by_one(x.flip(-1)),
    "the largest first": lambda x: one_by_one(x.gather(-1, x.abs().argsort(-1, descending=True))),
    "in 8 lanes": lambda x: one_by_one(one_by_one(x.unflatten(-1, (-1, 8)).mT)),
    "torch.sum": lambda x: x.sum(-1),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("terms", [16, 96, 1024])
@pytest.mark.parametrize("signs", ["random", "positive"])
def test_the_model_of_a_sum_holds_for_any_order(signs: str, terms: int, order: str) -> None:
    x = torch.randn(500, terms) if signs == "random" else torch.rand(500, terms)
    exact = x.double().sum(-1)
    bound = bounds.bounds(lambda at: [at.total(x.double(), -1)], torch.float32, "cpu", halves=False)[0]
    assert_within(ORDERS[order](x), exact, bound)


@pytest.mark.parametrize("name", BOUNDED)
def test_steps_without_errors_give_the_exact_results(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The closed forms of the model, gradients included, are those of autograd through the reference."""
    found: list[Tensor] = []

    def exact_only(compute, dtype, backend, halves) -> list[Tensor]:
        found[:] = compute(bounds.Rounding(0.0, 0.0, 0.0, torch.Generator()))
        return found

    monkeypatch.setattr(bounds, "bounds", exact_only)
    row, arguments, weights, exact, _ = case(name)
    for backend in ("reference", "sdpa", "cpu"):
        Row(row.name, backend, "cpu", torch.float32).bound(arguments, tuple(weights))
        for got, true in zip(found, exact, strict=False):
            torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-9)
