"""What the inputs of a graph's linears look like on real images: ranges by channel, and one range a tensor."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization.calibrate import HistogramCollector

from ovsdino.data.images import ImageSource
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import reading
from ovsdino.io.images import load_image

__all__ = ["Method", "calibration_images", "channel_ranges", "open_session", "tensor_ranges"]

Method = Literal["minmax", "percentile", "entropy"]
BINS = 2048
Feed = Mapping[str, np.ndarray]


def calibration_images(source: str | Path, count: int) -> list[np.ndarray]:
    """Real images, spread evenly over those there are (frames of a video that follow each other are alike).

    Args:
        source: one image, or a folder or zip file as `ovsdino.data.images.ImageSource` reads it.
        count: how many at most.

    Returns:
        (H, W, 3) uint8 each.

    Raises:
        OVSDinoError: no images there, or one that cannot be read.
    """
    path = Path(source)
    if not path.exists():
        raise OVSDinoError(f"{path}: no such folder or zip file; int8 is calibrated on real images: name some")
    if path.is_file() and path.suffix.lower() != ".zip":
        return [load_image(path)]
    with reading(path, "folder or zip of images"):
        images = ImageSource(path)
        return [images.read(name) for name in _spread(images.names, count)]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in chosen]


def open_session(model: onnx.ModelProto | str | Path, threads: int = 0) -> ort.InferenceSession:
    """ONNX Runtime on the CPU.

    Raises:
        OVSDinoError: not a graph that it can run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the runtime has it
    graph = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        what = "the graph" if isinstance(model, onnx.ModelProto) else model
        raise OVSDinoError(f"{what}: ONNX Runtime cannot load it: {one_line(error, 200)}; export it again") from error


def activations(
    model: onnx.ModelProto, names: Iterable[str], feeds: Iterable[Feed], threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Inner tensors of a graph, one feed after the other, as float32."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = list(dict.fromkeys(names))
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(watched, threads)
    for feed in feeds:
        yield dict(zip(names, (x.astype(np.float32) for x in session.run(names, dict(feed))), strict=True))


def channel_ranges(
    model: onnx.ModelProto, names: Iterable[str], feeds: Iterable[Feed], threads: int = 0
) -> dict[str, np.ndarray]:
    """Largest absolute value of each channel (last axis) of inner tensors."""
    largest: dict[str, np.ndarray] = {}
    for values in activations(model, names, feeds, threads):
        for name, value in values.items():
            found = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0)
            largest[name] = np.maximum(largest[name], found) if name in largest else found
    return largest


def tensor_ranges(
    model: onnx.ModelProto,
    names: Iterable[str],
    feeds: Iterable[Feed],
    method: Method,
    percentile: float,
    threads: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """One symmetric range for each inner tensor, by ONNX Runtime's own histograms.

    Its calibrators keep every activation of every image until the end (gigabytes here), so their collector is fed an
    image at a time.
    """
    entropy = method == "entropy"
    collector = HistogramCollector("entropy" if entropy else "percentile", True, BINS, 128, percentile, "same")
    ranges: dict[str, float] = {}
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        for values in activations(model, names, feeds, threads):
            if method == "minmax":
                for name, value in values.items():
                    ranges[name] = max(ranges.get(name, 0.0), float(np.abs(value).max()))
            else:
                collector.collect({name: [value] for name, value in values.items()})
            progress()
        if method != "minmax":
            found = collector.compute_collection_result()
            ranges = {name: max(abs(float(pair[0])), abs(float(pair[1]))) for name, pair in found.items()}
    return ranges
