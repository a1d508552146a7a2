"""Every registered op refuses what its kernels cannot read: a ValueError that names the input, never a crash."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ovsdino import ops
from ovsdino.ops import dispatch
from ovsdino.ops.guided_upsample import guided_upsample_reference
from ovsdino.ops.mask_pool import mask_pool_reference
from ovsdino.ops.schema import SCHEMAS
from tests.ops.harness import needs_native

registered = torch.ops.ovsdino


def attention() -> dict[str, Any]:
    q, k, v, e = (torch.randn(1, 2, 5, size) for size in (8, 8, 16, 3))
    return {"q": q, "k": k, "v": v, "e": e, "lam": torch.rand(2), "gate": torch.rand(1, 2, 5), "scale": 0.3}


def triton_backward() -> dict[str, Any]:
    kept = {"plain": torch.randn(1, 5, 2, 16).transpose(1, 2), "level": torch.randn(1, 2, 5)}
    return {"grad": torch.randn(1, 2, 5, 16), **attention(), **kept}


def guided() -> dict[str, Any]:
    low, high = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 8)
    return {"logits": torch.randn(1, 2, 4, 4), "guide_lo": low, "guide_hi": high, "beta": torch.tensor(1.0)}


def pool() -> dict[str, Any]:
    return {"features": torch.randn(1, 20, 8), "masks": torch.rand(1, 4, 20) < 0.2}


def pool_backward() -> dict[str, Any]:
    return {"grad": torch.randn(1, 4, 8), "masks": torch.rand(1, 4, 20) < 0.2, "tokens": 20}


def upsample() -> dict[str, Any]:
    return {"logits": torch.randn(1, 2, 4, 4), "size": (8, 8), "threshold": 0.5}


def image() -> dict[str, Any]:
    drawn = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8)
    rest = {"size": (4, 4), "mean": [0.5] * 3, "std": [1.0] * 3, "antialias": False, "dtype": torch.float32}
    return {"image": drawn, **rest}


SOUND: dict[str, Callable[[], dict[str, Any]]] = {
    "structure_attention": attention,
    "structure_attention_triton": lambda: {**attention(), "keep": True},
    "structure_attention_triton_backward": triton_backward,
    "mask_pool": pool,
    "mask_pool_backward": pool_backward,
    "upsample_argmax": upsample,
    "upsample_argmax_confidence": upsample,
    "guided_upsample": guided,
    "guided_upsample_backward": lambda: {"grad": torch.randn(1, 2, 8, 8), **guided()},
    "preprocess": image,
}
PUBLIC = {name: getattr(ops, name) for name in ops.__all__ if name in SOUND}


def emptied(x: Tensor) -> Tensor:
    """x with its storage freed below it."""
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def cut(x: Tensor) -> Tensor:
    """x whose storage ends one element early."""
    x = x.contiguous().clone()
    x.untyped_storage().resize_((x.numel() - 1) * x.element_size())
    return x


# Of every tensor of every op.
SPOILT: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.float().to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "complex": lambda x: x * 1j,
    "on meta": lambda x: x.to("meta"),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "emptied": emptied,
    "cut": cut,
    "one more dimension": lambda x: x.unsqueeze(0),
}


def spoilt_calls() -> list[Any]:
    found = []
    for name, make in SOUND.items():
        for argument, value in make().items():
            if isinstance(value, Tensor):
                found += [pytest.param(name, argument, fault, id=f"{name}-{argument}-{fault}") for fault in SPOILT]
    return found


def test_every_registered_op_is_tried() -> None:
    assert set(SOUND) == set(SCHEMAS)


@pytest.mark.parametrize("name", SOUND)
def test_sound_inputs_are_taken(name: str) -> None:
    if "triton" in name and dispatch.why_not("structure_attention", "triton", "cpu"):
        pytest.skip("triton does not run here")
    getattr(registered, name)(*SOUND[name]().values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "argument", "fault"), spoilt_calls())
def test_spoilt_tensor_is_named_by_the_registered_op_and_the_public_function(
    name: str, argument: str, fault: str
) -> None:
    arguments = SOUND[name]()
    if fault == "float8" and argument == "beta":
        pytest.skip("beta may be of any real dtype")
    if fault in ("on meta", "mkldnn") and arguments[argument].dim() == 0:
        pytest.skip("a 0-d tensor may lie on another device, and has no such layout")
    if argument == "image" and fault == "one more dimension":
        pytest.skip("a batch of one")
    arguments[argument] = SPOILT[fault](arguments[argument])
    if fault == "on meta" and sum(isinstance(x, Tensor) for x in arguments.values()) == 1:
        pytest.skip("the only tensor: nothing is read")
    with pytest.raises((ValueError, NotImplementedError), match=r"must be|needs|meta|runs on|Could not run"):
        getattr(registered, name)(*arguments.values())
    # Plain PyTorch reads no storage by itself, and fails as PyTorch does.
    if name in PUBLIC and fault not in ("emptied", "cut"):
        with pytest.raises(ValueError, match=r"must be|runs on"):
            PUBLIC[name](*arguments.values())


WRONG: list[tuple[str, str, Any, str]] = [
    *[("mask_pool_backward", "tokens", n, "tokens|masks must have N") for n in (-5, 19, 21, 10**6)],
    *[("mask_pool_backward", "grad", torch.ones(1, 4, 8).to(x), "float32 or float64") for x in
      (torch.float16, torch.bfloat16, torch.int64)],
    ("mask_pool_backward", "grad", torch.randn(1, 500, 8), "M=500"),
    ("mask_pool_backward", "grad", torch.randn(64, 4, 8), "B=64"),
    ("mask_pool_backward", "grad", torch.randn(4, 8), "grad must be"),
    *[(name, "masks", torch.zeros(1, 4, 20).to(x), "masks must be bool") for name in ("mask_pool", "mask_pool_backward")
      for x in (torch.int64, torch.int32)],
    *[(name, "masks", torch.zeros(shape).bool(), "masks must") for name in ("mask_pool", "mask_pool_backward")
      for shape in ((4, 20), (1, 4, 19), (2, 4, 20))],
    ("guided_upsample_backward", "grad", torch.randn(1, 2, 4, 4), "grad must be"),
    ("guided_upsample_backward", "grad", torch.ones(1, 2, 8, 8).long(), "grad must be floating"),
    ("guided_upsample", "beta", torch.ones(3), "beta must be"),
    *[(name, "size", size, "size must be") for name in ("upsample_argmax", "upsample_argmax_confidence", "preprocess")
      for size in ((0, 8), (8, -1), (2**31, 8), (2**40, 2**20), (2**31 - 1, 2**31 - 1), (2**30, 2**30))],
    *[(name, "threshold", x, "threshold must be") for name in ("upsample_argmax", "upsample_argmax_confidence")
      for x in (math.nan, math.inf)],
    *[("preprocess", "std", std, "std") for std in
      ([math.nan, 1, 1], [1, 1, math.nan], [1, math.inf, 1], [0.0, 1, 1], [1.0, 1])],
    ("preprocess", "mean", [0.5, math.nan, 0.5], "mean must be"),
    ("preprocess", "dtype", torch.float8_e4m3fn, "dtype must be"),
    ("preprocess", "dtype", torch.int32, "dtype must be"),
    *[(name, "scale", x, "scale must be") for name in SOUND if name.startswith("structure_attention")
      for x in (math.nan, math.inf)],
    *[(name, "lam", torch.rand(3), "lam must be") for name in SOUND if name.startswith("structure_attention")],
    ("structure_attention_triton_backward", "plain", torch.randn(1, 2, 4, 16), "plain must be"),
    ("structure_attention_triton_backward", "plain", torch.randn(1, 2, 5, 16).half(), "plain must be"),
    ("structure_attention_triton_backward", "level", torch.randn(1, 2, 4), "level must be"),
    ("structure_attention_triton_backward", "grad", torch.randn(1, 2, 5, 15), "grad must be"),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_wrong_value_is_named_by_the_registered_op_and_the_public_function(index: int) -> None:
    name, argument, value, shown = WRONG[index]
    arguments = {**SOUND[name](), argument: value}
    with pytest.raises(ValueError, match=shown):
        getattr(registered, name)(*arguments.values())
    if name in PUBLIC:
        with pytest.raises(ValueError, match=shown):
            PUBLIC[name](*arguments.values())


@pytest.mark.parametrize("size", [(8.5, 8), (2**63, 8), ("8", 8), (8,), (8, 8, 8)])
def test_size_that_no_schema_takes_is_named_by_the_public_functions(size: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="size must be"):
        ops.upsample_argmax(torch.randn(1, 2, 4, 4), size)
    with pytest.raises(ValueError, match="size must be"):
        ops.preprocess(torch.zeros(4, 4, 3, dtype=torch.uint8), size, [0.5] * 3, [1.0] * 3)


def test_numbers_that_no_schema_takes_are_named_by_the_public_functions() -> None:
    with pytest.raises(ValueError, match="threshold must be a number, got 'x'"):
        ops.upsample_argmax(torch.randn(1, 2, 4, 4), (8, 8), "x")  # type: ignore[call-overload]
    for beta in (math.nan, math.inf, -1e30):
        with pytest.raises(ValueError, match="beta must be a finite number of at least 0"):
            ops.guided_upsample(*list(guided().values())[:3], beta)
    for name, x in (("upsample_argmax", [[1.0]]), ("mask_pool", None)):
        with pytest.raises(ValueError, match="must be a tensor"):
            PUBLIC[name](x, x)


def test_opaque_attention_refuses_a_backend_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="unknown backend 'foo'"):
        registered.structure_attention(*attention().values(), "foo")
    with pytest.raises(ValueError, match="it runs on cuda tensors, got cpu"):
        registered.structure_attention(*attention().values(), "cuda")


def test_attention_needs_a_feature() -> None:
    with pytest.raises(ValueError, match="at least one feature"):
        ops.structure_attention(*(torch.randn(1, 2, 4, size) for size in (0, 0, 8, 3)), torch.ones(2))


# What looks odd but has a meaning.
def imaginary(*shape: int) -> Tensor:
    """A view with the negative bit set."""
    x = torch.complex(torch.randn(shape), torch.randn(shape)).conj().imag
    assert x.is_neg()
    return x


def test_views_with_a_negative_bit_are_read_as_their_values() -> None:
    features, logits, masks = imaginary(1, 64, 8), imaginary(1, 2, 4, 4), torch.rand(1, 4, 64) < 0.1
    low, high = imaginary(1, 3, 4, 4), imaginary(1, 3, 8, 8)
    plain = [x.resolve_neg().clone() for x in (features, logits, low, high)]
    torch.testing.assert_close(ops.mask_pool(features, masks), ops.mask_pool(plain[0], masks))
    assert torch.equal(ops.upsample_argmax(logits, (9, 9)), ops.upsample_argmax(plain[1], (9, 9)))
    torch.testing.assert_close(
        ops.guided_upsample(logits, low, high, 1.0), ops.guided_upsample(plain[1], plain[2], plain[3], 1.0)
    )


def test_parts_of_a_conjugate_and_overlapping_views_are_read_as_their_values() -> None:
    x = torch.complex(torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)).conj().real
    assert torch.equal(ops.upsample_argmax(x, (9, 9)), ops.upsample_argmax(x.clone(), (9, 9)))
    x = torch.randn(40).as_strided((1, 3, 4, 4), (1, 2, 3, 1))
    assert torch.equal(ops.upsample_argmax(x, (8, 8)), ops.upsample_argmax(x.clone(), (8, 8)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "channels"), [(0, 3), (2, 0)])
def test_guided_upsample_without_classes_or_channels(classes: int, channels: int, dtype: torch.dtype) -> None:
    sizes = ((1, classes, 4, 4), (1, channels, 4, 4), (1, channels, 8, 8))
    leaves = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    out = ops.guided_upsample(*leaves, 1.0)
    assert out.shape == (1, classes, 8, 8) and out.isfinite().all()
    assert [x.shape for x in torch.autograd.grad(out.sum(), leaves)] == [x.shape for x in leaves]


def second(function: Callable[..., Tensor], inputs: list[Tensor], first: int, then: int) -> Tensor:
    """The gradient in one input of the squared gradient in another."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    grad = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves[first], create_graph=True)[0]
    return torch.autograd.grad(grad.square().sum(), leaves[then])[0]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("first", "then"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_second_derivatives_of_mask_pool_are_those_of_its_reference(first: int, then: int, dense: bool) -> None:
    masks = torch.rand(1, 4, 64) * (1 if dense else torch.rand(1, 4, 64) < 0.2) + 0.01 * (torch.rand(1, 4, 64) < 0.1)
    inputs = [torch.randn(1, 64, 8), masks]
    found = second(lambda *x: ops.mask_pool(*x)[0], inputs, first, then)
    exact = second(lambda *x: mask_pool_reference(*x)[0], [x.double() for x in inputs], first, then)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())


