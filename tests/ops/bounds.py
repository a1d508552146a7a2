"""How far rounding alone can take each op and each gradient from its float64 value, on any CPU, GPU or BLAS.

Each formula is computed in float64 `DRAWS` times with a random error where a backend rounds (Monte Carlo arithmetic:
Parker, 1997), in the steps that the backend takes. The bound of an element is `SAFETY` times the root mean square of
what these errors do to it. It knows the cancellations of the formula and the sizes of its terms, but not the order of
any sum nor the luck of one implementation on one machine. With u = eps/2 of the dtype of the step:

- A value that is stored is off by at most u |x|; drawn with that as the standard deviation, 1.7 times a uniform one's.
- A sum S of n terms t, added one by one, rounds partial sums S_k, each by u |S_k| / sqrt(3) in the mean square. Terms
  of random signs have S_k^2 near k t^2, which adds up to 0.4 u n t; terms of one sign have S_k = k t, which adds up to
  u n^1.5 t / 3. Both are below u sqrt(n) (|t| + |S|), |t| the Euclidean norm of the terms, and every other order
  (lanes, blocks, pairs) has smaller partial sums; that is what is drawn. Beyond `BLOCK` terms every BLAS and torch.sum
  add block by block.
- An exponential is off by up to `EXP` units in the last place of float32.

The errors of many roundings are near normal, so an element beyond its bound is not a rounding: 8 standard deviations,
of which an estimate from 16 draws gives at least 4 in 999 of 1000 elements, and the model's are at least twice the
real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ovsdino.ops.guided_upsample import from_blocks, neighbour_bias, neighbours, neighbours_adjoint, to_blocks

EPS = torch.finfo(torch.float32).eps
EXP = 20.0  # at::vec::Vectorized::exp_u20, in torch's attention kernels on AVX2 and AVX-512
BLOCK = 1024
DRAWS = 16
SAFETY = 8.0


@cache
def normals() -> Tensor:
    """Normal numbers to read from a random place on: drawing each anew takes ten times as long as the formulas."""
    return torch.randn(1_000_003, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass
class Rounding:
    """Random errors of the steps of one computation; none with `level` 0.

    Args:
        store: eps of the dtype that values between the steps are stored in.
        sums: eps of the dtype that sums are added up in.
        level: 1, or 0 for the exact computation.
        random: what draws the errors.
    """

    store: float
    sums: float
    level: float
    random: torch.Generator

    def _drawn(self, x: Tensor) -> Tensor:
        if not self.level:
            return torch.zeros((), dtype=x.dtype, device=x.device)
        table = normals()
        start = int(torch.randint(len(table), (), generator=self.random))
        drawn = table[start : start + x.numel()]
        while len(drawn) < x.numel():
            drawn = torch.cat([drawn, table[: x.numel() - len(drawn)]])
        return self.level / 2 * drawn.view(x.shape).to(x.device)

    def stored(self, x: Tensor) -> Tensor:
        return x + self.store * x * self._drawn(x)

    def wide(self, x: Tensor) -> Tensor:
        """x rounded in the dtype of the sums."""
        return x + self.sums * x * self._drawn(x)

    def _added(self, total: Tensor, squares: Tensor, terms: int) -> Tensor:
        growth = max(min(terms, BLOCK), 1) ** 0.5
        return total + self.sums * growth * (squares.sqrt() + total.abs()) * self._drawn(total)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return self._added(a @ b, a.square() @ b.square(), a.shape[-1])

    def total(self, x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        kept = x.sum(dim)
        return self._added(kept, x.square().sum(dim), x.numel() // max(kept.numel(), 1))

    def weights(self, scores: Tensor) -> Tensor:
        """The softmax of scores; a row's denominator, or its logarithm, is rounded too, so rows do not add up to 1."""
        scores = self.wide(scores) + EXP / 2 * EPS * self._drawn(scores)
        largest = scores.amax(-1, keepdim=True)
        raised = (scores - largest).exp()
        total = self.total(raised, -1).unsqueeze(-1)
        level = largest + total.log()
        return self.wide(raised / total * (1 + self.sums * (1 + level.abs()) * self._drawn(level)))


def bounds(compute: Callable[[Rounding], list[Tensor]], dtype: torch.dtype, backend: str, halves: bool) -> list[Tensor]:
    """The bound of each element of what `compute` gives.

    Kernels of ours keep all but inputs and results in float32, `halves` those with 16-bit operands of matrix units. The
    reference is plain PyTorch in the dtype of its inputs, some of its sums included.
    """
    eps = torch.finfo(dtype).eps
    wide = eps if backend == "reference" else min(eps, EPS)
    store = eps if halves or backend == "reference" else wide
    random = torch.Generator().manual_seed(0)
    exact = compute(Rounding(store, wide, 0.0, random))
    squares = [torch.zeros_like(x) for x in exact]
    for _ in range(DRAWS):
        for square, x, true in zip(squares, compute(Rounding(store, wide, 1.0, random)), exact, strict=True):
            square += (x - true).square() / DRAWS
    return [SAFETY * x.sqrt() for x in squares]


