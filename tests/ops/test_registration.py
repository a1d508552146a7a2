"""Every op as torch.library sees it: opcheck, fake shapes, and torch.compile without a graph break."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ovsdino import ops
from ovsdino.ops.schema import SCHEMAS
from tests.ops.harness import DEVICES

RGB = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def bits(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def attention(gate: bool) -> tuple:
    q, k, v, e = (torch.randn(2, 3, 9, size, requires_grad=True) for size in (8, 8, 16, 3))
    lam = torch.rand(3, requires_grad=True)
    return q, k, v, e, lam, torch.rand(2, 3, 9, requires_grad=True) if gate else None, 0.3


def attention_to_keys() -> tuple:
    """(key_e, the other arguments) of queries that look at more keys."""
    q, _, _, e, lam, gate, scale = attention(True)
    k, v, key_e = (torch.randn(2, 3, 12, size, requires_grad=True) for size in (8, 16, 3))
    return key_e, (q, k, v, e, lam, gate, scale)


def triton_calls() -> list:
    """Of the ops that only Triton implements; with its interpreter on the CPU."""
    *inputs, scale = attention(True)
    without = (*inputs[:5], None)
    plain, level, grad = torch.randn(2, 9, 3, 16).transpose(1, 2), torch.randn(2, 3, 9), torch.randn(2, 3, 9, 16)
    rest = (*(x.detach() for x in inputs), scale, plain, level)
    key_e, others = attention_to_keys()
    of_keys = (*(x.detach() for x in others[:6]), scale, plain, level, key_e.detach())
    return [
        ("structure_attention_triton", (*inputs, scale, True)),
        ("structure_attention_triton", (*without, scale, True)),
        ("structure_attention_triton", (*(x.detach() for x in inputs), scale, False)),
        ("structure_attention_triton_backward", (grad, *rest)),
        ("structure_attention_triton", (*others, True, key_e)),
        ("structure_attention_triton_backward", (grad, *of_keys)),
    ]


def calls() -> list:
    """(op, arguments), at least one for each schema."""
    features = torch.randn(2, 20, 5, requires_grad=True)
    key_e, others = attention_to_keys()
    low, high = torch.randn(1, 4, 3, 5, requires_grad=True), torch.randn(1, 4, 6, 10, requires_grad=True)
    logits = torch.randn(1, 7, 3, 5)
    listed = [
        ("structure_attention", attention(True)),
        ("structure_attention", attention(False)),
        ("structure_attention", (*others, "", key_e)),
        *triton_calls(),
        ("mask_pool", (features, torch.rand(2, 3, 20) > 0.9)),
        ("mask_pool", (features, bits(2, 3, 20))),
        ("mask_pool", (features, torch.rand(2, 3, 20, requires_grad=True))),
        ("mask_pool_backward", (torch.randn(2, 3, 5), torch.rand(2, 3, 20) > 0.9, 20)),
        ("upsample_argmax", (logits, (9, 13), None)),
        ("upsample_argmax", (torch.randn(1, 300, 2, 2), (4, 4), 0.5)),
        ("upsample_argmax_confidence", (logits, (9, 13), 0.2)),
        ("guided_upsample", (logits.clone().requires_grad_(), low, high, torch.tensor(0.7, requires_grad=True))),
        (
            "guided_upsample_backward",
            (torch.randn(1, 7, 6, 10), logits, low.detach(), high.detach(), torch.tensor(0.7)),
        ),
        ("preprocess", (bits(20, 30, 3), (9, 13), *RGB, True, torch.float32)),
        ("preprocess", (bits(30, 20), (9, 13), *RGB, False, torch.float16)),
    ]
    return [pytest.param(name, arguments, id=f"{name}-{i}") for i, (name, arguments) in enumerate(listed)]


def moved(arguments: tuple, device: str) -> tuple:
    return tuple(
        x.detach().to(device).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments
    )


def test_every_schema_is_called_here() -> None:
    assert {parameter.values[0] for parameter in calls()} == set(SCHEMAS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "arguments"), calls())
def test_opcheck(name: str, arguments: tuple, device: str) -> None:
    torch.library.opcheck(getattr(torch.ops.ovsdino, name), moved(arguments, device))


@pytest.mark.parametrize(("name", "arguments"), calls())
def test_fake_tensors_have_the_real_shapes_and_dtypes(name: str, arguments: tuple) -> None:
    op = getattr(torch.ops.ovsdino, name)
    real = op(*arguments)
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments))
    for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (real, fake)), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def public_calls() -> list[tuple[Callable, tuple]]:
    features = torch.randn(2, 20, 5, requires_grad=True)
    low, high = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 6, 10)
    logits = torch.randn(1, 7, 3, 5)
    return [
        (ops.structure_attention, attention(True)[:6]),
        (ops.structure_attention, attention(False)[:5]),
        (ops.structure_attention, (lambda key_e, others: (*others, key_e))(*attention_to_keys())),
        (ops.mask_pool, (features, torch.rand(2, 3, 20) > 0.9)),
        (ops.upsample_argmax, (logits, (9, 13))),
        (lambda x, size: ops.upsample_argmax(x, size, threshold=0.3, confidence=True), (logits, (9, 13))),
        (ops.guided_upsample, (logits, low, high, 0.7)),
        (ops.guided_upsample, (logits, low, high, torch.tensor(0.7, requires_grad=True))),
        (ops.preprocess, (bits(20, 30, 3), (9, 13), *RGB)),
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("index", range(9))
def test_public_function_compiles_in_one_graph(index: int, device: str) -> None:
    function, arguments = public_calls()[index]
    arguments = moved(arguments, device)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    plain = function(*arguments)
    for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (compiled, plain)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_a_decoder_step_compiles_with_inductor() -> None:
    def step(q, k, v, e, lam, gate, low, high):
        tokens = ops.structure_attention(q, k, v, e, lam, gate)
        logits = tokens.transpose(2, 3).reshape(2, 48, 3, 3)
        return ops.upsample_argmax(ops.guided_upsample(logits, low, high, 1.0), (20, 20))

    arguments = (*attention(True)[:6], torch.randn(2, 4, 3, 3), torch.randn(2, 4, 12, 12))
    compiled = torch.compile(step, fullgraph=True)(*arguments)
    assert (compiled == step(*arguments)).float().mean() > 0.99
