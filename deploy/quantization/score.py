"""Score exported graphs on a data set through ONNX Runtime, in turn: mIoU, agreement, size, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.edge.labels import upsample_argmax
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import text_inputs
from ovsdino.eval.evaluate import dataset_vocabulary
from ovsdino.eval.metrics import SegmentationMetrics

__all__ = ["feed", "model_rows", "score"]


def feed(image: np.ndarray, text: np.ndarray, sidecar: Sidecar) -> dict[str, np.ndarray]:
    """Return the inputs of a graph for an image (H, W, 3) uint8 and text (K, D) float32, without a contrast."""
    size = sidecar.input[2], sidecar.input[3]
    return {"image": preprocess(image, size, sidecar.mean, sidecar.std)[None], **text_inputs(sidecar, text)}


def model_rows(sidecar: Sidecar, names: Sequence[str]) -> np.ndarray:
    """Return text (K, D) float32 for class names, by the zoo model that the graph was made of.

    Raises:
        OVSDinoError: The model's text tower is out of reach.
    """
    from ovsdino.pipeline import load

    return load(sidecar.model, "cpu").encode_text(dataset_vocabulary(names, {})).numpy()


def score(
    graphs: Mapping[str, bytes],
    sidecar: Sidecar,
    dataset: SegmentationDataset,
    text: np.ndarray,
    *,
    limit: int | None = None,
    threads: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Segment every image with every graph, in turn.

    Args:
        graphs: ONNX files by name; the first is the reference of the others.
        sidecar: The first one's; all take the same inputs.
        dataset: Images and labels.
        text: (K, D), rows in the data set's label order.
        limit: Take only so many images, from the first.
        threads: Threads of ONNX Runtime; 0: all cores.
        progress: Told the number of images that are done, and of all.

    Returns:
        One row per graph: name, bytes, images, miou and pixel_accuracy in 0..1, boundary_f1, label_agreement with the
        first graph (share of pixels), ms (median of the graph alone).
    """
    sessions = {name: open_session(data, name, threads) for name, data in graphs.items()}
    metrics = {name: SegmentationMetrics(dataset.names, dataset.ignore_index) for name in graphs}
    same = dict.fromkeys(graphs, 0)
    spent: dict[str, list[float]] = {name: [] for name in graphs}
    pixels, total = 0, len(dataset) if limit is None else min(limit, len(dataset))
    for done in range(total):
        sample = dataset[done]  # not read ahead: the next image would be decoded within a graph's time
        inputs = feed(sample.image, text, sidecar)
        pixels += sample.label.size
        first: np.ndarray | None = None
        for name, session in sessions.items():
            start = time.perf_counter()
            logits = session.run(["logits"], inputs)[0]
            spent[name].append((time.perf_counter() - start) * 1e3)
            height, width = sample.label.shape
            labels = upsample_argmax(logits[0], (height, width))[0]
            first = labels if first is None else first
            same[name] += int((labels == first).sum())
            metrics[name].update(labels, sample.label)
        progress(done + 1, total)
    rows = []
    for name, data in graphs.items():
        summary = metrics[name].summary()
        rows.append(
            {
                "name": name,
                "bytes": len(data),
                "images": total,
                "miou": summary.miou,
                "pixel_accuracy": summary.pixel_accuracy,
                "boundary_f1": summary.boundary_f1,
                "label_agreement": same[name] / max(pixels, 1),
                "ms": round(statistics.median(spent[name]), 2),
            }
        )
    return rows
