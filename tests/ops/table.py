"""The table of the common suite (`test_contract.py`): ops, and the rows (op x backend x device x dtype) that run them.

A backend of `dispatch.OP_BACKENDS` is a row by itself. A kernel body that tests run without its device is one line in
`BODIES`. What an op means to the suite - inputs, oracle, what counts as equal - is its entry in `OPS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from ovsdino import ops
from ovsdino.ops import dispatch
from ovsdino.ops.guided_upsample import _run, guided_upsample_reference
from ovsdino.ops.mask_pool import _arguments, mask_pool_reference
from ovsdino.ops.preprocess import native_arguments, preprocess_reference
from ovsdino.ops.structure_attention import structure_attention_reference
from ovsdino.ops.upsample_argmax import label_dtype
from tests.ops import bounds
from tests.ops.harness import DTYPES, assert_within

Outputs = tuple[Tensor, ...]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Op:
    """What the common suite knows of an op. Arguments are tuples in the order of the public function."""

    call: Callable[..., Any]  # the public function
    draw: Callable[..., tuple]  # (shape, dtype) -> arguments, drawn from torch's generator
    shapes: tuple[tuple[int, ...], ...]  # odd sizes; the first is the smallest
    any_shape: st.SearchStrategy
    oracle: Callable[..., Any]  # the reference, on arguments in float64
    # (arguments in float64, dtype, backend, gradients of the outputs or None) -> bounds of outputs (and of gradients)
    bound: Callable[..., list[Tensor]] | None = None
    compare: Callable[[Outputs, Outputs, tuple, Any], None] | None = None  # got, exact, arguments in float64, row
    batched: tuple[int, ...] = (0,)  # arguments whose first size is the batch
    differentiable: tuple[int, ...] = ()
    nan: Callable[[tuple], tuple[Tensor, Tensor]] | None = None  # poisons arguments: (outputs NaN, outputs unchanged)


def outputs(result: Any) -> Outputs:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def to(arguments: tuple, device: str | None = None, dtype: torch.dtype | None = None) -> tuple:
    """Arguments with tensors moved, and floating ones cast."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

    return tuple(one(x) for x in arguments)


