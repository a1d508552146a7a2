"""Build a TensorRT or TensorRT-RTX engine: export, comparison with PyTorch, build, comparison with the graph.

    python deploy/export_trt.py --model nano --backend tensorrt_rtx --target sm86 --output DIR --json
    python deploy/export_trt.py --model nano --output DIR                   on the device itself, JetPack's TensorRT
    python deploy/export_trt.py --onnx nano_int8.onnx --output DIR          a graph that is there already

tensorrt_rtx builds for GPUs that are not in the machine; tensorrt only for the one that is. Where the engine's device
is there, the engine is run and compared with its graph in ONNX Runtime; elsewhere nobody ran it: `verified` is null.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.console import print_json, say
from ovsdino.deploy.export.defaults import Precision
from ovsdino.deploy.export.options import SUFFIXES, BuildOptions, ExportOptions, output_file, reported

if TYPE_CHECKING:
    from ovsdino.deploy.export.publish import Exported
    from ovsdino.edge.sidecar import Sidecar
    from ovsdino.models.ovsdino import OVSDINO


@dataclass(frozen=True, kw_only=True)
class ExportTrt(BuildOptions, ExportOptions):
    """Build an engine of a model: exported, compared with PyTorch, built, run where its device is here."""

    precision: Precision = "float16"
    """Precision of weights and arithmetic; norms and softmax stay in float32, inputs and outputs too."""
    onnx: Path | None = None
    """Build from this exported or quantized graph in place of --model; its own sidecar says whether it was verified."""
    bank: Path | None = None
    """Text bank to compare the engine on, with --onnx. Default: seeded random rows, and no labels are asked for."""
    keep_onnx: bool = False
    """Keep the graph next to the engine."""

    def run(self) -> int:
        from ovsdino.deploy.export import tensorrt_api
        from ovsdino.deploy.export.engine import build_engine
        from ovsdino.deploy.export.publish import Exported, locked_output, publish
        from ovsdino.io.files import refuse_inputs

        tensorrt_api.version_of(self.backend)
        target = tensorrt_api.resolve_target(self.backend, self.target)  # before the minutes of an export
        model = None
        if self.onnx is not None:
            stem = self.onnx.stem
        else:
            model = self.load()
            stem = f"{model.config.name}_{SUFFIXES[self.precision]}{self.suffix}"
        path = output_file(self.output, f"{stem}_{target.replace(',', '-')}", ".engine")
        inputs = [one for one in (self.onnx, self.bank) if one is not None]
        refuse_inputs([one for one in (path, self.layers, self.timing_cache) if one is not None], inputs)
        with locked_output(path):
            if model is None:
                graph = Exported.read(str(self.onnx))
            else:
                graph = self.graph(model, self.precision)
                if self.keep_onnx:
                    publish(path.with_name(f"{stem}.onnx"), graph)
            engine, seconds = build_engine(graph, self, least_batch=min(self.batch))
            sidecar = publish(path, engine.proven(self._figures(engine, graph, model)))
        say(f"wrote {path} ({sidecar.bytes:,} bytes), built in {seconds:.1f} s for {target}")
        if self.json:
            print_json(self._report(path, sidecar, seconds))
        return 0

    def _figures(self, engine: Exported, graph: Exported, model: OVSDINO | None) -> dict[str, Any] | None:
        """Run the engine where its device is here and return its figures, None where nobody ran it.

        Raises:
            OVSDinoError: It departs from its graph; or it cannot be run though the device is here.
        """
        from ovsdino.deploy.export.engine import runs_here

        sidecar = engine.sidecar
        if self.verify.skip_verify:
            say("the engine was not compared with its graph (--skip-verify): verified is null")
            return None
        if not runs_here(sidecar):
            say(f"nobody ran this engine: there is no {sidecar.target} device here; verified is null")
            return None
        if sidecar.baked is not None:
            say("an engine with the words inside is not run here, its graph was: verified is null")
            return None
        from ovsdino.deploy.export.compare import compare_engine
        from ovsdino.deploy.export.inputs import bank_rows, random_rows, text_rows

        images = self.verify.find()
        if model is not None:
            text, labels_count = text_rows(model, images.names, sidecar.classes), self.random_weights is None
        elif self.bank is not None:
            text, labels_count = bank_rows(sidecar, self.bank), True
        else:
            text, labels_count = random_rows(sidecar.embed_dim, sidecar.classes), False
        return self.verify.check(compare_engine(engine, graph, images, text), labels_count=labels_count)

    def _report(self, path: Path, sidecar: Sidecar, seconds: float) -> dict[str, Any]:
        quantized = sidecar.quantised if isinstance(sidecar.quantised, Mapping) else {}
        return {
            "engine": str(path),
            "sidecar": f"{path}.json",
            "bytes": sidecar.bytes,
            "build_s": round(seconds, 3),
            "backend": sidecar.backend,
            "version": sidecar.version,
            "target": sidecar.target,
            "precision": sidecar.precision,
            "int8_linears": quantized.get("int8_in_engine"),
            "float_linears": quantized.get("float_in_engine"),
            "verified": reported(sidecar.verified),
        }


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(ExportTrt, "export_trt.py"))
