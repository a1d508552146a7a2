"""What a model costs and what a device can do at best: the figure to hold a measurement against.

    python benchmarks/roofline.py --model s14 --height 448 --width 448 --classes 19 [--json]
    python benchmarks/roofline.py --write          the committed tables: results/, roofline.md, docs/jetson.md

FLOPs are counted by running the model's own modules on the meta device, no weights needed. Bytes: all weights once, and
the inputs and output of every product of matrices, convolution and attention once; what lies between them (norms,
activations, residuals) is taken as fused. A level 2 cache that keeps some of it does better, a graph that fuses less
worse. bound = max(FLOPs / peak, bytes / bandwidth); expected = bound / 0.35, which is what published engines of vision
transformers reach on Orin. Neither has preprocessing, upsampling to the image's size or copies in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ovsdino.console import run_command
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.models.ovsdino import AFFINITY_DIM, OVSDINO
from ovsdino.models.zoo import CONFIGS, build_model
from ovsdino.parsing import parse

HERE = Path(__file__).resolve().parent
DOCUMENT, RESULTS = HERE / "roofline.md", HERE / "results" / "roofline.json"
JETSON = HERE.parent / "docs" / "jetson.md"  # takes the table of expected times
BEGIN, END = "<!-- benchmarks/roofline.py --write -->", "<!-- end -->"

# Share of the compute peak that published engines reach on Orin: NanoOWL B/16 at 768 px in 40 ms on AGX (33 %),
# ViT-B/16 at 224 px in 5.68 ms on Orin Nano Super (37 %).
EFFICIENCY = 0.35


@dataclass(frozen=True)
class Device:
    """Peak rates of a device.

    Attributes:
        float16_tflops, int8_tops: dense, on tensor cores.
        bandwidth_gbs: of its memory.
        source: where the figures are from.
    """

    name: str
    float16_tflops: float
    int8_tops: float
    bandwidth_gbs: float
    source: str


# Orin's rates are SMs × clock × 2048 float16 operations (compute capability 8.7, four tensor cores an SM), and twice
# that in INT8, without sparsity; the advertised TOPS are with sparsity and include the DLAs.
DEVICES = (
    Device("AGX Orin 64 GB", 42.6, 85.0, 204.8, "16 SMs × 1.30 GHz; Jetson AGX Orin series data sheet"),
    Device("Orin NX 16 GB", 15.0, 30.1, 102.4, "8 SMs × 0.918 GHz; Jetson Orin NX series data sheet"),
    Device("Orin NX 16 GB Super", 19.2, 38.4, 102.4, "8 SMs × 1.173 GHz: JetPack 6.2's MAXN_SUPER"),
    Device("Orin Nano Super", 16.7, 33.4, 102.0, "8 SMs × 1.02 GHz: JetPack 6.2's MAXN_SUPER"),
    Device("H200", 989.0, 1979.0, 4800.0, "H200 SXM data sheet, dense"),
)


@dataclass
class Cost:
    """Operations and elements moved, summed over what was run.

    Attributes:
        linear: FLOPs of linear layers and patch embeddings, those that INT8 speeds up.
        other: FLOPs of convolutions, attention and products with the text bank, float16 in either case.
        linear_elements, other_elements: activations read and written by them.
    """

    linear: int = 0
    other: int = 0
    linear_elements: int = 0
    other_elements: int = 0

    def add(self, flops: int, tensors: Sequence[Tensor], *, linear: bool = False) -> None:
        elements = sum(tensor.numel() for tensor in tensors)
        if linear:
            self.linear += flops
            self.linear_elements += elements
        else:
            self.other += flops
            self.other_elements += elements

    @property
    def flops(self) -> int:
        return self.linear + self.other


class Counter(TorchFunctionMode):
    """Counts the products that run under it, by part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Cost] = {}
        self.part = "backbone"

    @contextmanager
    def named(self, part: str) -> Any:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        cost = self.parts.setdefault(self.part, Cost())
        if func is F.linear:
            cost.add(2 * out.numel() * args[1].shape[1], (args[0], out), linear=True)
        elif func is F.conv2d or func is torch.conv2d:
            weight, stride = args[1], args[3] if len(args) > 3 else 1
            patches = stride != (1, 1) and tuple(weight.shape[2:]) == stride  # a patch embedding is a linear layer
            cost.add(2 * out.numel() * weight[0].numel(), (args[0], out), linear=patches)
        elif func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            batch = q.shape[:-2].numel() * q.shape[-2] * k.shape[-2]
            cost.add(2 * batch * (q.shape[-1] + v.shape[-1]), (q, k, v, out))
        elif func in (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__):
            cost.add(2 * out.numel() * args[0].shape[-1], (*args[:2], out))
        elif func is torch.einsum:  # "bdhw,kd->bkhw": the coarse logits
            cost.add(2 * out.numel() * args[2].shape[-1], (*args[1:], out))
        return out


