"""Builds a TensorRT or TensorRT-RTX engine: export, comparison with PyTorch, build, sidecar.

    python deploy/export_trt.py --model nano --backend tensorrt_rtx --target sm86 --output DIR --json
    python deploy/export_trt.py --model nano --output DIR                   on the device itself, JetPack's TensorRT
    python deploy/export_trt.py --onnx nano_int8.onnx --output DIR          a graph that is there already

tensorrt_rtx builds for GPUs that are not in the machine; tensorrt only for the one that is. Where the engine's device
is there, the engine is run and compared with its graph in ONNX Runtime; elsewhere nobody ran it: `verified` is null.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from ovsdino.deploy.export.start import start

    sys.exit(start("export_trt", "ExportTrt"))

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.console import print_json, say
from ovsdino.deploy.export import tensorrt_api
from ovsdino.deploy.export.publish import proven
from ovsdino.deploy.export_onnx import (
    ExportOptions,
    Precision,
    output_file,
    precision_suffix,
    reported,
)
from ovsdino.edge.sidecar import Sidecar, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, lock_folder, reading, refuse_inputs

if TYPE_CHECKING:
    from onnx import ModelProto

    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["Attention", "ExportTrt", "attention", "build_engine"]

log = logging.getLogger("ovsdino.deploy")

USUAL_CLASSES = 19  # kernels are chosen for this K, or the nearest in range: a street's vocabulary


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Which attentions of a graph the engine runs as one kernel.

    Attributes:
        fused: names of the Softmax nodes inside a fused kernel.
        apart: those that are not.
    """

    fused: tuple[str, ...]
    apart: tuple[str, ...]


def attention(graph: ModelProto, layers: Sequence[tensorrt_api.Layer]) -> Attention:
    """Looks for each attention of the ViT and of the structure decoder among the engine's fused kernels.

    TensorRT names those `_gemm_mha_v2...`; the softmax of the upsampling, outside any module, is none of them.
    """
    wanted = [n.name for n in graph.graph.node if n.op_type == "Softmax" and not n.name.startswith("/")]
    inside = {node for layer in layers if "mha" in layer.name.lower() for node in layer.nodes}
    return Attention(
        fused=tuple(name for name in wanted if name in inside),
        apart=tuple(name for name in wanted if name not in inside),
    )


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    backend: str = "tensorrt",
    target: str = "current",
    least_batch: int | None = None,
    workspace: int = 0,
    dla: int | None = None,
    timing_cache: Path | None = None,
    effort: int | None = None,
    layers: Path | None = None,
) -> tuple[Sidecar, float]:
    """Builds an engine from an exported .onnx file; the sidecar is the graph's, with what the engine adds.

    The graph's figures are not the engine's: `verified` is None until the engine itself was run.

    Args:
        onnx_path: the graph; its sidecar lies beside it.
        engine_path: the file to write, atomically.
        backend: "tensorrt" or "tensorrt_rtx".
        target: see `tensorrt_api.resolve_target`.
        least_batch: smallest batch of a graph whose batch is dynamic; 1 by default.
        workspace: see `tensorrt_api.BuildSettings`, as for dla, timing_cache and effort.
        layers: JSON file to write the engine's layers to.

    Returns:
        The engine's sidecar, and the seconds of the build.

    Raises:
        OVSDinoError: the graph was changed, the target is not to be had, or no engine can be built.
    """
    import onnx

    onnx_path, engine_path = Path(onnx_path), Path(engine_path)
    sidecar = Sidecar.load(onnx_path)
    if sidecar.kind != "onnx":
        raise OVSDinoError(f"{onnx_path}: an engine; give the .onnx that `python deploy/export_onnx.py` writes")
    sidecar.check_file(onnx_path)
    settings = tensorrt_api.BuildSettings(
        target=tensorrt_api.resolve_target(backend, target),
        shapes={},
        workspace=workspace,
        dla=dla,
        timing_cache=timing_cache,
        effort=effort,
    )
    with reading(onnx_path, "ONNX graph", sidecar.rebuild()):
        data = onnx_path.read_bytes()
        graph = onnx.load_model_from_string(data)
    sidecar.check_graph({entry.key: entry.value for entry in graph.metadata_props})
    known = tensorrt_api.known_fault(backend, tensorrt_api.version_of(backend), sidecar.model)
    if known:
        log.warning("%s", known)
    settings.shapes.update(_shapes(graph, sidecar, least_batch or 1))
    built = tensorrt_api.build(backend, data, settings)
    facts = {"kind": "engine", "backend": backend, "version": built.version, "target": settings.target}
    with proven(engine_path) as temporary:
        with atomic_write(temporary) as file:
            file.write(built.data)
        sidecar.of_file(temporary, **facts, verified=None).save(temporary)
    engine = Sidecar.load(engine_path)
    fused = attention(graph, built.layers)
    if built.layers:
        total = len(fused.fused) + len(fused.apart)
        say(f"attention: {len(fused.fused)} of {total} fused, {len(built.layers)} layers ({built.source})")
    if layers is not None:
        _write_layers(layers, built, fused)
    return engine, built.seconds


