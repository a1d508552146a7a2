"""Compare an exported file with its reference: a graph with PyTorch, an engine with its graph.

The figures are the cosine of the logits, and how many pixels get the same label once the logits are brought to the
image's size. An engine is compared without torch, on its own device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ovsdino.deploy.export.defaults import AGREEMENT, COSINE
from ovsdino.deploy.export.inputs import Images, contrast_rows, text_rows
from ovsdino.deploy.export.publish import Exported
from ovsdino.edge.labels import upsample_argmax
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.runtimes import open_graph
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import text_inputs
from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["Verification", "check_weights", "compare", "compare_engine", "cosine", "runner", "verify"]

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Closeness of a file to its reference.

    Attributes:
        cosine: Cosine of the logits, mean over the images.
        label_agreement: Share of pixels with the same label at image size, mean over the images.
        images: Number of images.
        worst_cosine: The lowest cosine of one image.
        source: Where the images come from.
        reference: The reference.
    """

    cosine: float
    label_agreement: float
    images: int
    worst_cosine: float
    source: str
    reference: str = "PyTorch"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return asdict(self)

    def check(self, cosine: float = COSINE, agreement: float | None = AGREEMENT) -> None:
        """Refuse figures below a threshold.

        Args:
            cosine: Least cosine of the worst image.
            agreement: Least label agreement; None asks for the cosine only.

        Raises:
            OVSDinoError: A figure is below its threshold, or not a number.
        """
        if self.worst_cosine >= cosine and (agreement is None or self.label_agreement >= agreement):
            return
        asked = f"cosine {cosine}" + ("" if agreement is None else f" and label agreement {agreement}")
        subject, remedy = "engine", "Use a newer release of TensorRT, --precision float32, or the .onnx itself"
        if self.reference == "PyTorch":
            subject = "graph"
            remedy = "Export float32, or find the first layer that departs with `python deploy/verify.py --per-layer`"
        raise OVSDinoError(
            f"the {subject} departs from {self.reference}: {self._figures()} on {self.images} {self.source}; expected "
            f"at least {asked}. {remedy}"
        )

    def tell(self) -> str:
        """Return one line for people: the images, the reference and the figures."""
        return f"verified on {self.images} {self.source} against {self.reference}: {self._figures()}"

    def _figures(self) -> str:
        return f"cosine {self.cosine:.6f} (worst {self.worst_cosine:.6f}), label agreement {self.label_agreement:.5f}"


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two arrays in float64; NaN where either holds NaN or infinity."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else float(np.array_equal(x, y))


def verify(model: OVSDINO, exported: Exported, images: Images, runtime: str = "onnxruntime") -> Verification:
    """Compare an exported file with its model in PyTorch in float32.

    Args:
        model: The model that was exported, on the CPU.
        exported: A graph, or an engine where its device is present.
        images: Images to run.
        runtime: Of a graph, see `runner`.

    Raises:
        OVSDinoError: The file is of other weights, or cannot be run here.
    """
    import torch

    check_weights(model, exported.sidecar)
    text = text_rows(model, images.names, exported.sidecar.classes)
    rows = text_inputs(exported.sidecar, text, contrast_rows(exported.sidecar)).values()

    def expected(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(image), *map(torch.from_numpy, rows)).numpy()

    return compare(runner(exported, text, runtime), expected, exported.sidecar, images, reference="PyTorch")


def check_weights(model: OVSDINO, sidecar: Sidecar) -> None:
    """Refuse a file that was exported from other weights than the model's.

    Raises:
        OVSDinoError: It was.
    """
    from ovsdino.models.weights import weights_digest

    if sidecar.weights != weights_digest(model):
        raise OVSDinoError(f"{sidecar.file}: exported from other weights than those of {model.config.name} given here")


def compare_engine(engine: Exported, graph: Exported, images: Images, text: np.ndarray) -> Verification:
    """Compare an engine with its graph in ONNX Runtime on the CPU.

    A float16 graph is run with its roundings (`ovsdino.deploy.export.rounded`), as for the comparison with PyTorch.

    Args:
        engine: The engine, on a machine with its device.
        graph: The graph that it was built from.
        images: Images to run.
        text: (K, D) or (K, W, D) float32, rows of length one.

    Raises:
        OVSDinoError: The engine cannot be run here.
    """
    found, expected = runner(engine, text), runner(graph, text)
    return compare(found, expected, engine.sidecar, images, reference="ONNX Runtime")


def runner(exported: Exported, text: np.ndarray, runtime: str = "onnxruntime") -> Run:
    """Return the function from images (B, 3, H, W) to logits by the file's own runtime, random contrast rows with them.

    Args:
        exported: The file; a float16 graph is run with its roundings, by ONNX Runtime.
        text: (K, D) or (K, W, D) float32, rows of length one.
        runtime: Of a graph: one of `ovsdino.edge.runtimes.Runtime`, not "auto".

    Raises:
        OVSDinoError: The runtime refuses the file.
    """
    if exported.sidecar.baked is not None:
        raise OVSDinoError(
            f"{exported.sidecar.file}: its words are inside: it was compared when it was made (verified in its sidecar)"
        )
    contrast = contrast_rows(exported.sidecar)
    if exported.sidecar.kind == "onnx" and runtime == "onnxruntime":
        from ovsdino.deploy.export.rounded import Rounded

        graph = Rounded(*exported)
        return lambda image: graph.run(image, text, contrast)["logits"]
    engine = open_graph(*exported, threads=1, device=0, runtime=runtime)
    engine.set_text(text, contrast)
    return engine.infer


def compare(found: Run, expected: Run, sidecar: Sidecar, images: Images, *, reference: str) -> Verification:
    """Run images through two forms of one graph and compare logits and labels at image size.

    Args:
        found: (B, 3, H, W) float32, normalized -> logits (B, K, h, w) float32.
        expected: The same, by the reference.
        sidecar: The graph's sidecar: sizes and normalization.
        images: Images to run.
        reference: Name of the reference, for the result.

    Raises:
        OVSDinoError: The two give logits of different shapes.
    """
    batch, _, height, width = sidecar.input
    cosines: list[float] = []
    agreements: list[float] = []
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
    return Verification(
        cosine=_mean(cosines),
        label_agreement=_mean(agreements),
        images=len(cosines),
        worst_cosine=float(np.min(cosines)),
        source=images.source,
        reference=reference,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
