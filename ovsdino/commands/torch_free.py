"""The shipped model where torch is not installed: what `ovsdino segment` asks of a `Segmenter`, by ONNX Runtime."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.edge.shipped_graph import shipped_model
from ovsdino.edge.words import make_bank
from ovsdino.options import SegmenterOptions
from ovsdino.results import Segmentation
from ovsdino.vocabulary import Vocabulary

__all__ = ["TorchFree", "torch_free"]


def torch_free(options: SegmenterOptions) -> bool:
    """Return whether options are to be met without torch: it is not installed, and nothing asked for needs it.

    Args:
        options: Which model runs, and how.
    """
    usual = options.device in (None, "cpu") and options.dtype in ("float32", "auto") and not options.input_files
    if not usual or shipped_model(options.model) is None:
        return False
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return True
    return False


class TorchFree:
    """A shipped model with one vocabulary.

    Args:
        options: Which model runs, and at what size.
    """

    device = "cpu"

    def __init__(self, options: SegmenterOptions) -> None:
        self._options = options
        self._made: tuple[Vocabulary, bool | None, EdgeSegmenter] | None = None

    def segment(
        self, pixels: np.ndarray, vocabulary: Vocabulary, *, partition: bool | None, **options: Any
    ) -> Segmentation:
        """Label the pixels of an image; arguments as those of `Segmenter.segment`, without a window.

        Raises:
            OVSDinoError: The image or an option is not valid.
        """
        if self._made is None or self._made[:2] != (vocabulary, partition):
            bank = make_bank(vocabulary, partition, self._options.model)
            edge = EdgeSegmenter(self._options.model, bank, short_side=self._options.short_side, **options)
            self._made = vocabulary, partition, edge
        return dataclasses.replace(self._made[2].segment(pixels), palette=vocabulary.colors)