def _shapes(graph: ModelProto, sidecar: Sidecar, least_batch: int) -> dict[str, tensorrt_api.SHAPES]:
    """The optimisation profile: the ranges of K and of the batch, where the graph leaves them open."""
    shapes: dict[str, tensorrt_api.SHAPES] = {}
    batch, *rest = sidecar.input
    least, most = sidecar.classes
    ranges = {"image": (least_batch, 1, batch, tuple(rest)), "text": (least, USUAL_CLASSES, most, (sidecar.embed_dim,))}
    for value in graph.graph.input:
        if any(dim.HasField("dim_param") for dim in value.type.tensor_type.shape.dim):
            low, usual, high, others = ranges[value.name]
            usual = min(max(usual, low), high)
            shapes[value.name] = ((low, *others), (usual, *others), (high, *others))
    return shapes


def _write_layers(path: Path, built: tensorrt_api.Built, fused: Attention) -> None:
    import json

    data = {
        "source": built.source,
        "attention": {"fused": list(fused.fused), "apart": list(fused.apart)},
        "layers": [{"name": one.name, "kind": one.kind, "nodes": list(one.nodes)} for one in built.layers],
    }
    with atomic_write(path) as file:
        file.write(json.dumps(data, indent=1).encode() + b"\n")


@dataclass(frozen=True, kw_only=True)
class ExportTrt(ExportOptions):
    """Build an engine of a model: exported, compared with PyTorch, built, run where its device is here."""

    backend: Literal["tensorrt", "tensorrt_rtx"] = "tensorrt"
    """tensorrt builds for the GPU it runs on; tensorrt_rtx for any of its targets, with no GPU."""
    target: str = "current"
    """GPU architecture: current, sm75, sm80, sm86, sm87 (Jetson Orin), sm89, sm90, sm120; with tensorrt_rtx also
    several, with commas between."""
    precision: Precision = "float16"
    """Of weights and arithmetic; norms and softmax stay in float32, inputs and outputs too."""
    onnx: Path | None = None
    """Build from this exported or quantised graph in place of --model; its own sidecar says whether it was verified."""
    bank: Path | None = None
    """Text bank to compare the engine on, with --onnx. Default: seeded random rows, and no labels are asked for."""
    keep_onnx: bool = False
    """Keep the graph beside the engine."""
    workspace: int = 0
    """Scratch memory a kernel may use, in MiB. Default: TensorRT's own limit."""
    dla: int | None = None
    """Core of the deep learning accelerator that takes what it can (tensorrt on Jetson with JetPack 6)."""
    timing_cache: Path | None = None
    """File of kernel timings, read and written, so that the next build is fast (tensorrt)."""
    effort: int | None = None
    """Builder optimisation level, 0 to 5. Default: TensorRT's own."""
    layers: Path | None = None
    """JSON file for the engine's layers, which say whether attention was fused."""

    def run(self) -> int:
        tensorrt_api.version_of(self.backend)
        target = tensorrt_api.resolve_target(self.backend, self.target)  # before the minutes of an export
        gpus = target.replace(",", "-")
        if self.onnx is None:
            model = self.load()
            stem = f"{model.config.name}_{precision_suffix(self.precision)}"
        else:
            stem = self.onnx.stem
        path = output_file(self.output, f"{stem}_{gpus}", ".engine")
        inputs = [one for one in (self.onnx, self.bank) if one is not None]
        refuse_inputs([one for one in (path, self.layers, self.timing_cache) if one is not None], inputs)
        with lock_folder(path.parent, "export"), proven(path) as temporary:
            if self.onnx is not None:
                seconds = self._build(self.onnx, temporary, target)
                self._prove(temporary, self.onnx, None)
            else:
                seconds = self._from_model(model, path.with_name(f"{stem}.onnx"), temporary, target)
        sidecar = Sidecar.load(path)
        say(f"wrote {path} ({sidecar.bytes:,} bytes), built in {seconds:.1f} s for {target}")
        if self.json:
            print_json(self._report(path, sidecar, seconds))
        return 0

    def _from_model(self, model: OVSDINO, graph: Path, engine: Path, target: str) -> float:
        with ExitStack() as stack:
            if not self.keep_onnx:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ovsdino-export-"))
                graph = Path(folder) / graph.name
            with proven(graph) as unproven:
                self.export(model, unproven, self.precision)
            seconds = self._build(graph, engine, target)
            self._prove(engine, graph, model)
        return seconds

    def _prove(self, engine: Path, graph: Path, model: OVSDINO | None) -> None:
        """Runs the engine where its device is here, and writes the figures into its sidecar.

        Raises:
            OVSDinoError: it departs from its graph; or it cannot be run though the device is here.
        """
        sidecar = Sidecar.load(engine)
        if self.verify.skip_verify:
            say("the engine was not compared with its graph (--skip-verify): verified is null")
            return
        if not _runs_here(sidecar):
            say(f"nobody ran this engine: there is no {sidecar.target} device here; verified is null")
            return
        from ovsdino.deploy.export.compare import compare_engine, words
        from ovsdino.deploy.verify import text_bank

        images = self.verify.find()
        text = text_bank(model, images.names, sidecar.classes) if model else words(sidecar, self.bank)
        found = compare_engine(engine, graph, images, text)
        say(found.tell())
        labels_count = self.bank is not None if model is None else self.random_weights is None
        found.check(self.verify.cosine, self.verify.agreement if labels_count else None)
        sidecar.of_file(engine, verified=found.to_dict()).save(engine)

    def _build(self, graph: Path, engine: Path, target: str) -> float:
        _, seconds = build_engine(
            graph,
            engine,
            backend=self.backend,
            target=target,
            least_batch=min(self.batch),
            workspace=self.workspace,
            dla=self.dla,
            timing_cache=self.timing_cache,
            effort=self.effort,
            layers=self.layers,
        )
        return seconds

    def _report(self, path: Path, sidecar: Sidecar, seconds: float) -> dict[str, Any]:
        return {
            "engine": str(path),
            "sidecar": str(sidecar_path(path)),
            "bytes": sidecar.bytes,
            "build_s": round(seconds, 3),
            "backend": sidecar.backend,
            "version": sidecar.version,
            "target": sidecar.target,
            "precision": sidecar.precision,
            "verified": reported(sidecar.verified),
        }


def _runs_here(sidecar: Sidecar) -> bool:
    """Whether this machine has a device that the engine was built for."""
    from ovsdino.edge.tensorrt_graph import device_sm

    try:
        return device_sm(0) in sidecar.target.split(",")
    except OVSDinoError:
        return False
