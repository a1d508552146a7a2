"""Exports a model as one ONNX file: image and text bank in, logits out, the vocabulary free.

    python deploy/export_onnx.py --model nano --output DIR
    python deploy/export_onnx.py --model b14 --random-weights 0 --precision float16 --output b14.onnx

The graph is traced from the modules that PyTorch runs. What differs is what a static graph asks for: positions of one
size, attention written as MatMul, Softmax, MatMul with the scale in q, and the export forms of our own ops. Every
export is compared with PyTorch in float32 on real images before it gets its name, and refused below the threshold.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from ovsdino.deploy.export.start import start

    sys.exit(start("export_onnx", "ExportOnnx"))

import copy
import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.console import print_json, say
from ovsdino.deploy.export.publish import proven
from ovsdino.deploy.export.script import ModelSource
from ovsdino.deploy.verify import Verification, VerifyOptions
from ovsdino.edge.sidecar import GRAPH_KEY, Sidecar
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import lock_folder

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from ovsdino.models.config import ModelConfig
    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["CLASSES", "OPSET", "ExportOnnx", "default_size", "export_onnx", "write_facts"]

# LayerNormalization came with 17; torch's exporter writes 18, and TensorRT 10.3 reads it. 20 has Gelu, 21 GroupNorm.
OPSET = 18
CLASSES = (1, 256)
LARGEST_SIDE = 4096
FOLDED_BYTES = 1 << 26  # constants up to this size are computed at export: tables, rotary angles, resampled positions
Precision = Literal["float32", "float16"]


def default_size(config: ModelConfig) -> tuple[int, int]:
    """(H, W) of an export that names none: CamVid's 4:3 for nano, square for the others, rounded to the patch."""
    patch, short = config.patch_size, config.short_side
    wide = short * 4 / 3 if config.name == "nano" else short
    return max(1, round(short / patch)) * patch, max(1, round(wide / patch)) * patch


def export_onnx(
    model: OVSDINO,
    path: str | Path,
    *,
    height: int,
    width: int,
    batch: int | tuple[int, int] = 1,
    classes: tuple[int, int] | int = CLASSES,
    precision: Precision = "float32",
) -> Sidecar:
    """Writes a model's graph and its sidecar, unverified; `model` itself is not changed.

    Args:
        model: an `OVSDINO` in eval mode.
        path: the .onnx file; written atomically.
        height: H of the input `image` (B, 3, H, W) float32, a multiple of the patch size.
        width: W, likewise.
        batch: B; a pair (least, most) makes it dynamic.
        classes: rows K of the input `text` (K, D) float32: (least, most), or one number that fixes them.
        precision: of weights and arithmetic; inputs and outputs stay float32.

    Returns:
        The sidecar that lies beside the file.

    Raises:
        OVSDinoError: a size or range is not valid, the model cannot be exported, or the file cannot be written.
    """
    from ovsdino.models.weights import weights_digest

    path, config = Path(path), model.config
    least, most = _range(classes, "classes", 4096)
    batches = _range(batch, "batch", 256)
    _check_size(config, height, width)
    if precision not in ("float32", "float16"):
        raise OVSDinoError(f"precision is {precision!r}: expected float32 or float16")
    if config.sae is not None and model.decoder is not None and config.sae.source == "sam":
        raise OVSDinoError(f"{config.name}: reads SAM's embedding at inference; only a distilled model is exported")
    graph = _traced(model, height, width, batches, (least, most))
    if precision == "float16":
        from ovsdino.deploy.export.graph import to_float16

        to_float16(graph)
    scale = 4 if model.decoder is not None else 1
    sidecar = Sidecar(
        kind="onnx",
        file=path.name,
        sha256="",
        bytes=0,
        model=config.name,
        precision=precision,
        backend="onnx",
        version="",
        target="any",
        input=(batches[1], 3, height, width),
        classes=(least, most),
        embed_dim=config.embed_dim,
        stride=config.patch_size / scale,
        mean=config.mean,
        std=config.std,
        short_side=config.short_side,
        patch_size=config.patch_size,
        weights=weights_digest(model),
    )
    write_facts(graph, sidecar)
    with proven(path) as temporary:
        _write(graph, temporary)
        sidecar.of_file(temporary).save(temporary)
    return Sidecar.load(path)


def _range(value: tuple[int, int] | int, name: str, limit: int) -> tuple[int, int]:
    least, most = (value, value) if isinstance(value, int) else value
    if not 1 <= least <= most <= limit:
        shown = least if least == most else f"{least}..{most}"
        raise OVSDinoError(f"{name} is {shown}: expected a number, or least and most, from 1 to {limit}")
    return least, most