def draw_attention(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    """Inputs of a trained decoder's size: |e| near 1, lambda up to 2."""
    *token, d, dv, r = shape
    q, k, v, e = (torch.randn(*token, size, dtype=torch.float64) for size in (d, d, dv, r))
    lam = torch.rand(token[1], dtype=torch.float64) * 2
    return to((q, k, v, 0.5 * e, lam, torch.rand(*token, dtype=torch.float64)), dtype=dtype)


def attention_oracle(q, k, v, e, lam, gate, key_e=None) -> Tensor:
    return structure_attention_reference(q, k, v, e, lam, gate, q.shape[-1] ** -0.5, key_e)


def draw_attention_to_keys(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    """Queries of one frame, keys of others: as many as the shape's fourth number."""
    *token, keys, d, dv, r = shape
    q, _, _, e, lam, gate = draw_attention((*token, d, dv, r), torch.float64)
    _, k, v, key_e, _, _ = draw_attention((*token[:2], keys, d, dv, r), torch.float64)
    return to((q, k, v, e, lam, gate, key_e + 0.3), dtype=dtype)


def attention_to_keys(q, k, v, e, lam, gate, key_e) -> Tensor:
    return ops.structure_attention(q, k, v, e, lam, gate, key_e=key_e)


def attention_bound(arguments: tuple, dtype: torch.dtype, backend: str, grads: Outputs | None = None) -> list[Tensor]:
    scale = arguments[0].shape[-1] ** -0.5
    return bounds.attention(arguments, scale, dtype, backend, grads[0] if grads else None)


def guided_bound(arguments: tuple, dtype: torch.dtype, backend: str, grads: Outputs | None = None) -> list[Tensor]:
    return bounds.guided(arguments, dtype, backend, grads[0] if grads else None)


def pool_bound(arguments: tuple, dtype: torch.dtype, backend: str, grads: Outputs | None = None) -> list[Tensor]:
    features, masks = arguments
    return bounds.pool(features, masks.double(), dtype, grads)


def attention_nan(arguments: tuple) -> tuple[Tensor, Tensor]:
    """A NaN query stays in its token; torch's CPU flash kernel gives zeros there, so no output has to be NaN."""
    q, v = arguments[0], arguments[2]
    q[0, 0, 0, 0] = float("nan")
    same = torch.ones((*q.shape[:3], v.shape[-1]), dtype=torch.bool)
    same[0, 0, 0] = False
    return torch.zeros_like(same), same


def draw_pool(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    batch, count, tokens, channels = shape
    masks = torch.rand(batch, count, tokens, dtype=torch.float64)
    masks = masks * (torch.rand(batch, count, tokens) < 0.1)
    return to((torch.randn(batch, tokens, channels, dtype=torch.float64), masks), dtype=dtype)


def draw_hard_pool(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    features, masks = draw_pool(shape, dtype)
    return features, masks > 0


def pool_nan(arguments: tuple) -> tuple[Tensor, Tensor]:
    """A NaN feature reaches the masks that hold its token; no empty mask and no area (others: by backend)."""
    features, masks = arguments
    masks[:, 0] = 0
    masks[:, 1] = 0
    masks[0, 1, 0] = 1
    features[0, 0] = float("nan")
    bad = torch.zeros(masks.shape[0], masks.shape[1], features.shape[2], dtype=torch.bool)
    bad[0, 1] = True
    same = torch.zeros_like(bad)
    same[:, 0] = True
    return bad, same


def draw_logits(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    *grid, height, width = shape
    return torch.randn(*grid, dtype=torch.float64).to(dtype), (height, width)


def labels_and_confidence(logits: Tensor, size: tuple[int, int]) -> Any:
    return ops.upsample_argmax(logits, size, confidence=True)


def interpolated(logits: Tensor, size: tuple[int, int]) -> Outputs:
    """All classes' values: labels are compared by what they lose."""
    if logits.shape[0] == 0:
        return (logits.new_empty(0, logits.shape[1], *size),)
    return (F.interpolate(logits, size, mode="bilinear"),)


def compare_labels(got: Outputs, exact: Outputs, arguments: tuple, row: Row) -> None:
    """Labels whose value is the largest, and probabilities of those values, up to what the values are off by."""
    labels, sure = got
    full = exact[0]
    if full.numel() == 0:
        return
    wrong = bounds.interpolation(*arguments, row.dtype, row.backend).squeeze(1)
    lost = full.amax(1) - full.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    assert (lost <= 2 * wrong).all()
    true = full.softmax(1).amax(1)
    shift = 2 * wrong + (bounds.EXP + full.shape[1]) * bounds.EPS  # every term off by its exponential and each sum
    assert_within(sure, true, true * torch.expm1(shift), "confidence")


def logits_nan(arguments: tuple) -> tuple[Tensor, Tensor]:
    """NaN wins over any number: of labels the suite cannot say more; the per-op tests compare with torch's."""
    logits, size = arguments
    logits[0, 0, 0, 0] = float("nan")
    bad = torch.zeros(logits.shape[0], *size, dtype=torch.bool)
    same = torch.zeros_like(bad)
    same[1:] = True
    return bad, same


def draw_guided(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    batch, classes, channels, h, w, scale = shape
    sizes = (batch, classes, h, w), (batch, channels, h, w), (batch, channels, scale * h, scale * w)
    logits, low, high = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return to((logits, 0.5 * low, 0.5 * high, torch.tensor(1.5, dtype=torch.float64)), dtype=dtype)


def guided_nan(arguments: tuple) -> tuple[Tensor, Tensor]:
    """A NaN logit reaches its class in the two cells around it."""
    logits, high = arguments[0], arguments[2]
    logits[0, 0, 0, 0] = float("nan")
    scale = high.shape[2] // logits.shape[2]
    bad = torch.zeros(*logits.shape[:2], *high.shape[2:], dtype=torch.bool)
    bad[0, 0, : 3 * scale, : 3 * scale] = True
    return bad, ~bad


def draw_image(shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    batch, height, width, *size, antialias = shape
    image = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    return image, tuple(size), MEAN, STD, bool(antialias), dtype


def compare_images(got: Outputs, exact: Outputs, arguments: tuple, row: Row) -> None:
    """Within a level of 255, and the rounding of the result (it reaches 2.7)."""
    level = 1.001 / (255 * min(STD))
    assert got[0].shape == exact[0].shape
    torch.testing.assert_close(got[0].double(), exact[0], atol=level + 3 * torch.finfo(got[0].dtype).eps, rtol=0)


def image_oracle(image: Tensor, size, mean, std, antialias: bool, dtype: torch.dtype) -> Tensor:
    if image.shape[0] == 0:
        return torch.empty(0, 3, *size, dtype=torch.float64)
    return preprocess_reference(image, size, mean, std, antialias, torch.float64)


small = st.integers(1, 3)

OPS: dict[str, Op] = {
    "structure_attention": Op(
        call=ops.structure_attention,
        draw=draw_attention,
        shapes=((1, 2, 1, 48, 64, 15), (2, 2, 97, 48, 64, 15), (1, 2, 65, 40, 32, 3), (1, 1, 130, 64, 64, 16)),
        any_shape=st.tuples(
            small,
            small,
            st.integers(1, 150),
            st.sampled_from([40, 48, 64]),
            st.sampled_from([32, 64]),
            st.integers(1, 16),
        ),
        oracle=attention_oracle,
        bound=attention_bound,
        batched=(0, 1, 2, 3, 5),
        differentiable=(0, 1, 2, 3, 4, 5),
        nan=attention_nan,
    ),
    "mask_pool": Op(
        call=ops.mask_pool,
        draw=draw_pool,
        shapes=((1, 3, 2, 5), (2, 5, 97, 40), (1, 7, 1025, 129), (1, 4, 64, 1)),
        any_shape=st.tuples(small, st.integers(1, 8), st.integers(2, 300), st.integers(1, 150)),
        oracle=mask_pool_reference,
        bound=pool_bound,
        batched=(0, 1),
        differentiable=(0, 1),
        nan=pool_nan,
    ),
    "upsample_argmax": Op(
        call=labels_and_confidence,
        draw=draw_logits,
        shapes=((1, 3, 1, 1, 5, 50), (2, 19, 37, 73, 129, 256), (1, 300, 3, 5, 40, 61), (1, 5, 40, 33, 13, 20)),
        any_shape=st.tuples(small, *[st.integers(1, 40)] * 3, *[st.integers(1, 90)] * 2),
        oracle=interpolated,
        compare=compare_labels,
        nan=logits_nan,
    ),
    "guided_upsample": Op(
        call=ops.guided_upsample,
        draw=draw_guided,
        shapes=((1, 2, 1, 3, 3, 2), (2, 3, 4, 3, 7, 4), (1, 9, 3, 1, 1, 5), (1, 33, 5, 9, 21, 4)),
        any_shape=st.tuples(small, st.integers(1, 40), st.integers(1, 9), *[st.integers(1, 12)] * 2, st.integers(1, 5)),
        oracle=guided_upsample_reference,
        bound=guided_bound,
        batched=(0, 1, 2),
        differentiable=(0, 1, 2, 3),
        nan=guided_nan,
    ),
    "preprocess": Op(
        call=ops.preprocess,
        draw=draw_image,
        shapes=((1, 1, 1, 3, 5, 0), (2, 97, 131, 37, 61, 0), (2, 97, 131, 37, 61, 1), (1, 31, 17, 40, 9, 1)),
        any_shape=st.tuples(small, *[st.integers(1, 60)] * 4, st.booleans()),
        oracle=image_oracle,
        compare=compare_images,
    ),
}
OPS["structure_attention, keys"] = Op(
    **{
        **vars(OPS["structure_attention"]),
        "call": attention_to_keys,
        "draw": draw_attention_to_keys,
        "shapes": ((1, 2, 1, 3, 48, 64, 15), (2, 1, 9, 37, 48, 64, 15), (1, 2, 33, 20, 40, 32, 3)),
        "any_shape": st.tuples(
            *[small] * 2,
            *[st.integers(1, 40)] * 2,
            st.sampled_from([40, 48, 64]),
            st.sampled_from([32, 64]),
            st.integers(1, 16),
        ),
        "batched": (0, 1, 2, 3, 5, 6),
        "differentiable": (0, 1, 2, 3, 4, 5, 6),
    }
)
# Hard masks take other code than soft ones, and have no gradient of their own.
OPS["mask_pool, bool"] = replace(OPS["mask_pool"], draw=draw_hard_pool, differentiable=(0,))

# On a CPU Triton's kernels are interpreted, a tile of 32 by 32 tokens at a time: a whole tile and a part of one.
INTERPRETED = replace(
    OPS["structure_attention"],
    shapes=((1, 2, 1, 48, 64, 15), (2, 2, 35, 48, 64, 15), (1, 2, 33, 40, 32, 3), (1, 1, 50, 64, 64, 16)),
    any_shape=st.tuples(
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(1, 40),
        st.sampled_from([40, 48, 64]),
        st.sampled_from([32, 64]),
        st.integers(1, 16),
    ),
)


def pool_body(features: Tensor, masks: Tensor) -> Outputs:
    means = features.new_empty((features.shape[0], masks.shape[1], features.shape[2]))
    areas = features.new_empty(means.shape[:2], dtype=torch.float32)
    rows = features if features.stride(2) == 1 else features.contiguous()
    weights = masks.float() if masks.is_floating_point() else masks
    dispatch.native.mask_pool_host(*_arguments(rows, weights, means, areas))
    return means, areas


def upsample_body(logits: Tensor, size: tuple[int, int]) -> Outputs:
    labels = torch.empty(logits.shape[0], *size, dtype=label_dtype(logits.shape[1]))
    sure = torch.empty(labels.shape)
    names = str(logits.dtype)[6:], str(labels.dtype)[6:]
    dispatch.native.upsample_argmax_host(
        logits.data_ptr(), names[0], logits.shape, logits.stride(), size, labels.data_ptr(), names[1],
        sure.data_ptr(), None,
    )  # fmt: skip
    return labels, sure


def preprocess_body(image: Tensor, size, mean, std, antialias: bool, dtype: torch.dtype) -> Outputs:
    out = torch.full((image.shape[0] if image.dim() == 4 else 1, 3, *size), float("nan"), dtype=dtype)
    dispatch.native.preprocess_host(*native_arguments(image, out, mean, std, antialias))
    return (out,)


def guided_body(logits: Tensor, low: Tensor, high: Tensor, beta: Tensor) -> Outputs:
    return (_run("host", logits, low, high, beta),)


# The CUDA kernels' bodies on the CPU: (op, function of the public arguments).
BODIES: dict[str, Callable[..., Outputs]] = {
    "mask_pool": pool_body,
    "mask_pool, bool": pool_body,
    "upsample_argmax": upsample_body,
    "guided_upsample": guided_body,
    "preprocess": preprocess_body,
}


@dataclass(frozen=True)
class Row:
    """One implementation of an op on one device in one dtype."""

    name: str
    backend: str
    device: str
    dtype: torch.dtype

    @property
    def op(self) -> Op:
        return INTERPRETED if (self.backend, self.device) == ("triton", "cpu") else OPS[self.name]

    @property
    def is_body(self) -> bool:
        return self.backend == "cuda body"

    def run(self, *arguments: Any) -> Outputs:
        """The op by this row's backend, on arguments of its device."""
        if self.is_body:
            return BODIES[self.name](*arguments)
        with ops.use_backend(self.backend):
            return outputs(self.op.call(*arguments))

    def inputs(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> tuple:
        """Drawn arguments, in the row's dtype and on its device."""
        return to(self.op.draw(shape, dtype or self.dtype), self.device)

    def exact(self, arguments: tuple) -> Outputs:
        """The oracle's outputs for arguments, in float64 on the CPU."""
        return outputs(self.op.oracle(*to(arguments, "cpu", torch.float64)))

    def compare(self, arguments: tuple) -> None:
        """Run the row on arguments; fails where the outputs are further from the exact ones than the op allows."""
        got, exact = self.run(*arguments), self.exact(arguments)
        wide = to(arguments, "cpu", torch.float64)
        if self.op.compare is not None:
            return self.op.compare(tuple(x.cpu() for x in got), exact, wide, self)
        for i, (one, true, most) in enumerate(zip(got, exact, self.bound(arguments), strict=True)):
            assert_within(one, true, most, f"output {i}")

    def bound(self, arguments: tuple, grads: Outputs | None = None) -> list[Tensor]:
        """The bounds of outputs (and, with the outputs' gradients, of the gradients) for arguments of this row."""
        assert self.op.bound is not None
        wide = to(arguments, "cpu", torch.float64)
        return self.op.bound(wide, self.dtype, self.backend, grads and to(grads, "cpu", torch.float64))


def rows(bodies: bool = True, dtypes: list[torch.dtype] = DTYPES) -> list[Any]:
    """Every row as a pytest parameter; those that this machine cannot run are skipped with the reason."""
    found = []
    for name in OPS:
        op = name.split(",")[0]
        for backend, needs in dispatch.OP_BACKENDS[op].items():
            on_cpu = not dispatch.why_not(op, backend, "cpu")
            devices = [needs.device] if needs.device else ["cpu", "cuda"] if on_cpu else ["cuda"]
            for device in devices:
                for dtype in dtypes:
                    if device == "cuda" and needs.dtypes and dtype not in needs.dtypes:
                        continue
                    reason = "" if device == "cuda" else dispatch.why_not(op, backend, device, dtype)
                    marks = [pytest.mark.gpu] if device == "cuda" else [pytest.mark.skip(reason)] if reason else []
                    label = f"{name}-{backend}-{device}-{str(dtype)[6:]}"
                    found.append(pytest.param(Row(name, backend, device, dtype), id=label, marks=marks))
        if bodies and name in BODIES:
            for dtype in dtypes:
                marks = [] if dispatch.native else [pytest.mark.skip("ovsdino._C is missing")]
                label = f"{name}-body-{str(dtype)[6:]}"
                found.append(pytest.param(Row(name, "cuda body", "cpu", dtype), id=label, marks=marks))
    return found


def with_gaps(x: Tensor) -> Tensor:
    """The same values, every second element of memory, not at its start."""
    wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1] + 1))
    wide[..., 1::2] = x
    return wide[..., 1::2]


def turned(x: Tensor) -> Tensor:
    """The same values, the first dimension innermost in memory."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def poison(arguments: tuple, op: Op) -> tuple[tuple, Tensor, Tensor]:
    """Arguments with a NaN, which outputs must become NaN, and which must not change."""
    assert op.nan is not None
    arguments = tuple(x.clone() if isinstance(x, Tensor) else x for x in arguments)
    bad, same = op.nan(arguments)
    return arguments, bad, same


def rng(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
