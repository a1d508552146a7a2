"""A model on its device: pixels to the tensor that it takes, and to logits of classes, whole or by windows."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ovsdino.devices import autocast_dtype, check_device
from ovsdino.edge.pixels import kept_ratio
from ovsdino.models.novelty import novelty
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.survivors import Survivors, map_bytes, surviving
from ovsdino.models.text_rows import TextRows
from ovsdino.ops import preprocess
from ovsdino.request import Request, View, check_short_side
from ovsdino.timing import Clock
from ovsdino.windows import Batches, autocast, large_input, mean_of_windows, merge_windows, window_places

__all__ = ["DType", "Encoded", "Network"]

log = logging.getLogger("ovsdino")

NOVEL = 1.0  # novelty above which an image is said to be unlike the known ones
MOST_BYTES = 64 << 20  # of maps at once: 1 589 classes of a 352x480 image; of more only those that win are kept

DType = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image that the network has seen.

    Attributes:
        windows: The features of each window; of one, the whole image, by default.
        input: (3, h, w), the prepared image.
    """

    windows: list[ImageFeatures]
    input: Tensor


class Network:
    """A model, its device, its number format and its size of input.

    Args:
        model: An `OVSDINO`; it is moved to the device and put into eval mode.
        device: See `ovsdino.Segmenter`, as the rest.
        dtype: See above.
        short_side: See above.
        batch_size: See above.

    Raises:
        OVSDinoError: The device is not there, or a value is out of range.
    """

    def __init__(
        self,
        model: OVSDINO,
        device: str | torch.device | None = None,
        *,
        dtype: DType = "float32",
        short_side: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self.device = next(model.parameters()).device if device is None else check_device(device)
        self.model = model.to(self.device).eval()
        self.name: str = model.config.name
        self.dtype = autocast_dtype(dtype, self.device)
        self.short_side = check_short_side(model, model.config.short_side if short_side is None else short_side)
        self.batches = Batches(batch_size)
        self._said_novel = self._said_large = False

    def clock(self) -> Clock:
        """Return a clock that waits for the model's device at both ends of a stage."""
        wait = functools.partial(torch.cuda.synchronize, self.device) if self.device.type == "cuda" else None
        return Clock(wait)

    def inference_size(self, height: int, width: int, short_side: int | None = None) -> tuple[int, int]:
        """Return (h, w) that the network sees: ratio kept, short side as asked, sides rounded to `stride_multiple`.

        The long side is at most 2048/448 of the short side, so that a strip of an image cannot fill the memory.

        Args:
            height: Of the image in pixels.
            width: Of the image in pixels.
            short_side: In pixels; `self.short_side` by default.
        """
        return kept_ratio(height, width, short_side or self.short_side, self.model.stride_multiple)

    def prepare(self, pixels: np.ndarray, short_side: int | None = None) -> Tensor:
        """Return an image as the network takes it, normalized.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            short_side: See `inference_size`.

        Returns:
            (1, 3, h, w) of `inference_size`.
        """
        config, size = self.model.config, self.inference_size(pixels.shape[0], pixels.shape[1], short_side)
        image = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        return preprocess(image.to(self.device), size, config.mean, config.std)

    def autocast(self, dtype: torch.dtype | None = None) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the network runs, whatever autocast the caller is in."""
        return autocast(self.device, dtype or self.dtype)

    def pooled(self, features: ImageFeatures) -> np.ndarray:
        """Return the mean over the grid of F, (B, D) float32, by which images are told apart from what is known."""
        assert features.backbone is not None
        found: np.ndarray = features.backbone.float().mean((2, 3)).cpu().numpy()
        return found

    def batched(self, pixels: Sequence[np.ndarray], short_side: int | None = None) -> Iterator[list[int]]:
        """Yield the indices of images that go through the network together: those of one inference size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(pixels):
            groups.setdefault(self.inference_size(image.shape[0], image.shape[1], short_side), []).append(index)
        for members in groups.values():
            while members:
                size = self.batches.size  # may shrink on the way
                yield members[:size]
                members = members[size:]

    def maps(
        self, pixels: Sequence[np.ndarray], text: Tensor | TextRows, wish: Request, clock: Clock
    ) -> tuple[list[Tensor] | list[Survivors], list[float] | None]:
        """Return the logits of each image of one inference size, and their novelty where the model can tell.

        Args:
            pixels: n images, (H, W, 3) uint8 RGB.
            text: Rows of the words.
            wish: The call's options.
            clock: Times the stages.

        Returns:
            n of (1, K, h, w) float32, K + 1 maps with a contrast, or of many classes the maps that win somewhere; and n
            numbers or None.
        """
        known = bool(getattr(self.model, "known", None))
        if wish.recall is not None:
            with clock("memory"):
                size = self.inference_size(pixels[0].shape[0], pixels[0].shape[1], wish.short_side)
                carried = wish.recall.carried(pixels[0], size)
            if carried is not None:
                return [carried[1]], self._novelty(self.pooled(carried[0])) if known else None
        with clock("preprocess"):
            batch = torch.cat([self.prepare(image, wish.short_side) for image in pixels])
        self._say_large(batch, wish)
        pooled: list[np.ndarray] = []  # of each part of the batch
        if self._many(text, batch) and wish.recall is None:
            found: list[Survivors] = []
            for image, picture in zip(batch, pixels, strict=True):
                with clock("encode"):
                    windows = self._windows(image, wish)
                with clock("decode"):
                    found.append(self._surviving(windows, image, picture.shape[:2], text, wish))
                    if known:
                        pooled.append(self._seen(windows))
            return found, self._novelty(np.concatenate(pooled)) if known else None

        def network(images: Tensor) -> Tensor:
            with self.autocast():
                with clock("encode"):
                    features = self.model.encode_image(images)
                with clock("decode"):
                    logits = self.model.decode(features, text, **wish.offset).float()
            if wish.recall is not None:
                with clock("memory"):
                    logits = wish.recall.joined(features, logits)
            if known:
                with clock("decode"):
                    pooled.append(self.pooled(features))
            return logits

        if wish.window is None:
            logits = self.batches.run(network, batch)
            return list(logits.split(1)), self._novelty(np.concatenate(pooled)) if known else None
        merged: list[Tensor] = []
        means: list[np.ndarray] = []
        for image in batch:
            pooled.clear()
            merged.append(merge_windows(network, image, wish.window, wish.stride, self.batches, clock)[None])
            if known:
                means.append(np.concatenate(pooled).mean(0))
        return merged, self._novelty(np.stack(means)) if known else None

    def encode(self, pixels: np.ndarray, view: View, clock: Clock) -> tuple[Encoded, float | None]:
        """Return what the network makes of an image before it knows the words, and the image's novelty.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            view: How it goes into the network.
            clock: Times the stages.
        """
        with clock("preprocess"):
            batch = self.prepare(pixels, view.short_side)
        self._say_large(batch, view)
        with clock("encode"):
            windows = self._windows(batch[0], view)
            known = bool(getattr(self.model, "known", None))
            strange = self._novelty(self._seen(windows))[0] if known else None
        return Encoded(windows, batch[0]), strange

    def decode_encoded(
        self, encoded: Encoded, size: tuple[int, int], text: Tensor | TextRows, wish: Request, clock: Clock
    ) -> Tensor | Survivors:
        """Return the logits of an encoded image as `maps` does.

        Args:
            encoded: Of `encode`.
            size: (H, W) of the image.
            text: Rows of the words.
            wish: The call's options; windows are those of `encode`.
            clock: Times the stage.
        """
        with clock("decode"):
            if self._many(text, encoded.input):
                return self._surviving(encoded.windows, encoded.input, size, text, wish)
            with self.autocast():
                maps = (self.model.decode(one, text, **wish.offset).float()[0] for one in encoded.windows)
                return mean_of_windows(maps, *_places(encoded.input, wish))[None]

    def _many(self, text: Tensor | TextRows, image: Tensor) -> bool:
        """Return whether the maps of all words are too large to be held at once."""
        count = text.maps if isinstance(text, TextRows) else len(text)
        return map_bytes(self.model.config, count, *image.shape[-2:]) > MOST_BYTES

    def _windows(self, image: Tensor, view: View) -> list[ImageFeatures]:
        """Return the features of each window of an image (3, h, w)."""
        (rows, columns), corners = window_places(*_places(image, view))
        with self.autocast():
            return [self.model.encode_image(image[None, :, y : y + rows, x : x + columns]) for y, x in corners]

    def _surviving(
        self, windows: list[ImageFeatures], image: Tensor, size: tuple[int, int], text: Tensor | TextRows, wish: Request
    ) -> Survivors:
        """Return the maps of an image (3, h, w) that win somewhere."""
        places = _places(image, wish)

        def decode(part: TextRows, first: int) -> Tensor:
            with self.autocast():
                offset = wish.offset
                weighed = {**offset, "prior": offset["prior"][first : first + len(part)]} if offset else {}
                maps = (self.model.decode(features, part, **weighed).float()[0] for features in windows)
                return mean_of_windows(maps, *places)[None]

        one = map_bytes(self.model.config, 1, *image.shape[-2:])
        return surviving(decode, text, one, size, confidence=wish.threshold is not None or wish.confidence)

    def _seen(self, windows: list[ImageFeatures]) -> np.ndarray:
        """Return the mean-pooled features of an image, (1, D)."""
        return self.pooled(windows[0]) if len(windows) == 1 else np.mean([*map(self.pooled, windows)], 0)

    def _say_large(self, batch: Tensor, view: View) -> None:
        if view.window is None and not self._said_large and (hint := large_input(self.model.config, *batch.shape[2:])):
            self._said_large = True
            log.warning("%s", hint)

    def _novelty(self, pooled: np.ndarray) -> list[float]:
        """Return how unlike the known images each is (`ovsdino.models.novelty`), and say it once of an unusual one."""
        found = novelty(self.model.known, pooled).tolist()
        strange = max(found)
        if strange > NOVEL and not self._said_novel:
            self._said_novel = True
            log.warning(
                "an image is unlike those that %s knows (novelty %.1f, of theirs one in a hundred exceeds 1): do not "
                "rely on its labels; said once, later ones have it in `novelty`",
                *(self.name, strange),
            )
        return [float(value) for value in found]


def _places(image: Tensor, view: View) -> tuple[int, int, int, int]:
    """Return height, width, window and stride of an input (3, h, w), for `window_places` and `mean_of_windows`."""
    height, width = image.shape[-2:]
    return height, width, view.window or max(height, width), view.stride or 1
