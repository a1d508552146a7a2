"""Run an exported model: an image in, a label for each pixel out.

The same class runs `.onnx` files with ONNX Runtime or OpenVINO on the CPU, and engines with TensorRT or TensorRT-RTX on
a GPU. An engine is code. So everything that can be checked is checked before it is deserialized: the text bank, the
version of TensorRT, the device, and the file's SHA-256 (`ovsdino.edge.sidecar`).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from ovsdino.edge.bank import TextBank
from ovsdino.edge.device_array import DeviceSegmentation
from ovsdino.edge.labels import Wish, class_scores, leave_out_unfound
from ovsdino.edge.pixels import check_image
from ovsdino.edge.runtimes import Graph, Runtime, available_threads, check_machine, open_graph, runtime_of
from ovsdino.edge.shipped_graph import ShippedGraph, shipped_model
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import ImageLike, is_several, load_image, several, source_name
from ovsdino.results import Segmentation
from ovsdino.timing import Clock
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, background_threshold, label_dtype

if TYPE_CHECKING:
    from ovsdino.edge.tensorrt_graph import TensorRTGraph

__all__ = ["EdgeSegmenter"]


class EdgeSegmenter:
    """An exported model with a vocabulary.

    An exported graph's image size is fixed, so every image is resized to it, whatever its aspect ratio;
    `ovsdino.Segmenter` and the shipped graph keep the ratio instead. For images of the ratio that the model was
    exported for (``export_onnx.py --height --width``) they see the same pixels.

    A file with a memory (`deploy/add_memory.py`) takes the images as frames of one video: each is labeled with what the
    frames before showed. It forgets them at a cut, with another bank, with another size, and when told to (`reset`).

    Threads may share an instance, which works on one image at a time. It holds device memory until `close`, and is a
    context manager.

    Args:
        engine_or_onnx: An exported file; its sidecar, `<file>.json`, lies next to it. Or the name of a shipped model,
            "nano": its graph is in the package, takes each image at its own ratio and runs in ONNX Runtime.
        text_bank: The vocabulary: a file that `ovsdino text` wrote, or a `TextBank`.
        threads: Threads on the CPU; by default one for each CPU that this process may use.
        background: Pixels whose largest softmax probability is below this (0..1) become background, label K; True
            stands for 0.5. None or False: no threshold.
        partition: True gives every pixel one of the words; False asks for the bank's contrast rows, which leave pixels
            that are none of the words to the label K; None takes them if the bank has them.
        least_share: Without a partition, a word on a smaller share of the image (0..1) is not found: its pixels become
            background.
        least_certainty: Nor is a word found that nowhere is this certain against none of the words, see
            `ovsdino.Segmenter.segment`.
        device: Index of the CUDA device; not read for an .onnx file.
        runtime: Of an .onnx file: "onnxruntime"; "openvino", in the file's own precision; "openvino_bfloat16", for a
            float32 file (see `OpenVinoGraph`); or "auto", what was measured to be fastest, see `runtime_of`.
        short_side: Of a shipped model: size of an image's short side in the network, in pixels; its own by default.

    Raises:
        OVSDinoError: A file is missing, changed or damaged; it was made for another TensorRT, device or model; the
            runtime that it needs is not installed; or a number is out of range.
    """

    def __init__(
        self,
        engine_or_onnx: str | os.PathLike[str],
        text_bank: str | os.PathLike[str] | TextBank,
        *,
        threads: int | None = None,
        background: float | bool | None = None,
        partition: bool | None = None,
        least_share: float = LEAST_SHARE,
        least_certainty: float = LEAST_CERTAINTY,
        device: int = 0,
        runtime: Runtime = "auto",
        short_side: int | None = None,
    ) -> None:
        path = Path(engine_or_onnx)
        if runtime not in get_args(Runtime):
            raise OVSDinoError(f"runtime is {runtime!r}: expected one of {', '.join(get_args(Runtime))}")
        if threads is None:
            threads = available_threads()
        if threads < 1:
            raise OVSDinoError(f"threads is {threads}: expected at least 1")
        shipped = shipped_model(engine_or_onnx)
        if shipped is None and not path.is_file():
            raise OVSDinoError(f"{path}: no such file; make it with export_onnx.py or export_trt.py")
        if shipped is None and short_side is not None:
            raise OVSDinoError(f"{path}: its size is fixed; short_side goes with the name of a shipped model")
        if shipped is not None and runtime not in ("auto", "onnxruntime"):
            raise OVSDinoError(f"{shipped}: the package's graph runs in ONNX Runtime; export one for {runtime}")
        own = None if shipped is None else ShippedGraph(shipped, threads, short_side)
        self.sidecar = Sidecar.load(path) if own is None else own.sidecar
        if not 0 <= least_share < 1:
            raise OVSDinoError(f"least_share is {least_share}: expected a share of the image from 0 to below 1")
        if not 0 <= least_certainty < 1:
            raise OVSDinoError(f"least_certainty is {least_certainty}: expected a probability from 0 to below 1")
        self._background, self._asked = background, partition
        self._least_share, self._least_certainty = least_share, least_certainty
        bank, self._partition, self._threshold = self._checked(text_bank)
        self._sizes: list[tuple[int, int]] = []  # of the last frames
        self._lock = threading.Lock()  # the graph has one input buffer and one stream
        self._staging = threading.Lock()
        self._staged: dict[int, deque[tuple[object, np.ndarray]]] = {}  # by camera: images, and their pixels
        self._runtime: Runtime = "onnxruntime"
        graph: Graph
        if own is not None:
            graph = own
        else:
            check_machine(self.sidecar, device)
            self._runtime = runtime_of(self.sidecar, runtime)
            graph = open_graph(self.sidecar.read(path), self.sidecar, threads, device, self._runtime)
        _take(graph, bank, self._partition)
        self._graph: Graph | None = graph
        self.bank = bank

    @property
    def names(self) -> tuple[str, ...]:
        """The class names of the bank in use."""
        return self.bank.names

    @property
    def backend(self) -> str:
        """The runtime of the graph: of `Runtime` the one in use, "tensorrt" or "tensorrt_rtx"."""
        return self._runtime if self.sidecar.backend == "onnx" else self.sidecar.backend

    @property
    def batch(self) -> int:
        """The most images that one run of the graph takes."""
        return self.sidecar.input[0]

    def set_bank(self, text_bank: str | os.PathLike[str] | TextBank) -> None:
        """Swap the vocabulary; nothing is exported or built again. A refused bank leaves the old one in use.

        Args:
            text_bank: See the class.

        Raises:
            OVSDinoError: The bank is missing or damaged, of another model, or has too few or too many classes; or the
                segmenter was closed.
        """
        bank, partition, threshold = self._checked(text_bank)
        with self._lock:
            _take(self._open(), bank, partition)
            self.bank, self._partition, self._threshold = bank, partition, threshold

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        bgr: bool = False,
        scores: bool = True,
        confidence: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image or several: what was given tells which.

        Args:
            images: One image as `segment` takes it; or any number of them: a folder, a list, a generator, an array
                (N, H, W, C) or a tensor (N, C, H, W). They go through the graph `batch` at a time.
            bgr: See `segment`, as the rest.
            scores: See above.
            confidence: See above.

        Returns:
            A result for one image, a list of them in the order given for several.

        Raises:
            OVSDinoError: See `segment`.
        """
        if not is_several(images):
            return self.segment(images, bgr=bgr, scores=scores, confidence=confidence)  # type: ignore[arg-type]
        given, found = several(images), []  # type: ignore[arg-type]
        for start in range(0, len(given), self.batch):
            part = given[start : start + self.batch]
            found += self.segment_batch(part, bgr=bgr, scores=scores, confidence=confidence)
        return found

    def segment(
        self,
        image: ImageLike,
        *,
        nv12: bool = False,
        bgr: bool = False,
        scores: bool = True,
        confidence: bool = False,
    ) -> Segmentation:
        """Label every pixel of one image.

        Args:
            image: A path, bytes, a binary file, a PIL image, an ndarray or a tensor, in RGB (see
                `ovsdino.io.images.load_image`); with `nv12` an ndarray (H * 3 // 2, W) uint8, ITU-R BT.601, limited
                range.
            nv12: The image is NV12, as cameras and video decoders give it; the result then holds no `image`.
            bgr: An array or tensor holds blue first, as OpenCV's frames do; the result's image is RGB.
            scores: Also compute each class's mean confidence.
            confidence: Keep the confidence of each pixel, see `Segmentation`.

        Returns:
            The result; `stages_ms` has "load", "preprocess", "encode" (the graph) and "postprocess".

        Raises:
            OVSDinoError: The image cannot be read, the file was exported for batches, or the segmenter was closed.
        """
        least = self._open().least_batch
        if least != 1:
            raise OVSDinoError(
                f"{self.sidecar.file}: exported for batches of {least}; segment takes one image at a time: export it "
                "with --batch 1"
            )
        if nv12:
            check_image(np.asarray(image), nv12)
        return self.segment_batch([image], nv12=nv12, bgr=bgr, scores=scores, confidence=confidence)[0]

    def segment_batch(
        self,
        images: Sequence[ImageLike],
        *,
        nv12: bool = False,
        bgr: bool = False,
        scores: bool = True,
        confidence: bool = False,
    ) -> list[Segmentation]:
        """Label every pixel of several images in one run of the graph, as of several cameras.

        Args:
            images: 1 to `batch` images of any sizes, see `segment`. Where the file takes no fewer than there are, the
                rest of the batch is computed in vain.
            nv12: Images of two dimensions are NV12; the others are RGB.
            bgr: See `segment`.
            scores: See `segment`.
            confidence: See `segment`.

        Returns:
            A result for each image, in order; `stages_ms` is that of them all.

        Raises:
            OVSDinoError: An image cannot be read, there are more than `batch`, or the segmenter was closed.
        """
        if not 1 <= len(images) <= self.batch:
            raise OVSDinoError(
                f"{self.sidecar.file}: {len(images)} images, expected 1..{self.batch}; a file for more is made by "
                "export_onnx.py --batch"
            )
        clock = Clock()
        with clock("load"):
            planar = [_is_planar(image, nv12) for image in images]
            frames = [self._staged_or_loaded(image, one, bgr) for image, one in zip(images, planar, strict=True)]
            sizes = [_size(pixels) for pixels in frames]
        with self._lock:
            names, partition, threshold = self.names, self._partition, self._threshold
            wish = self._wish(scores or confidence)
            self._begin_anew_for(sizes)
            found = self._open().run(frames, sizes, wish, clock)
        with clock("postprocess"):
            labels = [one.labels if partition else self._found_alone(one.labels, one.sure, len(names)) for one in found]
            certainties = [one.confidence for one in found]
            means = [
                class_scores(own, certainty, len(names)) if scores and certainty is not None else None
                for own, certainty in zip(labels, certainties, strict=True)
            ]
            kept = [one.astype(np.float16) if confidence and one is not None else None for one in certainties]
        return [
            Segmentation(
                labels=labels[place],
                names=names,
                scores=means[place],
                confidence=kept[place],
                background=threshold is not None or not partition,
                image=None if planar[place] else frames[place],
                source=None if planar[place] else source_name(image),
                stages_ms=dict(clock.ms),
            )
            for place, image in enumerate(images)
        ]

    def segment_on_device(
        self, image: ImageLike, *, nv12: bool = False, bgr: bool = False, confidence: bool = False
    ) -> DeviceSegmentation:
        """Label every pixel of one image by an engine, and leave the labels on its device, as for a planner there.

        Their memory is theirs, and is used again once nobody refers to them, see `DeviceArray`. Words that are not
        found are taken out on the host: without a partition labels go there and back, or are changed in place where
        both sides share the memory.

        Args:
            image: See `segment`, as the rest.
            nv12: See above.
            bgr: See above.
            confidence: Also leave the confidence of each pixel there, as float32.

        Returns:
            The result; what it holds is there, and no stream has to be waited for.

        Raises:
            OVSDinoError: The file is an .onnx file, which runs on the CPU; or see `segment`.
        """
        engine = self._engine()
        if engine is None:
            raise OVSDinoError(f"{self.sidecar.file}: runs on the CPU; labels stay on a device with an engine")
        if nv12:
            check_image(np.asarray(image), nv12)
        clock = Clock()
        with clock("load"):
            pixels = self._staged_or_loaded(image, _is_planar(image, nv12), bgr)
        with self._lock:
            self._begin_anew_for([_size(pixels)])
            names, partition, threshold = self.names, self._partition, self._threshold
            found = engine.run_on_device(pixels, _size(pixels), self._wish(confidence), clock)
        if not partition:
            with clock("postprocess"):
                found.labels.change(lambda labels: self._found_alone(labels, found.sure, len(names)))
        return DeviceSegmentation(
            labels=found.labels,
            names=names,
            confidence=found.confidence,
            background=threshold is not None or not partition,
            stages_ms=dict(clock.ms),
        )

    def stage(self, image: ImageLike, *, nv12: bool = False, bgr: bool = False, camera: int = 0) -> None:
        """Begin to bring an image to the engine's device, while another one is segmented, from any thread.

        `segment`, `segment_batch` and `segment_on_device` find it there when they are given this same object. Of each
        camera the last two are kept; one that nobody asks for costs its copy. Nothing is done for an .onnx file.

        Args:
            image: See `segment`, as the rest.
            nv12: See above.
            bgr: See above.
            camera: Whose image it is.

        Raises:
            OVSDinoError: The image cannot be read, CUDA refuses, or the segmenter was closed.
        """
        with self._staging:
            engine = self._engine()
            if engine is not None:
                pixels = _load(image, _is_planar(image, nv12), bgr)
                engine.stage(pixels, camera)
                self._staged.setdefault(camera, deque(maxlen=2)).append((image, pixels))

    def _engine(self) -> TensorRTGraph | None:
        """Return the graph where it is an engine."""
        graph = self._open()
        if self.sidecar.backend == "onnx":
            return None
        from ovsdino.edge.tensorrt_graph import TensorRTGraph

        assert isinstance(graph, TensorRTGraph)
        return graph

    def _staged_or_loaded(self, image: ImageLike, planar: bool, bgr: bool) -> np.ndarray:
        """Return the pixels of an image, those that were staged where they were."""
        for waiting in self._staged.copy().values():
            for staged in tuple(waiting):
                if staged[0] is image:
                    with suppress(ValueError):  # a newer one has just taken its place
                        waiting.remove(staged)
                    return staged[1]
        return _load(image, planar, bgr)

    def _begin_anew_for(self, sizes: list[tuple[int, int]]) -> None:
        """Forget the frames so far where others come: of another camera, or of one that was set anew."""
        if self._sizes not in ([], sizes):
            self._open().reset()
        self._sizes = sizes

    def _wish(self, confidence: bool) -> Wish:
        asked = None if self._partition or not self._least_certainty else self._least_certainty
        return Wish(threshold=self._threshold, confidence=confidence, certainty=asked)

    def _found_alone(self, found: np.ndarray, sure: np.ndarray | None, classes: int) -> np.ndarray:
        """Return labels, changed in place, without the words that are not found."""
        # below the threshold is the label after the contrast's
        labels = np.minimum(found, classes, out=found)
        leave_out_unfound(labels, classes, self._least_share, sure)
        return labels.astype(label_dtype(classes), copy=False)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Run the graph alone.

        Args:
            image: (B, 3, H, W) float32, normalized, of the size that the model was exported for.

        Returns:
            Logits (B, K, h, w) float32; K + 1 maps with a contrast, its own last.

        Raises:
            OVSDinoError: Another shape or dtype, or the segmenter was closed.
        """
        batch, *rest = self.sidecar.input
        least = self._open().least_batch
        fits = image.ndim == 4 and list(image.shape[1:]) == rest and least <= len(image) <= batch
        if not fits or image.dtype != np.float32:
            raise OVSDinoError(
                f"image is {tuple(image.shape)} {image.dtype}: {self.sidecar.file} takes {self.sidecar.input} float32"
            )
        with self._lock:
            return self._open().infer(np.ascontiguousarray(image))

    def reset(self) -> None:
        """Forget the frames so far: the next one begins a video. A file without a memory never remembers any.

        Raises:
            OVSDinoError: The segmenter was closed.
        """
        with self._lock:
            self._open().reset()

    def close(self) -> None:
        """Free the graph and its memory; the instance cannot be used afterwards. A second call does nothing."""
        with self._lock, self._staging:
            graph, self._graph = self._graph, None
            self._staged.clear()
            if graph is not None:
                graph.close()

    def _open(self) -> Graph:
        if self._graph is None:
            raise OVSDinoError(f"{self.sidecar.file}: this EdgeSegmenter was closed; make another one")
        return self._graph

    def __enter__(self) -> EdgeSegmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, text_bank: str | os.PathLike[str] | TextBank) -> tuple[TextBank, bool, float | None]:
        """Return a bank that fits, whether every pixel gets one of its words, and the threshold."""
        bank = text_bank if isinstance(text_bank, TextBank) else TextBank.load(text_bank)
        if self._asked is False and bank.contrast is None:
            raise OVSDinoError("text bank: it has no contrast rows; make it with `ovsdino text --no-partition`")
        partition = bank.contrast is None or self._asked is True
        self.sidecar.check_bank(
            bank.names,
            (len(bank), bank.text.shape[1]),
            bank.weights,
            bank.model,
            words=max(bank.words, default=1),
            contrast=0 if partition or bank.contrast is None else len(bank.contrast),
        )
        return bank, partition, background_threshold(self._background, bank.names, partition)


def _take(graph: Graph, bank: TextBank, partition: bool) -> None:
    """Give a graph the rows of a bank."""
    graph.set_text(bank.padded() if bank.words else bank.text, None if partition else bank.contrast)


def _is_planar(image: ImageLike, nv12: bool) -> bool:
    return nv12 and isinstance(image, np.ndarray) and image.ndim == 2


def _load(image: ImageLike, planar: bool, bgr: bool) -> np.ndarray:
    """Return an image's pixels, (H, W, 3) RGB or NV12; a copy of RGB, for a camera's buffer changes."""
    pixels = np.asarray(image) if planar else load_image(image, copy=True, bgr=bgr)
    check_image(pixels, planar)
    return pixels


def _size(pixels: np.ndarray) -> tuple[int, int]:
    """Return (H, W) of RGB or NV12."""
    return (pixels.shape[0] if pixels.ndim == 3 else pixels.shape[0] * 2 // 3), pixels.shape[1]
