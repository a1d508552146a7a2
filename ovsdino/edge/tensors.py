"""Check the inputs and outputs of a graph against its sidecar when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError, one_line

__all__ = ["beginning", "check_tensors", "logits_shape", "text_inputs"]

FAR = 1e3  # an affinity like no pixel's: a graph with a memory then finds nothing in it, as after a cut
FAR_HALF = 12.0  # in a float16 graph, whose largest number is 65504: nano's affinities are below 2

Tensors = Mapping[str, tuple[Sequence[Any], Any]]


def text_inputs(sidecar: Sidecar, text: np.ndarray, contrast: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the inputs of a graph for a vocabulary.

    Args:
        sidecar: The graph's sidecar.
        text: (K, D), or (K, W, D) with rows of zeros for words that are not there, float32.
        contrast: (C, D) float32; None leaves the contrast channel empty: it then has no share of a pixel.
    """
    if not sidecar.grouped:
        return {"text": np.ascontiguousarray(text[:, 0]) if text.ndim == 3 else text}
    if contrast is None:
        contrast = np.zeros((1, sidecar.embed_dim), np.float32)
    return {"text": text[:, None] if text.ndim == 2 else text, "contrast": contrast}


def beginning(sidecar: Sidecar, classes: int) -> dict[str, np.ndarray]:
    """Return the inputs by which a graph with a memory begins a video; nothing for a graph without one.

    Args:
        sidecar: The graph's sidecar.
        classes: K of the text bank.
    """
    if sidecar.memory is None:
        return {}
    _, maps, height, width = logits_shape(sidecar, 1, classes)
    far = FAR_HALF if sidecar.precision == "float16" else FAR
    affinity = np.full((1, sidecar.memory, height, width), far, np.float32)
    return {"last_logits": np.zeros((1, maps, height, width), np.float32), "last_affinity": affinity}


def logits_shape(sidecar: Sidecar, batch: int, classes: int) -> tuple[int, int, int, int]:
    """Return (B, K, h, w) of the logits, whose cells are `stride` pixels wide; K + 1 maps with a contrast channel."""
    _, _, height, width = sidecar.input
    return batch, classes + sidecar.grouped, round(height / sidecar.stride), round(width / sidecar.stride)


def check_tensors(sidecar: Sidecar, inputs: Tensors, outputs: Tensors, dtype: Any) -> None:
    """Refuse a graph whose tensors differ from its sidecar.

    Args:
        sidecar: The graph's sidecar.
        inputs: Shape and dtype by name; a side that is not a positive whole number is free.
        outputs: Likewise.
        dtype: The dtype that each must have, as the runtime names float32.

    Raises:
        OVSDinoError: Another name, rank, dtype, batch, size, number of classes or columns.
    """
    batch, _, height, width = sidecar.input
    least, most = sidecar.classes
    classes = most if least == most else None  # None: free
    _, maps, rows, columns = logits_shape(sidecar, 1, classes or 0)
    text: dict[str, tuple[int | None, ...]] = {"text": (classes, sidecar.embed_dim)}
    if sidecar.grouped:
        text = {"text": (classes, None, sidecar.embed_dim), "contrast": (None, sidecar.embed_dim)}
    wanted: dict[str, tuple[Tensors, dict[str, tuple[int | None, ...]]]] = {
        "inputs": (inputs, {"image": (batch, 3, height, width), **text}),
        "outputs": (outputs, {"logits": (batch, classes and maps, rows, columns)}),
    }
    if sidecar.memory is not None:
        grid = (1, sidecar.memory, rows, columns)
        wanted["inputs"][1].update(last_logits=(1, classes and maps, rows, columns), last_affinity=grid)
        wanted["outputs"][1].update(affinity=grid)
    for side, (found, expected) in wanted.items():
        shown = {name: list(shape) for name, (shape, _) in found.items()}
        fits = set(found) == set(expected)
        for name in expected if fits else ():
            shape, kind = found[name]
            if kind != dtype:
                raise OVSDinoError(
                    f"{sidecar.file}: {name} is {one_line(kind, 60)}, expected float32; {sidecar.rebuild()}"
                )
            fits = fits and len(shape) == len(expected[name]) and all(map(_agrees, shape, expected[name]))
        if not fits:
            told = {name: ["any" if length is None else length for length in shape] for name, shape in expected.items()}
            raise OVSDinoError(
                f"{sidecar.file}: its {side} are {one_line(shown, 200)}, its sidecar says "
                f"{', '.join(f'{name} {shape}' for name, shape in told.items())}; {sidecar.rebuild()}"
            )


def _agrees(found: Any, expected: int | None) -> bool:
    """Tell whether a side is free in the graph or in the sidecar, or the same in both."""
    return expected is None or not isinstance(found, int) or found <= 0 or found == expected