def count(model: OVSDINO, height: int, width: int, classes: int, batch: int = 1) -> dict[str, Cost]:
    """The cost of the parts "backbone", "sae", "smd" and "logits" (products with the bank, upsampling, refinement).

    Args:
        model: on the meta device.
        height, width: of the input, multiples of its patch size.
        classes: rows of the text bank.
    """
    counter = Counter()
    hooks = []
    if model.decoder is not None:
        for name in ("sae", "smd"):
            module = getattr(model.decoder, name)
            if module is not None:
                hooks += _named_by_hooks(counter, module, name)
    image = torch.empty(batch, 3, height, width, device="meta")
    text = torch.empty(classes, model.config.embed_dim, device="meta")
    try:
        with torch.inference_mode(), counter:
            features = model.encode_image(image)
            with counter.named("logits"):
                coarse = model.coarse_logits(features, text)
    finally:
        for hook in hooks:
            hook.remove()
    if model.decoder is not None and features.structure is not None:
        _refinement(counter.parts["logits"], model, coarse, features.structure.guide, text)
    return counter.parts


def _named_by_hooks(counter: Counter, module: nn.Module, name: str) -> list[Any]:
    def enter(*_: Any) -> None:
        counter.part = name

    def leave(*_: Any) -> None:
        counter.part = "backbone"

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _refinement(cost: Cost, model: OVSDINO, coarse: Tensor, guide: Tensor, text: Tensor) -> None:
    """`Decoder.refine` as its kernels do it: in one pass over the fine logits, without the reference's temporaries."""
    batch, classes = coarse.shape[:2]
    pixels = batch * guide.shape[-2] * guide.shape[-1]
    fine = torch.empty(batch, classes, *guide.shape[-2:], device="meta")
    flops = 7 * fine.numel()  # bilinear: three interpolations of a multiplication and two additions at most
    moved = [coarse, fine]
    if model.config.guided:
        affinity = guide[:, :AFFINITY_DIM]
        flops += 2 * pixels * guide.shape[1] * AFFINITY_DIM  # 1x1 convolution
        flops += 2 * pixels * 25 * (AFFINITY_DIM + classes)  # similarities to 25 coarse cells, and their combination
        moved += [guide, affinity, affinity]
    if model.config.detail:
        flops += 2 * pixels * guide.shape[1] * classes + 2 * text.numel() * guide.shape[1]
        moved += [guide]
    cost.add(flops, moved)


def plain_vit(name: str, height: int, width: int) -> tuple[dict[str, Cost], int, int]:
    """Cost, linear weights and other weights of a timm transformer by itself."""
    with torch.device("meta"):
        vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    counter = Counter()
    with torch.inference_mode(), counter:
        vit.forward_features(torch.empty(1, 3, height, width, device="meta"))
    return counter.parts, *weights_of(vit)


