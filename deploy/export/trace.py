"""Trace a model into one ONNX graph: image and text bank in, logits out, the vocabulary free.

The graph is traced from the modules that PyTorch runs. It differs where a static graph must: positions of one size,
attention written as MatMul, Softmax, MatMul with the scale in q, and the export forms of our own ops.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import onnx
import torch
from onnx import ModelProto
from onnxscript import optimizer
from torch import nn

from ovsdino.deploy.export import graph
from ovsdino.deploy.export.attention import split_attention
from ovsdino.deploy.export.defaults import CLASSES, CONTRAST, WORDS, Precision
from ovsdino.deploy.export.publish import Exported
from ovsdino.edge.sidecar import GRAPH_KEY, Sidecar
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.models.backbone import ViTBackbone
from ovsdino.models.config import ModelConfig
from ovsdino.models.folded import fold_norms
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.weights import weights_digest
from ovsdino.ops.compat import exports_norms, recording

__all__ = ["OPSET", "default_size", "export_graph", "quiet", "traced", "write_facts"]

# LayerNormalization came with 17; torch's exporter writes 18, and TensorRT 10.3 reads it. 20 has Gelu, 21 GroupNorm.
OPSET = 18
LARGEST_SIDE = 4096
FOLDED_BYTES = 1 << 26  # constants up to this size are computed at export: tables, rotary angles, resampled positions


def default_size(config: ModelConfig) -> tuple[int, int]:
    """Return (H, W) of an export that names no size: 4:3 for nano, square for the others, rounded to the patch."""
    patch, short = config.patch_size, config.short_side
    wide = short * 4 / 3 if config.name == "nano" else short
    return max(1, round(short / patch)) * patch, max(1, round(wide / patch)) * patch


def export_graph(
    model: OVSDINO,
    *,
    height: int,
    width: int,
    batch: int | tuple[int, int] = 1,
    classes: tuple[int, int] | int = CLASSES,
    precision: Precision = "float32",
    contrast: bool | None = None,
) -> Exported:
    """Return a model's graph and its sidecar, unverified; `model` itself is not changed.

    Args:
        model: An `OVSDINO` in eval mode.
        height: H of the input `image` (B, 3, H, W) float32, a multiple of the patch size.
        width: W, likewise.
        batch: B; a pair (least, most) makes it dynamic.
        classes: Rows K of the input `text` (K, D) float32: (least, most), or one number that fixes them.
        precision: Of weights and arithmetic; inputs and outputs stay float32.
        contrast: Take groups of rows: `text` (K, W, D), and `contrast` (C, D), whose map is one more of the logits; see
            `ovsdino.models.text_rows`. None asks the model's configuration.

    Raises:
        OVSDinoError: A size or range is not valid, or the model cannot be exported.
    """
    config = model.config
    least, most = _range(classes, "classes", 4096)
    batches = _range(batch, "batch", 256)
    _check_size(config, height, width)
    if precision not in get_args(Precision):
        raise OVSDinoError(f"precision is {precision!r}: expected {', '.join(get_args(Precision))}")
    grouped = config.contrast if contrast is None else contrast
    traced = _traced(for_export(model, height, width, precision), model, height, width, batches, (least, most), grouped)
    if precision != "float32":
        graph.to_16_bits(traced, precision)
    sidecar = Sidecar(
        kind="onnx",
        file=f"{config.name}.onnx",  # `publish` gives it its name
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
        stride=config.patch_size / (4 if model.decoder is not None else 1),
        mean=config.mean,
        std=config.std,
        short_side=config.short_side,
        patch_size=config.patch_size,
        weights=weights_digest(model),
        words=WORDS if grouped else None,
        contrast=CONTRAST if grouped else None,
    )
    write_facts(traced, sidecar)
    onnx.checker.check_model(traced, full_check=True)
    return Exported.of(traced.SerializeToString(), sidecar)


def write_facts(exported: ModelProto, sidecar: Sidecar) -> None:
    """Write the sidecar's facts of a graph into the graph itself, in place: see `Sidecar.check_graph`."""
    onnx.helper.set_model_props(exported, {GRAPH_KEY: json.dumps(sidecar.facts())})


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
def quiet() -> Iterator[None]:
    """Hide the exporter's progress and its notes on torchvision's ops: a user could not act on them."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def traced(module: nn.Module, args: tuple[Any, ...], **options: Any) -> ModelProto:
    """Return the graph of a module, constants folded and nodes named after its parts.

    Args:
        module: In eval mode.
        args: Inputs to trace it with.
        **options: `torch.onnx.export`'s: kwargs, input_names, output_names, dynamic_shapes.
    """
    with quiet(), torch.no_grad(), recording():
        program = torch.onnx.export(
            module, args, opset_version=OPSET, dynamo=True, optimize=False, verbose=False, **options
        )
        assert program is not None
        optimizer.optimize_ir(program.model, input_size_limit=FOLDED_BYTES, output_size_limit=FOLDED_BYTES)
    model: ModelProto = program.model_proto
    graph.name_by_module(model)
    return model


def for_export(model: OVSDINO, height: int, width: int, precision: Precision) -> nn.Module:
    """Return a copy with positions of one size and timm's attention in its explicit form, without the text tower.

    In 16 bits, which are for TensorRT, q, k and v are three products: see `split_attention`. ONNX Runtime leaves
    linears that share an input in float, so graphs in float32 keep the one. Batch norms are folded where torch cannot
    export them.
    """
    prepared = copy.deepcopy(model, {id(model.text_tower): nn.Module()}).cpu().float().eval()
    prepared.backbone.fix_size(height, width)
    if precision != "float32" and isinstance(prepared.backbone, ViTBackbone):
        split_attention(prepared)
    for module in prepared.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  (nn.Module types its attributes as tensors)
    return prepared if exports_norms() else fold_norms(prepared)


def _traced(
    prepared: nn.Module,
    model: OVSDINO,
    height: int,
    width: int,
    batch: tuple[int, int],
    classes: tuple[int, int],
    grouped: bool,
) -> ModelProto:
    """Return the float32 graph, constants folded and nodes named after their modules."""
    sizes = [most if least == most else min(most, least + 2) for least, most in (batch, classes)]
    dim = model.config.embed_dim
    inputs = {"image": torch.zeros(sizes[0], 3, height, width), "text": torch.zeros(sizes[1], dim)}
    dynamic: list[dict[int, Any]] = [{}, {}]
    for index, (name, (least, most)) in enumerate((("B", batch), ("K", classes))):
        if least != most:
            dynamic[index] = {0: torch.export.Dim(name, min=least, max=most)}
    if grouped:
        inputs |= {"text": torch.zeros(sizes[1], 3, dim), "contrast": torch.zeros(5, dim)}
        dynamic[1][1] = torch.export.Dim("W", min=WORDS[0], max=WORDS[1])
        dynamic.append({0: torch.export.Dim("C", min=CONTRAST[0], max=CONTRAST[1])})
    try:
        exported = traced(
            prepared,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=[sides or None for sides in dynamic],
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise OVSDinoError(f"{model.config.name}: torch cannot export it: {one_line(error, 300)}") from error
    graph.order_gelu(exported)
    graph.simplify(exported)
    exported.producer_name = "ovsdino"
    return exported
