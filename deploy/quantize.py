"""Quantize an exported graph to int8: Q/DQ on its linears, SmoothQuant first, ranges from real images.

    python deploy/quantize.py --input nano_fp32.onnx --calibration FOLDER
    python deploy/quantize.py --input nano_fp32.onnx --calibration FOLDER --sensitivity --keep 3
    python deploy/quantize.py --input nano_fp32.onnx --calibration FOLDER --convolutions
    python deploy/quantize.py ... --evaluate DATA --also nano_fp16.onnx --json

Linears, and for CPUs the convolutions on request: attention products, residual adds and norms keep the graph's
precision, since quantizing them costs accuracy (residuals) or speed (attention is no longer fused). The result runs in
ONNX Runtime and OpenVINO; without convolutions it also parses in TensorRT as a strongly typed network; from a float16
graph it is int8 with float16 around it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ovsdino.console import print_json
from ovsdino.deploy.quantization.options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class Quantize(QuantizeOptions):
    """Quantize an exported ONNX graph to int8 (Q/DQ on linears, SmoothQuant), and measure its accuracy."""

    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.deploy.quantization.job import quantize_file
        from ovsdino.deploy.quantization.report import markdown

        report = quantize_file(self)
        if self.json:
            print_json(report)
        else:
            print(markdown(report))
        return 0


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(Quantize, "quantize.py"))
