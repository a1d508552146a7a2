"""Exported graphs and text banks for latency.py."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from ovsdino.benchmarks.lib.latency_cases import ONNX, Case, random_bank, torch_model
from ovsdino.console import say
from ovsdino.deploy.export.defaults import Backend, Precision
from ovsdino.edge.bank import TextBank
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError

CALIBRATION_IMAGES = 16


def exported(case: Case, folder: Path, calibration: Path | None) -> Case:
    """Return the case with a fresh graph or engine of its model, size and precision, and its text bank, in `folder`.

    Raises:
        OVSDinoError: TensorRT without TensorRT or a device; or int8 without images.
    """
    if case.precision == "int8" and calibration is None:
        raise OVSDinoError("int8 is calibrated on real images: name a folder or zip of them with --calibration")
    onnx = case.backend in ONNX
    stored = "float32" if case.precision == "bfloat16" else case.precision  # OpenVINO rounds a float32 graph itself
    if not onnx:
        from ovsdino.deploy.export import tensorrt_api
        from ovsdino.deploy.export.engine import build_engine
        from ovsdino.deploy.export.options import BuildOptions
        from ovsdino.deploy.export.publish import Exported, publish

        tensorrt_api.resolve_target(case.backend, "current")  # before minutes go into an export
    base = "float32" if onnx else "float16"  # around int8
    path = graph(case.model, case.random_weights, case.size, stored, base, calibration, folder)
    if not onnx:
        say(f"building {case}")
        source, path = path, path.with_suffix(f".{case.backend}.engine")
        publish(path, build_engine(Exported.read(source), BuildOptions(backend=cast(Backend, case.backend)))[0])
    bank = folder / f"{case.model}.safetensors"
    if not bank.exists():
        write_bank(case.model, case.random_weights, case.classes, bank)
    return dataclasses.replace(case, engine=str(path), bank=str(bank))


@functools.cache
def graph(
    name: str,
    random_weights: bool,
    size: tuple[int, int],
    precision: str,
    base: Precision,
    calibration: Path | None,
    folder: Path,
) -> Path:
    """Export an ONNX file of a model; int8 is quantized from a graph of the precision `base`."""
    path = folder / f"{name}_{size[0]}x{size[1]}_{precision}.onnx"
    if precision == "int8":
        from ovsdino.deploy.quantization.job import quantize_file
        from ovsdino.deploy.quantization.options import QuantizeOptions

        path = path.with_name(f"{path.stem}_{base}.onnx")
        source = graph(name, random_weights, size, base, base, None, folder)
        options = QuantizeOptions(
            input=source,
            output=path,
            calibration=calibration,
            images=CALIBRATION_IMAGES,
            convolutions=base == "float32",  # for a CPU
        )
        quantize_file(options)
        return path
    from ovsdino.deploy.export.publish import publish
    from ovsdino.deploy.export.trace import export_graph

    say(f"exporting {name} {size[0]}x{size[1]} {precision}")
    kind: Precision = "float16" if precision == "float16" else "float32"
    model = torch_model(name, random_weights)
    publish(path, export_graph(model, height=size[0], width=size[1], precision=kind))
    return path


def write_bank(name: str, random_weights: bool, words: Sequence[str], path: Path) -> None:
    """Write the words by a model's text tower, or at random."""
    from ovsdino.models.weights import weights_digest
    from ovsdino.vocabulary import Vocabulary

    model, vocabulary = torch_model(name, random_weights), Vocabulary.of(list(words))
    if random_weights:
        text = random_bank(len(vocabulary), model.config.embed_dim)
    else:
        text = model.encode_text(vocabulary.texts)
    bank = TextBank(names=vocabulary.names, text=np.asarray(text.detach()), model=name, weights=weights_digest(model))
    bank.save(path)


def engine_case(path: Path, bank: Path | None, words: Sequence[str], threads: int | None, folder: Path) -> Case:
    """Return the case of an exported file, by its sidecar.

    Raises:
        OVSDinoError: No sidecar; or no bank, and the file's weights are not those of the zoo's model.
    """
    sidecar = Sidecar.load(path)
    if bank is None:
        bank = folder / f"{path.name}.safetensors"
        write_bank(sidecar.model, False, words, bank)
    return Case(
        model=sidecar.model,
        backend="onnxruntime" if sidecar.backend == "onnx" else sidecar.backend,
        precision=sidecar.precision,
        size=(sidecar.input[2], sidecar.input[3]),
        classes=TextBank.load(bank).names,
        engine=str(path),
        bank=str(bank),
        threads=threads,
    )
