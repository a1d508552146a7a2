"""Structure attention in Triton: backward, but for the queries. f, near, column as in `structure_attention_forward`.

With P_ij the softmax, G_i = g_i dO_i, o_i the un-gated output and D_i = G_i.o_i:

    dV_j = sum_i P_ij G_i        dS_ij = P_ij (G_i.v_j - D_i)        dg_i = dO_i.o_i
    dQ_i = scale sum_j dS_ij k_j                                     dK_j = scale sum_i dS_ij q_i
    a_i = sum_j dS_ij f_j, s_i = sum_j dS_ij                         b_j = sum_i dS_ij f_i, c_j = sum_i dS_ij
    dE_i = (2 lam / stretch) (a_i - s_i f_i + b_i - c_i f_i)
    dlam = -sum_ij dS_ij |e_i - e_j|^2 = sum_i f_i.(2 a_i - (s_i + c_i) f_i) / stretch^2

Where the keys are other tokens, those of `key_e`, the sums of the keys, b and c, make its gradient by the same formula:

    dE_i = (2 lam / stretch) (a_i - s_i f_i)                        dE'_j = (2 lam / stretch) (b_j - c_j f'_j)
    dlam = (sum_i f_i.(2 a_i - s_i f_i) - sum_j c_j |f'_j|^2) / stretch^2

s_i is zero but for rounding; kept, it makes both gradients sums over differences of places, whose rounding is small
where tokens are near. [dQ | a] and [dK | b] are one dot product each, and the lane of ones in f adds s and c to them.
Three kernels (a fourth, small one for dE') and no atomics: the same bits at every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ovsdino.kernels.tiles import (
    LANES,
    LOG2E,
    PLAIN,
    joint,
    joint_places,
    joint_product,
    joint_step,
    numbers,
    picked,
    places,
    read,
    softmax,
    tile,
    tile_product,
)


@triton.jit(
    repr=lambda _: "ovsdino_backward_rows", do_not_specialize=PLAIN
)  # the name that profilers and sanitizers see
def _backward_rows(
    grad,
    plain,
    gate,
    weighted,
    delta,
    grad_gate,
    stride_ob,
    stride_om,
    stride_on,
    stride_od,
    stride_gb,
    stride_gm,
    stride_gn,
    stride_dgb,
    stride_dgm,
    stride_dgn,
    tokens,
    heads,
    DV: tl.constexpr,
    V0: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """G = gate dO (B, M, N, dv), delta = D (B, M, N) float32 and dg, for BLOCK_M tokens of a head."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    head = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_M
    batch = (head // heads).to(tl.int64)
    m = (head % heads).to(tl.int64)
    own = head.to(tl.int64) * tokens + start
    left = tokens - start
    at = tl.arange(0, BLOCK_M)
    inside = at < left
    grad += batch * stride_ob + m * stride_om + start.to(tl.int64) * stride_on
    given = tile(grad, stride_on, stride_od, left, BLOCK_M, 0, V0, DV, True).to(tl.float32)
    plain += ((batch * tokens + start) * heads + m) * DV
    output = tile(plain, heads * DV, 1, left, BLOCK_M, 0, V0, DV, True).to(tl.float32)
    scaled = given
    if GATED:
        gate += batch * stride_gb + m * stride_gm + start.to(tl.int64) * stride_gn
        factor = tl.load(gate + at.to(tl.int64) * stride_gn, mask=inside, other=0.0).to(tl.float32)
        scaled = given * factor[:, None]
        grad_gate += batch * stride_dgb + m * stride_dgm + start.to(tl.int64) * stride_dgn
        product = tl.sum(given * output, 1)
        tl.store(grad_gate + at.to(tl.int64) * stride_dgn, product.to(grad_gate.dtype.element_ty), mask=inside)
    rounded = scaled.to(weighted.dtype.element_ty)
    lane = tl.arange(0, V0)[None, :]
    tl.store(weighted + (own + at[:, None]) * DV + lane, rounded, mask=inside[:, None] & (lane < DV))
    tl.store(delta + own + at, tl.sum(rounded.to(tl.float32) * output, 1), mask=inside)


@triton.jit
def _store_keys(
    x,
    dk,
    side,
    stride_n,
    stride_d,
    left,
    scale,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
):
    """Columns START.. of [dK | b] to dk (times scale) and side."""
    row = tl.arange(0, ROWS)[:, None]
    column = START + tl.arange(0, COLUMNS)[None, :]
    if START < D:
        at = row.to(tl.int64) * stride_n + column.to(tl.int64) * stride_d
        tl.store(dk + at, (x * scale).to(dk.dtype.element_ty), mask=(row < left) & (column < D))
    if START + COLUMNS > D:
        lane = column - D
        tl.store(side + row * LANES + lane, x, mask=(row < left) & (lane >= 0) & (lane < LANES))


@triton.jit(
    repr=lambda _: "ovsdino_backward_keys", do_not_specialize=PLAIN
)  # the name that profilers and sanitizers see
def _backward_keys(
    q,
    k,
    v,
    f,
    near,
    column,
    weighted,
    level,
    delta,
    dk,
    dv,
    side,
    sums,
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
    stride_dkb,
    stride_dkm,
    stride_dkn,
    stride_dkd,
    stride_dvb,
    stride_dvm,
    stride_dvn,
    stride_dvd,
    tokens,
    others,
    heads,
    rank,
    scale,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    DV: tl.constexpr,
    V0: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
):
    """dK, dV, b (in side, (B, M, L, 16)) and c (in sums, (B, M, L)) of BLOCK_N of the keys (`tokens`) of a head."""
    blocks = tl.cdiv(tokens, BLOCK_N)
    head = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_N
    batch = (head // heads).to(tl.int64)
    m = (head % heads).to(tl.int64)
    own = head.to(tl.int64) * tokens
    wide = start.to(tl.int64)
    left = tokens - start
    at = tl.arange(0, BLOCK_N)
    k += batch * stride_kb + m * stride_km + wide * stride_kn
    v += batch * stride_vb + m * stride_vm + wide * stride_vn
    near += (own + wide) * LANES
    kn0 = joint(k, near, stride_kn, stride_kd, left, BLOCK_N, 0, D0, D, True)
    kn1 = kn0
    dk0 = tl.zeros((BLOCK_N, D0), tl.float32)
    dk1 = dk0
    if D1 > 0:
        kn1 = joint(k, near, stride_kn, stride_kd, left, BLOCK_N, D0, D1, D, True)
        dk1 = tl.zeros((BLOCK_N, D1), tl.float32)
    values = tile(v, stride_vn, stride_vd, left, BLOCK_N, 0, V0, DV, True)
    bias = tl.load(column + own + wide + at, mask=at < left, other=float("-inf"))
    dvalues = tl.zeros((BLOCK_N, V0), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)

    q += batch * stride_qb + m * stride_qm
    theirs = head.to(tl.int64) * others
    f += theirs * LANES
    weighted += theirs * DV
    level += theirs
    delta += theirs
    slope = scale * LOG2E
    q_at = joint_places(q, f, stride_qn, stride_qd, BLOCK_M, 0, D0, D)
    q_step = joint_step(stride_qn, BLOCK_M, 0, D0, D)
    if D1 > 0:
        tail_at = joint_places(q, f, stride_qn, stride_qd, BLOCK_M, D0, D1, D)
        tail_step = joint_step(stride_qn, BLOCK_M, D0, D1, D)
    given_at = places(weighted, DV, 1, BLOCK_M, 0, V0)
    for query in range(0, others, BLOCK_M):
        far = tl.cast(query, tl.int64)
        rest = others - query
        height = numbers(level + far, rest, BLOCK_M, float("inf"), TAIL)  # past the end: weights are 2^-inf
        mean = numbers(delta + far, rest, BLOCK_M, 0.0, TAIL)
        if f.dtype.element_ty == tl.float32:  # there are no registers to keep pointers in
            q0 = joint(q + far * stride_qn, f + far * LANES, stride_qn, stride_qd, rest, BLOCK_M, 0, D0, D, TAIL)
            if D1 > 0:
                q1 = joint(q + far * stride_qn, f + far * LANES, stride_qn, stride_qd, rest, BLOCK_M, D0, D1, D, TAIL)
            given = tile(weighted + far * DV, DV, 1, rest, BLOCK_M, 0, V0, DV, TAIL)
        else:
            q0 = read(q_at, rest, BLOCK_M, 0, D0, D + LANES, TAIL)
            q_at += q_step
            if D1 > 0:
                q1 = read(tail_at, rest, BLOCK_M, D0, D1, D + LANES, TAIL)
                tail_at += tail_step
            given = read(given_at, rest, BLOCK_M, 0, V0, DV, TAIL)
            given_at += BLOCK_M * DV
        logits = tl.broadcast_to(bias[:, None], (BLOCK_N, BLOCK_M))
        if given.dtype == tl.float32:
            logits += joint_product(
                k, near, stride_kn, stride_kd, left, q + far * stride_qn, f + far * LANES, stride_qn, stride_qd, rest,
                BLOCK_N, BLOCK_M, D0 + D1, D,
            )  # fmt: skip
            grads = weighted + far * DV
            slopes = tile_product(v, stride_vn, stride_vd, left, grads, DV, 1, rest, BLOCK_N, BLOCK_M, V0, DV)
        else:
            logits = tl.dot(kn0, tl.trans(q0), logits)
            if D1 > 0:
                logits = tl.dot(kn1, tl.trans(q1), logits)
            slopes = tl.dot(values, tl.trans(given))
        weights = softmax(logits * slope - height[None, :])
        dvalues = tl.dot(weights.to(given.dtype), given, dvalues, input_precision="ieee")
        slopes = (weights * (slopes - mean[None, :])).to(given.dtype)
        dk0 = tl.dot(slopes, q0, dk0, input_precision="ieee")
        if D1 > 0:
            dk1 = tl.dot(slopes, q1, dk1, input_precision="ieee")
        if FULL:
            total += tl.sum(slopes.to(tl.float32), 1)

    side += (own + wide) * LANES
    dk += batch * stride_dkb + m * stride_dkm + wide * stride_dkn
    _store_keys(dk0, dk, side, stride_dkn, stride_dkd, left, scale, BLOCK_N, 0, D0, D)
    if not FULL:
        total = picked(dk0, 0, D0, D + rank)
    if D1 > 0:
        _store_keys(dk1, dk, side, stride_dkn, stride_dkd, left, scale, BLOCK_N, D0, D1, D)
        if not FULL:
            total += picked(dk1, D0, D1, D + rank)
    tl.store(sums + own + wide + at, total, mask=at < left)
    dv += batch * stride_dvb + m * stride_dvm + wide * stride_dvn
    lane = tl.arange(0, V0)[None, :]
    place = at[:, None].to(tl.int64) * stride_dvn + lane.to(tl.int64) * stride_dvd
    tl.store(dv + place, dvalues.to(dv.dtype.element_ty), mask=(at[:, None] < left) & (lane < DV))