def attention(
    inputs: tuple, scale: float, dtype: torch.dtype, backend: str, grad: Tensor | None = None
) -> list[Tensor]:
    """Bounds for structure_attention: of the output, and with `grad` of the gradients of all inputs that are there.

    How the distance is computed decides its error. "sdpa" folds it into products of operands rounded to the dtype,
    which cancel: 2 lam e.e' - lam |e'|^2. The kernels round e first and take the distance of that, in products whose
    sums cancel. The reference subtracts first.

    Args:
        inputs: q, k, v, e, lam, gate or None and, for keys of other tokens, key_e, float64.
        scale: factor of q.k.
        dtype: of the inputs that the backend was given.
        backend: its name.
        grad: gradient of the output, float64.
    """
    q, k, v, e, lam, gate, *rest = inputs
    shift = (rest[0] if rest else e).mean(2, keepdim=True) if v.numel() else 0.0
    e, key_e = e - shift, rest[0] - shift if rest else None
    strength = lam[:, None, None]
    folded = backend == "sdpa"

    def compute(at: Rounding) -> list[Tensor]:
        def placed(x: Tensor) -> Tensor:
            return at.wide(x) if backend == "reference" else at.stored(at.wide(x))

        places = placed(e)
        partners = places if key_e is None else placed(key_e)
        square_q, square = places.square().sum(-1, keepdim=True), partners.square().sum(-1, keepdim=True)
        scaled = at.stored(q * scale)
        if folded:
            twice, column = at.stored(2 * strength * at.wide(e)), at.stored(-strength * at.wide(square))
            scores = at.product(torch.cat([scaled, twice], -1), torch.cat([k, partners], -1).mT) + column.mT
        else:
            inner = places @ partners.mT
            distance = (square_q + square.mT - 2 * inner).clamp(min=0)
            if backend == "reference":
                distance = at.stored(distance + at.sums * e.shape[-1] ** 0.5 * distance * at._drawn(distance))
                scores = at.stored(at.stored(at.product(scaled, k.mT)) - at.stored(strength * distance))
            else:
                most = strength * (square_q + square.mT + 2 * inner.abs())
                growth = (q.shape[-1] + e.shape[-1] + 1) ** 0.5
                scores = at.product(scaled, k.mT) - strength * distance + at.sums * growth * most * at._drawn(most)
        p = at.weights(scores)
        kept = at.stored(p)
        plain = at.stored(at.product(kept, v))
        gates = torch.ones_like(q[..., 0]) if gate is None else gate
        found = [at.stored(plain * gates.unsqueeze(-1))]
        if grad is None:
            return found
        outer = at.stored(grad * gates.unsqueeze(-1))
        slope = at.stored(at.product(outer, v.mT))
        ds = at.stored(kept * (slope - at.total(outer * plain, -1).unsqueeze(-1)))
        # The gradient of the scores -lam |e_i - e'_j|^2, by products with the places and sums over columns. The sums
        # over rows are 0, but for what rounding leaves; only the reference, and the kernels where the keys are other
        # tokens, have them.
        near, far, sums = at.product(ds, partners), at.product(ds.mT, places), at.total(ds, -2).unsqueeze(-1)
        left = at.total(ds, -1).unsqueeze(-1)
        if folded:
            near, sums, left = at.stored(near), at.stored(sums), torch.zeros_like(left)
        parts = [at.stored(2 * near * places).flatten(2), at.wide(-sums * square).flatten(2)]
        if key_e is not None:
            parts.append(at.wide(-left * square_q).flatten(2))
        of_lam = at.total(torch.cat(parts, -1), (0, 2))
        if backend == "reference":
            near, of_lam = at.stored(near), at.total(at.stored(-ds * distance), (0, 2, 3))
            sums = sums + left if key_e is None else sums
        if key_e is None:
            pulled = [2 * strength * (near + at.stored(far) - at.stored(sums * places))]
        else:
            pulled = [2 * strength * (near - at.stored(left * places))]
            pulled.append(2 * strength * (at.stored(far) - at.stored(sums * partners)))
        if e.numel():  # the gradient of the shift, of the keys
            pulled[-1] = pulled[-1] - sum(x.sum(2, keepdim=True) for x in pulled) / pulled[-1].shape[2]
        found += [
            at.stored(scale * at.stored(at.product(ds, k))),
            at.stored(at.product(ds.mT, scaled)),
            at.stored(at.product(kept.mT, outer)),
            at.stored(pulled[0]),
            of_lam,
        ]
        found += [] if gate is None else [at.stored(at.total(at.stored(grad * plain), -1))]
        return found + [at.stored(x) for x in pulled[1:]]

    return bounds(compute, dtype, backend, halves=True)


