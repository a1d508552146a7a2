"""The rows of benchmarks/ops.py: each op by each backend that can run, and what it is compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovsdino.benchmarks.lib.inputs import blobs, image_logits, resized
from ovsdino.benchmarks.lib.rivals import (
    attention_by_blocks,
    bag_of_tokens,
    compiled,
    interpolated_argmax,
    library_resizes,
    numba_labels,
    opencv_confidence,
    opencv_labels,
)
from ovsdino.models.backbone import freeze
from ovsdino.models.zoo import build_model
from ovsdino.ops import (
    available,
    guided_upsample,
    mask_pool,
    preprocess,
    structure_attention,
    upsample_argmax,
    use_backend,
)
from ovsdino.ops.dispatch import why_not
from ovsdino.ops.guided_upsample import guided_upsample_reference
from ovsdino.ops.preprocess import preprocess_reference
from ovsdino.ops.structure_attention import structure_attention_folded, structure_attention_reference

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Rival = tuple[str, Callable[..., object], float | None]  # name, function, floor
LATE = ("numba", "torch.compile")  # rivals that are compiled first, which takes too long for --quick
# Of the bound: the floor of the memory-bound ops on a GPU. Bounds of these cases on an H200 are 0.9 to 5 microseconds,
# but for one, and no row has met it there (docs/kernels.md).
GPU_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: two functions of the same inputs that do the same, and the least bytes and operations it takes."""

    op: str
    case: str
    baseline_name: str
    inputs: tuple
    ours: Callable[..., object]
    baseline: Callable[..., object]
    dtype: str = "float32"
    floor: float | None = None
    bytes: float = 0.0
    operations: float = 0.0
    backend: str = "auto"  # of `ours`
    slow: bool = False  # left out of --quick
    memory: bool = False  # peak extra memory is measured
    share: bool = False  # on a GPU a second row has the share of the bound that is reached
    # For the table that "auto" reads (ovsdino.ops.measured): the backend that the baseline is, and what it counts.
    rival: str = ""
    size: int = 0
    gradient: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The device and the sizes: `gpu` chooses the rows of a GPU, on any device; `tiny` the least sizes."""

    device: str
    gpu: bool
    tiny: bool = False

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.gpu else torch.float32

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return normal numbers, drawn on the CPU: a graph capture that failed leaves CUDA's generator unusable."""
        return torch.randn(*shape).to(self.device, dtype or self.dtype)

    def backends(self, op: str, without: tuple[str, ...] = ("reference",)) -> list[str]:
        """Return the backends of an op that can run here."""
        return [name for name in available(op, self.device) if name not in without]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype)[6:]


def step(function: Callable[..., Tensor], leaves: int) -> Callable[..., object]:
    """Forward and backward: of the arguments, the last is the gradient of the result, the first `leaves` get one."""
    return lambda *x: torch.autograd.grad(function(*x[:-1]), x[:leaves], x[-1])


def upsample_cases(s: Setting) -> Iterator[Case]:
    """Yield cases of the segmentation head: 150 classes from tokens of patch 14, 19 from 4 times finer logits."""
    size = (s.size(1024, 40), s.size(2048, 80))
    image, source = image_logits(s.device)
    h, w = s.size(73, 5), s.size(146, 7)
    # The floors: against torch's interpolate + argmax, and against the strongest rivals.
    grids = [
        (f"150x({h}x{w})", "random", s.randn(1, 150, h, w, dtype=torch.float32), 50.0, 8.0),
        (f"150x({h}x{w})", source, resized(image, h, w), 100.0, 20.0),
        (f"19x({4 * h}x{4 * w})", "random", s.randn(1, 19, 4 * h, 4 * w, dtype=torch.float32), 25.0, 2.5),
        (f"19x({4 * h}x{4 * w})", source, resized(image[:, :19], 4 * h, 4 * w), 25.0, 5.0),
    ]

    def full_softmax(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=False).softmax(1).max(1).values

    for shape, kind, logits, floor, floor_strongest in grids:
        case = f"{shape}->{size[0]}x{size[1]}, {kind}"
        operations = work_of_labels(logits, size) if s.gpu else 0.0
        rivals: list[Rival] = [("interpolate + argmax", sized(interpolated_argmax, size), None if s.gpu else floor)]
        confidences: list[Rival] = [("interpolate + softmax + max", full_softmax, None)]
        if not s.gpu:
            rivals += [("OpenCV resize by class, running maximum", sized(opencv_labels, size), floor_strongest)]
            rivals += [("numba, one loop", sized(numba_labels, size), floor_strongest)]
            rivals += [("torch.compile of interpolate + argmax", sized(compiled(interpolated_argmax), size), None)]
            confidences += [("OpenCV resize by class, twice", sized(opencv_confidence, size), None)]
        for backend in s.backends("upsample_argmax"):
            for name, rival, least in rivals:
                yield Case(
                    op="upsample_argmax", case=case, baseline_name=name, inputs=(logits,),
                    ours=lambda x: upsample_argmax(x, size), baseline=rival, floor=least,
                    bytes=logits.numel() * 4 + size[0] * size[1], operations=operations, backend=backend,
                    memory=True, share=True, slow=name.startswith(LATE),
                )  # fmt: skip
            for name, rival, _ in confidences if kind != "random" else ():
                yield Case(
                    op="upsample_argmax", case=f"{case}, confidence", baseline_name=name,
                    inputs=(logits,), ours=lambda x: upsample_argmax(x, size, confidence=True), baseline=rival,
                    bytes=logits.numel() * 4 + size[0] * size[1] * 5, backend=backend, slow=True,
                )  # fmt: skip


