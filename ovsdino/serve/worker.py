"""The one thread that runs the model, and the places of those who wait for it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ovsdino.classes_file import is_classes_file
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import FORMATS, load_image
from ovsdino.pipeline import Segmenter
from ovsdino.prepared import PreparedImage
from ovsdino.results import Segmentation
from ovsdino.serve.limits import Limits
from ovsdino.vocabulary import MAX_NAME_LENGTH, Vocabulary

__all__ = ["Busy", "Gone", "TooLarge", "Wish", "Worker"]

KEPT = 4  # encoded images, the least recently used dropped first
KEPT_PIXELS = 4_000_000  # of each at most, 12 MB of RGB

T = TypeVar("T")


class TooLarge(OVSDinoError):
    """More bytes or pixels than a limit."""


class Busy(OVSDinoError):
    """No place is free, or the turn did not come in time.

    Attributes:
        seconds: When to try again.
    """

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class Gone(Exception):
    """The client went away."""


@dataclass(frozen=True)
class Wish:
    """A list of words to look for, and how.

    Attributes:
        classes: The words.
        partition: See `ovsdino.Segmenter.segment`.
        confidence: Pixels less certain than this stay unlabeled, 0..1; None or 0 for no threshold.
    """

    classes: str
    partition: bool | None = None
    confidence: float | None = None

    def vocabulary(self, most: int) -> Vocabulary:
        """Return the words; unlike in a command no file is read.

        Args:
            most: Classes at most.

        Raises:
            OVSDinoError: The words are not valid, or the name of a file.
        """
        if is_classes_file(self.classes):
            raise OVSDinoError("files of classes are not read here: write the words, separated by commas")
        if len(self.classes) > most * MAX_NAME_LENGTH:
            raise OVSDinoError(f"classes has {len(self.classes)} characters: at most {most} classes are taken")
        found = Vocabulary.of(self.classes)
        if max(len(found), len(found.words)) > most:
            raise OVSDinoError(f"{len(found.words)} words given: at most {most} are taken here")
        return found

    @property
    def options(self) -> dict[str, Any]:
        """The options of `Segmenter.segment`."""
        return {"partition": self.partition, "background": self.confidence or None}


class Worker:
    """A model, and the thread that runs it for everyone.

    Args:
        segmenter: The model.
        limits: Of images, words, places and time.
    """

    def __init__(self, segmenter: Segmenter, limits: Limits) -> None:
        self.segmenter = segmenter
        self.limits = limits
        self.answered = 0
        self._waiting = 0
        self._mean = 1.0  # seconds of a job, a running mean
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, PreparedImage] = OrderedDict()  # of the model's thread alone
        self._pool = ThreadPoolExecutor(1, "ovsdino-model")

    @property
    def waiting(self) -> int:
        """Number of places that are taken."""
        return self._waiting

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places; a request takes it before its body is read, so that what waits is bounded.

        Raises:
            Busy: None is free.
        """
        with self._lock:
            if self._waiting >= self.limits.max_waiting:
                raise Busy(f"{self._waiting} requests are waiting: try again later", self._turn())
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def submit(self, work: Callable[[], T]) -> Any:
        """Return the future of a job of the model's thread."""

        def timed() -> T:
            start = time.monotonic()
            try:
                return work()
            finally:
                self._mean += 0.2 * (time.monotonic() - start - self._mean)
                self.answered += 1

        return self._pool.submit(timed)

    async def run(self, work: Callable[[], T], gone: Awaitable[Any] | None = None) -> T:
        """Run a job in the model's thread.

        Args:
            work: The job.
            gone: Done when nobody waits for the result any more.

        Raises:
            Busy: The turn did not come within the limit of time.
            Gone: Nobody waits any more.
        """
        future = asyncio.wrap_future(self.submit(work))
        others = [] if gone is None else [asyncio.ensure_future(gone)]
        try:
            await asyncio.wait({future, *others}, timeout=self.limits.max_seconds, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if any(other.done() for other in others):
                raise Gone
            raise Busy(f"no result within {self.limits.max_seconds} s: try again later", self._turn())
        finally:
            for one in (future, *others):
                one.cancel()  # a job that runs goes on, and its result is dropped

    def segment(self, data: bytes, wishes: list[Wish], name: str = "the image") -> list[Segmentation]:
        """Segment an image with each list of words; called in the model's thread.

        The image is encoded once, and not again while it is one of the last few.

        Args:
            data: The bytes of an image file.
            wishes: Words to look for.
            name: What to call the image in messages.

        Returns:
            A result for each list. The stages of the first have those of the encoding, where it was done.

        Raises:
            TooLarge: The image has more pixels than the limit.
            OVSDinoError: The image or the words are not valid.
        """
        words = [wish.vocabulary(self.limits.max_classes) for wish in wishes]
        prepared, stages = self._prepared(data, name)
        found = [prepared.segment(word, **wish.options) for word, wish in zip(words, wishes, strict=True)]
        return [replace(found[0], stages_ms={**stages, **found[0].stages_ms}), *found[1:]]

    def _prepared(self, data: bytes, name: str) -> tuple[PreparedImage, dict[str, float]]:
        """Return an encoded image, and the milliseconds that this took."""
        key = hashlib.sha256(data).digest()
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            return known, {}
        self.check_pixels(data, name)
        made = self.segmenter.set_image(load_image(data, name=name))
        if made.image.shape[0] * made.image.shape[1] <= KEPT_PIXELS:
            self._kept[key] = made
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made, made.stages_ms

    def warm_up(self) -> None:
        """Run the network once, so that the first visitor does not wait for the allocations of a first call."""
        features = self.segmenter.encode_image(np.full((480, 640, 3), 128, np.uint8))
        self.segmenter.decode(features, "wall", partition=None)

    def check_pixels(self, data: bytes, name: str) -> None:
        """Refuse an image by the size in its head, before its pixels are decoded.

        Raises:
            TooLarge: It has more pixels than the limit.
        """
        most = self.limits.max_megapixels * 1_000_000
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning of a bomb; its error is none of ours here
            try:
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    width, height = image.size
            except Image.DecompressionBombError:
                width = height = most
            except Exception:
                return  # whoever decodes it says what is wrong
        if width * height > most:
            raise TooLarge(f"{name}: more than {self.limits.max_megapixels} million pixels; make it smaller first")

    def close(self) -> None:
        """Drop the jobs that wait, and end the thread after the one that runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _turn(self) -> int:
        """Return the seconds after which a place may be free."""
        return max(1, math.ceil(self._mean * self._waiting / 2))
