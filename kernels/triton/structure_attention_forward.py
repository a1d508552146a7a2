"""Structure attention in Triton: prepare and forward.

o_i = g_i sum_j p_ij v_j / sum_j p_ij with p_ij = 2^(log2(e) logit_ij - max_j) and

    logit_ij = scale (q_i.k_j + near_i.f_j) + column_j          f_j = stretch (e_j - shift), near_i = ratio f_i
    column_j = -scale ratio |f_j|^2 / 2                         scale ratio stretch^2 = 2 lam

(the shift is near the mean of the keys; f and near of queries and of keys are two tensors where their tokens differ)

which is scale q_i.k_j - lam |e_i - e_j|^2 up to a term constant in j. f is rounded to the dtype of q once and the
float32 column is made from the rounded f, so the structure term is exactly that of tokens at the rounded places: its
error grows with the distance of two tokens and not with the norm of e. q and k enter as they are, scale > 0 is one
multiplication with the float32 logit. The forward kernel takes log2(e) column and adds it behind the product; the
backward kernels take column / scale and start their products from it.

A logit is one dot product of [q | near] and [k | f], d + 16 wide (48 + 16 = 64); the two halves of a row are gathered
from where they lie. No (N, N) tensor, no concatenated q and k in memory; a NaN query stays in its row; offsets are
64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ovsdino.kernels.tiles import LANES, LOG2E, PLAIN, joint, joint_product, numbers, strength, tile

# Tokens that the shift is the mean of. Any shift is exact; this one only has to bring f near zero.
SAMPLE = tl.constexpr(128)


@triton.jit(repr=lambda _: "ovsdino_prepare", do_not_specialize=PLAIN)  # the name that profilers and sanitizers see
def _prepare(
    e,
    origin,
    lam,
    f,
    near,
    column,
    stride_eb,
    stride_em,
    stride_en,
    stride_er,
    stride_cb,
    stride_cm,
    stride_cn,
    stride_cr,
    stride_lam,
    tokens,
    others,
    heads,
    rank,
    scale,
    unit,
    BLOCK_M: tl.constexpr,
):
    """Make f and near (B, M, N, 16) and column (B, M, N), one program for BLOCK_M tokens of a head.

    The column is that of q.k + near.f times `unit`.

    The shift is that of `origin`, the structure of the `others`, which are the keys.

    Lane r (`rank`) of f is 1 where r < 16, that of near 0: logits do not see it, sums over weights times f hold those
    of the weights in it.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    head = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_M
    e += (head // heads).to(tl.int64) * stride_eb + (head % heads).to(tl.int64) * stride_em
    origin += (head // heads).to(tl.int64) * stride_cb + (head % heads).to(tl.int64) * stride_cm
    ratio, stretch = strength(tl.load(lam + head % heads * stride_lam).to(tl.float32), scale)

    lane = tl.arange(0, LANES)[None, :]
    row = tl.arange(0, BLOCK_M)[:, None]
    step = tl.cdiv(others, SAMPLE)
    count = tl.cdiv(others, step)
    total = tl.zeros((BLOCK_M, LANES), tl.float32)
    for first in range(0, count, BLOCK_M):
        index = first + row
        at = origin + (index * step).to(tl.int64) * stride_cn + lane.to(tl.int64) * stride_cr
        total += tl.load(at, mask=(index < count) & (lane < rank), other=0.0).to(tl.float32)
    shift = tl.sum(total, 0) / count

    token = start + row
    inside = (token < tokens) & (lane < rank)
    at = e + token.to(tl.int64) * stride_en + lane.to(tl.int64) * stride_er
    here = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    moved = tl.where(lane < rank, (here - shift[None, :]) * stretch, 0.0)
    if f.dtype.element_ty == tl.float16:
        moved = tl.clamp(moved, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    rounded = moved.to(f.dtype.element_ty)
    squared = rounded.to(tl.float32)
    norm = tl.sum(squared * squared, 1)
    own = head.to(tl.int64) * tokens + start
    at = tl.arange(0, BLOCK_M)
    tl.store(column + own + at, -0.5 * unit * ratio * norm, mask=start + at < tokens)
    place = (own + row) * LANES + lane
    tl.store(f + place, tl.where(lane == rank, 1.0, squared).to(f.dtype.element_ty), mask=token < tokens)
    tl.store(near + place, (squared * ratio).to(f.dtype.element_ty), mask=token < tokens)


@triton.jit(repr=lambda _: "ovsdino_forward", do_not_specialize=PLAIN)  # the name that profilers and sanitizers see
def _forward(
    q,
    k,
    v,
    f,
    near,
    column,
    gate,
    out,
    plain,
    level,
    stride_qb,
    stride_qm,
    stride_qn,
    stride_qd,
    stride_kb,
    stride_km,
    stride_kn,
    stride_kd,
    stride_vb,
    stride_vm,
    stride_vn,
    stride_vd,
    stride_gb,
    stride_gm,
    stride_gn,
    tokens,
    others,
    heads,
    scale,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    DV: tl.constexpr,
    V0: tl.constexpr,
    GATED: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
):
    """BLOCK_M of the queries (`tokens`) of a head against its keys (`others`).

    out and, if KEEP, plain (before the gate, float32) lie in memory as (B, N, M, dv).
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    head = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_M
    batch = (head // heads).to(tl.int64)
    m = (head % heads).to(tl.int64)
    own = head.to(tl.int64) * tokens
    f += head.to(tl.int64) * others * LANES
    column += head.to(tl.int64) * others
    k += batch * stride_kb + m * stride_km
    v += batch * stride_vb + m * stride_vm
    left = tokens - start
    q += batch * stride_qb + m * stride_qm + start.to(tl.int64) * stride_qn
    near += (own + start) * LANES
    q0 = joint(q, near, stride_qn, stride_qd, left, BLOCK_M, 0, D0, D, True)
    q1 = q0
    if D1 > 0:
        q1 = joint(q, near, stride_qn, stride_qd, left, BLOCK_M, D0, D1, D, True)
    slope = scale * LOG2E

    maximum = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    result = tl.zeros((BLOCK_M, V0), tl.float32)
    for key in range(0, others, BLOCK_N):
        far = tl.cast(key, tl.int64)
        rest = others - key
        keys = k + far * stride_kn
        places = f + far * LANES
        if q0.dtype == tl.float32:
            logits = joint_product(
                q, near, stride_qn, stride_qd, left, keys, places, stride_kn, stride_kd, rest, BLOCK_M, BLOCK_N,
                D0 + D1, D,
            )  # fmt: skip
        else:
            k0 = joint(keys, places, stride_kn, stride_kd, rest, BLOCK_N, 0, D0, D, TAIL)
            logits = tl.dot(q0, tl.trans(k0))
            if D1 > 0:
                k1 = joint(keys, places, stride_kn, stride_kd, rest, BLOCK_N, D0, D1, D, TAIL)
                logits = tl.dot(q1, tl.trans(k1), logits)
        bias = numbers(column + far, rest, BLOCK_N, float("-inf"), TAIL)
        logits = logits * slope + bias[None, :]
        larger = tl.maximum(maximum, tl.max(logits, 1))
        weights = tl.exp2(logits - larger[:, None])
        shrink = tl.exp2(maximum - larger)
        total = total * shrink + tl.sum(weights, 1)
        values = tile(v + far * stride_vn, stride_vn, stride_vd, rest, BLOCK_N, 0, V0, DV, TAIL)
        result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
        maximum = larger

    result = result / total[:, None]
    at = tl.arange(0, BLOCK_M)
    inside = at < left
    lane = tl.arange(0, V0)[None, :]
    wanted = inside[:, None] & (lane < DV)
    place = ((batch * tokens + start + at[:, None]) * heads + m) * DV + lane
    if KEEP:
        tl.store(level + own + start + at, maximum + tl.log2(total), mask=inside)
        tl.store(plain + place, result, mask=wanted)
    if GATED:
        gate += batch * stride_gb + m * stride_gm + start.to(tl.int64) * stride_gn
        factor = tl.load(gate + at.to(tl.int64) * stride_gn, mask=inside, other=0.0)
        result = result * factor.to(tl.float32)[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=wanted)
