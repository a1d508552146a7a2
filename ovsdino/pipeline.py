"""From an image and words to a `Segmentation`: whole image or sliding window."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ovsdino.devices import autocast_dtype, check_device, said_when_memory_is_out
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import ImageLike, load_image, several, source_name
from ovsdino.io.video import Frames
from ovsdino.labeling import Request, confidence_of, label_logits
from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.memory import MemoryConfig
from ovsdino.models.novelty import novelty
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.survivors import Survivors, map_bytes, surviving
from ovsdino.models.text_rows import TextRows
from ovsdino.models.zoo import create_model
from ovsdino.ops import preprocess
from ovsdino.results import Segmentation
from ovsdino.text_banks import TextBanks
from ovsdino.timing import Clock
from ovsdino.tracking import Recall, Tracker, video_settings
from ovsdino.vocabulary import (
    DEFAULT_BACKGROUND,
    LEAST_CERTAINTY,
    LEAST_SHARE,
    Classes,
    Vocabulary,
    background_threshold,
)
from ovsdino.windows import (
    Batches,
    autocast,
    large_input,
    mean_of_windows,
    merge_windows,
    window_places,
    window_stride,
)

__all__ = ["DEFAULT_BACKGROUND", "Segmenter", "check_device", "load", "segment"]

log = logging.getLogger("ovsdino")

NOVEL = 1.0  # novelty above which an image is said to be unlike the known ones
MOST_BYTES = 64 << 20  # of maps at once: 1 589 classes of a 352x480 image; of more only those that win are kept
LONGEST_SIDE = 2048 / 448  # of the short side: the protocol's keep-ratio resize into (2048, 448)

DType = Literal["float32", "bfloat16", "float16", "auto"]


class Segmenter:
    """A model and its surroundings: pictures to tensors, words to text banks, logits to labels.

    Several threads may share one. A `torch.autocast` of the caller has no effect: `dtype` alone decides.

    Args:
        model: An `OVSDINO` in eval mode.
        device: Where to run; the model's own device by default.
        dtype: "float32"; "bfloat16" or "float16" run the network under autocast; "auto" is bfloat16 (which has
            float32's range) on CUDA devices and CPUs that compute in it, and float32 elsewhere.
        short_side: Size of the image's short side at inference, in pixels; the model's own by default.
        batch_size: Images or windows in one forward; halved, and said once, when memory runs out.
        adapted: Words of one's own, as `ovsdino adapt` writes them: the file, or what was read from it.

    Raises:
        OVSDinoError: The device is not there, a value is out of range, or the adapted words are not this model's.
    """

    def __init__(
        self,
        model: OVSDINO,
        device: str | torch.device | None = None,
        *,
        dtype: DType = "float32",
        short_side: int | None = None,
        batch_size: int = 8,
        adapted: str | os.PathLike[str] | AdaptedWords | None = None,
    ) -> None:
        self.device = next(model.parameters()).device if device is None else check_device(device)
        self.model = model.to(self.device).eval()
        self.name: str = model.config.name
        if adapted is not None:
            adapted = adapted if isinstance(adapted, AdaptedWords) else AdaptedWords.load(adapted)
            adapted.check(self.model, self.name)
        self.adapted = adapted
        self.dtype = autocast_dtype(dtype, self.device)
        self.short_side = model.config.short_side if short_side is None else short_side
        if not model.stride_multiple <= self.short_side <= 8192:
            raise OVSDinoError(f"short_side is {self.short_side}: expected {model.stride_multiple}..8192 pixels")
        self.batches = Batches(batch_size)
        self._said_novel = self._said_large = False
        self._text = TextBanks(self.model, self.device, adapted=adapted)

    def adapted_to(self, words: AdaptedWords) -> Segmenter:
        """Return a segmenter of the same model and settings with further adapted words; newer rows win.

        Raises:
            OVSDinoError: They are not this model's.
        """
        words.check(self.model, self.name)
        other = copy.copy(self)
        other.adapted = words if self.adapted is None else self.adapted.merged(words)
        other._text = TextBanks(self.model, self.device, adapted=other.adapted)
        return other

    def encode_text(self, classes: Classes) -> Tensor:
        """Return one row for each class, computed once and cached; the embeddings of several words are averaged.

        Args:
            classes: See `Vocabulary.of`.

        Returns:
            (K, D) float32 on the model's device, rows of length one.

        Raises:
            OVSDinoError: The class list is not valid.
        """
        return self._text.averaged(Vocabulary.of(classes).texts)

    def text_rows(self, classes: Classes, partition: bool | None = None) -> Tensor | TextRows:
        """Return the rows that `decode` takes for a class list, computed once and cached.

        Args:
            classes: See `Vocabulary.of`.
            partition: False lets the contrast vocabulary compete (`ovsdino.contrast`), less the phrases that mean one
                of the words; True does not; None is what the model was made for (`ModelConfig.contrast`), but True
                where a class is called "background".

        Returns:
            (K, D) float32 where each class has one row and nothing competes; else `TextRows`, on the model's device.

        Raises:
            OVSDinoError: The class list is not valid.
        """
        vocabulary = Vocabulary.of(classes)
        return self._text.rows(vocabulary, self._text.partition(partition, vocabulary))

    def encode_image(self, image: ImageLike) -> ImageFeatures:
        """Return the part of an image that does not depend on the words, for `decode`; batch of one.

        Raises:
            OVSDinoError: The image cannot be read.
        """
        pixels = load_image(image)
        with torch.inference_mode(), self._autocast(), said_when_memory_is_out():
            return self.model.encode_image(self.prepare(pixels))

    def decode(
        self,
        features: ImageFeatures,
        classes: Classes | Tensor | TextRows,
        prior: Tensor | None = None,
        tau: float = 0.5,
        partition: bool | None = True,
    ) -> Tensor:
        """Return logits of the classes, (B, K, h, w) float32 at the model's output grid.

        Args:
            features: Of `encode_image`.
            classes: The words; or their rows (K, D); or `TextRows`.
            prior: See `OVSDINO.decode`.
            tau: See `OVSDINO.decode`.
            partition: Of words, see `text_rows`; with a contrast its channel is the last of K + 1.
        """
        text = classes if isinstance(classes, (Tensor, TextRows)) else self.text_rows(classes, partition)
        with torch.inference_mode(), self._autocast(), said_when_memory_is_out():
            offset: dict[str, Any] = {} if prior is None else {"prior": prior.to(self.device), "tau": tau}
            return self.model.decode(features, text.to(self.device), **offset).float()

    def segment(
        self,
        image: ImageLike,
        classes: Classes,
        *,
        background: float | bool | None = None,
        window: int | None = None,
        stride: int | None = None,
        scores: bool = True,
        confidence: bool = False,
        partition: bool | None = None,
        least_share: float = LEAST_SHARE,
        least_certainty: float = LEAST_CERTAINTY,
        prior: Tensor | None = None,
        tau: float = 0.5,
    ) -> Segmentation:
        """Label the pixels of an image with the classes.

        A pixel that belongs to none of the words is left unlabeled, label K: the words compete with a contrast
        vocabulary, where the model was made for it or `partition` is False. Labels come straight from the
        low-resolution logits; the (K, H, W) tensor at image size is never made.

        Args:
            image: Path, PIL image, ndarray or tensor; see `load_image`.
            classes: "road, car, sky", a list of words, or a mapping; see `Vocabulary.of`.
            background: Pixels whose largest softmax probability is below this (0..1) become background, label K; True
                stands for 0.5. None or False: no threshold.
            window: Side of a sliding window, in pixels of the resized image; None takes the whole image at once.
            stride: Step of the window; half the window by default.
            scores: Also compute each class's mean confidence.
            confidence: Keep the confidence of each pixel, see `Segmentation`.
            partition: True gives every pixel one of the words, False lets the contrast vocabulary compete; see
                `text_rows` for None.
            least_share: Without a partition, a word on a smaller share of the image (0..1) is not found: its pixels
                become background.
            least_certainty: Nor is a word found of whose pixels the surest, 0.04 % of the image, are less likely than
                this (0..1) to be of the word rather than of none. 0 asks for nothing; at 0.8 a word must be four times
                as likely.
            prior: (K,) positive, how common each class is; see `OVSDINO.decode`. None takes nothing from the logits.
            tau: Strength of the prior.

        Raises:
            OVSDinoError: The image, the classes or a number is not valid; the message names it.
            ValueError: The prior is none.
        """
        weighted = None if prior is None else prior.to(self.device, torch.float32) ** tau
        wish = self._wish(classes, background, window, stride, scores, partition, least_share, least_certainty)
        return self._segment([image], replace(wish, prior=weighted, confidence=confidence))[0]

    def segment_batch(
        self,
        images: Iterable[ImageLike],
        classes: Classes,
        *,
        background: float | bool | None = None,
        window: int | None = None,
        stride: int | None = None,
        scores: bool = True,
        confidence: bool = False,
        partition: bool | None = None,
        least_share: float = LEAST_SHARE,
        least_certainty: float = LEAST_CERTAINTY,
    ) -> list[Segmentation]:
        """Segment several images; those of equal inference size share a forward. Results come in the order given.

        Stage times are shared equally among the images of a forward.

        Args:
            images: A list, a generator, or one array (N, H, W, C) or tensor (N, C, H, W) of several.
            classes: See `segment`.
            background: See `segment`.
            window: See `segment`.
            stride: See `segment`.
            scores: See `segment`.
            confidence: See `segment`.
            partition: See `segment`.
            least_share: See `segment`.
            least_certainty: See `segment`.

        Raises:
            OVSDinoError: One image is given in place of several, or see `segment`.
        """
        wish = self._wish(classes, background, window, stride, scores, partition, least_share, least_certainty)
        return self._segment(several(images), replace(wish, confidence=confidence))

    def tracker(self, classes: Classes, *, memory: MemoryConfig | bool = True, **options: Any) -> Tracker:
        """Return what segments a video frame by frame, each with a memory of the last, so that labels do not flicker.

        Args:
            classes: See `segment`; `Tracker.set_classes` changes them.
            memory: False remembers nothing: the labels are those of `segment`.
            **options: `background`, `partition`, `scores`, `confidence`, `least_share` and `least_certainty` of
                `segment`; the whole image is taken at once.

        Raises:
            OVSDinoError: The model has no trained decoder, or a value is not valid.
        """
        settings = video_settings(options)
        confidence = settings.pop("confidence")

        def one(image: ImageLike, words: Vocabulary, recall: Recall | None) -> Segmentation:
            wish = self._wish(words, window=None, stride=None, **settings)
            return self._segment([image], replace(wish, confidence=confidence, recall=recall))[0]

        return Tracker(self.model, one, classes, memory)

    def stream(self, frames: Frames, classes: Classes, **options: Any) -> Iterator[Segmentation]:
        """Yield the result of each frame of a video, steady in time, as it comes.

        Args:
            frames: A video file, a folder, a camera's number, or a list or generator of images.
            classes: See `segment`.
            **options: See `tracker`.

        Raises:
            OVSDinoError: See `tracker`; or a frame cannot be read.
        """
        return self.tracker(classes, **options).stream(frames)

    def clock(self) -> Clock:
        """Return a clock that waits for the model's device at both ends of a stage."""
        wait = functools.partial(torch.cuda.synchronize, self.device) if self.device.type == "cuda" else None
        return Clock(wait)

    def inference_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) that the network sees: ratio kept, short side `short_side`, sides rounded to `stride_multiple`.

        The long side is at most 2048/448 of `short_side`, so that a strip of an image cannot fill the memory.
        """
        scale = min(self.short_side / min(height, width), self.short_side * LONGEST_SIDE / max(height, width))
        multiple = self.model.stride_multiple
        h, w = (max(1, round(side * scale / multiple)) * multiple for side in (height, width))
        return h, w

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """Return an image (H, W, 3) uint8 as the network takes it: (1, 3, h, w) of `inference_size`, normalized."""
        config, size = self.model.config, self.inference_size(*pixels.shape[:2])
        image = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        return preprocess(image.to(self.device), size, config.mean, config.std)

    def _wish(
        self,
        classes: Classes,
        background: float | bool | None,
        window: int | None,
        stride: int | None,
        scores: bool,
        partition: bool | None,
        least_share: float,
        least_certainty: float,
    ) -> Request:
        vocabulary = Vocabulary.of(classes)
        whole = self._text.partition(partition, vocabulary)
        if not 0 <= least_share < 1:
            raise OVSDinoError(f"least_share is {least_share}: expected a share of the image from 0 to below 1")
        if not 0 <= least_certainty < 1:
            raise OVSDinoError(f"least_certainty is {least_certainty}: expected a probability from 0 to below 1")
        return Request(
            vocabulary=vocabulary,
            partition=whole,
            threshold=background_threshold(background, vocabulary.names, whole),
            window=window,
            stride=window_stride(window, stride, self.model.stride_multiple, self.name),
            scores=scores,
            least_share=least_share,
            least_certainty=least_certainty,
        )

    def _segment(self, images: Sequence[ImageLike], wish: Request) -> list[Segmentation]:
        clocks = [self.clock() for _ in images]
        pixels: list[np.ndarray] = []
        for image, clock in zip(images, clocks, strict=True):
            with clock("load"):
                pixels.append(load_image(image, copy=True))  # a camera's buffer will hold the next frame
        results: dict[int, Segmentation] = {}
        familiarity = self._text.familiarity(wish.vocabulary)
        with torch.inference_mode(), self._autocast(torch.float32), said_when_memory_is_out():
            for part in self._batched(pixels):
                shared = self.clock()
                maps, strange = self._maps([pixels[index] for index in part], wish, shared)
                for row, index in enumerate(part):
                    clock = clocks[index]
                    clock.add_share(shared, 1 / len(part))
                    with clock("postprocess"):
                        found, means = label_logits(maps[row], pixels[index].shape[:2], wish)
                    certainty = None
                    if wish.confidence:
                        with clock("confidence"):
                            certainty = confidence_of(maps[row], pixels[index].shape[:2])
                    results[index] = Segmentation(
                        labels=found,
                        names=wish.vocabulary.names,
                        scores=means,
                        familiarity=familiarity,
                        confidence=certainty,
                        novelty=None if strange is None else strange[row],
                        background=wish.threshold is not None or not wish.partition,
                        image=pixels[index],
                        source=source_name(images[index]),
                        palette=wish.vocabulary.colors,
                        stages_ms=clock.ms,
                    )
        return [results[index] for index in range(len(images))]

    def _batched(self, pixels: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Yield the indices of images that go through the network together: those of one inference size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(pixels):
            groups.setdefault(self.inference_size(*image.shape[:2]), []).append(index)
        for members in groups.values():
            while members:
                size = self.batches.size  # may shrink on the way
                yield members[:size]
                members = members[size:]

    def pooled(self, features: ImageFeatures) -> np.ndarray:
        """Return the mean over the grid of F, (B, D) float32, by which images are told apart from what is known."""
        assert features.backbone is not None
        found: np.ndarray = features.backbone.float().mean((2, 3)).cpu().numpy()
        return found

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

    def _maps(
        self, pixels: Sequence[np.ndarray], wish: Request, clock: Clock
    ) -> tuple[list[Tensor] | list[Survivors], list[float] | None]:
        """Return the logits of each image of one inference size, and their novelty where the model can tell.

        Returns:
            n of (1, K, h, w) float32, K + 1 maps with a contrast, or of many classes the maps that win somewhere; and n
            numbers or None.
        """
        with clock("preprocess"):
            batch = torch.cat([self.prepare(image) for image in pixels])
        if wish.window is None and not self._said_large and (hint := large_input(self.model.config, *batch.shape[2:])):
            self._said_large = True
            log.warning("%s", hint)
        with clock("text"):
            text = self.text_rows(wish.vocabulary, wish.partition)
        offset: dict[str, Any] = {} if wish.prior is None else {"prior": wish.prior, "tau": 1.0}

        known = bool(getattr(self.model, "known", None))
        pooled: list[np.ndarray] = []  # of each part of the batch
        count = text.maps if isinstance(text, TextRows) else len(text)
        large = map_bytes(self.model.config, count, *batch.shape[2:]) > MOST_BYTES and wish.recall is None
        if large:
            found: list[Survivors] = []
            for image, picture in zip(batch, pixels, strict=True):
                survivors, seen = self._survivors(image, picture.shape[:2], text, wish, offset, clock)
                found.append(survivors)
                if known:
                    pooled.append(seen)
            return found, self._novelty(np.concatenate(pooled)) if known else None

        def network(images: Tensor) -> Tensor:
            with self._autocast():
                with clock("encode"):
                    features = self.model.encode_image(images)
                with clock("decode"):
                    logits = self.model.decode(features, text, **offset).float()
            if wish.recall is not None:
                with clock("memory"):
                    logits = wish.recall(features, logits)
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

    def _survivors(
        self,
        image: Tensor,
        size: tuple[int, int],
        text: Tensor | TextRows,
        wish: Request,
        offset: dict[str, Any],
        clock: Clock,
    ) -> tuple[Survivors, np.ndarray]:
        """Return the maps of an image (3, h, w) that win somewhere, and its mean-pooled features (1, D)."""
        height, width = image.shape[-2:]
        window, stride = wish.window or max(height, width), wish.stride or 1
        (rows, columns), corners = window_places(height, width, window, stride)
        with self._autocast(), clock("encode"):
            windows = [self.model.encode_image(image[None, :, y : y + rows, x : x + columns]) for y, x in corners]

        def decode(part: TextRows, first: int) -> Tensor:
            with self._autocast():
                weighed = {**offset, "prior": offset["prior"][first : first + len(part)]} if offset else {}
                maps = (self.model.decode(features, part, **weighed).float()[0] for features in windows)
                return mean_of_windows(maps, height, width, window, stride)[None]

        with clock("decode"):
            one = map_bytes(self.model.config, 1, height, width)
            sure = wish.threshold is not None or wish.confidence
            survivors = surviving(decode, text, one, size, confidence=sure)
            seen = self.pooled(windows[0]) if len(windows) == 1 else np.mean([*map(self.pooled, windows)], 0)
        return survivors, seen

    def _autocast(self, dtype: torch.dtype | None = None) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, dtype or self.dtype)


def load(
    name: str | Path = "nano",
    device: str | torch.device | None = None,
    *,
    dtype: DType = "float32",
    short_side: int | None = None,
    adapted: str | os.PathLike[str] | AdaptedWords | None = None,
    **weights: Any,
) -> Segmenter:
    """Return a model, ready to segment.

    Args:
        name: A name of `list_models()`, or a folder or hub repository that holds a shared model (`ovsdino.hub`).
        device: "cpu", "cuda", "cuda:1"; None takes CUDA if there is one.
        dtype: See `Segmenter`.
        short_side: See `Segmenter`.
        adapted: See `Segmenter`.
        **weights: Files of one's own, as `ovsdino.models.zoo.create_model` takes them (checkpoint, backbone_weights,
            projection, clip_weights, sentence_weights).

    Raises:
        OVSDinoError: The name is unknown, the device is not there, or weights are missing, damaged or out of reach.
    """
    place = check_device(device)
    model = create_model(name, device=place, **weights)
    return Segmenter(model, place, dtype=dtype, short_side=short_side, adapted=adapted)


def segment(image: ImageLike, classes: Classes, model: str = "nano", **options: Any) -> Segmentation:
    """Segment one image: `load(model).segment(image, classes, **options)`; the model is kept for the next call.

    Raises:
        OVSDinoError: See `load` and `Segmenter.segment`.
    """
    return _kept(model).segment(image, classes, **options)


@functools.lru_cache(maxsize=1)
def _kept(name: str) -> Segmenter:
    return load(name)