@needs_native
@pytest.mark.parametrize("then", [0, 1, 2])
def test_second_derivatives_of_the_guided_kernels_raise_and_its_reference_has_them(then: int) -> None:
    inputs = list(guided().values())[:3]
    with pytest.raises(NotImplementedError, match="guided_upsample has no second derivatives"):
        second(lambda *x: ops.guided_upsample(*x, 1.0), inputs, 1, then)
    with ops.use_backend("reference"):
        assert second(lambda *x: ops.guided_upsample(*x, 1.0), inputs, 1, then).isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
def test_second_derivatives_of_opaque_attention_raise(backend: str) -> None:
    if dispatch.why_not("structure_attention", backend, "cpu"):
        pytest.skip("does not run here")
    *inputs, scale = attention().values()
    with pytest.raises(NotImplementedError, match="structure_attention has no second derivatives"):
        second(lambda *x: registered.structure_attention(*x, scale, backend), inputs, 0, 1)
    first = torch.autograd.grad(
        registered.structure_attention(inputs[0].requires_grad_(), *inputs[1:], scale, backend).sum(),
        inputs[0],
        create_graph=True,
    )[0]
    assert first.isfinite().all()


@needs_native
def test_forward_mode_derivatives_of_the_kernels_raise_and_the_references_have_them() -> None:
    logits, low, high, _ = guided().values()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: ops.guided_upsample(x, low, high, 1.0), (logits,), (logits,))
    # The op is linear in the logits: the derivative along them is the result.
    found = torch.func.jvp(lambda x: guided_upsample_reference(x, low, high, 1.0), (logits,), (logits,))
    torch.testing.assert_close(*found)
    features, masks = pool().values()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: ops.mask_pool(x, masks)[0], (features,), (features,))