def sized(function: Callable[..., Tensor], size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    return lambda logits: function(logits, size)


def work_of_labels(logits: Tensor, size: tuple[int, int]) -> float:
    """Floating-point operations of `upsample_argmax` on these logits, with every class that cannot win left out.

    8 a class and cell (the least and the largest of four corners, two comparisons), and 7 a pixel and class whose
    largest corner in the cell reaches the largest least corner (three interpolations, a comparison).
    """
    low, high = -F.max_pool2d(-logits, 2, 1), F.max_pool2d(logits, 2, 1)
    survivors = (high >= low.amax(1, keepdim=True)).sum().item()
    cells = logits[0, 0].numel()
    return 8.0 * logits.numel() + 7.0 * survivors * size[0] * size[1] / cells


def pool_cases(s: Setting) -> Iterator[Case]:
    """256 masks of 3 % area on 64x64 tokens, C = 768: what SAM makes of an image, for a ViT-B."""
    count, side, channels = s.size(256, 8), s.size(64, 16), s.size(768, 32)
    tokens = side * side
    masks = blobs(count, side, 0.03).to(s.device)

    def dense(features: Tensor, given: Tensor) -> Tensor:
        weights = masks.to(features.dtype)
        return torch.einsum("bmn,bnc->bmc", weights, features) / weights.sum(-1, keepdim=True)

    def index_add(features: Tensor, given: Tensor) -> Tensor:
        _, mask, token = masks.nonzero(as_tuple=True)
        sums = features.new_zeros(count, channels).index_add_(0, mask, features[0, token])
        return (sums / masks[0].sum(-1, keepdim=True))[None]

    title = f"{count} bool masks of 3 %, {side}x{side} tokens, C={channels}"

    def by_product(features: Tensor, given: Tensor) -> object:
        with use_backend("dense"):
            return mask_pool(features, given)

    for backend in s.backends("mask_pool", without=("reference",) if s.gpu else ("reference", "dense")):
        for dtype in (torch.float16, torch.bfloat16) if s.gpu else (torch.float32, torch.bfloat16):
            features = s.randn(1, tokens, channels, dtype=dtype)
            moved = (tokens + count) * channels * features.element_size()
            main = dtype in (torch.float32, torch.float16)
            others: list[Rival] = [("einsum on converted masks", dense, 4.0 if main and not s.gpu else None)]
            others += [("embedding_bag of the set tokens", bag_of_tokens, 2.0 if main and not s.gpu else None)]
            others += [("index_add of the set tokens", index_add, None)] if main else []
            if s.gpu and backend != "dense":
                yield Case(
                    op="mask_pool", case=title, baseline_name="its dense backend", inputs=(features, masks),
                    ours=mask_pool, baseline=by_product, dtype=name_of(dtype), bytes=moved + masks.numel(),
                    backend=backend, rival="dense", size=tokens,
                )  # fmt: skip
            for name, baseline, floor in others:
                yield Case(
                    op="mask_pool", case=title, baseline_name=name, inputs=(features, masks), ours=mask_pool,
                    baseline=baseline, dtype=name_of(dtype), floor=floor, bytes=moved + masks.numel(),
                    backend=backend, slow=not main or baseline == index_add, share=baseline == dense,
                )  # fmt: skip

        features, grad = s.randn(1, tokens, channels).requires_grad_(), s.randn(1, count, channels)

        for name, rival in (("einsum on converted masks", dense), ("embedding_bag of the set tokens", bag_of_tokens)):
            yield Case(
                op="mask_pool", case=title + ", forward and backward", baseline_name=name,
                inputs=(features, masks, grad), ours=step(lambda x, m: mask_pool(x, m)[0], 1), baseline=step(rival, 1),
                dtype=name_of(s.dtype), bytes=2 * (tokens + count) * channels * features.element_size() + masks.numel(),
                backend=backend,
            )  # fmt: skip


def attention_inputs(s: Setting, tokens: int, heads: int = 4, dtype: torch.dtype | None = None) -> tuple:
    """q, k, v, e, lam, gate of the decoder: d = 48, dv = 64, r = 15, |e| near 1."""
    lam, gate = torch.rand(heads).to(s.device), torch.rand(1, heads, tokens).to(s.device, dtype or s.dtype)
    q, k, v, e = (s.randn(1, heads, tokens, width, dtype=dtype) for width in (48, 48, 64, 15))
    return q, k, v, e * 15**-0.5, lam, gate


def n_by_n_bias(e: Tensor, lam: Tensor) -> Tensor:
    squared = e.square().sum(-1)
    distance = squared.unsqueeze(-1) + squared.unsqueeze(-2) - 2 * e @ e.transpose(-2, -1)
    return (-lam[:, None, None] * distance).to(e.dtype)


def materialised(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor) -> Tensor:
    """Return the N x N bias from a matrix product, about 4 times as fast as the reference's differences."""
    logits = q @ k.transpose(-2, -1) * 48**-0.5 + n_by_n_bias(e, lam)
    return logits.softmax(-1) @ v * gate.unsqueeze(-1)


def biased_sdpa(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=n_by_n_bias(e, lam)) * gate.unsqueeze(-1)


def folded(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor) -> Tensor:
    """Compute the whole op through torch's choice of SDPA: fold, attention, gate."""
    return structure_attention_folded(q, k, v, e, lam, gate, 48**-0.5)


def folded_by(backend: SDPBackend) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return folded(q, k, v, e, lam, gate)

    return run


def flexible(compiled: bool = True) -> Callable[..., Tensor]:
    """FlexAttention with the bias as a score function."""
    from torch.nn.attention.flex_attention import flex_attention

    def run(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor) -> Tensor:
        def bias(score: Tensor, b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            squared = sum((e[b, head, i, c] - e[b, head, j, c]).float().square() for c in range(e.shape[-1]))
            return score - lam[head] * squared

        out: Any = flex_attention(q, k, v, score_mod=bias)  # a tuple only where auxiliary outputs are asked for
        return out * gate.unsqueeze(-1)

    return torch.compile(run, dynamic=False) if compiled else run


def attention_cases(s: Setting) -> Iterator[Case]:
    """Yield cases of the decoder's attention: 4 heads, d = 48, r = 15, dv = 64."""
    heads, depth, width = 4, 48 + 15 + 1, 64

    def case(inputs: tuple, backend: str, name: str, baseline: Callable[..., object], **more: Any) -> Case:
        tokens = inputs[0].shape[2]
        defaults: dict[str, Any] = {
            "op": "structure_attention",
            "case": f"N={tokens}, {heads} heads{', forward and backward' if more.get('gradient') else ''}",
            "baseline_name": name,
            "inputs": inputs,
            "ours": structure_attention,
            "baseline": baseline,
            "dtype": name_of(s.dtype),
            "backend": backend,
            "bytes": inputs[0].element_size() * heads * tokens * (2 * 48 + 2 * 64 + 15 + 1),
            "operations": 2.0 * heads * tokens**2 * (depth + width),
            "memory": True,
            "size": tokens,
        }
        return Case(**{**defaults, **more})

    if not s.gpu:
        inputs = attention_inputs(s, s.size(4096, 33))
        yield case(inputs, "sdpa", "N x N bias by matrix product", materialised, floor=3.0)
        yield case(inputs, "sdpa", "blocks of queries, folded by hand", attention_by_blocks)
        yield case(inputs, "sdpa", "SDPA with that bias", biased_sdpa, slow=True)

        reference = functools.partial(structure_attention_reference, scale=48**-0.5)
        yield case(inputs, "sdpa", "the float64-safe reference", reference, slow=True)
        return

    own = s.backends("structure_attention", without=("reference", "sdpa"))
    # 1369 = 37 x 37 tokens: 518 pixels by a patch of 14. The other dtypes are for the table of measured choices.
    floors = {256: None, 1024: 1.3, 1369: None, 2048: 1.2, 4096: 1.0, 16384: 0.9}
    few = {torch.float16: (256, 1024, 4096, 16384), torch.bfloat16: (1024, 4096, 16384), torch.float32: (256, 4096)}
    for dtype, sizes in few.items():
        main = dtype == s.dtype
        backends = [name for name in own if not why_not("structure_attention", name, s.device, dtype)]
        shared = {"dtype": name_of(dtype), "rival": "sdpa"}
        for tokens in floors if main else sizes:
            inputs = attention_inputs(s, s.size(tokens, tokens // 256), dtype=dtype)
            floor = floors[tokens] if main else None
            for backend in backends:
                yield case(inputs, backend, "folded SDPA", folded, floor=floor, slow=floor is None, **shared)

        for tokens in sizes:
            drawn = attention_inputs(s, s.size(tokens, tokens // 256), dtype=dtype)
            leaves = (*(x.requires_grad_() for x in drawn), s.randn(*drawn[2].shape, dtype=dtype))
            for backend in backends if main else backends[:1]:
                yield case(
                    leaves, backend, "folded SDPA", step(folded, 6),
                    ours=step(structure_attention, 6),
                    operations=2.0 * heads * leaves[0].shape[2] ** 2 * (4 * depth + 3 * width),
                    floor=0.9 if main else None,
                    bytes=3 * leaves[0].element_size() * heads * leaves[0].shape[2] * (2 * 48 + 2 * 64 + 15 + 1),
                    slow=tokens == 16384 or not main or floors[tokens] is None, gradient=True, **shared,
                )  # fmt: skip

    # What torch takes on Hopper is cuDNN's attention: the rival to name there.
    inputs, best = attention_inputs(s, s.size(4096, 16)), own[0] if own else "sdpa"
    rivals = [("folded SDPA, cuDNN", folded_by(SDPBackend.CUDNN_ATTENTION))]
    rivals += [("folded SDPA, flash", folded_by(SDPBackend.FLASH_ATTENTION))]
    rivals += [("folded SDPA, mem-efficient", folded_by(SDPBackend.EFFICIENT_ATTENTION))]
    rivals += [("N x N bias by matrix product", materialised), ("SDPA with that bias", biased_sdpa)]
    rivals += [("FlexAttention, bias as score_mod", flexible())]
    for name, baseline in rivals:
        yield case(inputs, best, name, baseline, slow=True)


def guided_cases(s: Setting) -> Iterator[Case]:
    """Yield cases of the decoder's upsampling by 4: 19 and 150 classes, 64 channels of guide."""
    h, w, channels, scale = s.size(32, 3), s.size(64, 4), 64, 4
    for classes in (19, 150):
        logits, low = s.randn(1, classes, h, w), 0.3 * s.randn(1, channels, h, w)
        high, beta = 0.3 * s.randn(1, channels, scale * h, scale * w), torch.ones((), device=s.device)
        element = logits.element_size()
        moved = element * (logits.numel() + low.numel() + high.numel() + classes * scale**2 * h * w)
        operations = 2.0 * 25 * scale**2 * h * w * (channels + classes)
        shape = f"{classes}x({h}x{w}), C={channels}, by {scale}"
        plain = guided_upsample_reference
        rivals: list[tuple[str, Callable[..., Tensor], float | None]] = [("unfold + bmm", plain, None)]
        if not s.gpu or classes == 19:  # a compilation for each row
            rivals += [("torch.compile of unfold + bmm", compiled(plain), None if s.gpu else 4.0)]
        for backend in s.backends("guided_upsample"):
            for name, rival, floor in rivals:
                yield Case(
                    op="guided_upsample", case=shape, baseline_name=name, inputs=(logits, low, high, beta),
                    ours=guided_upsample, baseline=rival, dtype=name_of(s.dtype), bytes=moved, operations=operations,
                    floor=floor, backend=backend, slow=classes == 150 or name.startswith(LATE),
                )  # fmt: skip
        if classes == 150:
            continue

        clones = (given.clone().requires_grad_() for given in (logits, low, high, beta))
        leaves = (*clones, s.randn(1, classes, scale * h, scale * w))
        for backend in s.backends("guided_upsample"):
            for name, rival, _ in rivals[:1] if s.gpu else rivals:
                yield Case(
                    op="guided_upsample", case=f"{shape}, forward and backward", baseline_name=name,
                    inputs=leaves, ours=step(guided_upsample, 4), baseline=step(rival, 4), dtype=name_of(s.dtype),
                    bytes=3 * moved, operations=3 * operations, backend=backend, slow=name.startswith(LATE),
                )  # fmt: skip


def preprocess_cases(s: Setting) -> Iterator[Case]:
    """Yield cases of a camera's frame to the backbone's tensor, against libraries on a CPU, torch on a GPU."""
    height, width, side = s.size(1080, 54), s.size(1920, 96), s.size(448, 22)
    frame = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).to(s.device)
    nv12 = torch.randint(0, 256, (height * 3 // 2, width), dtype=torch.uint8).to(s.device)

    def by(function: Callable[..., Tensor], antialias: bool) -> Callable[[Tensor], Tensor]:
        return lambda image: function(image, (side, side), MEAN, STD, antialias, s.dtype)

    for antialias in (False, True):
        suffix = ", antialias" if antialias else ""
        # Without antialias only the rows that hold a tap are read: two for each of the result's.
        rows = height if antialias else min(height, 2 * side)
        rivals = [("torch in float32", by(preprocess_reference, antialias))]
        if not s.gpu:
            rivals += library_resizes(side, antialias, MEAN, STD)
        for form, image, bytes_a_pixel in (("HWC", frame, 3.0), ("NV12", nv12, 1.5)):
            for backend in s.backends("preprocess"):
                for name, baseline in rivals if form == "HWC" else rivals[:1]:
                    yield Case(
                        op="preprocess", case=f"{form} {height}x{width}->{side}x{side}{suffix}", baseline_name=name,
                        inputs=(image,), ours=by(preprocess, antialias), baseline=baseline, dtype=name_of(s.dtype),
                        bytes=rows * width * bytes_a_pixel + 3 * side**2 * s.dtype.itemsize, backend=backend,
                        slow=form == "NV12" or name not in ("torch in float32",), share=True,
                    )  # fmt: skip


def pipeline_cases(s: Setting) -> Iterator[Case]:
    """Yield cases of a picture's 448x448 pixels to the labels of 1024x2048 by b14 (random weights) and 150 words.

    Both sides run one network, structure attention folded in both; the baseline decodes and labels in plain PyTorch.
    """
    side, size = s.size(448, 56), (s.size(1024, 40), s.size(2048, 80))
    model = freeze(build_model("b14")).to(s.device)
    image = torch.randn(1, 3, side, side, device=s.device)
    text = F.normalize(torch.randn(150, model.config.embed_dim, device=s.device), dim=1)

    def encoded(dtype: torch.dtype) -> Any:
        with torch.inference_mode(), torch.autocast(s.device, dtype, enabled=dtype != torch.float32):
            features: Any = model.encode_image(image)
        features.structure.guide = features.structure.guide.float()
        return features

    def ours(dtype: torch.dtype) -> Tensor:
        with torch.inference_mode():
            return upsample_argmax(model.decode(encoded(dtype), text), size)

    def plain(labels: Callable[..., Tensor]) -> Callable[[torch.dtype], Tensor]:
        def run(dtype: torch.dtype) -> Tensor:
            with torch.inference_mode():
                features = encoded(dtype)
                with use_backend("reference"):
                    logits = model.decode(features, text)
                return labels(logits, size)

        return run

    # Operations: 182e9 by torch's counter, and the backbone's attention, which it does not see. Bytes: the weights.
    rivals: list[Rival] = [("the same in plain PyTorch", plain(interpolated_argmax), None if s.gpu else 2.0)]
    rivals += [] if s.gpu else [("that, labels by OpenCV", plain(opencv_labels), None)]
    for dtype in (*([torch.float16] if s.gpu else []), torch.bfloat16, torch.float32):
        for name, rival, floor in rivals:
            yield Case(
                op="pipeline", case="b14 448x448, 150 classes -> 1024x2048", baseline_name=name, inputs=(dtype,),
                ours=ours, baseline=rival, dtype=name_of(dtype), floor=floor, bytes=4 * 9.3e7, operations=2.2e11,
                slow=dtype == torch.float32,
            )  # fmt: skip


CASES: tuple[Callable[[Setting], Iterator[Case]], ...] = (
    upsample_cases,
    pool_cases,
    attention_cases,
    guided_cases,
    preprocess_cases,
    pipeline_cases,
)
