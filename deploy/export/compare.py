"""Compares an engine with the ONNX graph it was built from, on its own device and without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ovsdino.deploy.verify import Images, Verification, cosine, random_bank, runner
from ovsdino.edge.labels import upsample_argmax
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError

__all__ = ["compare", "compare_engine", "words"]

Run = Callable[[np.ndarray], np.ndarray]


def words(sidecar: Sidecar, bank: Path | None) -> np.ndarray:
    """Return the text (K, D) float32 to compare on: a bank's, or without one seeded random rows of length one.

    Raises:
        OVSDinoError: The bank is not of this model.
    """
    if bank is None:
        return random_bank(sidecar.embed_dim, sidecar.classes)
    from ovsdino.edge.bank import TextBank

    found = TextBank.load(bank)
    sidecar.check_bank(found.names, found.text.shape, found.weights, found.model)
    return found.text


def compare_engine(engine: Path, onnx: Path, images: Images, text: np.ndarray) -> Verification:
    """Run images through an engine and through its graph in ONNX Runtime on the CPU.

    A float16 graph is run with its roundings (`ovsdino.deploy.verify.Rounded`), as for the comparison with PyTorch.

    Args:
        engine: The engine, on a machine with its device; its sidecar lies beside it.
        onnx: The graph it was built from.
        images: What to run.
        text: (K, D) float32, rows of length one.

    Raises:
        OVSDinoError: A file was changed, or the engine cannot be run here.
    """
    sidecars = Sidecar.load(engine), Sidecar.load(onnx)
    sidecars[1].check_file(onnx)
    runs = [runner(path, sidecar, text) for path, sidecar in zip((engine, onnx), sidecars, strict=True)]
    return compare(runs[0], runs[1], sidecars[0], images, reference="ONNX Runtime")


def compare(found: Run, expected: Run, sidecar: Sidecar, images: Images, *, reference: str) -> Verification:
    """Run images through two forms of one graph and compare logits and labels at image size.

    Args:
        found: (B, 3, H, W) float32, normalised -> logits (B, K, h, w) float32.
        expected: The same, by the reference.
        sidecar: Of the graph: sizes and normalisation.
        images: What to run.
        reference: What `expected` is, for the result.

    Raises:
        OVSDinoError: The two give logits of different shapes.
    """
    batch, _, height, width = sidecar.input
    cosines, agreements = [], []
    for start in range(0, len(images.pixels), batch):
        part = images.pixels[start : start + batch]
        tensors = [preprocess(image, (height, width), sidecar.mean, sidecar.std) for image in part]
        filled = np.stack([tensors[index % len(part)] for index in range(batch)])
        ours, theirs = found(filled), expected(filled)
        if ours.shape != theirs.shape:
            raise OVSDinoError(
                f"{sidecar.file}: its logits are {ours.shape}, those of {reference} {theirs.shape}; {sidecar.rebuild()}"
            )
        for image, a, b in zip(part, ours, theirs, strict=False):  # the last batch is filled up
            cosines.append(cosine(a, b))
            labels = [upsample_argmax(np.ascontiguousarray(one), image.shape[:2])[0] for one in (a, b)]
            agreements.append(float((labels[0] == labels[1]).mean()))
    return Verification.of(cosines, agreements, images.source, reference)
