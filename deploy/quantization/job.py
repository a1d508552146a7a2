"""Quantize an exported file: read, calibrate, quantize, compare, publish, score."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ovsdino.console import progress_bar, say
from ovsdino.data.datasets import open_dataset
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.deploy.export.inputs import bank_rows, random_rows
from ovsdino.deploy.export.publish import Exported, locked_output, publish
from ovsdino.deploy.export.trace import write_facts
from ovsdino.deploy.quantization.calibrate import calibration_images
from ovsdino.deploy.quantization.int8 import agreement, quantize, read_graph
from ovsdino.deploy.quantization.options import QuantizeOptions
from ovsdino.deploy.quantization.score import feed, model_rows, score
from ovsdino.edge.sidecar import Sidecar, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_bytes, refuse_inputs

__all__ = ["quantize_file"]


def quantize_file(options: QuantizeOptions) -> dict[str, Any]:
    """Quantize a graph, write the result with its sidecar, and score it.

    Returns:
        The report, ready for JSON.

    Raises:
        OVSDinoError: There are no calibration images, a file or number is bad, or the result agrees too little.
    """
    source, calibration = options.input, options.calibration
    if calibration is None:
        raise OVSDinoError("--calibration is missing: int8 ranges come from real images; name a folder of them")
    options.check()
    output = options.output or source.with_name(f"{source.stem.removesuffix('_fp32')}_int8.onnx")
    inputs = [source, sidecar_path(source), calibration, *options.also]
    refuse_inputs([output, sidecar_path(output)], [*inputs, *([options.bank] if options.bank else [])])
    with locked_output(output):
        return _report(options, output, calibration)


def _report(options: QuantizeOptions, output: Path, calibration: Path) -> dict[str, Any]:
    model, source = read_graph(options.input)
    sidecar = source.sidecar
    data = open_dataset(options.dataset, options.evaluate, "val") if options.evaluate else None
    if options.convolutions and sidecar.precision != "float32":
        raise OVSDinoError(f"{options.input}: {sidecar.precision}; int8 convolutions are made of a float32 graph")
    if data is not None:
        text = _words(options, sidecar, data.names)
    elif options.bank is not None:
        text = bank_rows(sidecar, options.bank)
    else:
        text = random_rows(sidecar.embed_dim, sidecar.classes)
    feeds = [feed(image, text, sidecar) for image in calibration_images(calibration, options.images)]
    found = quantize(model, feeds, options, measure_sensitivity=options.sensitivity, progress=say)
    facts = {
        "linears": len(found.linears),
        "kept": list(found.kept),
        "convolutions": len(found.convolutions),
        "alpha": options.alpha,
        "method": options.method,
        "percentile": options.percentile if options.method == "percentile" else None,
        "images": options.images,
        "base": sidecar.precision,
        "source": sidecar.sha256,
    }
    write_facts(found.model, dataclasses.replace(sidecar, precision="int8"))
    result = Exported.of(found.model.SerializeToString(), sidecar, precision="int8", quantised=facts)
    figures = agreement(model, found.model, feeds, options.least_agreement, options.threads)
    figures |= {"source": f"calibration images of {calibration.name}", "reference": f"the {sidecar.precision} graph"}
    written = publish(output, result.proven(figures))
    return {
        "output": str(output),
        "sidecar": f"{output}.json",
        "bytes": written.bytes,
        "input": str(options.input),
        "size": f"{sidecar.input[2]}x{sidecar.input[3]}",
        "quantised": facts,
        "verified": figures,
        "sensitivity": found.sensitivity,
        "results": None if data is None else _score(options, model, source, result, feeds, data, text),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _words(options: QuantizeOptions, sidecar: Sidecar, names: Sequence[str]) -> np.ndarray:
    """Return the text of the data set's classes.

    Raises:
        OVSDinoError: The bank is not of this model or of other classes, or the model's words are out of reach.
    """
    if options.bank is None:
        return model_rows(sidecar, names)
    text = bank_rows(sidecar, options.bank)
    if len(text) != len(names):
        raise OVSDinoError(f"{options.bank}: {len(text)} classes, the data set has {len(names)}: {', '.join(names)}")
    return text


def _score(
    options: QuantizeOptions,
    model: ModelProto,
    source: Exported,
    result: Exported,
    feeds: Sequence[dict[str, np.ndarray]],
    data: SegmentationDataset,
    text: np.ndarray,
) -> list[dict[str, Any]]:
    """Score the source, others, int8 without SmoothQuant, and the result."""
    graphs = {source.sidecar.precision: source.data}
    graphs |= {path.stem: read_bytes(path, "ONNX graph") for path in options.also}
    if options.alpha > 0:
        say("the same without SmoothQuant")
        plain = quantize(model, feeds, dataclasses.replace(options, alpha=0.0))
        graphs["int8 without SmoothQuant"] = plain.model.SerializeToString()
    graphs["int8"] = result.data
    with progress_bar() as bar:
        task = bar.add_task("score", total=None)
        return score(
            graphs,
            source.sidecar,
            data,
            text,
            limit=options.limit,
            threads=options.threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
