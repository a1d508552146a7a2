"""Build an engine from a graph in memory; TensorRT itself is called in `ovsdino.deploy.export.tensorrt_api`."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from ovsdino.console import say
from ovsdino.deploy.export import tensorrt_api
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.tensorrt_api import Built, Layer, Shapes
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensorrt_graph import device_sm
from ovsdino.edge.tensors import logits_shape
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, reading

__all__ = ["Attention", "attention", "build_engine", "int8_linears", "layer_types", "runs_here"]

log = logging.getLogger("ovsdino")

USUAL_CONTRAST = 180  # of the contrast vocabulary, less what a street's words take out
FLOATS = ("Int8", "Half", "BFloat16", "Float")  # TensorRT's names, narrowest first
USUAL_CLASSES = 19  # kernels are chosen for this K, or the nearest in range: a street's vocabulary


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Which attentions of a graph the engine runs as one kernel.

    Attributes:
        fused: Names of the Softmax nodes inside a fused kernel.
        apart: Names of the others.
    """

    fused: tuple[str, ...]
    apart: tuple[str, ...]


def attention(graph: ModelProto, layers: Sequence[Layer]) -> Attention:
    """Look for each attention of the ViT and of the structure decoder among the engine's fused kernels.

    TensorRT names those `_gemm_mha_v2...`; the softmax of the upsampling, outside any module, is not one of them.
    """
    wanted = [n.name for n in graph.graph.node if n.op_type == "Softmax" and not n.name.startswith("/")]
    inside = {node for layer in layers if "mha" in layer.name.lower() for node in layer.nodes}
    return Attention(
        fused=tuple(name for name in wanted if name in inside),
        apart=tuple(name for name in wanted if name not in inside),
    )