def guided(inputs: tuple, dtype: torch.dtype, backend: str, grad: Tensor | None = None) -> list[Tensor]:
    """Bounds for guided_upsample: of the output, and with `grad` of the gradients of logits, guides and beta.

    The scores are beta (2 G_hi.G_lo - |G_lo|^2) minus the squared distance in the grid: large terms that cancel. The
    CUDA kernels and their bodies take -beta |G_hi - G_lo|^2 instead, and the gradients from the same differences: what
    rounding leaves of sum_j ds_ij, which is 0, meets G_hi there. "native" is any kernel, and on CUDA 16 bits, of which
    tensor cores make the result and differences the gradients: the larger of both bounds.
    """
    if backend == "native" or (backend == "cuda" and dtype.itemsize == 2):
        both = (guided(inputs, dtype, name, grad) for name in ("cpu", "cuda body"))
        return [torch.maximum(a, b) for a, b in zip(*both, strict=True)]
    offsets = backend.startswith("cuda")
    logits, guide_lo, guide_hi, beta = inputs
    batch, _, h, w = logits.shape
    scale = guide_hi.shape[2] // h
    bias = neighbour_bias(h, w, scale, logits.device, torch.float64).clamp(min=-1e4).repeat(batch, 1, 1)
    high, low, values = to_blocks(guide_hi, scale), neighbours(guide_lo), neighbours(logits).mT
    square_hi = high.square().sum(-1, keepdim=True)

    def compute(at: Rounding) -> list[Tensor]:
        square = at.total(low.square(), 1).unsqueeze(1)
        similarity = at.wide(2 * at.stored(at.product(high, low)) - square)
        if offsets:
            apart = square_hi + low.square().sum(1, keepdim=True) - 2 * high @ low
            similarity = -at._added(apart, apart.square(), low.shape[1])
        p = at.stored(at.weights(at.wide(beta * similarity) + at.wide(bias)))
        found = [from_blocks(at.product(p, values), batch, h, w, scale)]
        if grad is None:
            return found
        outer = to_blocks(grad, scale)
        slope = at.stored(at.product(outer, values.mT))
        ds = at.stored(p * (slope - at.total(p * slope, -1).unsqueeze(-1)))
        columns = at.total(ds, 1).unsqueeze(1)
        pulled = at.product(ds, low.mT)
        if offsets:
            pulled = pulled - at.total(ds, -1).unsqueeze(-1) * high

        def gathered(x: Tensor) -> Tensor:
            x = at.stored(x).contiguous()
            squares = neighbours_adjoint(x.square(), batch, h, w)
            return at._added(neighbours_adjoint(x, batch, h, w), squares, low.shape[-1])

        return [
            *found,
            gathered(at.product(outer.mT, p)),
            gathered(2 * beta * (at.product(high.mT, ds) - low * columns)),
            from_blocks(at.stored(2 * beta * pulled), batch, h, w, scale),
            at.total(at.wide(ds * similarity), (0, 1, 2)),
        ]

    return bounds(compute, dtype, backend, halves=False)


def pool(
    features: Tensor, weights: Tensor, dtype: torch.dtype, grads: tuple[Tensor, Tensor] | None = None
) -> list[Tensor]:
    """Bounds for mask_pool: of means and areas, and with `grads` of the gradients of features and masks.

    Every backend converts to float32 (float64 for float64); only the means are rounded to the features' dtype.

    Args:
        features: (B, N, C) float64.
        weights: (B, M, N) float64, the masks' weights.
        dtype: of the features that the backend was given.
        grads: gradients of means and areas, float64.
    """
    low = torch.finfo(dtype).eps

    def compute(at: Rounding) -> list[Tensor]:
        area = at.total(weights, -1)
        inverse = at.wide(torch.where(area == 0, 0.0, 1 / area)).unsqueeze(-1)
        means = at.wide(at.product(weights, features) * inverse)
        found = [means, area]
        if grads is None:
            return found
        scaled = at.wide(inverse * grads[0])
        inner = at.total(scaled * (means + low * means * at._drawn(means)), -1).unsqueeze(-1)
        of_masks = at.wide(at.wide(at.product(scaled, features.mT) - inner) + grads[1].unsqueeze(-1))
        return [*found, at.product(weights.mT, scaled), of_masks]

    return bounds(compute, dtype, "cpu", halves=False)


def interpolation(logits: Tensor, size: tuple[int, int], dtype: torch.dtype, backend: str) -> Tensor:
    """The largest error of each bilinear value, (B, 1, 1, 1).

    A position is the rounded product of a rounded ratio: up to h rows it is off by eps h, over which a value changes by
    at most twice the largest magnitude. Weights and sums take 4 eps; the reference rounds its result to the dtype.
    """
    stored = torch.finfo(dtype).eps if backend == "reference" else EPS
    return logits.abs().amax((1, 2, 3), keepdim=True) * (2 * EPS * (logits.shape[2] + logits.shape[3] + 2) + stored)
