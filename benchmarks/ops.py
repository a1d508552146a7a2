"""Each op against its plain-PyTorch baseline, interleaved in one process, beside what the machine allows.

    python benchmarks/ops.py [--quick] [--json] [--output F]

A row's ratio is baseline / ours; `floor` is the least ratio asked of it, `bound_ms` the larger of its least memory
traffic at the measured bandwidth and its least arithmetic at the measured matrix rate. A GPU is used where torch sees
one; its rows have no floors yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import interleaved, machine_facts
from torch import Tensor

from ovsdino.ops import mask_pool, structure_attention, upsample_argmax, use_backend
from ovsdino.ops.structure_attention import structure_attention_reference


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: two functions that do the same, and the least bytes and operations it takes."""

    op: str
    case: str
    baseline_name: str
    ours: Callable[[], object]
    baseline: Callable[[], object]
    dtype: str = "float32"
    cpu_floor: float | None = None
    bytes: float = 0.0
    operations: float = 0.0
    context: str = "auto"  # backend of `ours`
    slow: bool = field(default=False)  # left out of --quick


def upsample_cases(device: str) -> Iterator[Case]:
    """The segmentation head: 150 classes from tokens of patch 14, 19 classes from 4 times finer logits."""
    size = (1024, 2048)
    image, source = image_logits(device)
    grids: list[tuple[str, Tensor, float]] = [
        ("150x(73x146)->1024x2048, random", torch.randn(1, 150, 73, 146, device=device), 50.0),
        (f"150x(73x146)->1024x2048, {source}", resized(image, 73, 146), 100.0),
        ("19x(292x584)->1024x2048, random", torch.randn(1, 19, 292, 584, device=device), 25.0),
        (f"19x(292x584)->1024x2048, {source}", resized(image[:, :19], 292, 584), 25.0),
    ]
    for name, logits, floor in grids:
        yield Case(
            op="upsample_argmax",
            case=name,
            baseline_name="interpolate + argmax",
            ours=lambda x=logits: upsample_argmax(x, size),
            baseline=lambda x=logits: F.interpolate(x, size, mode="bilinear", align_corners=False).argmax(1),
            cpu_floor=floor,
            bytes=logits.numel() * 4 + size[0] * size[1],
        )

    def full_softmax(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1).max(1).values

    for name, logits, _ in (grids[1], grids[3]):
        yield Case(
            op="upsample_argmax",
            case=f"{name}, confidence",
            baseline_name="interpolate + softmax + max",
            ours=lambda x=logits: upsample_argmax(x, size, confidence=True),
            baseline=lambda x=logits: full_softmax(x),
            bytes=logits.numel() * 4 + size[0] * size[1] * 5,
            slow=logits.shape[1] > 19,
        )


def pool_cases(device: str) -> Iterator[Case]:
    """256 masks of 3 % area on 64x64 tokens, C = 768: what SAM makes of an image, for a ViT-B."""
    count, tokens, channels = 256, 4096, 768
    masks = blobs(count, 64, 0.03).to(device)
    packed = torch.from_numpy(np.packbits(masks.cpu().numpy(), axis=-1, bitorder="little")).to(device)

    def dense(features: Tensor) -> Tensor:
        weights = masks.to(features.dtype)
        return torch.einsum("bmn,bnc->bmc", weights, features) / weights.sum(-1, keepdim=True)

    for dtype in (torch.float32, torch.bfloat16):
        features = torch.randn(1, tokens, channels, device=device).to(dtype)
        moved = (tokens + count) * channels * features.element_size()
        for form, given in (("bool", masks), ("packed", packed)):
            yield Case(
                op="mask_pool",
                case=f"256 {form} masks of 3 %, 64x64 tokens, C=768",
                baseline_name="einsum on converted masks",
                dtype=str(dtype)[6:],
                ours=lambda x=features, m=given: mask_pool(x, m),
                baseline=lambda x=features: dense(x),
                cpu_floor=4.0 if dtype == torch.float32 and form == "bool" else None,
                bytes=moved + given.numel(),
                slow=form == "packed",
            )

    features = torch.randn(1, tokens, channels, device=device, requires_grad=True)
    grad = torch.randn(1, count, channels, device=device)

    def step(function: Callable[[Tensor], Tensor]) -> None:
        features.grad = None
        (function(features) * grad).sum().backward()

    yield Case(
        op="mask_pool",
        case="256 bool masks of 3 %, 64x64 tokens, C=768, forward and backward",
        baseline_name="einsum on converted masks",
        ours=lambda: step(lambda x: mask_pool(x, masks)[0]),
        baseline=lambda: step(dense),
        bytes=2 * (tokens + count) * channels * 4 + masks.numel(),
    )


