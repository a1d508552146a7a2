"""Export the text tower of a model of CLIP's words as one ONNX file, so that a robot needs no torch for new words.

    python deploy/export_text.py --model b14 --output DIR
    ovsdino text --tower DIR/b14_text.onnx --classes "road, car, sky" --output bank.safetensors

nano's words need no export. The file's rows are compared with PyTorch's before it gets its name.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ovsdino.console import print_json, say
from ovsdino.deploy.export.options import ModelSource, output_file


@dataclass(frozen=True, kw_only=True)
class ExportText(ModelSource):
    """Export the text tower of a model of CLIP's words (b14, say) as ONNX, for `ovsdino text --tower` without torch."""

    output: Path
    """Folder, or file, to write."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.deploy.export.publish import locked_output
        from ovsdino.deploy.export.tower import export_tower
        from ovsdino.io.files import atomic_write, refuse_inputs

        path = output_file(self.output, f"{self.model}_text", ".onnx")
        refuse_inputs([path], list(self.weight_files.values()))
        data, least = export_tower(self.load())
        with locked_output(path), atomic_write(path) as file:
            file.write(data)
        say(f"wrote {path} ({len(data):,} bytes), cosine with PyTorch at least {least:.6f}")
        if self.json:
            print_json({"onnx": str(path), "model": self.model, "bytes": len(data), "cosine": least})
        return 0


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(ExportText, "export_text.py"))
