"""The node's work on messages, apart from rclpy: images in, masks, confidence, class names and diagnostics out.

Messages are made by a function that the caller gives, so that the same code serves rclpy (`ovsdino_ros.node`) and bags
(`ovsdino_ros.bag`). What Nav2's semantic segmentation layer (github.com/kiwicampus/semantic_segmentation_layer) asks
for holds: mask and confidence are mono8 images with the stamp and frame of the camera's image, and class names come as
`vision_msgs/LabelInfo` before the first mask that they belong to.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ovsdino.edge import EdgeSegmenter, TextBank
from ovsdino.edge.pixels import nv12_to_rgb
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.results import Segmentation
from ovsdino_ros.images import read_image

__all__ = ["MAX_LABELS", "Outputs", "SegmentationLogic", "Settings", "nanoseconds"]

MAX_LABELS = 256  # of a mono8 mask
OK, WARN, ERROR, STALE = range(4)  # levels of diagnostic_msgs/DiagnosticStatus


class MakeMessage(Protocol):
    """A function that makes a message of the caller's type system."""

    def __call__(self, kind: str, /, **fields: Any) -> Any:
        """Return a message of a type such as "sensor_msgs/msg/Image"; `data` comes as a flat uint8 array."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the node's work.

    Attributes:
        deadline_ms: Age of a frame, when its mask is there, beyond which it is stale; 0 for no deadline.
        overlay: Also make a picture of the labels over the image.
        unlabeled_id: Id in the mask of pixels that are none of the words: -1 for `EdgeSegmenter`'s own, the number of
            words; 255 is what `vision_msgs/LabelInfo` calls UNLABELED.
        threshold: Least probability of a word, as `EdgeSegmenter` was given it; told in the class names' message.
    """

    deadline_ms: float = 0.0
    overlay: bool = False
    unlabeled_id: int = -1
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.deadline_ms >= 0:
            raise OVSDinoError(f"deadline_ms is {self.deadline_ms}: expected a number of milliseconds, or 0 for none")
        if not -1 <= self.unlabeled_id < MAX_LABELS:
            raise OVSDinoError(f"unlabeled_id is {self.unlabeled_id}: expected -1, or 0..{MAX_LABELS - 1}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What is published for one image, in this order.

    Attributes:
        label_info: `vision_msgs/LabelInfo`, where the classes are others than those of the mask before; else None.
        mask: `sensor_msgs/Image`, mono8: the class id of each pixel.
        confidence: `sensor_msgs/Image`, mono8: 0..255 for probabilities of 0..1.
        overlay: `sensor_msgs/Image`, rgb8; None unless it was asked for.
        age_ms: Age of the image when its mask was there.
        stale: Whether that is beyond the deadline.
    """

    label_info: Any | None
    mask: Any
    confidence: Any
    overlay: Any | None
    age_ms: float
    stale: bool


class SegmentationLogic:
    """Segment image messages; words may change at any time, from any thread.

    Args:
        segmenter: The model on its device.
        make: Makes messages.
        settings: See `Settings`.
        encode: Turns words ("road, car|automobile") into the bank that the segmenter takes; None: only `set_bank`.

    Raises:
        OVSDinoError: The segmenter's bank has more classes than a mono8 mask has ids.
    """

    def __init__(
        self,
        segmenter: EdgeSegmenter,
        make: MakeMessage,
        settings: Settings | None = None,
        encode: Callable[[str], TextBank] | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._segmenter, self._make, self._encode = segmenter, make, encode
        self._check_names(segmenter.names)
        self._announced: tuple[str, ...] | None = None
        self._tally = _Tally()

    def set_words(self, words: str) -> None:
        """Take other words: the next image is segmented by them. Refused words leave the old ones in use.

        Args:
            words: See `ovsdino.vocabulary.Vocabulary.of`.

        Raises:
            OVSDinoError: They are not a class list, too many, or the model cannot read words here.
        """
        if self._encode is None:
            raise OVSDinoError("words cannot be read here: give a bank made by `ovsdino text`")
        self.set_bank(self._encode(words))

    def set_bank(self, bank: TextBank | str) -> None:
        """Take another text bank, as `set_words` takes words.

        Raises:
            OVSDinoError: It is missing, damaged, of another model, or too large.
        """
        loaded = bank if isinstance(bank, TextBank) else TextBank.load(bank)
        self._check_names(loaded.names)
        self._segmenter.set_bank(loaded)

    def warm_up(self, header: Any) -> Any:
        """Segment a gray image, so that the first frame does not wait for the device; return the first class names.

        Args:
            header: `std_msgs/Header` for the class names.

        Returns:
            `vision_msgs/LabelInfo`.
        """
        _, _, height, width = self._segmenter.sidecar.input
        return self._announce(self._segmenter.segment(np.full((height, width, 3), 128, np.uint8)), header)

    def process(self, message: Any, now: Callable[[], int]) -> Outputs | None:
        """Segment one image message.

        Args:
            message: See `ovsdino_ros.images.read_image`.
            now: Returns nanoseconds of the clock that the stamps are of; asked when the mask is there.

        Returns:
            The messages to publish; None where the image could not be read or segmented, which is counted.
        """
        try:
            pixels, nv12 = read_image(message)
            result = self._segmenter.segment(pixels, nv12=nv12, scores=False, confidence=True)
        except OVSDinoError as error:
            self._tally.fail(one_line(error, 200))
            return None
        label_info = self._announce(result, message.header) if result.all_names != self._announced else None
        outputs = self._outputs(message.header, pixels, result, label_info, now)
        self._tally.add(outputs, result.ms)
        return outputs

    def diagnostics(self, stamp: Any, *, dropped: int = 0, silent: bool = False) -> Any:
        """Return the figures since the last call.

        Args:
            stamp: `builtin_interfaces/Time` of the message.
            dropped: Images so far that were replaced before they were segmented.
            silent: Say STALE where no image came since the last call.

        Returns:
            `diagnostic_msgs/DiagnosticArray` with one status.
        """
        level, message, values = self._tally.report(dropped, silent)
        values |= {
            "words": ", ".join(self._segmenter.names),
            "deadline_ms": f"{self.settings.deadline_ms:g}",
            "model": self._segmenter.sidecar.model,
            "backend": self._segmenter.backend,
        }
        status = self._make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=level,
            name="ovsdino: segmentation",
            message=message,
            hardware_id=self._segmenter.sidecar.file,
            values=[
                self._make("diagnostic_msgs/msg/KeyValue", key=key, value=str(value)) for key, value in values.items()
            ],
        )
        header = self._make("std_msgs/msg/Header", stamp=stamp, frame_id="")
        return self._make("diagnostic_msgs/msg/DiagnosticArray", header=header, status=[status])

    def _outputs(
        self, header: Any, pixels: np.ndarray, result: Segmentation, label_info: Any | None, now: Callable[[], int]
    ) -> Outputs:
        assert result.confidence is not None
        labels = result.labels
        if self.settings.unlabeled_id >= 0 and result.background:
            labels = np.where(labels == len(result.names), self.settings.unlabeled_id, labels)
        probability = np.rint(result.confidence.astype(np.float32) * 255)
        picture = None
        if self.settings.overlay:
            rgb = nv12_to_rgb(pixels) if pixels.ndim == 2 else pixels
            picture = self._image(header, np.asarray(result.overlay(rgb, legend=False)), "rgb8")
        mask = self._image(header, labels, "mono8")
        confidence = self._image(header, probability, "mono8")
        age_ms = (now() - nanoseconds(header.stamp)) / 1e6
        deadline = self.settings.deadline_ms
        return Outputs(
            label_info=label_info,
            mask=mask,
            confidence=confidence,
            overlay=picture,
            age_ms=age_ms,
            stale=bool(deadline) and age_ms > deadline,
        )

    def _announce(self, result: Segmentation, header: Any) -> Any:
        self._announced = result.all_names
        ids = [*range(len(result.names)), *([self._unlabeled(result)] if result.background else [])]
        entries = [
            self._make("vision_msgs/msg/VisionClass", class_id=number, class_name=name)
            for number, name in zip(ids, result.all_names, strict=True)
        ]
        return self._make(
            "vision_msgs/msg/LabelInfo", header=header, class_map=entries, threshold=self.settings.threshold
        )

    def _unlabeled(self, result: Segmentation) -> int:
        return len(result.names) if self.settings.unlabeled_id < 0 else self.settings.unlabeled_id

    def _image(self, header: Any, pixels: np.ndarray, encoding: str) -> Any:
        height, width = pixels.shape[:2]
        data = np.ascontiguousarray(pixels, np.uint8).reshape(-1)
        return self._make(
            "sensor_msgs/msg/Image",
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=len(data) // height,
            data=data,
        )

    def _check_names(self, names: tuple[str, ...]) -> None:
        most = MAX_LABELS - 1 if self.settings.unlabeled_id < 0 else self.settings.unlabeled_id or MAX_LABELS - 1
        if len(names) > most:
            raise OVSDinoError(f"{len(names)} classes: a mono8 mask with unlabeled pixels holds at most {most}")


class _Tally:
    """Figures of a stretch of time; one thread adds, another reports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ages: deque[float] = deque(maxlen=1000)
        self._inference: deque[float] = deque(maxlen=1000)
        self._frames = self._stale = self._failed = 0  # of all time
        self._before = (0, 0, 0, 0)
        self._error = ""

    def add(self, outputs: Outputs, inference_ms: float) -> None:
        with self._lock:
            self._ages.append(outputs.age_ms)
            self._inference.append(inference_ms)
            self._frames += 1
            self._stale += outputs.stale

    def fail(self, error: str) -> None:
        with self._lock:
            self._failed += 1
            self._error = error

    def report(self, dropped: int, silent: bool) -> tuple[int, str, dict[str, Any]]:
        """Return level, message and values, and begin another stretch."""
        with self._lock:
            counts = (self._frames, self._stale, self._failed, dropped)
            frames, stale, failed, _ = (now - then for now, then in zip(counts, self._before, strict=True))
            self._before = counts
            values: dict[str, Any] = dict(zip(("frames", "stale", "failed", "dropped"), counts, strict=True))
            for name, times in (("age_ms", self._ages), ("inference_ms", self._inference)):
                if times:
                    values[name] = f"{np.median(times):.1f}"
                    values[f"{name}_max"] = f"{max(times):.1f}"
                times.clear()
            if failed and not frames:
                return ERROR, self._error, values
            if failed:
                return WARN, f"{failed} images failed: {self._error}", values
            if stale:
                return WARN, f"{stale} of {frames} masks were stale", values
            if silent and not frames:
                return STALE, "no image came", values
            return OK, f"{frames} masks", values


def nanoseconds(stamp: Any) -> int:
    """Return a `builtin_interfaces/Time` in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
