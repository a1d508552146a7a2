"""nano and the networks that one would take in its place: time from an image in memory to labels or masks.

    pip install --no-deps --target ultralytics-only ultralytics
    python benchmarks/studies/neighbors.py --ultralytics ultralytics-only --image street.jpg \
      --output benchmarks/results/neighbors.json

All weights but nano's are random, whose time is that of trained ones; of the YOLOs 100 boxes enter NMS and 20 masks
are assembled, as on a street. All see the same pixels, a square of the photograph, and give labels or masks at its
size; the words are encoded before. All are called in turn in one process. ovsdino does not depend on ultralytics
(AGPL-3.0): it is installed in a folder of its own, and without `--ultralytics` its rows are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ovsdino import pipeline
from ovsdino.benchmarks.lib import board, memory
from ovsdino.benchmarks.lib.neighbor_nets import CANDIDATES, MASKS, Neighbor, clipseg, lr_aspp, yolo11, yoloe
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.benchmarks.studies.cpu_backends import before, timed
from ovsdino.console import say
from ovsdino.data.names import CAMVID
from ovsdino.deploy.export.publish import publish
from ovsdino.deploy.export.trace import export_graph
from ovsdino.edge.bank import TextBank
from ovsdino.edge.runtimes import Runtime
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.models.weights import weights_digest
from ovsdino.ops import use_backend
from ovsdino.parsing import run_script
from ovsdino.vocabulary import Vocabulary

SIDE = 416  # 173 056 pixels, as many as a photograph of 480x360; CLIPSeg's decoder takes squares only
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")

Run = Callable[[np.ndarray], Any]


@dataclass(frozen=True, kw_only=True)
class Neighbors(ReportOptions):
    """Time nano and YOLOE, YOLO11, LR-ASPP and CLIPSeg on a CPU."""

    image: Path
    """A photograph."""
    ultralytics: Path | None = None
    """Folder that holds the package ultralytics, for YOLOE and YOLO11."""
    rounds: int = 30
    """Calls of each."""
    threads: tuple[int, ...] = (1, 2)
    """CPU threads, one after the other."""

    def run(self) -> int:
        torch.manual_seed(0)
        memory.keep_freed()
        with Image.open(self.image) as picture:
            short = min(picture.size)
            image = np.array(picture.convert("RGB").crop((0, 0, short, short)).resize((SIDE, SIDE)))
        segmenter, words = pipeline.load("nano", "cpu", short_side=SIDE), list(CAMVID)
        square = torch.from_numpy(image)
        nets = [lr_aspp(SIDE), clipseg(SIDE, len(words))]
        if self.ultralytics is not None:
            folder = self.ultralytics.resolve()
            nets += [yoloe(SIDE, folder, square, len(words)), yolo11(SIDE, folder, square)]
        facts = [nano_facts(segmenter, words, image), *(facts_of(net, square) for net in nets)]
        times: dict[str, dict[str, list[float]]] = {}
        loads = [board.load_average()]
        with tempfile.TemporaryDirectory(prefix="ovsdino-neighbors-") as place:
            files = exported(nets, square, Path(place))
            graph = export_graph(segmenter.model, height=SIDE, width=SIDE)
            publish(Path(place) / "nano.onnx", graph)
            for threads in self.threads:
                torch.set_num_threads(threads)
                runs: dict[str, Run] = {"nano|torch": by_torch(segmenter, words)}
                runs |= {f"{net.name}|torch": network_by_torch(net) for net in nets}
                for runtime in RUNTIMES:
                    runs[f"nano|{runtime}"] = on_edge(segmenter, words, Path(place) / "nano.onnx", threads, runtime)
                    runs |= {f"{n.name}|{runtime}": by_file(n, files[n.name], runtime, threads) for n in nets}
                say(f"{threads} threads: {len(runs)} cases")
                for name, found in timed(runs, image, self.rounds).items():
                    times.setdefault(name.split("|")[0], {})[f"{name.split('|')[1]} {threads}"] = found
        loads.append(board.load_average())
        rows = [{**fact, "ms": summary(times[fact["name"]])} for fact in facts]
        machine = {"cpu": board.cpu_name(), "torch": torch.__version__, **board.board_facts(), "load_average": loads}
        report = {"machine": machine, "side": SIDE, "words": len(words), "candidates": CANDIDATES, "masks": MASKS}
        return self.publish({**report, "rounds": self.rounds, "results": rows}, markdown)


def summary(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the least and the median of each case."""
    return {name: [round(min(found), 1), round(float(np.median(found)), 1)] for name, found in times.items()}


