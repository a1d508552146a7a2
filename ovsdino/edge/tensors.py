"""The inputs and outputs of a graph, held against its sidecar when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError, one_line

__all__ = ["check_tensors", "logits_shape"]

Tensors = Mapping[str, tuple[Sequence[Any], Any]]


def logits_shape(sidecar: Sidecar, batch: int, classes: int) -> tuple[int, int, int, int]:
    """(B, K, h, w) of the logits: cells of `stride` pixels."""
    _, _, height, width = sidecar.input
    return batch, classes, round(height / sidecar.stride), round(width / sidecar.stride)


def check_tensors(sidecar: Sidecar, inputs: Tensors, outputs: Tensors, dtype: Any) -> None:
    """Refuses a graph whose tensors are others than its sidecar says.

    Args:
        sidecar: what it should be.
        inputs: shape and dtype by name; what is no positive whole number in a shape is free.
        outputs: likewise.
        dtype: what each must be, as the runtime names float32.

    Raises:
        OVSDinoError: another name, rank, dtype, batch, size, number of classes or columns.
    """
    batch, _, height, width = sidecar.input
    free = None
    least, most = sidecar.classes
    classes = most if least == most else free
    _, _, rows, columns = logits_shape(sidecar, 1, 1)
    wanted: dict[str, tuple[Any, dict[str, tuple[int | None, ...]]]] = {
        "inputs": (inputs, {"image": (batch, 3, height, width), "text": (classes, sidecar.embed_dim)}),
        "outputs": (outputs, {"logits": (batch, classes, rows, columns)}),
    }
    for what, (found, expected) in wanted.items():
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
            told = {name: ["K" if side is free else side for side in shape] for name, shape in expected.items()}
            raise OVSDinoError(
                f"{sidecar.file}: its {what} are {one_line(shown, 200)}, its sidecar says "
                f"{', '.join(f'{name} {shape}' for name, shape in told.items())}; {sidecar.rebuild()}"
            )


def _agrees(found: Any, expected: int | None) -> bool:
    """A side that the graph leaves free agrees with any; one that it fixes must be the one expected."""
    return expected is None or not isinstance(found, int) or found <= 0 or found == expected
