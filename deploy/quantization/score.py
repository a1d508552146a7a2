"""How well exported graphs segment a data set through ONNX Runtime, side by side: mIoU, agreement, size, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.deploy.quantization.calibrate import open_session
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.eval.evaluate import dataset_vocabulary
from ovsdino.eval.metrics import SegmentationMetrics
from ovsdino.ops import preprocess, upsample_argmax

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["feed", "score", "text_bank"]


def feed(image: np.ndarray, text: np.ndarray, sidecar: Sidecar) -> dict[str, np.ndarray]:
    """The inputs of a graph for an image (H, W, 3) uint8 and a text bank (K, D) float32."""
    size = sidecar.input[2], sidecar.input[3]
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
    return {"image": preprocess(pixels, size, sidecar.mean, sidecar.std).numpy(), "text": text}


def text_bank(sidecar: Sidecar, names: Sequence[str], bank: Path | None) -> np.ndarray:
    """(K, D) float32 for class names: from a bank file, else by the zoo model that the graph was made of.

    Raises:
        OVSDinoError: the bank is not of this model or of other classes; the model's text tower cannot be had.
    """
    if bank is not None:
        from ovsdino.edge.bank import TextBank

        found = TextBank.load(bank)
        sidecar.check_bank(found.names, found.text.shape, found.weights)
        if len(found.names) != len(names):
            raise OVSDinoError(f"{bank}: {len(found.names)} classes, the data set has {len(names)}: {', '.join(names)}")
        return found.text
    from ovsdino.pipeline import load

    text: np.ndarray = load(sidecar.model, "cpu").encode_text(dataset_vocabulary(names, {})).numpy()
    return text


def score(
    graphs: Mapping[str, Path],
    sidecar: Sidecar,
    dataset: SegmentationDataset,
    text: np.ndarray,
    *,
    limit: int | None = None,
    threads: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Segments every image with every graph, in turn.

    Args:
        graphs: ONNX files by name; the first is what the others are held against.
        sidecar: of the first; all take the same inputs.
        text: (K, D), rows in the data set's label order.
        limit: take the first so many images only.

    Returns:
        A row a graph: name, bytes, images, miou and pixel_accuracy in 0..1, label_agreement with the first graph (share
        of pixels), ms (median of the graph alone).
    """
    sessions = {name: open_session(path, threads) for name, path in graphs.items()}
    metrics = {name: SegmentationMetrics(dataset.names, dataset.ignore_index) for name in graphs}
    same = dict.fromkeys(graphs, 0)
    spent: dict[str, list[float]] = {name: [] for name in graphs}
    pixels, total = 0, len(dataset) if limit is None else min(limit, len(dataset))
    for done in range(total):
        sample = dataset[done]  # not read ahead: decoding the next image beside a graph would be in its time
        inputs = feed(sample.image, text, sidecar)
        pixels += sample.label.size
        first: np.ndarray | None = None
        for name, session in sessions.items():
            labels, ms = labelled(session, inputs, sample.label.shape)
            first = labels if first is None else first
            same[name] += int((labels == first).sum())
            spent[name].append(ms)
            metrics[name].update(labels, sample.label)
        progress(done + 1, total)
    rows = []
    for name, path in graphs.items():
        summary = metrics[name].summary()
        rows.append(
            {
                "name": name,
                "bytes": path.stat().st_size,
                "images": total,
                "miou": summary.miou,
                "pixel_accuracy": summary.pixel_accuracy,
                "boundary_f1": summary.boundary_f1,
                "label_agreement": same[name] / max(pixels, 1),
                "ms": round(statistics.median(spent[name]), 2),
            }
        )
    return rows


def labelled(
    session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray], size: Sequence[int]
) -> tuple[np.ndarray, float]:
    """Labels (H, W) of an image, and the milliseconds of the graph."""
    start = time.perf_counter()
    logits = session.run(["logits"], inputs)[0]
    ms = (time.perf_counter() - start) * 1e3
    return upsample_argmax(torch.from_numpy(logits), size)[0].numpy(), ms