def int8_linears(graph: ModelProto, layers: Sequence[Layer]) -> tuple[list[str], list[str]]:
    """Return the linears of a quantized graph that the engine multiplies in int8, and the others, by node names.

    A linear is in int8 where a product of the engine that holds its node reads int8. Where TensorRT dequantizes
    before it, the product reads floats.

    Args:
        graph: The graph, with Q/DQ around its linears.
        layers: Layers of the engine.
    """
    restored = {name for node in graph.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    products = {node for layer in layers if layer.kind != "kgen" and "Int8" in layer.reads for node in layer.nodes}
    linears = [n for n in graph.graph.node if n.op_type in ("MatMul", "Gemm") and restored.issuperset(n.input[:2])]
    inside = [node.name for node in linears if node.name in products]
    return inside, [node.name for node in linears if node.name not in products]


def layer_types(layers: Sequence[Layer]) -> dict[str, int]:
    """Return how many layers of an engine work in each type, "Half" or "BFloat16", the most frequent first.

    A layer counts once, for the narrowest type that it reads; those that read only indices or shapes are left out.
    """
    found: Counter[str] = Counter()
    for layer in layers:
        types = [name for name in FLOATS if name in layer.reads]
        found.update(types[:1])
    return dict(found.most_common())


def build_engine(graph: Exported, settings: BuildOptions, *, least_batch: int = 1) -> tuple[Exported, float]:
    """Build an engine; its sidecar is the graph's, with what the engine adds.

    The graph's figures are not the engine's: `verified` is None until the engine itself was run.

    Args:
        graph: The graph that it is built from.
        settings: How it is built.
        least_batch: Smallest batch of a graph whose batch is dynamic.

    Returns:
        The engine, and the seconds of the build.

    Raises:
        OVSDinoError: It is not a graph, the target cannot be built for, or no engine can be built.
    """
    sidecar, backend = graph.sidecar, settings.backend
    if sidecar.kind != "onnx":
        raise OVSDinoError(f"{sidecar.file}: an engine; give the .onnx that `python deploy/export_onnx.py` writes")
    target = tensorrt_api.resolve_target(backend, settings.target)
    with reading(sidecar.file, "ONNX graph", sidecar.rebuild()):
        model = onnx.load_model_from_string(graph.data)
    sidecar.check_graph({entry.key: entry.value for entry in model.metadata_props})
    known = tensorrt_api.known_fault(backend, tensorrt_api.version_of(backend), sidecar.model)
    if known:
        log.warning("%s", known)
    built = tensorrt_api.build(graph.data, settings, target, _shapes(model, sidecar, least_batch))
    file = Path(sidecar.file).with_suffix(".engine").name
    facts: dict[str, Any] = {
        "kind": "engine",
        "file": file,
        "backend": backend,
        "version": built.version,
        "target": target,
    }
    fused = attention(model, built.layers)
    if built.layers:
        total = len(fused.fused) + len(fused.apart)
        say(f"attention: {len(fused.fused)} of {total} fused, {len(built.layers)} layers ({built.source})")
        types = ", ".join(f"{count} {name}" for name, count in layer_types(built.layers).items())
        say(f"types that layers read: {types}")
    inside, outside = int8_linears(model, built.layers)
    if built.layers and (inside or outside):
        record = sidecar.quantised if isinstance(sidecar.quantised, Mapping) else {}
        say(f"int8: {len(inside)} of {len(inside) + len(outside)} linears")
        facts["quantised"] = {**record, "int8_in_engine": len(inside), "float_in_engine": outside}
    if settings.layers is not None:
        _write_layers(settings.layers, built, fused)
    return Exported.of(built.data, sidecar, **facts, verified=None), built.seconds


def runs_here(sidecar: Sidecar) -> bool:
    """Tell whether this machine has a device that the engine was built for."""
    try:
        return device_sm(0) in sidecar.target.split(",")
    except OVSDinoError:
        return False


def _shapes(graph: ModelProto, sidecar: Sidecar, least_batch: int) -> dict[str, Shapes]:
    """Return the optimization profile: the ranges of K and of the batch, where the graph leaves them open."""
    shapes: dict[str, Shapes] = {}
    batch, *rest = sidecar.input
    if sidecar.baked is not None and sidecar.baked["layout"] == "nhwc":
        rest = [*rest[1:], rest[0]]
    least, most = sidecar.classes
    dim = (sidecar.embed_dim,) * 3
    sides: dict[str, tuple[tuple[int, int, int], ...]] = {  # of each side the least, the usual and the most
        "image": ((least_batch, 1, batch), *((side, side, side) for side in rest)),
        "text": ((least, USUAL_CLASSES, most), dim),
    }
    if sidecar.words is not None and sidecar.contrast is not None:
        words, rivals = sidecar.words, sidecar.contrast
        sides["text"] = ((least, USUAL_CLASSES, most), (words[0], 1, words[1]), dim)
        sides["contrast"] = ((rivals[0], USUAL_CONTRAST, rivals[1]), dim)
    if sidecar.memory is not None:
        _, extra, rows, columns = logits_shape(sidecar, 1, 0)
        maps = (least + extra, USUAL_CLASSES + extra, most + extra)
        sides["last_logits"] = ((1,) * 3, maps, (rows,) * 3, (columns,) * 3)
    for value in graph.graph.input:
        if any(side.HasField("dim_param") for side in value.type.tensor_type.shape.dim):
            clamped = [(low, min(max(usual, low), high), high) for low, usual, high in sides[value.name]]
            low, usual, high = zip(*clamped, strict=True)
            shapes[value.name] = (low, usual, high)
    return shapes


def _write_layers(path: Path, built: Built, fused: Attention) -> None:
    data = {
        "source": built.source,
        "attention": {"fused": list(fused.fused), "apart": list(fused.apart)},
        "types": layer_types(built.layers),
        "layers": [{"name": one.name, "kind": one.kind, "nodes": list(one.nodes)} for one in built.layers],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(data, indent=1).encode() + b"\n")