# By their addresses, in a process of their own: each is an error, none ends the process.
BINDINGS = """
import torch
from ovsdino import _C

x, y = torch.zeros(4096), torch.zeros(4096)
a, b = x.data_ptr(), y.data_ptr()
pool = [a, "float32", (1, 8, 4), (32, 4), b, "bool", 2, (16, 8, 1), b, b]
upsample = [a, "float32", (1, 2, 4, 4), (32, 16, 4, 1), (8, 8), b, "uint8", 0, None]
view = (a, "float32", (16, 16, 4, 1))
guided = [view, view, (a, "float32", (64, 64, 8, 1)), (1, 1, 1, 4, 4, 2), a, b]
image = [a, "rgb", (1, 4, 4), (48, 12, 3, 1), (4, 4), b, "float32", (1.0,) * 3, (0.0,) * 3, False]

def changed(arguments, **changes):
    arguments = list(arguments)
    for index, value in changes.items():
        arguments[int(index[1:])] = value
    return arguments

calls = []
for name in ("mask_pool_cpu", "mask_pool_host", "mask_pool_backward_cpu", "mask_pool_backward_host"):
    extra = (1.0, 1) if name.endswith("cpu") else ()
    for change in ({"_0": 0}, {"_4": 0}, {"_8": 0}, {"_2": (1, -8, 4)}, {"_6": -2}, {"_2": (1, 2**40, 4)}, {"_5": "int64"}):
        calls.append((name, changed(pool, **change), extra))
    if "backward" in name:
        calls.append((name, changed(pool, _1="float16"), extra))
for name in ("upsample_argmax_cpu", "upsample_argmax_host"):
    extra = (1,) if name.endswith("cpu") else ()
    for change in ({"_0": 0}, {"_5": 0}, {"_2": (1, 0, 4, 4)}, {"_2": (-1, 2, 4, 4)}, {"_4": (0, 8)}, {"_4": (2**31, 8)},
                   {"_2": (1, 300, 4, 4)}):
        calls.append((name, changed(upsample, **change), extra))
for name in ("guided_upsample_cpu", "guided_upsample_host"):
    extra = (1,) if name.endswith("cpu") else ()
    for change in ({"_0": (0, *view[1:])}, {"_2": (0, *view[1:])}, {"_3": (1, 1, 1, 4, 4, 0)}, {"_3": (-1, 1, 1, 4, 4, 2)},
                   {"_3": (1, 1, 1, 2**31, 4, 2)}, {"_4": 0}, {"_5": 0}, {"_1": (a, "float16", view[2])}):
        calls.append((name, changed(guided, **change), extra))
for change in ({"_0": 0}, {"_5": 0}, {"_2": (1, 0, 4)}, {"_2": (-1, 4, 4)}, {"_4": (4, 0)}, {"_4": (2**31, 4)}):
    calls.append(("preprocess_host", changed(image, **change), ()))
for name, arguments, extra in calls:
    try:
        getattr(_C, name)(*arguments, *extra)
        print("TAKEN", name, arguments)
    except ValueError as error:
        assert str(error), name
print(len(calls), "refused")
"""  # noqa: E501


@needs_native
def test_native_bindings_refuse_null_addresses_and_impossible_sizes() -> None:
    done = subprocess.run([sys.executable, "-c", BINDINGS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TAKEN" not in done.stdout and done.stdout.endswith(" refused\n"), done.stdout