def weights_of(module: nn.Module, skip: str = "text_tower.") -> tuple[int, int]:
    """Parameters of the linear layers with the patch embedding, and of all the rest."""
    linear = {
        id(p)
        for m in module.modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == m.stride != (1, 1))
        for p in m.parameters(recurse=False)
    }
    named = [(id(p), p.numel()) for name, p in module.named_parameters() if not name.startswith(skip)]
    total = sum(size for _, size in named)
    inside = sum(size for key, size in named if key in linear)
    return inside, total - inside


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model at one size.

    Attributes:
        tokens: that attend to each other in the backbone.
        parts: cost of each part.
        weights: parameters of the linear layers and the others.
    """

    model: str
    height: int
    width: int
    classes: int | None
    tokens: int
    parts: dict[str, Cost] = field(repr=False)
    weights: tuple[int, int]

    @property
    def total(self) -> Cost:
        return Cost(
            **{f.name: sum(getattr(part, f.name) for part in self.parts.values()) for f in dataclasses.fields(Cost)}
        )

    def on(self, device: Device) -> dict[str, dict[str, float]]:
        """Milliseconds at best and expected, for float16, and for INT8 linear layers with float16 for the rest."""
        cost = self.total
        linear, other = cost.linear / 1e9, cost.other / 1e9  # over TFLOPS: milliseconds
        at = {
            "float16": ((linear + other) / device.float16_tflops, self.megabytes("float16")),
            "int8": (linear / device.int8_tops + other / device.float16_tflops, self.megabytes("int8")),
        }
        found = {}
        for precision, (compute, megabytes) in at.items():
            memory = megabytes / device.bandwidth_gbs
            bound = max(compute, memory)
            times = {"compute": compute, "memory": memory, "bound": bound, "expected": bound / EFFICIENCY}
            found[precision] = {f"{name}_ms": round(value, 4) for name, value in times.items()}
        return found

    def megabytes(self, precision: str) -> float:
        """Weights and activations moved, in 10^6 bytes; biases and norms count with the weights."""
        cost, size = self.total, 1 if precision == "int8" else 2
        linear = self.weights[0] + cost.linear_elements
        return (linear * size + (self.weights[1] + cost.other_elements) * 2) / 1e6

    def to_dict(self, devices: Sequence[Device] = DEVICES) -> dict[str, Any]:
        cost = self.total
        return {
            "model": self.model,
            "height": self.height,
            "width": self.width,
            "classes": self.classes,
            "tokens": self.tokens,
            "gflop": round(cost.flops / 1e9, 3),
            "gflop_linear": round(cost.linear / 1e9, 3),
            "gflop_parts": {name: round(part.flops / 1e9, 3) for name, part in self.parts.items()},
            "parameters_million": round(sum(self.weights) / 1e6, 3),
            "weights_mb": {"float16": _r(sum(self.weights) * 2), "int8": _r(self.weights[0] + 2 * self.weights[1])},
            "moved_mb": {precision: round(self.megabytes(precision), 3) for precision in ("float16", "int8")},
            "devices": {device.name: self.on(device) for device in devices},
        }


def _r(size: int) -> float:
    return round(size / 1e6, 3)


def zoo_row(name: str, height: int | None, width: int | None, classes: int) -> Row:
    """A model of the zoo with its decoder; the size is its own for a 4:3 image (nano) or a square where none is given.

    Raises:
        OVSDinoError: no such model, or a size that it cannot take.
    """
    with torch.device("meta"):
        model = build_model(name).eval()
    config = model.config
    patch = config.patch_size
    height = height or round(config.short_side / patch) * patch
    width = width or round(height * (4 / 3 if name == "nano" else 1) / patch) * patch
    for what, value in (("height", height), ("width", width)):
        if value < patch or value % patch:
            raise OVSDinoError(
                f"{what} is {value}: {name} needs a multiple of {patch}, for instance {near(value, patch)}"
            )
    if not 1 <= classes <= 100_000:
        raise OVSDinoError(f"classes is {classes}: expected 1 or more")
    tokens = height * width // patch**2 + model.backbone.vit.num_prefix_tokens
    parts = count(model, height, width, classes)
    return Row(
        model=name, height=height, width=width, classes=classes, tokens=tokens, parts=parts, weights=weights_of(model)
    )


def near(value: int, patch: int) -> int:
    return max(1, math.floor(value / patch + 0.5)) * patch


def plain_row(letter: str, height: int, width: int) -> Row:
    """DINOv2's ViT-S/14 ("S") or ViT-B/14 ("B") with a class token and no registers, as published figures count it."""
    size = {"S": "small", "B": "base"}[letter]
    parts, *weights = plain_vit(f"vit_{size}_patch14_dinov2.lvd142m", height, width)
    tokens = height * width // 196 + 1
    return Row(
        model=f"ViT-{letter}/14",
        height=height,
        width=width,
        classes=None,
        tokens=tokens,
        parts=parts,
        weights=(weights[0], weights[1]),
    )


SIZES = ((448, 448), (518, 518), (448, 896))


def committed_rows() -> tuple[list[Row], list[Row]]:
    """The transformers by themselves, and the zoo's models whole."""
    plain = [plain_row(letter, *size) for letter in "SB" for size in SIZES]
    zoo = [zoo_row("nano", 288, 384, 11), zoo_row("nano", None, None, 11)]
    zoo += [zoo_row(name, *size, 19) for name in ("s14", "b14") for size in SIZES]
    zoo += [zoo_row(name, 448, 448, 19) for name in CONFIGS if name not in ("nano", "s14", "b14")]
    return plain, zoo


