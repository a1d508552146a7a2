"""The part that the CPU's runtimes share: an image in, logits of the graph, labels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ovsdino.edge.frame_state import FrameState
from ovsdino.edge.labels import Found, Wish, sure_shares, upsample_argmax
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import logits_shape, text_inputs
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading
from ovsdino.timing import Clock

__all__ = ["CpuGraph"]


class CpuGraph:
    """A graph on the CPU: its input buffer and its text bank. A subclass is one runtime.

    Attributes:
        least_batch: The smallest B that the graph takes; the largest is the sidecar's.

    Args:
        sidecar: The file's sidecar.
        threads: Threads of the label kernel.
        least_batch: See above.
    """

    def __init__(self, sidecar: Sidecar, threads: int, least_batch: int) -> None:
        self.least_batch = least_batch
        self._sidecar = sidecar
        self._threads = threads
        self._images = np.zeros((1, *sidecar.input[1:]), np.float32)  # grows to the largest batch
        self._text: dict[str, np.ndarray] = {}
        self._classes = self._maps = 0
        self._state = FrameState(sidecar)

    def set_text(self, text: np.ndarray, contrast: np.ndarray | None = None) -> None:
        """Take another text bank, see `Graph.set_text`."""
        self._text = text_inputs(self._sidecar, text, contrast)
        self._classes, self._maps = len(text), len(text) + (contrast is not None)
        self.reset()

    def reset(self) -> None:
        """Forget the frames so far, see `Graph.reset`."""
        self._state.reset(self._classes)

    def _logits(self, image: np.ndarray) -> np.ndarray:
        """Compute all logits that the graph gives."""
        raise NotImplementedError

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Compute logits of normalized images, see `Graph.infer`."""
        self.reset()
        return self._checked(image)

    def _checked(self, image: np.ndarray) -> np.ndarray:
        """Compute logits, of the shape that the sidecar says."""
        with reading(self._sidecar.file, "graph", self._sidecar.rebuild()):  # it loads, and fails while it runs
            logits = self._logits(image)
        expected = logits_shape(self._sidecar, len(image), self._classes)
        if logits.shape != expected:
            raise OVSDinoError(
                f"{self._sidecar.file}: its logits are {logits.shape}, its sidecar says {expected}; "
                f"{self._sidecar.rebuild()}"
            )
        return logits[:, : self._maps]

    def run(
        self, frames: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], wish: Wish, clock: Clock
    ) -> list[Found]:
        """Turn frames of cameras into labels of their sizes, see `Graph.run`."""
        batch = max(len(frames), self.least_batch)
        if len(self._images) < batch:
            self._images = np.zeros((batch, *self._sidecar.input[1:]), np.float32)
        images = self._images[:batch]
        with clock("preprocess"):
            shape = (self._sidecar.input[2], self._sidecar.input[3])
            for pixels, image in zip(frames, images, strict=False):
                preprocess(pixels, shape, self._sidecar.mean, self._sidecar.std, out=image, threads=self._threads)
        self._follow(frames[0], sizes[0], clock)
        with clock("encode"):
            logits = self._checked(images)[: len(frames)]
        if not np.isfinite(logits).all():
            self.reset()
            raise OVSDinoError(f"{self._sidecar.file}: gives NaN or infinite logits; {self._sidecar.rebuild()}")
        with clock("postprocess"):
            return [self._found(own, size, wish) for own, size in zip(logits, sizes, strict=True)]

    def _follow(self, pixels: np.ndarray, size: tuple[int, int], clock: Clock) -> None:
        if self._state.inputs:
            with clock("memory"):
                self._state.follow(pixels, size)

    def _found(self, logits: np.ndarray, size: tuple[int, int], wish: Wish) -> Found:
        """Return the labels of one image's logits (K, h, w)."""
        labels, certainty = upsample_argmax(
            logits, size, wish.threshold, confidence=wish.confidence, threads=self._threads
        )
        return Found(labels, certainty, None if wish.certainty is None else sure_shares(logits, wish.certainty))
