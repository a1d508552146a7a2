"""Structure attention in Triton, the host's side: buffers, arguments and launches of the kernels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ovsdino.kernels import interpreter
from ovsdino.kernels import structure_attention_backward as backward_kernels
from ovsdino.kernels import structure_attention_forward as forward_kernels
from ovsdino.kernels import structure_attention_queries as queries_kernels
from ovsdino.kernels.configs import SMALL, candidates
from ovsdino.kernels.tiles import LOG2E, RANK, Sizes
from ovsdino.kernels.tuning import Config, Tuner, bucket, describe

MAX_HEAD_SIZE = 128
LEAST_TOKENS = (
    128  # up to here one tile or two hold all of them, a launch costs more than any choice: the default is taken
)
WIDTHS = ("D0", "D1", "V0")

_tuner = Tuner()
_configs: dict[tuple[Any, ...], Config] = {}
interpreter.patch()


class Inputs(NamedTuple):
    """The op's inputs as the kernels take them: see `check`; scale > 0."""

    q: Tensor
    k: Tensor
    v: Tensor
    e: Tensor
    lam: Tensor
    gate: Tensor | None
    scale: float
    key_e: Tensor | None = None

    def check(self) -> None:
        """Raise ValueError where the kernels cannot take the inputs; the message has the limits."""
        q, k, v, e, gate = self.q, self.k, self.v, self.e, self.gate
        if k.dtype != q.dtype or v.dtype != q.dtype:
            raise ValueError(f"backend 'triton' takes q, k and v of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
        if any(x is not None and x.dtype == torch.float64 for x in (q, e, self.lam, gate)):  # key_e has e's
            raise ValueError("backend 'triton' takes no float64")
        d, dv, r = q.shape[-1], v.shape[-1], e.shape[-1]
        if not (1 <= d <= MAX_HEAD_SIZE and 1 <= dv <= MAX_HEAD_SIZE and 1 <= r <= RANK):
            raise ValueError(
                f"backend 'triton' takes d and dv up to {MAX_HEAD_SIZE} and r up to {RANK}, got {d}, {dv} and {r}"
            )
        if not self.scale > 0:
            raise ValueError(f"backend 'triton' takes scale > 0, got {self.scale}")


class Prepared(NamedTuple):
    """The results of the prepare kernel for N tokens: f, near (B, M, N, 16) in q's dtype, column (B, M, N) float32.

    The column is in the unit that `prepare_call` was given.
    """

    f: Tensor
    near: Tensor
    column: Tensor


class Call(NamedTuple):
    """One kernel with its arguments, for a launch or for a compiler without a GPU."""

    name: str
    kernel: Any
    rows: str  # the constant that says how many tokens one program owns
    shape: tuple[int, int, int]  # batch, heads, tokens that the programs share
    streamed: int  # tokens that the loop of each reads; those for a kernel without one
    dtype: torch.dtype
    arguments: dict[str, Any]
    constants: dict[str, Any]

    def sizes(self, config: Config) -> dict[str, int]:
        """Return the kernel's tile sizes, and whether the last tile that its loop reads is a part of one."""
        found = config.constants(self.kernel.arg_names)
        read = [size for name, size in found.items() if name != self.rows]
        if read:
            found["TAIL"] = self.streamed % read[0] != 0
        return found

    def launch(self, config: Config) -> None:
        """Run the kernel on the current stream."""
        batch, heads, tokens = self.shape
        sizes = self.sizes(config)
        grid = (batch * heads * triton.cdiv(tokens, sizes[self.rows]),)
        self.kernel[grid](**self.arguments, **self.constants, **sizes, **config.options())

    def choice(self) -> tuple[int, ...]:
        """Return what the best tile sizes depend on: heads and both tokens to a power of two, and the padded widths.

        Widths within the padding, the gate and what is kept do not change the products, so one measurement is for all.
        """
        batch, heads, tokens = self.shape
        widths = (int(self.constants.get(name, 0)) for name in WIDTHS)
        return bucket(batch * heads), bucket(tokens), bucket(self.streamed), *widths

    def _tuned(self, device: torch.device) -> Config:
        """Return the tuner's choice, remembered here by what costs no text: the launch waits for it."""
        if max(self.shape[2], self.streamed) <= LEAST_TOKENS:
            return candidates(self.name, self.dtype)[0]
        key = (self.name, device, self.dtype, *self.choice())
        found = _configs.get(key)
        if found is None:
            facts = dict(zip(("heads", "tokens", "streamed", *WIDTHS), self.choice(), strict=True))
            known = describe(self.name, device, {"dtype": str(self.dtype)[6:]} | facts)
            found = _tuner.choose(known, candidates(self.name, self.dtype), self.launch)
            if not torch.cuda.is_current_stream_capturing():  # a default, taken because nothing may be measured
                _configs[key] = found
        return found

    def run(self, device: torch.device) -> Config:
        """Launch with measured tile sizes, or with the default where nothing may be measured; returns them."""
        if interpreter.interpreting():
            config = SMALL
        else:
            config = self._tuned(device)
        self.launch(config)
        return config


def forward(inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run prepare and forward.

    Args:
        inputs: as `structure_attention`; on one CUDA device, or on the CPU under the interpreter.
        keep: also return what `backward` needs.

    Returns:
        The output (B, M, N, dv), which lies in memory as (B, N, M, dv); the same before the gate in float32, since its
        rounding would be an error common to a row of the softmax's gradient; and the logarithm to base 2 of the
        softmax's denominator (B, M, N) float32. The last two are empty unless `keep`.
    """
    inputs.check()
    q, v = inputs.q, inputs.v
    out = by_token(q, v.shape[-1], v.dtype)
    plain = by_token(q, v.shape[-1], torch.float32) if keep else v.new_empty(0, dtype=torch.float32)
    level = q.new_empty(q.shape[:3] if keep else 0, dtype=torch.float32)
    if out.numel() > 0:
        with on(q.device):
            forward_call(inputs, *prepare(inputs, inputs.scale * LOG2E.value), out, plain, level, keep).run(q.device)
    return out, plain, level


def backward(grad: Tensor, inputs: Inputs, plain: Tensor, level: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, e, lam, gate and key_e (empty for None) in their dtypes; the same bits at every run.

    Args:
        grad: (B, M, N, dv), any strides.
        inputs: as in `forward`.
        plain: from `forward`.
        level: from `forward`.
    """
    q, k, v, e, lam, gate, _, key_e = inputs
    dgate, dkey_e = (q.new_empty(0) if x is None else torch.empty_like(x) for x in (gate, key_e))
    if plain.numel() == 0:
        return *(torch.zeros_like(x) for x in (q, k, v, e, lam)), dgate, dkey_e.zero_()
    dq, dk, dv, de = (torch.empty_like(x) for x in (q, k, v, e))
    weighted = plain.new_empty(plain.shape, dtype=v.dtype)
    delta, dlam = (torch.empty_like(level) for _ in range(2))
    sums = level.new_empty(k.shape[:3])
    side = level.new_empty(*k.shape[:3], RANK)
    with on(q.device):
        queries, keys = prepare(inputs, 1.0)
        rows_call(grad, inputs, plain, weighted, delta, dgate).run(q.device)
        kept = {"weighted": weighted, "level": level, "delta": delta}
        keys_call(inputs, queries, keys, kept, side, sums, dk, dv).run(q.device)
        if key_e is None:
            queries_call(inputs, queries, keys, kept, side, sums, dq, de, dlam).run(q.device)
            total = dlam.sum((0, 2))
        else:
            # The structure of queries and of keys are two inputs: what the keys gather does not go to the queries.
            none = torch.zeros_like(level)
            nothing = none.new_zeros(*none.shape, RANK)
            queries_call(inputs, queries, keys, kept, nothing, none, dq, de, dlam).run(q.device)
            of_keys = torch.empty_like(sums)
            places_call(inputs, keys, side, sums, dkey_e, of_keys).run(q.device)
            total = dlam.sum((0, 2)) + of_keys.sum((0, 2))
    return dq, dk, dv, de, total.to(lam.dtype), dgate, dkey_e


def by_token(q: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialized (B, M, N, width) for queries (B, M, N, d) that lies in memory as (B, N, M, width).

    The projection after the attention then reads (B, N, M * width) without a copy.
    """
    batch, heads, tokens, _ = q.shape
    return q.new_empty(batch, tokens, heads, width, dtype=dtype).transpose(1, 2)


def on(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def prepare(inputs: Inputs, unit: float) -> tuple[Prepared, Prepared]:
    """Launch the prepare kernel for queries and keys; one launch, and one result twice, where they are the same.

    Args:
        inputs: of the op.
        unit: of the column: scale log2(e) for `forward_call`, which adds it to logits to base 2; 1 for the backward
            kernels, whose products start from it.
    """
    q, e, key_e = inputs.q, inputs.e, inputs.key_e

    def run(x: Tensor) -> Prepared:
        f = q.new_empty(*x.shape[:3], RANK)
        made = Prepared(f, torch.empty_like(f), q.new_empty(x.shape[:3], dtype=torch.float32))
        prepare_call(inputs, x, made, unit).run(q.device)
        return made

    queries = run(e)
    return queries, queries if key_e is None else run(key_e)


def strides(name: str, x: Tensor | None, axes: str) -> dict[str, int]:
    """Return the strides of x in elements by the kernels' names for them, {"stride_qb": ..., ...}; zeros for None."""
    return {f"stride_{name}{axis}": 0 if x is None else x.stride(i) for i, axis in enumerate(axes)}


def _call(
    name: str, kernel: Any, rows: str, inputs: Inputs, arguments: dict[str, Any], streamed: bool = True, **flags: Any
) -> Call:
    """Return a call with the sizes every kernel takes, and of the constants those that it takes.

    Args:
        name: of the kernel.
        kernel: the kernel.
        rows: "BLOCK_M" where a program owns queries, "BLOCK_N" where it owns keys.
        inputs: of the op.
        arguments: the others of the kernel.
        streamed: whether it has a loop over the tokens of the other side.
        **flags: constants.
    """
    q = inputs.q
    batch, heads, queries, d = q.shape
    keys = inputs.k.shape[2]
    own, others = (queries, keys) if rows == "BLOCK_M" else (keys, queries)
    rank = inputs.e.shape[-1]
    constants = Sizes.of(d, inputs.v.shape[-1]).constants() | {"FULL": rank == RANK, **flags}
    sizes = {"tokens": own, "others": others, "heads": heads, "rank": rank, "scale": float(inputs.scale)}
    arguments = sizes | arguments
    own = arguments["tokens"]
    taken = kernel.arg_names
    return Call(
        name,
        kernel,
        rows,
        (batch, heads, own),
        others if streamed else own,
        q.dtype,
        {key: value for key, value in arguments.items() if key in taken},
        {key: value for key, value in constants.items() if key in taken},
    )


def prepare_call(inputs: Inputs, e: Tensor, made: Prepared, unit: float) -> Call:
    """Return the call that fills `made` for the tokens of `e`, that of the queries or of the keys; see `prepare`."""
    lam, origin = inputs.lam, inputs.e if inputs.key_e is None else inputs.key_e
    arguments = {
        **made._asdict(),
        **strides("e", e, "bmnr"),
        **strides("c", origin, "bmnr"),
        "e": e,
        "origin": origin,
        "others": origin.shape[2],
        "tokens": e.shape[2],
        "lam": lam,
        "stride_lam": lam.stride(0),
        "unit": unit,
    }
    return _call("prepare", forward_kernels._prepare, "BLOCK_M", inputs, arguments, streamed=False)


def forward_call(
    inputs: Inputs, queries: Prepared, keys: Prepared, out: Tensor, plain: Tensor, level: Tensor, keep: bool
) -> Call:
    """Return the call that fills out and, if keep, plain and level."""
    q, k, v, gate = inputs.q, inputs.k, inputs.v, inputs.gate
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "gate": keys.column if gate is None else gate,
        "near": queries.near,
        "f": keys.f,
        "column": keys.column,
        **strides("q", q, "bmnd"),
        **strides("k", k, "bmnd"),
        **strides("v", v, "bmnd"),
        **strides("g", gate, "bmn"),
        "out": out,
        "plain": plain,
        "level": level,
    }
    return _call("forward", forward_kernels._forward, "BLOCK_M", inputs, arguments, GATED=gate is not None, KEEP=keep)


def rows_call(grad: Tensor, inputs: Inputs, plain: Tensor, weighted: Tensor, delta: Tensor, dgate: Tensor) -> Call:
    """Return the call that fills weighted, delta and, where there is a gate, dgate."""
    gate = inputs.gate
    arguments = {
        **strides("o", grad, "bmnd"),
        **strides("g", gate, "bmn"),
        **strides("dg", None if gate is None else dgate, "bmn"),
        "grad": grad,
        "plain": plain,
        "weighted": weighted,
        "delta": delta,
        "gate": delta if gate is None else gate,
        "grad_gate": delta if gate is None else dgate,
    }
    gated = gate is not None
    return _call("rows", backward_kernels._backward_rows, "BLOCK_M", inputs, arguments, streamed=False, GATED=gated)


def keys_call(
    inputs: Inputs,
    queries: Prepared,
    keys: Prepared,
    kept: dict[str, Tensor],
    side: Tensor,
    sums: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> Call:
    """Return the call that fills dk, dv, side and sums; `kept` is what `rows_call` fills, and level."""
    q, k, v = inputs[:3]
    arguments = {
        **kept,
        "f": queries.f,
        "near": keys.near,
        "column": keys.column,
        "side": side,
        "sums": sums,
        **strides("q", q, "bmnd"),
        **strides("k", k, "bmnd"),
        **strides("v", v, "bmnd"),
        **strides("dk", dk, "bmnd"),
        **strides("dv", dv, "bmnd"),
        "q": q,
        "k": k,
        "v": v,
        "dk": dk,
        "dv": dv,
    }
    return _call("keys", backward_kernels._backward_keys, "BLOCK_N", inputs, arguments)


def queries_call(
    inputs: Inputs,
    queries: Prepared,
    keys: Prepared,
    kept: dict[str, Tensor],
    side: Tensor,
    sums: Tensor,
    dq: Tensor,
    de: Tensor,
    dlam: Tensor,
) -> Call:
    """Return the call that fills dq, de and dlam (B, M, N); side and sums are those of the same tokens as keys."""
    q, k, v, lam = inputs.q, inputs.k, inputs.v, inputs.lam
    arguments = {
        **kept,
        "near": queries.near,
        "own_f": queries.f,
        "f": keys.f,
        "column": keys.column,
        "side": side,
        "sums": sums,
        **strides("q", q, "bmnd"),
        **strides("k", k, "bmnd"),
        **strides("v", v, "bmnd"),
        **strides("dq", dq, "bmnd"),
        **strides("de", de, "bmnr"),
        "q": q,
        "k": k,
        "v": v,
        "dq": dq,
        "de": de,
        "lam": lam,
        "dlam": dlam,
        "stride_lam": lam.stride(0),
    }
    return _call("queries", queries_kernels._backward_queries, "BLOCK_M", inputs, arguments)


def places_call(inputs: Inputs, keys: Prepared, side: Tensor, sums: Tensor, dkey_e: Tensor, dlam: Tensor) -> Call:
    """Return the call that fills dkey_e and dlam (B, M, L) from what `keys_call` left in side and sums."""
    arguments = {
        "f": keys.f,
        "side": side,
        "sums": sums,
        "lam": inputs.lam,
        "de": dkey_e,
        "dlam": dlam,
        **strides("de", dkey_e, "bmnr"),
        "stride_lam": inputs.lam.stride(0),
    }
    return _call("places", queries_kernels._backward_places, "BLOCK_N", inputs, arguments, streamed=False)
