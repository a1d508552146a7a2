"""Check the inputs and outputs of a graph against its sidecar when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError, one_line

__all__ = ["check_tensors", "logits_shape"]

Tensors = Mapping[str, tuple[Sequence[Any], Any]]


def logits_shape(sidecar: Sidecar, batch: int, classes: int) -> tuple[int, int, int, int]:
    """Return (B, K, h, w) of the logits, whose cells are `stride` pixels wide."""
    _, _, height, width = sidecar.input
    return batch, classes, round(height / sidecar.stride), round(width / sidecar.stride)


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
    _, _, rows, columns = logits_shape(sidecar, 1, 1)
    wanted: dict[str, tuple[Tensors, dict[str, tuple[int | None, ...]]]] = {
        "inputs": (inputs, {"image": (batch, 3, height, width), "text": (classes, sidecar.embed_dim)}),
        "outputs": (outputs, {"logits": (batch, classes, rows, columns)}),
    }
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
            told = {name: ["K" if length is None else length for length in shape] for name, shape in expected.items()}
            raise OVSDinoError(
                f"{sidecar.file}: its {side} are {one_line(shown, 200)}, its sidecar says "
                f"{', '.join(f'{name} {shape}' for name, shape in told.items())}; {sidecar.rebuild()}"
            )


def _agrees(found: Any, expected: int | None) -> bool:
    """Tell whether a side is free in the graph or in the sidecar, or the same in both."""
    return expected is None or not isinstance(found, int) or found <= 0 or found == expected
