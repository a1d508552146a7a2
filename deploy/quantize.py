"""Quantize an exported graph to int8: Q/DQ on its linears, SmoothQuant first, ranges from real images.

    python deploy/quantize.py --input nano_fp32.onnx --calibration FOLDER
    python deploy/quantize.py --input nano_fp32.onnx --calibration FOLDER --sensitivity --keep 3
    python deploy/quantize.py ... --evaluate DATA --also nano_fp16.onnx --json

Linears only: attention products, residual adds, norms and convolutions keep the graph's precision, since quantizing
them costs accuracy (residuals) or speed (attention is no longer fused). The result runs in ONNX Runtime and parses in
TensorRT as a strongly typed network; from a float16 graph it is int8 with float16 around it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.console import print_json, progress_bar, say
from ovsdino.deploy.quantization.recipe import Recipe
from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto

    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.deploy.export.publish import Exported


@dataclass(frozen=True, kw_only=True)
class Quantize(Recipe):
    """Quantize an exported ONNX graph to int8 (Q/DQ on linears, SmoothQuant), and measure what it costs."""

    input: Path
    """Graph made by deploy/export_onnx.py, float32 or float16, with its sidecar."""
    calibration: Path | None = None
    """Real images: a folder, or a zip with images/ in it (camvid_train.zip). Without them: refused."""
    output: Path | None = None
    """Default: NAME_int8.onnx next to the input."""
    bank: Path | None = None
    """Text bank for --evaluate. Default: the classes' names through the model that was exported."""
    sensitivity: bool = False
    """List how much each linear alone in int8 changes the logits."""
    evaluate: Path | None = None
    """Folder of the data set to score float and int8 graphs on (--dataset), through ONNX Runtime."""
    dataset: str = "camvid"
    """See `ovsdino eval`."""
    limit: int | None = None
    """Score the first N images only."""
    also: tuple[Path, ...] = ()
    """Other graphs to score as well."""
    least_agreement: float = 0.95
    """Refuse to write a graph that agrees with the float one on fewer of the labels of the calibration images."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.deploy.quantization.report import markdown

        report = self.report()
        if self.json:
            print_json(report)
        else:
            print(markdown(report))
        return 0

    def report(self) -> dict[str, Any]:
        """Quantize, write and score; return what --json prints.

        Raises:
            OVSDinoError: There are no calibration images, a file or number is bad, or the result agrees too little.
        """
        from ovsdino.deploy.export.publish import locked_output
        from ovsdino.edge.sidecar import sidecar_path
        from ovsdino.io.files import refuse_inputs

        if self.calibration is None:
            raise OVSDinoError("--calibration is missing: int8 ranges come from real images; name a folder of them")
        self.check()
        output = self.output or self.input.with_name(f"{self.input.stem.removesuffix('_fp32')}_int8.onnx")
        inputs = [self.input, sidecar_path(self.input), self.calibration, *self.also]
        refuse_inputs([output, sidecar_path(output)], [*inputs, *([self.bank] if self.bank else [])])
        with locked_output(output):
            return self._report(output, self.calibration)

    def _report(self, output: Path, calibration: Path) -> dict[str, Any]:
        from ovsdino.data.datasets import open_dataset
        from ovsdino.deploy.export.inputs import random_rows
        from ovsdino.deploy.export.publish import Exported, publish
        from ovsdino.deploy.export.trace import write_facts
        from ovsdino.deploy.quantization.calibrate import calibration_images
        from ovsdino.deploy.quantization.int8 import agreement, quantize, read_graph
        from ovsdino.deploy.quantization.score import feed

        model, source = read_graph(self.input)
        sidecar = source.sidecar
        data = open_dataset(self.dataset, self.evaluate, "val") if self.evaluate else None
        text = random_rows(sidecar.embed_dim, sidecar.classes) if data is None else self._words(source, data.names)
        feeds = [feed(image, text, sidecar) for image in calibration_images(calibration, self.images)]
        found = quantize(model, feeds, self, measure_sensitivity=self.sensitivity, progress=say)
        facts = {
            "linears": len(found.linears),
            "kept": list(found.kept),
            "alpha": self.alpha,
            "method": self.method,
            "percentile": self.percentile if self.method == "percentile" else None,
            "images": self.images,
            "base": sidecar.precision,
            "source": sidecar.sha256,
        }
        write_facts(found.model, dataclasses.replace(sidecar, precision="int8"))
        result = Exported.of(found.model.SerializeToString(), sidecar, precision="int8", quantised=facts)
        figures = agreement(model, found.model, feeds, self.least_agreement, self.threads)
        figures |= {
            "source": f"calibration images of {calibration.name}",
            "reference": f"the {sidecar.precision} graph",
        }
        written = publish(output, result.proven(figures))
        return {
            "output": str(output),
            "sidecar": f"{output}.json",
            "bytes": written.bytes,
            "input": str(self.input),
            "size": f"{sidecar.input[2]}x{sidecar.input[3]}",
            "quantised": facts,
            "verified": written.verified,
            "sensitivity": found.sensitivity,
            "results": None if data is None else self._score(model, source, result, feeds, data, text),
            "load_average": round(os.getloadavg()[0], 2),
        }

    def _words(self, source: Exported, names: Sequence[str]) -> np.ndarray:
        """Return the text of the data set's classes.

        Raises:
            OVSDinoError: The bank is not of this model or of other classes, or the model's words are out of reach.
        """
        from ovsdino.deploy.export.inputs import bank_rows
        from ovsdino.deploy.quantization.score import model_rows

        if self.bank is None:
            return model_rows(source.sidecar, names)
        text = bank_rows(source.sidecar, self.bank)
        if len(text) != len(names):
            raise OVSDinoError(f"{self.bank}: {len(text)} classes, the data set has {len(names)}: {', '.join(names)}")
        return text

    def _score(
        self,
        model: ModelProto,
        source: Exported,
        result: Exported,
        feeds: Sequence[dict[str, np.ndarray]],
        data: SegmentationDataset,
        text: np.ndarray,
    ) -> list[dict[str, Any]]:
        """Score the source, others, int8 without SmoothQuant, and the result."""
        from ovsdino.deploy.quantization.int8 import quantize
        from ovsdino.deploy.quantization.score import score
        from ovsdino.io.files import read_bytes

        graphs = {source.sidecar.precision: source.data}
        graphs |= {path.stem: read_bytes(path, "ONNX graph") for path in self.also}
        if self.alpha > 0:
            say("the same without SmoothQuant")
            plain = quantize(model, feeds, dataclasses.replace(self, alpha=0.0))
            graphs["int8 without SmoothQuant"] = plain.model.SerializeToString()
        graphs["int8"] = result.data
        with progress_bar() as bar:
            task = bar.add_task("score", total=None)
            return score(
                graphs,
                source.sidecar,
                data,
                text,
                limit=self.limit,
                threads=self.threads,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(Quantize, "quantize.py"))
