"""Helpers that the kernels of structure attention share: reading tiles of [x | f], and how e is scaled."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

RANK = 16  # f is padded to this; where r < 16, lane r holds 1, and sums over weights times f hold those of the weights
LANES = tl.constexpr(RANK)
# Integers whose being 1 or a multiple of 16 makes no kernel faster. Triton compiles one for each that is told apart.
PLAIN = (
    *("heads", "rank", "stride_lam", "stride_eb", "stride_em", "stride_en", "stride_deb", "stride_dem", "stride_den"),
    *(
        "stride_cb",
        "stride_cm",
        "stride_cn",
        "stride_gb",
        "stride_gm",
        "stride_gn",
        "stride_dgb",
        "stride_dgm",
        "stride_dgn",
    ),
)
LOG2E = tl.constexpr(1.4426950408889634)


class Sizes(NamedTuple):
    """The cuts of the rows [x | f], d + 16 wide, and of those of v, into the power-of-two chunks of `tl.dot`."""

    d: int
    first: int
    second: int
    dv: int
    values: int

    @classmethod
    def of(cls, d: int, dv: int) -> Sizes:
        """Return d + 16 in one or two chunks, whichever is shorter (d = 48: 64; 40: 64; 64: 64 + 16), and dv in one.

        That one is at least 64 wide: of a narrower one, ptxas 12.8 for sm_90 read the second slice through a register
        that held something else (a 64-bit addition whose halves name one register). The sums were wrong, or the kernel
        stopped with an illegal address.
        """
        width = d + RANK
        whole = triton.next_power_of_2(width)
        half = whole // 2
        rest = max(16, triton.next_power_of_2(width - half))
        first, second = (half, rest) if half >= 16 and half + rest < whole else (whole, 0)
        return cls(d, first, second, dv, max(64, triton.next_power_of_2(dv)))

    def constants(self) -> dict[str, int]:
        """Return the constexpr arguments of every kernel."""
        return {"D": self.d, "D0": self.first, "D1": self.second, "DV": self.dv, "V0": self.values}


@triton.jit
def strength(lam, scale):
    """(ratio, stretch) of a head: scale ratio stretch^2 = 2 lam.

    stretch = sqrt(2 lam / scale) and ratio = 1 where that is at least 1. Below, ratio is the power of four that brings
    stretch into [1, 2): products with it are exact, and lam = 0 still has an f, which the gradient of lam needs.
    """
    root = tl.sqrt(2.0 * lam / scale)
    power = (root.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    power = tl.minimum(power, 1.0)
    stretch = tl.where(power > 0.0, root / tl.maximum(power, 1e-30), 1.0)
    return power * power, stretch


@triton.jit
def numbers(pointer, left, COUNT: tl.constexpr, OTHER: tl.constexpr, TAIL: tl.constexpr):
    """COUNT float32 values, one per token; OTHER past `left` if TAIL."""
    at = tl.arange(0, COUNT)
    if TAIL:
        return tl.load(pointer + at, mask=at < left, other=OTHER)
    else:
        return tl.load(pointer + at)


@triton.jit
def softmax(logits):
    """2^x of logits to base 2 from which the logarithm of the row's sum is taken: at most 1.

    Products add in another order than in the forward kernel. Where logits are in the billions they then differ by more
    than 128, and without the limit a weight would be infinite.
    """
    return tl.exp2(tl.minimum(logits, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def places(pointer, stride_n, stride_c, ROWS: tl.constexpr, START: tl.constexpr, COLUMNS: tl.constexpr):
    """Return pointers to columns START.. of ROWS rows of a matrix, the first row at `pointer`."""
    row = tl.arange(0, ROWS)[:, None]
    column = START + tl.arange(0, COLUMNS)[None, :]
    return pointer + row.to(tl.int64) * stride_n + column.to(tl.int64) * stride_c


@triton.jit
def joint_places(
    x,
    f,
    stride_n,
    stride_c,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
):
    """Return pointers to columns START.. of ROWS rows of [x | f], D + 16 wide, in the two where they lie."""
    if START + COLUMNS <= D:
        return places(x, stride_n, stride_c, ROWS, START, COLUMNS)
    elif START >= D:
        return places(f, LANES, 1, ROWS, START - D, COLUMNS)
    else:
        row = tl.arange(0, ROWS)[:, None]
        column = START + tl.arange(0, COLUMNS)[None, :]
        in_f = f + row * LANES + (column - D)
        return tl.where(column < D, places(x, stride_n, stride_c, ROWS, START, COLUMNS), in_f)


@triton.jit
def joint_step(stride_n, ROWS: tl.constexpr, START: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr):
    """Return what takes `joint_places` to the next ROWS rows.

    Pointers that a loop keeps and moves cost it one addition; made anew, a tile's took 48 instructions a turn on sm_90.
    """
    column = START + tl.arange(0, COLUMNS)[None, :]
    return tl.where(column < D, tl.full((1, COLUMNS), ROWS, tl.int64) * stride_n, ROWS * LANES)


@triton.jit
def read(
    at,
    left,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    AGAIN: tl.constexpr = False,
):
    """Return what `places` of a matrix WIDTH wide hold; zeros outside and, if TAIL, past `left` rows.

    AGAIN reads it at every turn of a loop instead of keeping it in registers.
    """
    row = tl.arange(0, ROWS)[:, None]
    column = START + tl.arange(0, COLUMNS)[None, :]
    if TAIL and START + COLUMNS > WIDTH:
        return tl.load(at, mask=(row < left) & (column < WIDTH), other=0.0, volatile=AGAIN)
    elif TAIL:
        return tl.load(at, mask=row < left, other=0.0, volatile=AGAIN)
    elif START + COLUMNS > WIDTH:
        return tl.load(at, mask=column < WIDTH, other=0.0, volatile=AGAIN)
    else:
        return tl.load(at, volatile=AGAIN)


@triton.jit
def tile(
    pointer,
    stride_n,
    stride_c,
    left,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    AGAIN: tl.constexpr = False,
):
    """`read` of `places`."""
    at = places(pointer, stride_n, stride_c, ROWS, START, COLUMNS)
    return read(at, left, ROWS, START, COLUMNS, WIDTH, TAIL, AGAIN)


@triton.jit
def joint(
    x,
    f,
    stride_n,
    stride_c,
    left,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    D: tl.constexpr,
    TAIL: tl.constexpr,
    AGAIN: tl.constexpr = False,
):
    """`read` of `joint_places`."""
    at = joint_places(x, f, stride_n, stride_c, ROWS, START, COLUMNS, D)
    return read(at, left, ROWS, START, COLUMNS, D + LANES, TAIL, AGAIN)


@triton.jit
def joint_product(
    x,
    fx,
    stride_xn,
    stride_xc,
    x_left,
    y,
    fy,
    stride_yn,
    stride_yc,
    y_left,
    X_ROWS: tl.constexpr,
    Y_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
):
    """[x | fx] [y | fy]^T, 16 columns at a time: for float32, where whole rows of both would fill the registers."""
    product = tl.zeros((X_ROWS, Y_ROWS), tl.float32)
    for start in tl.static_range(0, WIDTH, 16):
        a = joint(x, fx, stride_xn, stride_xc, x_left, X_ROWS, start, 16, D, True, True)
        b = joint(y, fy, stride_yn, stride_yc, y_left, Y_ROWS, start, 16, D, True, True)
        product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
    return product


@triton.jit
def tile_product(
    x,
    stride_xn,
    stride_xc,
    x_left,
    y,
    stride_yn,
    stride_yc,
    y_left,
    X_ROWS: tl.constexpr,
    Y_ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Return x y^T in the same way."""
    product = tl.zeros((X_ROWS, Y_ROWS), tl.float32)
    for start in tl.static_range(0, PADDED, 16):
        a = tile(x, stride_xn, stride_xc, x_left, X_ROWS, start, 16, WIDTH, True, True)
        b = tile(y, stride_yn, stride_yc, y_left, Y_ROWS, start, 16, WIDTH, True, True)
        product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
    return product


@triton.jit
def picked(x, START: tl.constexpr, COLUMNS: tl.constexpr, wanted):
    """Column `wanted` of a wide matrix of which x holds COLUMNS from START; zeros if it is not among them."""
    column = START + tl.arange(0, COLUMNS)[None, :]
    return tl.sum(tl.where(column == wanted, x, 0.0), 1)
