"""The cost of a model and the best that a device can do with it: a figure to compare a measurement with.

    python benchmarks/roofline.py --model s14 --height 448 --width 448 --classes 19 [--json]
    python benchmarks/roofline.py --write          the committed tables: results/, roofline.md, docs/jetson.md

FLOPs are counted by running the model's own modules on the meta device, no weights needed. Bytes: all weights once, and
the inputs and output of every product of matrices, convolution and attention once; what lies between them (norms,
activations, residuals) is taken as fused. A level 2 cache that keeps some of it does better, a graph that fuses less
worse. bound = max(FLOPs / peak, bytes / bandwidth); expected = bound / 0.35, which is what published engines of vision
transformers reach on Orin. Neither has preprocessing, upsampling to the image's size or copies in it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ovsdino.benchmarks.lib.report import RESULTS, ROOT, ReportOptions, json_text, placed, save
from ovsdino.benchmarks.lib.roofline_rows import DEVICES, EFFICIENCY, Row, committed_rows, zoo_row
from ovsdino.benchmarks.lib.roofline_tables import expected_table, markdown
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import run_script

MARKER = "benchmarks/roofline.py --write"


@dataclass(frozen=True, kw_only=True)
class Roofline(ReportOptions):
    """Count FLOPs and bytes of a model of the zoo, and bound its time; without --model, of the committed tables."""

    model: str | None = None
    """Name in the zoo (`ovsdino models`)."""
    height: int | None = None
    """Input height, a multiple of the patch size. Default: the model's own."""
    width: int | None = None
    """Input width. Default: 4:3 for nano, else the height."""
    classes: int = 19
    """Rows of the text bank."""
    write: bool = False
    """Write results/roofline.json and the tables of roofline.md and docs/jetson.md."""

    def run(self) -> int:
        if self.model is not None:
            if self.write:
                raise OVSDinoError("--write makes the committed tables: leave out --model")
            plain: list[Row] = []
            zoo = [zoo_row(self.model, self.height, self.width, self.classes)]
        elif self.height or self.width:
            raise OVSDinoError("--height and --width without --model: name one")
        else:
            plain, zoo = committed_rows()
        report = {
            "efficiency": EFFICIENCY,
            "devices": [dataclasses.asdict(device) for device in DEVICES],
            "results": [row.to_dict() for row in (*plain, *zoo)],
        }
        if self.write:
            save(RESULTS / "roofline.json", json_text(report))
            pages = {"benchmarks/roofline.md": markdown(plain, zoo), "docs/jetson.md": expected_table(zoo)}
            for name, table in pages.items():
                save(ROOT / name, placed((ROOT / name).read_text(encoding="utf-8"), MARKER, table))
            if not self.json:
                return 0
        return self.publish(report, lambda _: markdown(plain, zoo))


if __name__ == "__main__":
    raise SystemExit(run_script(Roofline, "roofline.py"))
