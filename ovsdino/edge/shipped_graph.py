"""Run a shipped model by ONNX Runtime: the package's own graph and weights, no torch and no export.

The graph (`weights/<model>.onnx`) has the operators alone and takes images of any size. Its weights are those of
`weights/<model>.safetensors`, given to ONNX Runtime by name (`ovsdino.deploy.export.shipped` writes the graph).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ovsdino.edge.cpu_graph import CpuGraph
from ovsdino.edge.labels import Found, Wish
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.pixels import kept_ratio
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import check_tensors
from ovsdino.edge.words import image_digest, read_state
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_bytes
from ovsdino.models.catalog import get_config
from ovsdino.models.shipped import WEIGHTS, packaged
from ovsdino.timing import Clock

__all__ = ["ShippedGraph", "graph_path", "shipped_model"]

MOST = 4096, 64, 4096  # classes, words of a class and contrast rows, as the sidecar's checks ask for


def graph_path(model: str) -> Path:
    """Return where the package has the graph of a model."""
    return WEIGHTS / f"{model}.onnx"


def shipped_model(given: str | os.PathLike[str]) -> str | None:
    """Return the name of a shipped model, or None where a file is meant.

    Args:
        given: A name or a path; a file of that name in the working folder is meant first.
    """
    if not isinstance(given, str) or Path(given).is_file() or packaged(given) is None:
        return None
    return given if graph_path(given).is_file() else None


class ShippedGraph(CpuGraph):
    """The graph of a shipped model in ONNX Runtime, each image at its own ratio.

    Args:
        model: Name of the model.
        threads: Threads of the network and of the label kernel.
        short_side: Size of an image's short side in the network, in pixels; None takes the model's own.

    Raises:
        OVSDinoError: ONNX Runtime is missing; graph or weights are damaged; or the short side is out of range.
    """

    def __init__(self, model: str, threads: int, short_side: int | None = None) -> None:
        config = get_config(model)
        self._short_side = config.short_side if short_side is None else short_side
        if not config.patch_size <= self._short_side <= 8192:
            raise OVSDinoError(f"short_side is {short_side}: expected {config.patch_size}..8192 pixels")
        path, state = graph_path(model), read_state(model)
        data = read_bytes(path, "graph")
        sidecar = _sidecar(model, path.name, data, image_digest(state))
        self._session = open_session(data, path.name, threads, _weights(state, data))
        inputs = {one.name: (list(one.shape), one.type) for one in self._session.get_inputs()}
        outputs = {one.name: (list(one.shape), one.type) for one in self._session.get_outputs()}
        check_tensors(sidecar, inputs, outputs, "tensor(float)")
        super().__init__(sidecar, threads, 1)

    @property
    def sidecar(self) -> Sidecar:
        """The facts that the sidecar of an exported file would have; `input` is of the last image."""
        return self._sidecar

    def run(
        self, frames: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], wish: Wish, clock: Clock
    ) -> list[Found]:
        """Turn one frame (RGB or NV12) into labels of its size, see `Graph.run`."""
        self._fit(kept_ratio(*sizes[0], self._short_side, self._sidecar.patch_size))
        return super().run(frames, sizes, wish, clock)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Compute logits of normalized images (1, 3, H, W), see `Graph.infer`."""
        self._fit((image.shape[2], image.shape[3]))
        return super().infer(image)

    def _fit(self, size: tuple[int, int]) -> None:
        """Make the input buffer one of (h, w)."""
        if self._sidecar.input[2:] != size:
            self._sidecar = dataclasses.replace(self._sidecar, input=(1, 3, *size))
            self._images = np.empty((1, 3, *size), np.float32)

    def _logits(self, image: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = self._session.run(["logits"], {"image": image, **self._text})
        return found[0]

    def close(self) -> None:
        """Free the session."""
        del self._session


def _sidecar(model: str, file: str, data: bytes, weights: str) -> Sidecar:
    """Return the facts of a shipped model's graph."""
    config = get_config(model)
    side = max(1, round(config.short_side / config.patch_size)) * config.patch_size
    return Sidecar(
        kind="onnx",
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        model=model,
        precision="float32",
        backend="onnx",
        version="",
        target="any",
        input=(1, 3, side, side),
        classes=(1, MOST[0]),
        embed_dim=config.embed_dim,
        stride=config.patch_size / 4,
        mean=config.mean,
        std=config.std,
        short_side=config.short_side,
        patch_size=config.patch_size,
        weights=weights,
        words=(1, MOST[1]),
        contrast=(1, MOST[2]),
    )


def _weights(state: Mapping[str, np.ndarray], data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors that a graph names, in the float32 that the model computes with."""
    return {name: value.astype(np.float32) for name, value in state.items() if _names(data, name)}


def _names(data: bytes, name: str) -> bool:
    """Return whether an ONNX file has a stored tensor of a name: field 8 of its TensorProto, text of known length."""
    text = name.encode()
    return len(text) < 128 and bytes([8 << 3 | 2, len(text)]) + text in data
