"""Measure the inputs of a graph's linears on real images: ranges by channel, and one range for each tensor."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization.calibrate import HistogramCollector

from ovsdino.deploy.quantization.options import Method
from ovsdino.edge.onnx_graph import open_session
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading
from ovsdino.io.images import load_image
from ovsdino.io.tree import ImageSource

__all__ = ["calibration_images", "channel_ranges", "run", "tensor_ranges"]

BINS = 2048
Feed = Mapping[str, np.ndarray]


def calibration_images(source: str | Path, count: int) -> list[np.ndarray]:
    """Read real images, spread evenly over those there are (frames of a video that follow each other are alike).

    Args:
        source: One image, or a folder or zip file as `ovsdino.io.tree.ImageSource` reads it.
        count: Most images.

    Returns:
        (H, W, 3) uint8 each.

    Raises:
        OVSDinoError: No images are there, or one cannot be read.
    """
    path = Path(source)
    if not path.exists():
        raise OVSDinoError(f"{path}: no such folder or zip file; int8 is calibrated on real images: name some")
    if path.is_file() and path.suffix.lower() != ".zip":
        return [load_image(path)]
    with reading(path, "folder or zip of images"):
        images = ImageSource(path)
        places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
        return [images.read(images.names[place]) for place in places]


def run(model: onnx.ModelProto, feeds: Iterable[Feed], threads: int = 0) -> list[np.ndarray]:
    """Return the logits (B, K, h, w) of a graph for each of its inputs."""
    session = open_session(model.SerializeToString(), "the graph", threads)
    return [session.run(["logits"], dict(feed))[0] for feed in feeds]


def activations(
    model: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed], threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield inner tensors of a graph as float32, one input after the other."""
    watched = copy.deepcopy(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(watched.SerializeToString(), "the graph", threads)
    for feed in feeds:
        yield dict(zip(names, (x.astype(np.float32) for x in session.run(names, dict(feed))), strict=True))


def channel_ranges(
    model: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed], threads: int = 0
) -> dict[str, np.ndarray]:
    """Return the largest absolute value of each channel (last axis) of inner tensors, by the tensor's name."""
    largest: dict[str, np.ndarray] = {}
    for values in activations(model, list(dict.fromkeys(names)), feeds, threads):
        for name, value in values.items():
            found = np.abs(value.reshape(-1, value.shape[-1])).max(axis=0)
            largest[name] = np.maximum(largest[name], found) if name in largest else found
    return largest


def tensor_ranges(
    model: onnx.ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feed],
    method: Method,
    percentile: float,
    threads: int = 0,
) -> dict[str, float]:
    """Return one symmetric range for each inner tensor, by ONNX Runtime's own histograms.

    Its calibrators keep every activation of every image until the end (gigabytes here), so their collector is fed one
    image at a time.

    Args:
        model: The graph in float.
        names: Names of the tensors.
        feeds: Inputs made of real images.
        method: See `Recipe`.
        percentile: See `Recipe`.
        threads: Threads of ONNX Runtime; 0: all cores.
    """
    if method == "minmax":
        channels = channel_ranges(model, names, feeds, threads)
        return {name: float(value.max()) for name, value in channels.items()}
    kind = "entropy" if method == "entropy" else "percentile"
    collector = HistogramCollector(kind, True, BINS, 128, percentile, "same")
    with contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        for values in activations(model, list(dict.fromkeys(names)), feeds, threads):
            collector.collect({name: [value] for name, value in values.items()})
        found = collector.compute_collection_result()
    return {name: max(abs(float(pair[0])), abs(float(pair[1]))) for name, pair in found.items()}
