"""An image that the network has seen, to be segmented with one vocabulary after another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ovsdino.devices import said_when_memory_is_out
from ovsdino.labeling import result_of
from ovsdino.network import Encoded, Network
from ovsdino.request import View, make_request
from ovsdino.results import Segmentation
from ovsdino.text_banks import TextBanks
from ovsdino.timing import Clock
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, Classes

__all__ = ["PreparedImage"]


class PreparedImage:
    """An encoded image, made by `ovsdino.Segmenter.set_image`: what is left for a vocabulary is a fraction of the time.

    It holds the features on the model's device. Several threads may share one.

    Attributes:
        image: (H, W, 3) uint8 RGB; results share it, so it is not to be written to.
        source: Path of the image file, where there is one.
        novelty: See `Segmentation`.
        stages_ms: Milliseconds of reading, preparing and encoding, which are in no result of `segment`.
    """

    def __init__(
        self,
        network: Network,
        banks: TextBanks,
        view: View,
        image: np.ndarray,
        source: str | None,
        clock: Clock,
    ) -> None:
        self.image, self.source, self.stages_ms = image, source, clock.ms
        self._network, self._banks = network, banks
        self._view = view
        with torch.inference_mode(), network.autocast(torch.float32), said_when_memory_is_out():
            self._encoded, self.novelty = network.encode(image, view, clock)

    @property
    def encoded(self) -> Encoded:
        """The features of the image, of each of its windows."""
        return self._encoded

    def segment(
        self,
        classes: Classes,
        *,
        background: float | bool | None = None,
        scores: bool = True,
        confidence: bool = False,
        partition: bool | None = None,
        least_share: float = LEAST_SHARE,
        least_certainty: float = LEAST_CERTAINTY,
        prior: Tensor | None = None,
        tau: float = 0.5,
    ) -> Segmentation:
        """Label the image with the classes, as `ovsdino.Segmenter.segment` does.

        Args:
            classes: See `ovsdino.Segmenter.segment`, as the rest.
            background: See above.
            scores: See above.
            confidence: See above.
            partition: See above.
            least_share: See above.
            least_certainty: See above.
            prior: See above.
            tau: See above.

        Returns:
            The result; its `stages_ms` are those of the words, of decoding and of the labels alone.

        Raises:
            OVSDinoError: The classes or a number is not valid.
        """
        network, banks, clock = self._network, self._banks, self._network.clock()
        wish = make_request(
            banks,
            classes,
            background=background,
            scores=scores,
            confidence=confidence,
            partition=partition,
            least_share=least_share,
            least_certainty=least_certainty,
            prior=prior,
            tau=tau,
            window=self._view.window,
            stride=self._view.stride or None,
            short_side=self._view.short_side,
        )
        familiarity = banks.familiarity(wish.vocabulary)
        with torch.inference_mode(), network.autocast(torch.float32), said_when_memory_is_out():
            with clock("text"):
                text = banks.rows(wish.vocabulary, wish.partition)
            maps = network.decode_encoded(self._encoded, self.image.shape[:2], text, wish, clock)
            return result_of(
                maps, self.image, wish, clock, familiarity=familiarity, novelty=self.novelty, source=self.source
            )