def attention_cases(device: str) -> Iterator[Case]:
    """The decoder's attention on 64x64 tokens: 4 heads, d = 48, r = 15, dv = 64."""
    tokens, heads, d, dv, r = 4096, 4, 48, 64, 15
    q, k, v, e = (torch.randn(1, heads, tokens, width, device=device) for width in (d, d, dv, r))
    lam, gate = torch.rand(heads, device=device), torch.rand(1, heads, tokens, device=device)

    def bias() -> Tensor:
        squared = e.square().sum(-1)
        distance = squared.unsqueeze(-1) + squared.unsqueeze(-2) - 2 * e @ e.transpose(-2, -1)
        return -lam[:, None, None] * distance

    def materialised() -> Tensor:
        logits = q @ k.transpose(-2, -1) * d**-0.5 + bias()
        return logits.softmax(-1) @ v * gate.unsqueeze(-1)

    def biased_sdpa() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias()) * gate.unsqueeze(-1)

    def reference() -> Tensor:
        return structure_attention_reference(q, k, v, e, lam, gate, d**-0.5)

    # The floor's baseline makes its bias from a matrix product, about 4 times as fast as the reference's differences.
    baselines: list[tuple[str, Callable[[], Tensor], float | None]] = [
        ("N x N bias by matrix product", materialised, 3.0),
        ("SDPA with that bias", biased_sdpa, None),
        ("the float64-safe reference", reference, None),
    ]
    for name, baseline, floor in baselines:
        yield Case(
            op="structure_attention",
            case=f"N=4096, 4 heads, folded SDPA vs {name}",
            baseline_name=name,
            ours=lambda: structure_attention(q, k, v, e, lam, gate),
            baseline=baseline,
            cpu_floor=floor,
            bytes=4 * heads * tokens * (2 * d + 2 * dv + r + 1),
            operations=2.0 * heads * tokens * tokens * (d + r + 1 + dv),
            context="sdpa",
            slow=floor is None,
        )


def image_logits(device: str) -> tuple[Tensor, str]:
    """Logits of 150 classes for a photograph, (1, 150, h, w), and what made them.

    The shipped nano model reads scikit-learn's china.jpg; without either, classes are the colours and places of 150
    pixels of the picture (a made one without scikit-learn), which gives regions and borders of the same kind.
    """
    try:
        from sklearn.datasets import load_sample_image

        picture = load_sample_image("china.jpg")
    except (ImportError, OSError):
        waves = np.sin(np.linspace(0, 9, 640))[None, :, None] + np.cos(np.linspace(0, 7, 427))[:, None, None]
        picture = ((np.floor(waves * np.array([2.0, 3.0, 4.0])) * 40 + 128).clip(0, 255)).astype(np.uint8)
    try:
        import ovsdino

        segmenter = ovsdino.load("nano", device=device)
        with torch.inference_mode():
            logits = segmenter.decode(segmenter.encode_image(picture), NOUNS.split())
        return logits.clone().float(), "logits of nano on china.jpg"
    except (ImportError, AttributeError, ValueError) as error:
        log(f"nano is not at hand ({error}): logits from colours")
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float().to(device) / 255
    pixels = F.interpolate(pixels, (73, 146), mode="area")
    rows, columns = torch.meshgrid(
        torch.linspace(0, 1, 73, device=device), torch.linspace(0, 2, 146, device=device), indexing="ij"
    )
    features = torch.cat([pixels, rows[None, None], columns[None, None]], 1).flatten(2)[0]  # (5, N)
    chosen = features[:, torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(0))[:150].to(device)]
    distance = torch.cdist(chosen.T, features.T).square()
    return (-40 * distance).view(1, 150, 73, 146), "logits from the colours of a photograph"