def nano_facts(segmenter: pipeline.Segmenter, words: list[str], image: np.ndarray) -> dict[str, Any]:
    """Return nano's row without its times; FLOPs by the forms that the counter knows."""
    with before(), use_backend("reference"), FlopCounterMode(display=False) as counter:
        segmenter.segment(image, words, scores=False)
    parameters = sum(p.numel() for name, p in segmenter.model.named_parameters() if not name.startswith("text_tower"))
    return {
        "name": "nano",
        "words": "any",
        "gives": "labels",
        "parameters": parameters,
        "gflop": round(counter.get_total_flops() / 1e9, 2),
    }


def facts_of(net: Neighbor, image: Tensor) -> dict[str, Any]:
    """Return a network's row without its times."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net.network(net.prepared(image))
    facts = {"name": net.name, "words": net.words, "gives": net.gives, "parameters": net.parameters}
    return {**facts, "gflop": round(counter.get_total_flops() / 1e9, 2)}


def by_torch(segmenter: pipeline.Segmenter, words: list[str]) -> Run:
    return lambda image: segmenter.segment(image, words, scores=False).labels


def network_by_torch(net: Neighbor) -> Run:
    network = net.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(image: np.ndarray) -> Tensor:
        with torch.inference_mode():
            pixels = net.prepared(torch.from_numpy(image)).contiguous(memory_format=torch.channels_last)
            return net.finish(network(pixels))

    return run


def exported(nets: list[Neighbor], image: Tensor, folder: Path) -> dict[str, Path]:
    """Return the .onnx file of each network."""
    files = {}
    for index, net in enumerate(nets):
        files[net.name] = folder / f"{index}.onnx"
        say(f"exporting {net.name}")
        with torch.inference_mode():
            torch.onnx.export(net.network, (net.prepared(image),), files[net.name], opset_version=17, dynamo=False)
    return files


def by_file(net: Neighbor, file: Path, runtime: Runtime, threads: int) -> Run:
    """Return the call of a network's file, with the same preparation and finish as in PyTorch."""
    infer = by_onnxruntime(file, threads) if runtime == "onnxruntime" else by_openvino(file, threads)

    def run(image: np.ndarray) -> Tensor:
        with torch.inference_mode():
            found = infer(net.prepared(torch.from_numpy(image)).numpy())
            return net.finish(tuple(torch.from_numpy(array) for array in found))

    return run


def by_onnxruntime(file: Path, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as nano's
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def by_openvino(file: Path, threads: int) -> Callable[[np.ndarray], list[np.ndarray]]:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    options["INFERENCE_PRECISION_HINT"] = "f32"
    request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()

    def run(image: np.ndarray) -> list[np.ndarray]:
        request.infer([image], share_inputs=True)
        return [tensor.data for tensor in request.output_tensors]

    return run


def on_edge(segmenter: pipeline.Segmenter, words: list[str], file: Path, threads: int, runtime: Runtime) -> Run:
    """Return nano's call by the edge runtime."""
    rows: Any = segmenter.text_rows(words, False)
    bank = TextBank(
        names=Vocabulary.of(words).names,
        text=rows.words[:, 0].numpy(),
        model="nano",
        weights=weights_digest(segmenter.model),
        contrast=rows.contrast.numpy(),
    )
    edge = EdgeSegmenter(file, bank, threads=threads, runtime=runtime)
    return lambda image: edge.segment(image, scores=False).labels


def markdown(report: dict[str, Any]) -> str:
    """Return the report as one line and a table."""
    facts = report["machine"]
    columns = list(report["results"][0]["ms"])
    loads = " and ".join(map(str, facts["load_average"]))
    packages = "".join(f", {name} {version}" for name, version in facts.get("packages", {}).items())
    lines = [
        f"{facts['cpu']}, torch {facts['torch']}{packages}; {report['side']}x{report['side']} pixels, "
        f"{report['words']} words, {report['rounds']} calls in turn, least ms (median); load average before "
        f"and after {loads}.",
        "",
        f"| | words | gives | M parameters | GFLOP | {' | '.join(columns)} |",
        f"|---|---|---|---|---|{'---|' * len(columns)}",
    ]
    for row in report["results"]:
        times = [f"{row['ms'][column][0]:.1f} ({row['ms'][column][1]:.1f})" for column in columns]
        cells = [row["name"], row["words"], row["gives"], f"{row['parameters'] / 1e6:.1f}", f"{row['gflop']:.1f}"]
        lines.append(f"| {' | '.join([*cells, *times])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run_script(Neighbors, "neighbors.py"))
