"""The command `ovsdino`: parse the line, run one of `ovsdino.commands`, return an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ovsdino.benchmarks.latency import Latency
from ovsdino.commands.ablate import Ablate
from ovsdino.commands.adapt import Adapt
from ovsdino.commands.calibrate import Calibrate
from ovsdino.commands.data import Check, Convert
from ovsdino.commands.doctor import Doctor
from ovsdino.commands.eval import Eval
from ovsdino.commands.eval_video import EvalVideo
from ovsdino.commands.masks import Masks
from ovsdino.commands.models import Models
from ovsdino.commands.probe import ProbeLayers
from ovsdino.commands.report import Report
from ovsdino.commands.segment import Segment
from ovsdino.commands.serve import Demo, Serve
from ovsdino.commands.stream import StreamCommand
from ovsdino.commands.text import Text
from ovsdino.commands.train import Train
from ovsdino.console import run_command
from ovsdino.deploy.export_onnx import ExportOnnx
from ovsdino.deploy.export_text import ExportText
from ovsdino.deploy.export_trt import ExportTrt
from ovsdino.deploy.quantize import Quantize
from ovsdino.deploy.verify import Verify
from ovsdino.parsing import Commands, Group, overview, parse_command

COMMANDS: Commands = {
    "segment": Segment,
    "eval": Eval,
    "eval-video": EvalVideo,
    "calibrate": Calibrate,
    "stream": StreamCommand,
    "demo": Demo,
    "serve": Serve,
    "export": Group(
        summary="Export a model as an ONNX graph or a TensorRT engine, or its text tower.",
        commands={"onnx": ExportOnnx, "engine": ExportTrt, "text": ExportText},
    ),
    "quantize": Quantize,
    "verify": Verify,
    "latency": Latency,
    "adapt": Adapt,
    "text": Text,
    "data": Group(summary="Check or convert a labeled data set.", commands={"check": Check, "convert": Convert}),
    "report": Report,
    "masks": Masks,
    "train": Train,
    "ablate": Ablate,
    "probe": ProbeLayers,
    "models": Models,
    "doctor": Doctor,
}
DESCRIPTION = """Open-vocabulary segmentation: an image and words in, a mask for each word out. For example:

    ovsdino segment street.jpg --classes "road, car, sky"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code (see `ovsdino.console`).

    Args:
        argv: Arguments after the program's name; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)

    def body() -> int:
        if args in (["--version"], ["-V"]):
            from ovsdino import __version__

            print(f"ovsdino {__version__}")
            return 0
        if not args:
            print(overview(COMMANDS, "ovsdino", DESCRIPTION), end="")
            return 2
        command = parse_command(COMMANDS, "ovsdino", args, DESCRIPTION)
        return 0 if command is None else int(command.run())

    return run_command(args, body)


if __name__ == "__main__":
    raise SystemExit(main())