def _check_size(config: ModelConfig, height: int, width: int) -> None:
    patch = config.patch_size
    for name, side in (("height", height), ("width", width)):
        if not patch <= side <= LARGEST_SIDE or side % patch:
            near = min(max(1, round(side / patch)), LARGEST_SIDE // patch) * patch
            raise OVSDinoError(f"{name} is {side}: {config.name} needs a multiple of {patch}, for instance {near}")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and its notes on torchvision's ops are nothing that a user could act on."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _for_export(model: OVSDINO, height: int, width: int) -> nn.Module:
    """A copy with positions of one size and timm's attention in its explicit form; the text tower stays behind."""
    from torch import nn

    prepared = copy.deepcopy(model, {id(model.text_tower): nn.Module()}).cpu().float().eval()
    prepared.backbone.fix_size(height, width)
    for module in prepared.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  (nn.Module types its attributes as tensors)
    return prepared


def _traced(model: OVSDINO, height: int, width: int, batch: tuple[int, int], classes: tuple[int, int]) -> ModelProto:
    """The float32 graph, constants folded and nodes named after their modules."""
    import torch
    from onnxscript import optimizer

    from ovsdino.deploy.export import graph

    prepared = _for_export(model, height, width)
    sizes = [most if least == most else min(most, least + 2) for least, most in (batch, classes)]
    image = torch.zeros(sizes[0], 3, height, width)
    text = torch.zeros(sizes[1], model.config.embed_dim)
    dynamic: list[dict[int, Any] | None] = [None, None]
    for index, (name, (least, most)) in enumerate((("B", batch), ("K", classes))):
        if least != most:
            dynamic[index] = {0: torch.export.Dim(name, min=least, max=most)}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                prepared,
                (image, text),
                input_names=["image", "text"],
                output_names=["logits"],
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            optimizer.optimize_ir(program.model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES)
    except torch.onnx.errors.OnnxExporterError as error:
        raise OVSDinoError(f"{model.config.name}: torch cannot export it: {one_line(error, 300)}") from error
    exported: ModelProto = program.model_proto
    graph.name_by_module(exported)
    graph.order_gelu(exported)
    graph.simplify(exported)
    exported.producer_name = "ovsdino"
    return exported


def write_facts(exported: ModelProto, sidecar: Sidecar) -> None:
    """Puts what the sidecar says of a graph into the graph itself, in place: see `Sidecar.check_graph`."""
    import onnx

    onnx.helper.set_model_props(exported, {GRAPH_KEY: json.dumps(sidecar.facts())})


def _write(exported: ModelProto, path: Path) -> None:
    import onnx

    from ovsdino.io.files import atomic_write

    onnx.checker.check_model(exported, full_check=True)
    with atomic_write(path) as file:
        file.write(exported.SerializeToString())


def output_file(output: Path, name: str, suffix: str) -> Path:
    """`output` if it names a file of this kind, else `name` in the folder `output`."""
    return output if output.suffix == suffix else output / f"{name}{suffix}"


def reported(verified: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What --json prints of a sidecar's figures: also on how many images, which, and against what."""
    shown = ("cosine", "label_agreement", "images", "source", "reference")
    return None if verified is None else {name: verified[name] for name in shown if name in verified}


def precision_suffix(precision: str) -> str:
    return {"float32": "fp32", "float16": "fp16"}[precision]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelSource):
    """What both exports ask for."""

    output: Path
    """Folder, or file, to write; the sidecar lies beside it."""
    height: int | None = None
    """Height of the input image in pixels, a multiple of the patch. Default: the model's own short side."""
    width: int | None = None
    """Width, likewise. Default: 4:3 for nano, square for the others."""
    batch: tuple[int, ...] = (1,)
    """Images at once; two numbers, least and most, make it dynamic."""
    classes: tuple[int, ...] = CLASSES
    """Rows of the text bank: least and most; one number fixes them."""
    verify: VerifyOptions = field(default_factory=VerifyOptions)
    json: bool = False
    """Print one JSON object on stdout."""

    def size(self, config: ModelConfig) -> tuple[int, int]:
        height, width = default_size(config)
        return height if self.height is None else self.height, width if self.width is None else self.width

    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Batch and classes as (least, most).

        Raises:
            OVSDinoError: not one or two numbers.
        """
        for name, value in (("batch", self.batch), ("classes", self.classes)):
            if len(value) not in (1, 2):
                raise OVSDinoError(f"{name} is {' '.join(map(str, value))}: expected one number, or least and most")
        return (self.batch[0], self.batch[-1]), (self.classes[0], self.classes[-1])

    def export(self, model: OVSDINO, path: Path, precision: Precision) -> Sidecar:
        """Exports to `path` and verifies; the sidecar holds the figures.

        Raises:
            OVSDinoError: see `export_onnx`; or verification fails.
        """
        height, width = self.size(model.config)
        batch, classes = self.ranges()
        started = time.perf_counter()
        sidecar = export_onnx(
            model, path, height=height, width=width, batch=batch, classes=classes, precision=precision
        )
        say(f"exported {model.config.name} {precision} {height}x{width} in {time.perf_counter() - started:.1f} s")
        if not self.verify.skip_verify:
            found: Verification = self.verify.prove(model, path, labels_count=self.random_weights is None)
            sidecar = sidecar.of_file(path, verified=found.to_dict())
            sidecar.save(path)
        return sidecar


@dataclass(frozen=True, kw_only=True)
class ExportOnnx(ExportOptions):
    """Export a model as ONNX: image and text bank in, logits out; compared with PyTorch before it gets its name."""

    precision: Precision = "float32"
    """Of weights and arithmetic; norms and softmax stay in float32, inputs and outputs too."""

    def run(self) -> int:
        model = self.load()
        path = output_file(self.output, f"{model.config.name}_{precision_suffix(self.precision)}", ".onnx")
        with lock_folder(path.parent, "export"), proven(path) as temporary:
            self.export(model, temporary, self.precision)
        sidecar = Sidecar.load(path)
        say(f"wrote {path} ({sidecar.bytes:,} bytes)")
        if self.json:
            found = {"model": sidecar.model, "precision": sidecar.precision, "bytes": sidecar.bytes}
            verified = reported(sidecar.verified)
            print_json({"onnx": str(path), "sidecar": f"{path}.json", **found, "verified": verified})
        return 0