def markdown(plain: Sequence[Row], zoo: Sequence[Row]) -> str:
    """The tables of roofline.md."""
    lines = ["| device | float16 TFLOPS | INT8 TOPS | GB/s | from |", "|---|---|---|---|---|"]
    lines += [
        f"| {d.name} | {d.float16_tflops:.1f} | {d.int8_tops:.1f} | {d.bandwidth_gbs:g} | {d.source} |" for d in DEVICES
    ]
    lines += [
        "",
        "### The transformer alone: FLOPs over peak, ms, float16 / INT8 linear layers with float16 attention",
        "",
    ]
    lines += ["| | N | GFLOP | " + " | ".join(d.name for d in DEVICES) + " |", "|---" * (3 + len(DEVICES)) + "|"]
    for row in plain:
        cells = [compute_cell(row, device) for device in DEVICES]
        lines.append(f"| {label(row)} | {row.tokens} | {row.total.flops / 1e9:.0f} | " + " | ".join(cells) + " |")
    lines += ["", "### The zoo's models whole", ""]
    names = ("backbone", "sae", "smd", "logits")
    lines += [
        "| | classes | M parameters | GFLOP | backbone | SAE | SMD | logits, refinement | MB moved, float16 / INT8 |"
    ]
    lines += ["|---" * 9 + "|"]
    for row in zoo:
        parts = [f"{row.parts[name].flops / 1e9:.2f}" for name in names]
        moved = " / ".join(f"{row.megabytes(precision):.0f}" for precision in ("float16", "int8"))
        lines.append(
            f"| {label(row)} | {row.classes} | {sum(row.weights) / 1e6:.1f} | {row.total.flops / 1e9:.1f} | "
            + " | ".join(parts)
            + f" | {moved} |"
        )
    lines += ["", f"### The zoo's models on Orin: ms expected (bound / {EFFICIENCY}), float16 / INT8 linear layers", ""]
    return "\n".join([*lines, expected_table(zoo)])


def expected_table(zoo: Sequence[Row]) -> str:
    """The zoo's models on Orin, ms expected of the graph."""
    orins = [device for device in DEVICES if device.name != "H200"]
    lines = ["| | " + " | ".join(d.name for d in orins) + " |", "|---" * (1 + len(orins)) + "|"]
    for row in zoo:
        cells = [
            " / ".join(expected_cell(row, device, precision) for precision in ("float16", "int8")) for device in orins
        ]
        lines.append(f"| {label(row)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "`m`: the bound is memory and not arithmetic.", ""])


def placed(document: Path, table: str) -> str:
    """The text of a document with a table between its markers."""
    head, rest = document.read_text().split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table}{END}{rest.split(END, 1)[1]}"


def label(row: Row) -> str:
    return f"{row.model} {row.height}×{row.width}"


def compute_cell(row: Row, device: Device) -> str:
    digits = 2 if device.name == "H200" else 1
    return " / ".join(f"{row.on(device)[precision]['compute_ms']:.{digits}f}" for precision in ("float16", "int8"))


def expected_cell(row: Row, device: Device, precision: str) -> str:
    times = row.on(device)[precision]
    return f"{times['expected_ms']:.1f}" + ("m" if times["memory_ms"] > times["compute_ms"] else "")


@dataclass(frozen=True, kw_only=True)
class Options:
    """FLOPs, bytes and bounds of a model of the zoo; without --model, of the committed tables."""

    model: str | None = None
    """Name in the zoo (`ovsdino models`)."""
    height: int | None = None
    """Input height, a multiple of the patch size. Default: the model's own."""
    width: int | None = None
    """Input width. Default: 4:3 for nano, else the height."""
    classes: int = 19
    """Rows of the text bank."""
    json: bool = False
    """Print one JSON object on stdout."""
    write: bool = False
    """Write results/roofline.json and the tables of roofline.md and docs/jetson.md."""


def run(options: Options) -> None:
    """Prints or writes what the options ask for.

    Raises:
        OVSDinoError: a bad model, size or combination.
    """
    if options.model is not None:
        if options.write:
            raise OVSDinoError("--write makes the committed tables: leave out --model")
        plain, zoo = [], [zoo_row(options.model, options.height, options.width, options.classes)]
    elif options.height or options.width:
        raise OVSDinoError("--height and --width without --model: name one")
    else:
        plain, zoo = committed_rows()
    report = {
        "efficiency": EFFICIENCY,
        "devices": [dataclasses.asdict(device) for device in DEVICES],
        "results": [row.to_dict() for row in (*plain, *zoo)],
    }
    if options.write:
        written = {
            RESULTS: json.dumps(report, indent=1, ensure_ascii=False) + "\n",
            DOCUMENT: placed(DOCUMENT, markdown(plain, zoo)),
            JETSON: placed(JETSON, expected_table(zoo)),
        }
        for path, content in written.items():
            with atomic_write(path) as file:
                file.write(content.encode())
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    elif not options.write:
        print(markdown(plain, zoo))


def main() -> int:
    """Parse the line and return the exit code."""
    args = sys.argv[1:]

    def body() -> int:
        options = parse(Options, "roofline.py", args)
        if options is not None:
            run(options)
        return 0

    return run_command(args, body)


if __name__ == "__main__":
    raise SystemExit(main())
