"""Structure attention in Triton: the backward's last kernels, for dQ, dE and dlam; formulas in its first file."""

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
    strength,
    tile,
    tile_product,
)


@triton.jit
def _store_queries(
    x,
    dq,
    de,
    f,
    side,
    sums,
    stride_n,
    stride_d,
    stride_en,
    stride_er,
    left,
    scale,
    factor,
    rank,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
):
    """Columns START.. of [dQ | a]: dQ to dq, dE to de; returns each row's part of dlam stretch^2.

    Args beyond the names above: sums is s + c, factor is 2 lam / stretch.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = START + tl.arange(0, COLUMNS)[None, :]
    part = tl.zeros((ROWS,), tl.float32)
    if START < D:
        at = row.to(tl.int64) * stride_n + column.to(tl.int64) * stride_d
        tl.store(dq + at, (x * scale).to(dq.dtype.element_ty), mask=(row < left) & (column < D))
    if START + COLUMNS > D:
        lane = column - D
        inside = (row < left) & (lane >= 0) & (lane < rank)
        place = tl.load(f + row * LANES + lane, mask=inside, other=0.0).to(tl.float32)
        other = tl.load(side + row * LANES + lane, mask=inside, other=0.0)
        moved = sums[:, None] * place
        at = row.to(tl.int64) * stride_en + lane.to(tl.int64) * stride_er
        tl.store(de + at, (factor * (x + other - moved)).to(de.dtype.element_ty), mask=inside)
        part = tl.sum(tl.where(inside, place * (2.0 * x - moved), 0.0), 1)
    return part


@triton.jit(
    repr=lambda _: "ovsdino_backward_queries", do_not_specialize=PLAIN
)  # the name that profilers and sanitizers see
def _backward_queries(
    q,
    k,
    v,
    f,
    own_f,
    near,
    column,
    weighted,
    level,
    delta,
    lam,
    side,
    sums,
    dq,
    de,
    dlam,
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
    stride_lam,
    stride_dqb,
    stride_dqm,
    stride_dqn,
    stride_dqd,
    stride_deb,
    stride_dem,
    stride_den,
    stride_der,
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
    """dQ, dE and what each query adds to dlam (B, M, N), for BLOCK_M of the queries (`tokens`); after `_backward_keys`.

    f and column are those of the keys (`others`), own_f that of the queries.
    """
    blocks = tl.cdiv(tokens, BLOCK_M)
    head = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_M
    batch = (head // heads).to(tl.int64)
    m = (head % heads).to(tl.int64)
    own = head.to(tl.int64) * tokens
    wide = start.to(tl.int64)
    left = tokens - start
    at = tl.arange(0, BLOCK_M)
    inside = at < left
    q += batch * stride_qb + m * stride_qm + wide * stride_qn
    near += (own + wide) * LANES
    qn0 = joint(q, near, stride_qn, stride_qd, left, BLOCK_M, 0, D0, D, True)
    qn1 = qn0
    dq0 = tl.zeros((BLOCK_M, D0), tl.float32)
    dq1 = dq0
    if D1 > 0:
        qn1 = joint(q, near, stride_qn, stride_qd, left, BLOCK_M, D0, D1, D, True)
        dq1 = tl.zeros((BLOCK_M, D1), tl.float32)
    weighted += (own + wide) * DV
    given = tile(weighted, DV, 1, left, BLOCK_M, 0, V0, DV, True)
    height = tl.load(level + own + wide + at, mask=inside, other=float("inf"))
    mean = tl.load(delta + own + wide + at, mask=inside, other=0.0)
    total = tl.zeros((BLOCK_M,), tl.float32)

    k += batch * stride_kb + m * stride_km
    v += batch * stride_vb + m * stride_vm
    f += head.to(tl.int64) * others * LANES
    column += head.to(tl.int64) * others
    slope = scale * LOG2E
    k_at = joint_places(k, f, stride_kn, stride_kd, BLOCK_N, 0, D0, D)
    k_step = joint_step(stride_kn, BLOCK_N, 0, D0, D)
    if D1 > 0:
        tail_at = joint_places(k, f, stride_kn, stride_kd, BLOCK_N, D0, D1, D)
        tail_step = joint_step(stride_kn, BLOCK_N, D0, D1, D)
    v_at = places(v, stride_vn, stride_vd, BLOCK_N, 0, V0)
    v_step = tl.full((1, 1), BLOCK_N, tl.int64) * stride_vn
    last = (others - 1) // BLOCK_N * BLOCK_N
    bias = numbers(column, others, BLOCK_N, float("-inf"), TAIL)
    for key in range(0, others, BLOCK_N):
        rest = others - key
        logits = tl.broadcast_to(bias[None, :], (BLOCK_M, BLOCK_N))
        ahead = tl.minimum(key + BLOCK_N, last)
        bias = numbers(column + ahead, others - ahead, BLOCK_N, float("-inf"), TAIL)
        k0 = read(k_at, rest, BLOCK_N, 0, D0, D + LANES, TAIL)
        k_at += k_step
        if D1 > 0:
            k1 = read(tail_at, rest, BLOCK_N, D0, D1, D + LANES, TAIL)
            tail_at += tail_step
        if k0.dtype == tl.float32:
            far = tl.cast(key, tl.int64)
            logits += joint_product(
                q, near, stride_qn, stride_qd, left, k + far * stride_kn, f + far * LANES, stride_kn, stride_kd, rest,
                BLOCK_M, BLOCK_N, D0 + D1, D,
            )  # fmt: skip
            values = v + far * stride_vn
            slopes = tile_product(weighted, DV, 1, left, values, stride_vn, stride_vd, rest, BLOCK_M, BLOCK_N, V0, DV)
        else:
            logits = tl.dot(qn0, tl.trans(k0), logits)
            if D1 > 0:
                logits = tl.dot(qn1, tl.trans(k1), logits)
            slopes = tl.dot(given, tl.trans(read(v_at, rest, BLOCK_N, 0, V0, DV, TAIL)))
            v_at += v_step
        weights = softmax(logits * slope - height[:, None])
        slopes = (weights * (slopes - mean[:, None])).to(k0.dtype)
        dq0 = tl.dot(slopes, k0, dq0, input_precision="ieee")
        if D1 > 0:
            dq1 = tl.dot(slopes, k1, dq1, input_precision="ieee")
        if FULL:
            total += tl.sum(slopes.to(tl.float32), 1)

    if not FULL:
        total = picked(dq0, 0, D0, D + rank)
        if D1 > 0:
            total += picked(dq1, D0, D1, D + rank)
    total += tl.load(sums + own + wide + at, mask=inside, other=0.0)
    strong = tl.load(lam + m * stride_lam).to(tl.float32)
    _, stretch = strength(strong, scale)
    factor = 2.0 * strong / stretch
    own_f += (own + wide) * LANES
    side += (own + wide) * LANES
    dq += batch * stride_dqb + m * stride_dqm + wide * stride_dqn
    de += batch * stride_deb + m * stride_dem + wide * stride_den
    part = _store_queries(
        dq0, dq, de, own_f, side, total, stride_dqn, stride_dqd, stride_den, stride_der, left, scale, factor, rank,
        BLOCK_M, 0, D0, D,
    )  # fmt: skip
    if D1 > 0:
        part += _store_queries(
            dq1, dq, de, own_f, side, total, stride_dqn, stride_dqd, stride_den, stride_der, left, scale, factor, rank,
            BLOCK_M, D0, D1, D,
        )  # fmt: skip
    tl.store(dlam + own + wide + at, part / (stretch * stretch), mask=inside)


@triton.jit(
    repr=lambda _: "ovsdino_backward_places", do_not_specialize=PLAIN
)  # the name that profilers and sanitizers see
def _backward_places(
    f,
    lam,
    side,
    sums,
    de,
    dlam,
    stride_lam,
    stride_deb,
    stride_dem,
    stride_den,
    stride_der,
    tokens,
    heads,
    rank,
    scale,
    BLOCK_N: tl.constexpr,
):
    """Make dE' of BLOCK_N keys of a head, whose structure is its own input, and what each adds to dlam (B, M, L)."""
    blocks = tl.cdiv(tokens, BLOCK_N)
    head = tl.program_id(0) // blocks
    start = tl.program_id(0) % blocks * BLOCK_N
    own = head.to(tl.int64) * tokens + start
    row = tl.arange(0, BLOCK_N)
    lane = tl.arange(0, LANES)[None, :]
    here = start + row < tokens
    inside = here[:, None] & (lane < rank)
    at = (own + row[:, None]) * LANES + lane
    place = tl.load(f + at, mask=inside, other=0.0).to(tl.float32)
    moved = tl.load(sums + own + row, mask=here, other=0.0)[:, None] * place
    strong = tl.load(lam + head % heads * stride_lam).to(tl.float32)
    _, stretch = strength(strong, scale)
    found = 2.0 * strong / stretch * (tl.load(side + at, mask=inside, other=0.0) - moved)
    de += (head // heads).to(tl.int64) * stride_deb + (head % heads).to(tl.int64) * stride_dem
    to = de + (start + row[:, None]).to(tl.int64) * stride_den + lane.to(tl.int64) * stride_der
    tl.store(to, found.to(de.dtype.element_ty), mask=inside)
    tl.store(dlam + own + row, -tl.sum(place * moved, 1) / (stretch * stretch), mask=here)
