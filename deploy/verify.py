"""Compare an exported file with PyTorch in float32 on the same images.

    python deploy/verify.py --model nano --file nano_fp16.onnx
    python deploy/verify.py --model nano --file nano_fp16.onnx --per-layer
    python deploy/verify.py --model nano --file nano_fp32.onnx --runtime openvino_bfloat16

The figures are the cosine of the logits, and how many pixels get the same label once the logits are brought to the
image's size. ONNX Runtime computes float16 graphs on a CPU in float32 and drops the roundings between its ops, which
would prove nothing. Here every tensor of such a graph is really rounded to float16, overflow included.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ovsdino.console import print_json, say
from ovsdino.deploy.export.options import ModelSource, VerifyOptions
from ovsdino.errors import OVSDinoError


@dataclass(frozen=True, kw_only=True)
class Verify(ModelSource, VerifyOptions):
    """Compare an exported file with PyTorch in float32: cosine of logits, agreement of labels."""

    file: Path
    """The .onnx file, or an engine on the device it was built for; its sidecar lies next to it."""
    runtime: Literal["onnxruntime", "openvino", "openvino_bfloat16"] = "onnxruntime"
    """Runtime of an .onnx file; see `ovsdino.edge.EdgeSegmenter`."""
    per_layer: bool = False
    """Also compare each module's output, and name the first that departs."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.deploy.export.compare import verify
        from ovsdino.deploy.export.publish import Exported
        from ovsdino.edge.runtimes import runtime_of

        model, exported = self.load(), Exported.read(self.file)
        images = self.find()
        found = verify(model, exported, images, runtime_of(exported.sidecar, self.runtime))
        data: dict[str, Any] = {"file": str(self.file), "verified": found.to_dict()}
        if self.per_layer:
            from ovsdino.deploy.export.layers import per_layer

            rows = per_layer(model, exported, images)
            departed = next((row for row in rows if not row.cosine >= self.cosine), None)
            data["first_departure"] = departed and departed.module
            data["layers"] = [
                {"module": row.module, "cosine": row.cosine if row.cosine == row.cosine else None, "max": row.largest}
                for row in rows
            ]
            if not self.json:
                for row in rows:
                    print(f"{row.cosine:9.6f}  {row.largest:9.3g}  {row.module}")
            say(f"first layer below {self.cosine}: {departed.module if departed else 'none'}")
        if self.json:
            print_json(data)
        else:
            print(", ".join(f"{name} {value}" for name, value in found.to_dict().items()))
        try:
            found.check(self.cosine, None if self.random_weights is not None else self.agreement)
        except OVSDinoError as error:  # stdout has its one JSON object already
            say(f"error: {error}")
            return 2
        return 0


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(Verify, "verify.py"))
