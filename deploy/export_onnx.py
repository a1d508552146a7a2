"""Export a model as one ONNX file: image and text bank in, logits out, the vocabulary free.

    python deploy/export_onnx.py --model nano --output DIR
    python deploy/export_onnx.py --model nano --bake bank.safetensors --labels --layout nhwc --output DIR
    python deploy/export_onnx.py --model b14 --random-weights 0 --precision float16 --output b14.onnx

Every export is compared with PyTorch in float32 on real images before it gets its name, and refused below a threshold.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ovsdino.console import print_json, say
from ovsdino.deploy.export.defaults import Precision
from ovsdino.deploy.export.options import SUFFIXES, ExportOptions, output_file, reported


@dataclass(frozen=True, kw_only=True)
class ExportOnnx(ExportOptions):
    """Export a model as ONNX: image and text bank in, logits out; compared with PyTorch before it gets its name."""

    precision: Precision = "float32"
    """Precision of weights and arithmetic; norms and softmax stay in float32, inputs and outputs too."""

    def run(self) -> int:
        from ovsdino.deploy.export.publish import locked_output, publish

        model = self.load()
        path = output_file(self.output, f"{model.config.name}_{SUFFIXES[self.precision]}{self.suffix}", ".onnx")
        with locked_output(path):
            sidecar = publish(path, self.graph(model, self.precision))
        say(f"wrote {path} ({sidecar.bytes:,} bytes)")
        if self.json:
            found = {"model": sidecar.model, "precision": sidecar.precision, "bytes": sidecar.bytes}
            print_json({"onnx": str(path), "sidecar": f"{path}.json", **found, "verified": reported(sidecar.verified)})
        return 0


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(ExportOnnx, "export_onnx.py"))
