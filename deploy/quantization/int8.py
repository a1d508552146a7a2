"""Quantize an exported graph to int8: SmoothQuant first, then Q/DQ on its linears, ranges from real images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from ovsdino.deploy.export.compare import cosine
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.quantization.calibrate import channel_ranges, run, tensor_ranges
from ovsdino.deploy.quantization.convolutions import quantize_convolutions
from ovsdino.deploy.quantization.options import Recipe
from ovsdino.deploy.quantization.qdq import insert_qdq
from ovsdino.deploy.quantization.smoothquant import Linear, find_linears, smooth
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading

__all__ = ["Quantized", "agreement", "quantize", "read_graph", "sensitivity"]

SENSITIVITY_IMAGES = 4
AGREEMENT_IMAGES = 8


@dataclass(frozen=True)
class Quantized:
    """A quantized graph.

    Attributes:
        model: The graph.
        linears: Names of the linears in int8.
        kept: Names of those in float.
        convolutions: Names of the convolutions in int8.
        sensitivity: See `sensitivity`; None unless it was asked for.
    """

    model: ModelProto
    linears: tuple[str, ...]
    kept: tuple[str, ...]
    convolutions: tuple[str, ...]
    sensitivity: list[dict[str, Any]] | None


def read_graph(path: Path) -> tuple[ModelProto, Exported]:
    """Read an exported ONNX file, with the shapes of inner tensors, checked against its sidecar.

    Raises:
        OVSDinoError: It is missing, changed, an engine, damaged, or quantized already.
    """
    if not path.is_file():
        raise OVSDinoError(f"{path}: no such file; export one with deploy/export_onnx.py")
    sidecar = Sidecar.load(path)
    if sidecar.kind != "onnx":
        raise OVSDinoError(f"{path}: is an {sidecar.kind}; quantize the .onnx it was made of, then build again")
    if sidecar.quantised:
        raise OVSDinoError(f"{path}: is quantized already; give the float32 or float16 graph")
    if sidecar.precision == "bfloat16":
        raise OVSDinoError(f"{path}: is in bfloat16; give the float32 or float16 graph")
    data = sidecar.read(path)
    with reading(path, "ONNX graph", sidecar.rebuild()):
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    sidecar.check_graph({entry.key: entry.value for entry in model.metadata_props})
    return model, Exported(data, sidecar)


def quantize(
    model: ModelProto,
    feeds: Sequence[dict[str, np.ndarray]],
    recipe: Recipe,
    *,
    measure_sensitivity: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantized:
    """Quantize a graph; the one given is left as it is.

    Args:
        model: The float32 or float16 graph, with type information of inner tensors.
        feeds: Inputs made of real images; the text in them is any, since no quantized linear sees it.
        recipe: Which linears, and how.
        measure_sensitivity: List it even where `recipe.keep` does not need it.
        progress: Told each step.

    Raises:
        OVSDinoError: A number of the recipe is out of range, or there are no images or no linears.
    """
    recipe.check()
    if not feeds:
        raise OVSDinoError("no calibration images: int8 ranges come from real images; name a folder with --calibration")
    graph = copy.deepcopy(model)
    linears = find_linears(graph)
    if not linears:
        raise OVSDinoError("the graph has no linears on the way from the image; is it one of deploy/export_onnx.py?")
    chosen = recipe.chosen(linears)
    if recipe.alpha > 0:
        progress("ranges of channels")
        smooth(graph, chosen, channel_ranges(graph, _inputs(chosen), feeds, recipe.threads), recipe.alpha)
        names = {linear.node for linear in chosen}
        chosen = [linear for linear in find_linears(graph) if linear.node in names]  # their inputs may have moved
    progress("ranges of tensors")
    ranges = tensor_ranges(graph, _inputs(chosen), feeds, recipe.method, recipe.percentile, recipe.threads)
    rows = None
    if measure_sensitivity or recipe.keep:
        progress("sensitivity")
        rows = sensitivity(graph, chosen, ranges, _some(feeds, SENSITIVITY_IMAGES), recipe.threads)
        worst = {row["linear"] for row in rows[: recipe.keep]}
        chosen = [linear for linear in chosen if linear.name not in worst]
    insert_qdq(graph, chosen, ranges)
    convolutions: tuple[str, ...] = ()
    if recipe.convolutions:
        progress("convolutions")
        graph, convolutions = quantize_convolutions(
            graph,
            model,
            feeds,
            first=recipe.first_convolutions,
            skip=recipe.skip_convolutions,
            threads=recipe.threads,
        )
    onnx.checker.check_model(graph)
    done = {linear.node for linear in chosen}
    kept = tuple(linear.name for linear in linears if linear.node not in done)
    return Quantized(graph, tuple(linear.name for linear in chosen), kept, convolutions, rows)


def sensitivity(
    model: ModelProto,
    linears: Sequence[Linear],
    ranges: dict[str, float],
    feeds: Sequence[dict[str, np.ndarray]],
    threads: int = 0,
) -> list[dict[str, Any]]:
    """Measure how much each linear alone in int8 changes the logits, the worst first.

    Args:
        model: The graph in float.
        linears: Linears to quantize, one at a time.
        ranges: See `insert_qdq`.
        feeds: Inputs.
        threads: Threads of ONNX Runtime; 0: all cores.

    Returns:
        Rows of linear, error (norm of the logits' change over their norm) and label_agreement (share of cells).
    """
    expected = run(model, feeds, threads)
    rows = []
    for linear in linears:
        alone = copy.deepcopy(model)
        insert_qdq(alone, [linear], ranges)
        _, error, same = compared(expected, run(alone, feeds, threads))
        rows.append({"linear": linear.name, "error": round(error, 6), "label_agreement": round(same, 6)})
    return sorted(rows, key=lambda row: -row["error"])


def agreement(
    model: ModelProto, result: ModelProto, feeds: Sequence[dict[str, np.ndarray]], least: float, threads: int = 0
) -> dict[str, Any]:
    """Compare a float graph with its int8 form on some of the calibration images.

    Args:
        model: The float graph.
        result: The int8 graph.
        feeds: Inputs made of the calibration images.
        least: Least share of cells with the same label.
        threads: Threads of ONNX Runtime; 0: all cores.

    Returns:
        cosine, label_agreement and images.

    Raises:
        OVSDinoError: Too few labels agree.
    """
    some = _some(feeds, AGREEMENT_IMAGES)
    similarity, _, same = compared(run(model, some, threads), run(result, some, threads))
    if same < least:
        raise OVSDinoError(
            f"int8 agrees with float on {same:.3f} of the labels, expected {least:g}; use --keep N to leave the most "
            "sensitive linears in float (--sensitivity lists them)"
        )
    return {"cosine": round(similarity, 6), "label_agreement": round(same, 6), "images": len(some)}


def compared(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return cosine, relative error and label agreement of logits (B, K, h, w), averaged over images."""
    values = []
    for a, b in zip(expected, found, strict=True):
        size = max(float(np.linalg.norm(a.astype(np.float64))), 1e-12)
        error = float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64))) / size
        values.append((cosine(a, b), error, float((a.argmax(1) == b.argmax(1)).mean())))
    similarity, error, same = np.mean(values, axis=0).tolist()
    return similarity, error, same


def _inputs(linears: Iterable[Linear]) -> list[str]:
    return list(dict.fromkeys(linear.input for linear in linears))


def _some(feeds: Sequence[dict[str, np.ndarray]], count: int) -> Sequence[dict[str, np.ndarray]]:
    return feeds[:: max(1, len(feeds) // count)]