def resized(logits: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(logits, (h, w), mode="bilinear", align_corners=False).contiguous()


def blobs(count: int, side: int, share: float) -> Tensor:
    """(1, count, side * side) bool: ellipses of about `share` of the area, like an object's mask."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    radius = (share * side * side / np.pi) ** 0.5
    masks = np.zeros((count, side, side), bool)
    for mask in masks:
        stretch, (cy, cx) = random.uniform(0.6, 1.7), random.uniform(radius, side - radius, 2)
        mask[:] = ((y - cy) / stretch) ** 2 + ((x - cx) * stretch) ** 2 < radius**2
    return torch.from_numpy(masks.reshape(1, count, -1))


def measure(case: Case, facts: dict[str, Any], device: str, budget_s: float) -> dict[str, Any]:
    """Times one case; the row of the contract."""
    with use_backend(case.context):
        ours, baseline = interleaved([case.ours, case.baseline], device, budget_s=budget_s)
    bound = max(case.bytes / (facts["bandwidth_gbs"] * 1e9), case.operations / (facts["gemm_gflops"] * 1e9)) * 1e3
    return {
        "op": case.op,
        "case": case.case,
        "device": device,
        "dtype": case.dtype,
        "baseline": case.baseline_name,
        "ours_ms": round(ours, 4),
        "baseline_ms": round(baseline, 4),
        "ratio": round(baseline / ours, 2),
        "floor": case.cpu_floor if device == "cpu" else None,
        "bound_ms": round(bound, 4),
    }


def table(report: dict[str, Any]) -> str:
    """The report as text a person reads."""
    facts = report["machine"]
    lines = [
        f"{facts.get('gpu', facts['cpu'])}, {facts['threads']} threads, torch {facts['torch']}, "
        f"{facts['bandwidth_gbs']} GB/s, {facts['gemm_gflops']} GFLOP/s float32",
        f"{'op':<20}{'case':<66}{'dtype':<10}{'ours ms':>10}{'baseline':>10}{'ratio':>8}{'floor':>7}{'bound ms':>10}",
    ]
    for row in report["results"]:
        floor = "" if row["floor"] is None else f"{row['floor']:g}"
        lines.append(
            f"{row['op']:<20}{row['case']:<66}{row['dtype']:<10}{row['ours_ms']:>10.2f}{row['baseline_ms']:>10.1f}"
            f"{row['ratio']:>8.1f}{floor:>7}{row['bound_ms']:>10.3f}"
        )
    return "\n".join(lines)


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; 0 unless something fails (a missed floor is a figure, not an error)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and cases: within 45 s on two cores")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    facts = machine_facts(options.device)
    budget_s = 1.5 if options.quick else 12.0
    results = []
    for cases in (upsample_cases, pool_cases, attention_cases):
        for case in cases(options.device):
            if options.quick and case.slow:
                continue
            results.append(measure(case, facts, options.device, budget_s))
            log(f"{case.op}, {case.case}: {results[-1]['ratio']:g} x")
    report = {"machine": facts, "results": results}
    text = json.dumps(report, indent=None if options.json else 1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        partial = options.output.with_suffix(options.output.suffix + ".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(partial, options.output)
    print(text if options.json else table(report))
    return 0


# 150 things, as many as ADE20K has classes.
NOUNS = (
    "wall building sky floor tree ceiling road bed window grass cabinet sidewalk person earth door table mountain "
    "plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk rock "
    "wardrobe lamp bathtub railing cushion base box column signboard drawer counter sand sink skyscraper "
    "fireplace refrigerator grandstand path stairs runway case pillow screen stairway river bridge bookcase blind "
    "toilet flower book hill bench countertop stove palm kitchen computer swivel boat bar arcade hovel bus towel "
    "light truck tower chandelier awning streetlight booth television airplane track clothes pole land bannister "
    "escalator ottoman bottle buffet poster stage van ship fountain conveyor canopy washer plaything pool stool "
    "barrel basket waterfall tent bag minibike cradle oven ball food step tank trade microwave pot animal bicycle "
    "lake dishwasher projector blanket sculpture hood sconce vase traffic tray ashcan fan pier crt plate monitor "
    "bulletin shower radiator glass clock flag roof leaf"
)


if __name__ == "__main__":
    sys.exit(main())
