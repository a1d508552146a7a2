"""Give an exported graph a memory of the frame before, so that a video's labels do not flicker.

    python deploy/add_memory.py nano_fp32.onnx --output nano_steady.onnx

The graph may have any precision. The result is run over consecutive frames next to PyTorch's own memory, and refused
where their labels differ.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ovsdino.console import print_json, say
from ovsdino.errors import OVSDinoError
from ovsdino.options import ModelOptions
from ovsdino.parsing import Argument


@dataclass(frozen=True, kw_only=True)
class AddMemory(ModelOptions):
    """Give an exported graph a memory of the frame before; compared with PyTorch before it gets its name."""

    graph: Annotated[Path, Argument("GRAPH.onnx")]
    """File that export_onnx.py or quantize.py wrote, for one image at a time."""
    output: Path
    """File to write; the sidecar lies next to it."""
    root: Path | None = None
    """Folder of CamVid's clip to compare on. Default: $OVSDINO_DATA, else ../shared/data next to the checkout."""
    frames: int = 30
    """Frames to compare on; 0 does not compare, and the sidecar then says that nobody did."""
    agreement: float = 0.999
    """Least share of pixels with the same label as in PyTorch, mean over the frames; of an int8 graph ask for less."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.deploy.export.publish import Exported, locked_output, publish
        from ovsdino.deploy.export.steady import with_memory
        from ovsdino.io.files import refuse_inputs

        refuse_inputs([self.output], [self.graph])
        steady = with_memory(Exported.read(str(self.graph)))
        figures = self._figures(steady) if self.frames else None
        with locked_output(self.output):
            sidecar = publish(self.output, steady.proven(figures))
        say(f"wrote {self.output} ({sidecar.bytes:,} bytes)")
        if self.json:
            print_json({"onnx": str(self.output), "bytes": sidecar.bytes, "verified": figures})
        return 0

    def _figures(self, steady: Any) -> dict[str, Any]:
        """Return how the graph's labels of a clip compare with PyTorch's.

        Raises:
            OVSDinoError: They differ by more than is allowed.
        """
        from ovsdino.deploy.export.compare import check_weights
        from ovsdino.deploy.export.inputs import find_images
        from ovsdino.deploy.export.steady import compare_clip

        model = self.load_model()
        check_weights(model, steady.sidecar)
        images = find_images(None, "camvid", self.root, "val", self.frames)  # a clip, in its order
        found = compare_clip(model, steady, images)
        say(found.tell())
        if not found.label_agreement >= self.agreement:
            raise OVSDinoError(f"the graph departs from PyTorch: {found.tell()}; expected {self.agreement}")
        return found.to_dict()


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(AddMemory, "add_memory.py"))
