"""From an image and words to a `Segmentation`: whole image or sliding window."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ovsdino.devices import check_device, said_when_memory_is_out
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import ImageLike, is_several, load_image, several, source_name
from ovsdino.io.video import Frames
from ovsdino.labeling import result_of
from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.memory import KeyFrames, MemoryConfig
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.text import check_templates
from ovsdino.models.text_rows import TextRows
from ovsdino.models.zoo import create_model
from ovsdino.network import DType, Network
from ovsdino.prepared import PreparedImage
from ovsdino.request import Request, SegmentOptions, make_request, make_view
from ovsdino.results import Segmentation
from ovsdino.text_banks import TextBanks
from ovsdino.tracking import Recall, Tracker, video_settings
from ovsdino.vocabulary import DEFAULT_BACKGROUND, LEAST_CERTAINTY, LEAST_SHARE, Classes, Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DEFAULT_BACKGROUND", "Segmenter", "check_device", "load", "segment"]


class Segmenter(Network):
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
        templates: Prompts with a {} for the word ("a photo of a {}."), whose embeddings are averaged; None takes the
            model's own. nano reads bare words, so it refuses any.

    Raises:
        OVSDinoError: The device is not there, a value is out of range, the adapted words are not this model's, or it
            takes no templates.
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
        templates: Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, device, dtype=dtype, short_side=short_side, batch_size=batch_size)
        if adapted is not None:
            adapted = adapted if isinstance(adapted, AdaptedWords) else AdaptedWords.load(adapted)
            adapted.check(self.model, self.name)
        self.adapted = adapted
        if templates is not None:
            check_templates(templates)
            if not self.model.text_tower.takes_templates:
                raise OVSDinoError(f"templates: {self.name} reads bare words; leave them out, or take another model")
        self.templates = None if templates is None else tuple(templates)
        self._text = TextBanks(self.model, self.device, self.templates, adapted)

    def adapted_to(self, words: AdaptedWords) -> Segmenter:
        """Return a segmenter of the same model and settings with further adapted words; newer rows win.

        Raises:
            OVSDinoError: They are not this model's.
        """
        words.check(self.model, self.name)
        other = copy.copy(self)
        other.adapted = words if self.adapted is None else self.adapted.merged(words)
        other._text = TextBanks(self.model, self.device, self.templates, other.adapted)
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
        with torch.inference_mode(), self.autocast(), said_when_memory_is_out():
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
        with torch.inference_mode(), self.autocast(), said_when_memory_is_out():
            offset: dict[str, Any] = {} if prior is None else {"prior": prior.to(self.device), "tau": tau}
            return self.model.decode(features, text.to(self.device), **offset).float()

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], classes: Classes, **options: Unpack[SegmentOptions]
    ) -> Segmentation | list[Segmentation]:
        """Segment one image or several: what was given tells which.

        Args:
            images: One image as `segment` takes it; or several: a folder, a list, a generator, an array (N, H, W, C) or
                a tensor (N, C, H, W).
            classes: See `segment`.
            **options: Those of `segment`.

        Returns:
            A result for one image, a list of them in the order given for several.

        Raises:
            OVSDinoError: See `segment`.
        """
        if is_several(images):
            return self.segment_batch(images, classes, **options)  # type: ignore[arg-type]
        return self.segment(images, classes, **options)  # type: ignore[arg-type]

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
        short_side: int | None = None,
        bgr: bool = False,
        prior: Tensor | None = None,
        tau: float = 0.5,
    ) -> Segmentation:
        """Label the pixels of an image with the classes.

        A pixel that belongs to none of the words is left unlabeled, label K: the words compete with a contrast
        vocabulary, where the model was made for it or `partition` is False. Labels come straight from the
        low-resolution logits; the (K, H, W) tensor at image size is never made.

        Args:
            image: Path, bytes, binary file, PIL image, ndarray or tensor, in RGB; see `load_image`.
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
            short_side: Size of the image's short side at inference in this call, in pixels; the segmenter's by default.
            bgr: An array or tensor holds blue first, as OpenCV's frames do; the result's image is RGB. With the two
                exchanged nano's mIoU on VOC20 val (a partition, 100 images) fell from 0.684 to 0.604.
            prior: (K,) positive, how common each class is; see `OVSDINO.decode`. None takes nothing from the logits.
            tau: Strength of the prior.

        Raises:
            OVSDinoError: The image, the classes or a number is not valid; the message names it.
            ValueError: The prior is none.
        """
        wish = make_request(
            self._text,
            classes,
            background=background,
            window=window,
            stride=stride,
            scores=scores,
            confidence=confidence,
            partition=partition,
            least_share=least_share,
            least_certainty=least_certainty,
            short_side=short_side,
            bgr=bgr,
            prior=prior,
            tau=tau,
        )
        return self._segment([image], wish)[0]

    def segment_batch(
        self, images: Iterable[ImageLike], classes: Classes, **options: Unpack[SegmentOptions]
    ) -> list[Segmentation]:
        """Segment several images; those of equal inference size share a forward. Results come in the order given.

        Stage times are shared equally among the images of a forward.

        Args:
            images: A folder, a list, a generator, or one array (N, H, W, C) or tensor (N, C, H, W) of several.
            classes: See `segment`.
            **options: Those of `segment`.

        Raises:
            OVSDinoError: One image is given in place of several, or see `segment`.
        """
        return self._segment(several(images), make_request(self._text, classes, **options))

    def set_image(
        self,
        image: ImageLike,
        *,
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        bgr: bool = False,
    ) -> PreparedImage:
        """Encode an image once, for any number of vocabularies: `prepared.segment(words)`.

        Nothing is kept in the segmenter, so several images can be prepared at a time.

        Args:
            image: See `segment`, as the rest.
            window: See above.
            stride: See above.
            short_side: See above.
            bgr: See above.

        Raises:
            OVSDinoError: The image or a number is not valid.
        """
        view, clock = make_view(self.model, window, stride, short_side), self.clock()
        with clock("load"):
            pixels = load_image(image, copy=True, bgr=bgr)
        return PreparedImage(self, self._text, view, pixels, source_name(image), clock)

    def tracker(
        self,
        classes: Classes,
        *,
        memory: MemoryConfig | bool = True,
        key_frames: KeyFrames | bool = False,
        **options: Any,
    ) -> Tracker:
        """Return what segments a video frame by frame, each with a memory of the last, so that labels do not flicker.

        Args:
            classes: See `segment`; `Tracker.set_classes` changes them.
            memory: False remembers nothing: the labels are those of `segment`.
            key_frames: True, or settings, encodes only some of the frames whole; the others are moved along.
            **options: `background`, `partition`, `scores`, `confidence`, `least_share`, `least_certainty` and `bgr`
                of `segment`; the whole image is taken at once.

        Raises:
            OVSDinoError: The model has no trained decoder, or a value is not valid.
        """
        bgr = bool(options.pop("bgr", False))
        settings = video_settings(options)

        def one(image: ImageLike, words: Vocabulary, recall: Recall | None) -> Segmentation:
            wish = make_request(self._text, words, bgr=bgr, **settings)
            return self._segment([image], replace(wish, recall=recall))[0]

        return Tracker(self.model, one, classes, memory, key_frames)

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

    def _segment(self, images: Sequence[ImageLike], wish: Request) -> list[Segmentation]:
        clocks = [self.clock() for _ in images]
        pixels: list[np.ndarray] = []
        for image, clock in zip(images, clocks, strict=True):
            with clock("load"):  # a camera's buffer will hold the next frame
                pixels.append(load_image(image, copy=True, bgr=wish.bgr))
        results: dict[int, Segmentation] = {}
        familiarity = self._text.familiarity(wish.vocabulary)
        with torch.inference_mode(), self.autocast(torch.float32), said_when_memory_is_out():
            for part in self.batched(pixels, wish.short_side):
                shared = self.clock()
                with shared("text"):
                    text = self.text_rows(wish.vocabulary, wish.partition)
                maps, strange = self.maps([pixels[index] for index in part], text, wish, shared)
                for row, index in enumerate(part):
                    clocks[index].add_share(shared, 1 / len(part))
                    results[index] = result_of(
                        maps[row],
                        pixels[index],
                        wish,
                        clocks[index],
                        familiarity=familiarity,
                        novelty=None if strange is None else strange[row],
                        source=source_name(images[index]),
                    )
        return [results[index] for index in range(len(images))]


def load(
    name: str | Path = "nano",
    device: str | torch.device | None = None,
    *,
    dtype: DType = "float32",
    short_side: int | None = None,
    adapted: str | os.PathLike[str] | AdaptedWords | None = None,
    templates: Sequence[str] | None = None,
    **weights: Any,
) -> Segmenter:
    """Return a model, ready to segment.

    Args:
        name: A name of `list_models()`, or a folder or hub repository that holds a shared model (`ovsdino.hub`).
        device: "cpu", "cuda", "cuda:1"; None takes CUDA if there is one.
        dtype: See `Segmenter`.
        short_side: See `Segmenter`.
        adapted: See `Segmenter`.
        templates: See `Segmenter`.
        **weights: Files of one's own, as `ovsdino.models.zoo.create_model` takes them (checkpoint, backbone_weights,
            projection, clip_weights, sentence_weights).

    Raises:
        OVSDinoError: The name is unknown, the device is not there, or weights are missing, damaged or out of reach.
    """
    place = check_device(device)
    model = create_model(name, device=place, **weights)
    return Segmenter(model, place, dtype=dtype, short_side=short_side, adapted=adapted, templates=templates)


def segment(image: ImageLike, classes: Classes, model: str = "nano", **options: Any) -> Segmentation:
    """Segment one image: `load(model).segment(image, classes, **options)`; the model is kept for the next call.

    Raises:
        OVSDinoError: See `load` and `Segmenter.segment`.
    """
    return _kept(model).segment(image, classes, **options)


@functools.lru_cache(maxsize=1)
def _kept(name: str) -> Segmenter:
    return load(name)
