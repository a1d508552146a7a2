"""Compare an engine with the graph that it was built from, on its own device, at any time after its build."""

from __future__ import annotations

import re
from pathlib import Path

from ovsdino.deploy.export.compare import Verification, compare_engine
from ovsdino.deploy.export.inputs import Images, bank_rows, random_rows
from ovsdino.deploy.export.publish import Exported
from ovsdino.edge.runtimes import check_machine
from ovsdino.errors import OVSDinoError

__all__ = ["graph_of", "prove"]


def graph_of(engine: Path) -> Path:
    """Return the graph next to an engine by its name: nano_fp16_sm87.engine was built from nano_fp16.onnx.

    Raises:
        OVSDinoError: There is none.
    """
    path = engine.with_name(re.sub(r"(_sm\d+)?(-sm\d+)*$", "", engine.stem) + ".onnx")
    if not path.is_file():
        raise OVSDinoError(f"{path}: no such file; name the graph that {engine.name} was built from (--graph FILE)")
    return path


def prove(engine: Path, graph: Path, images: Images, bank: Path | None = None) -> Verification:
    """Run an engine and its graph in ONNX Runtime on the same images.

    Args:
        engine: The engine, on its own device; or another form of the graph, such as an int8 one.
        graph: The .onnx file.
        images: Images to run.
        bank: Text bank for both; None takes seeded random rows, whose labels say little.

    Raises:
        OVSDinoError: A file is missing, changed or damaged; they are of different models; or it cannot run here.
    """
    found, reference = Exported.read(engine), Exported.read(graph)
    check_machine(found.sidecar, 0)
    if reference.sidecar.kind != "onnx":
        raise OVSDinoError(f"{graph}: an engine; give the .onnx that {engine.name} was built from")
    mine, theirs = found.sidecar.facts(), reference.sidecar.facts()
    for name in mine:
        if name != "precision" and mine[name] != theirs[name]:
            raise OVSDinoError(f"{engine}: {name} differs from that of {graph}: it was built from another graph")
    if found.sidecar.input != reference.sidecar.input:
        raise OVSDinoError(f"{engine}: takes {found.sidecar.input}, {graph} {reference.sidecar.input}: another graph")
    sidecar = found.sidecar
    text = random_rows(sidecar.embed_dim, sidecar.classes) if bank is None else bank_rows(sidecar, bank)
    return compare_engine(found, reference, images, text)
