"""Run an exported engine on a GPU through TensorRT or TensorRT-RTX and cuda-python.

One stream carries a frame from its pixels to its labels:

    `preprocess_cuda`, the engine as a CUDA graph, `upsample_argmax_cuda`, device -> host copy where labels do not stay

The frame itself comes on another stream, before its turn where it was staged (`ovsdino.edge.uploads`). Every buffer is
allocated before the first frame or when a frame or a vocabulary is larger than any before it. The two kernels are those
of `ovsdino._C`, which takes device pointers and the stream's handle and needs no torch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ovsdino.edge.cuda_memory import Buffer, Lease, Pool, as_bytes, cuda_runtime, ok
from ovsdino.edge.device_array import DeviceArray, DeviceFound
from ovsdino.edge.device_state import DeviceState
from ovsdino.edge.labels import Found, Wish, sure_shares
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import check_tensors, logits_shape, text_inputs
from ovsdino.edge.uploads import Upload, Uploads
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.levels import gain_and_shift
from ovsdino.native import native
from ovsdino.timing import Clock
from ovsdino.vocabulary import label_dtype

__all__ = ["TensorRTGraph", "device_sm", "tensorrt_module"]

log = logging.getLogger("ovsdino")

PACKAGES = {"tensorrt": "tensorrt (JetPack brings it)", "tensorrt_rtx": "tensorrt-rtx-cu13"}


def tensorrt_module(backend: str) -> ModuleType:
    """Return the Python module of "tensorrt" or "tensorrt_rtx".

    Raises:
        OVSDinoError: It is not installed.
    """
    try:
        return importlib.import_module(backend)
    except (ImportError, OSError) as error:  # OSError: a library that the module loads is missing
        raise OVSDinoError(
            f"{backend} is missing ({one_line(error, 120)}): install {PACKAGES[backend]}, or use the .onnx file"
        ) from error


def device_sm(device: int) -> str:
    """Return the architecture of a CUDA device, as "sm87".

    Raises:
        OVSDinoError: cuda-python is missing, or there is no such device.
    """
    cuda = cuda_runtime()
    count = ok(cuda, cuda.cudaGetDeviceCount())
    if not 0 <= device < count:
        raise OVSDinoError(f"device is {device}: this machine shows {count} CUDA devices")
    attribute = cuda.cudaDeviceAttr
    major = ok(cuda, cuda.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, device))
    minor = ok(cuda, cuda.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, device))
    return f"sm{major}{minor}"


class TensorRTGraph:
    """An engine, its execution context, stream and buffers.

    Attributes:
        least_batch: The smallest B that the engine takes; the largest is the sidecar's.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        data: The engine, already checked.
        sidecar: The engine's sidecar.
        device: Index of the CUDA device.

    Raises:
        OVSDinoError: The kernels are missing, or TensorRT or CUDA refuse.
    """

    def __init__(self, trt: ModuleType, data: bytes, sidecar: Sidecar, device: int) -> None:
        if native is None or not hasattr(native, "upsample_argmax_cuda"):
            raise OVSDinoError(
                "ovsdino._C was built without CUDA: build it with OVSDINO_CUDA=1 and nvcc on the PATH, "
                "or use the .onnx file"
            )
        self._sidecar = sidecar
        self._device = device
        self._cuda = cuda = cuda_runtime()
        ok(cuda, cuda.cudaSetDevice(device))
        self._stream = ok(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._events = [ok(cuda, cuda.cudaEventCreate()) for _ in range(4)]
        self._captured: Any = None
        self._logger = _logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise OVSDinoError(f"{sidecar.file}: {sidecar.backend} cannot deserialize it; the log says why")
        self._check_tensors(trt)
        self._context = _context(trt, self._engine)
        if self._context is None:
            raise OVSDinoError(f"{sidecar.file}: {sidecar.backend} cannot run it; the log says why (often: memory)")
        self.least_batch = self._batch = self._most = self._find_least_batch()
        mapped = bool(ok(cuda, cuda.cudaDeviceGetAttribute(cuda.cudaDeviceAttr.cudaDevAttrIntegrated, device)))
        texts = ("text", "contrast") if sidecar.grouped else ("text",)
        # Normalized images and logits stay on the device unless `infer` is called.
        self._image, self._logits = Buffer(cuda, 4 * int(np.prod(sidecar.input))), Buffer(cuda)
        self._text = {name: Buffer(cuda, mapped=mapped) for name in texts}
        self._uploads = Uploads(cuda, mapped=mapped)
        self._state = DeviceState(cuda, sidecar, mapped=mapped)
        self._labels, self._confidence = (Pool(lambda: Buffer(cuda, mapped=mapped)) for _ in range(2))

    def set_text(self, text: np.ndarray, contrast: np.ndarray | None = None) -> None:
        """Take another text bank: set shapes and addresses and capture the graph again; see `Graph.set_text`."""
        ok(self._cuda, self._cuda.cudaSetDevice(self._device))
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, rows in text_inputs(self._sidecar, text, contrast).items():
            buffer = self._text[name]
            buffer.fit(rows.nbytes)
            buffer.host[: rows.nbytes] = as_bytes(np.ascontiguousarray(rows))
            buffer.upload(rows.nbytes, self._stream)
            self._shapes[name] = rows.shape
        self._classes, self._maps = len(text), len(text) + (contrast is not None)
        self.reset()
        self._set_shapes(self._batch)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Compute logits of normalized images, see `Graph.infer`."""
        ok(self._cuda, self._cuda.cudaSetDevice(self._device))
        if len(image) != self._batch:
            self._set_shapes(len(image))
        self._image.host[: image.nbytes] = as_bytes(image)
        self._image.upload(image.nbytes, self._stream)
        self.reset()
        self._state.upload(self._stream)
        self._launch()
        logits = np.empty(self._shape, np.float32)
        self._logits.download(logits.nbytes, self._stream)
        self._wait()
        as_bytes(logits)[:] = self._logits.host[: logits.nbytes]
        return logits[:, : self._maps]

    def stage(self, pixels: np.ndarray, camera: int) -> None:
        """Begin to bring a frame to the device, for `run` to find it there; while another runs, from any thread.

        Args:
            pixels: The array that `run` will be given, RGB or NV12.
            camera: Whose frame it is; of each the last two are kept.
        """
        ok(self._cuda, self._cuda.cudaSetDevice(self._device))
        self._uploads.stage(pixels, camera)

    def run(
        self, frames: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], wish: Wish, clock: Clock
    ) -> list[Found]:
        """Turn frames of cameras into labels of their sizes, see `Graph.run`; stage times are the device's own.

        The graph is recorded for the most frames that came at once, and fewer are filled up: another recording costs
        more than a frame.
        """
        found = self._compute(frames, sizes, wish, clock, download=True)
        with clock("postprocess"):
            return [
                Found(labels.downloaded(), None if confidence is None else confidence.downloaded(), sure)
                for labels, confidence, sure in found
            ]

    def run_on_device(self, pixels: np.ndarray, size: tuple[int, int], wish: Wish, clock: Clock) -> DeviceFound:
        """Turn a frame into labels that stay on the device, and are there when this returns; see `run`."""
        return self._compute([pixels], [size], wish, clock, download=False)[0]

    def _compute(
        self,
        frames: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        wish: Wish,
        clock: Clock,
        *,
        download: bool,
    ) -> list[DeviceFound]:
        cuda, stream = self._cuda, self._stream
        ok(cuda, cuda.cudaSetDevice(self._device))
        self._most = max(self._most, len(frames))
        if self._batch != self._most:
            self._set_shapes(self._most)
        with clock("preprocess"):  # the copy into page-locked memory; the device's share is added below
            uploads = [self._uploads.take(pixels) for pixels in frames]
            self._state.follow(frames[0], sizes[0])
        self._record(0)
        self._state.upload(stream)
        for index, (pixels, size, upload) in enumerate(zip(frames, sizes, uploads, strict=True)):
            upload.buffer.wait(stream)
            self._preprocess(pixels, size, upload, index)
        self._record(1)
        self._launch()
        self._record(2)
        found = [self._postprocess(index, size, wish) for index, size in enumerate(sizes)]
        for one in (array for labels, confidence, _ in found for array in (labels, confidence) if download and array):
            one.download(stream)
        if wish.certainty is not None:
            self._logits.download(4 * int(np.prod(self._shape)), stream)
        self._state.download(self._logits, stream)
        self._record(3)
        self._wait()
        self._state.take(self._logits)
        for event, stage in enumerate(("preprocess", "encode", "postprocess")):
            elapsed = ok(cuda, cuda.cudaEventElapsedTime(self._events[event], self._events[event + 1]))
            clock.add(stage, elapsed)
        if wish.certainty is None:
            return found
        with clock("postprocess"):
            logits = self._logits.host[: 4 * int(np.prod(self._shape))].view(np.float32).reshape(self._shape)
            return [
                one._replace(sure=sure_shares(logits[index, : self._maps], wish.certainty))
                for index, one in enumerate(found)
            ]

    def reset(self) -> None:
        """Forget the frames so far, see `Graph.reset`."""
        self._state.reset(self._classes)

    def close(self) -> None:
        """Free graph, context, engine, buffers and stream."""
        cuda = self._cuda
        self._wait()
        self._drop_capture()
        del self._context, self._engine, self._runtime
        for buffer in (self._image, *self._text.values(), self._logits):
            buffer.close()
        for pool in (self._labels, self._confidence):
            pool.close()
        self._uploads.close()
        self._state.close()
        for event in self._events:
            ok(cuda, cuda.cudaEventDestroy(event))
        ok(cuda, cuda.cudaStreamDestroy(self._stream))

    def _check_tensors(self, trt: ModuleType) -> None:
        engine = self._engine
        sides: dict[Any, dict[str, Any]] = {trt.TensorIOMode.INPUT: {}, trt.TensorIOMode.OUTPUT: {}}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            shape = [int(side) for side in engine.get_tensor_shape(name)]
            sides[engine.get_tensor_mode(name)][name] = (shape, engine.get_tensor_dtype(name))
        check_tensors(self._sidecar, sides[trt.TensorIOMode.INPUT], sides[trt.TensorIOMode.OUTPUT], trt.float32)

    def _find_least_batch(self) -> int:
        batch = self._engine.get_tensor_shape("image")[0]
        return int(batch if batch > 0 else self._engine.get_tensor_profile_shape("image", 0)[0][0])

    def _set_shapes(self, batch: int) -> None:
        """Set shapes and addresses for a batch and the bank that is there, and capture the graph again."""
        context, sidecar = self._context, self._sidecar
        inputs = {"image": (batch, *sidecar.input[1:]), **self._shapes, **self._state.shapes}
        if not all(context.set_input_shape(name, side) for name, side in inputs.items()):
            raise OVSDinoError(
                f"{sidecar.file}: the engine refuses a batch of {batch} with a bank of shape {self._shapes}"
            )
        shape = context.get_tensor_shape("logits")
        self._shape = (int(shape[0]), int(shape[1]), int(shape[2]), int(shape[3]))
        if self._shape != logits_shape(sidecar, batch, self._classes):
            raise OVSDinoError(
                f"{sidecar.file}: its logits are {self._shape}, its sidecar says "
                f"{logits_shape(sidecar, batch, self._classes)}; {sidecar.rebuild()}"
            )
        self._logits.fit(4 * int(np.prod(self._shape)))
        buffers = {"image": self._image, **self._text, "logits": self._logits, **self._state.buffers}
        for name, buffer in buffers.items():
            if not context.set_tensor_address(name, buffer.device):
                raise OVSDinoError(f"{sidecar.file}: the engine refuses an address for {name!r}")
        self._batch = batch
        self._capture()

    def _preprocess(self, pixels: np.ndarray, size: tuple[int, int], upload: Lease[Upload], index: int) -> None:
        """Turn a frame into one image of the batch."""
        assert native is not None  # checked in __init__
        sidecar = self._sidecar
        planar = pixels.ndim == 2
        strides = (pixels.size, pixels.shape[1], 1, 0) if planar else (pixels.size, 3 * pixels.shape[1], 3, 1)
        native.preprocess_cuda(
            upload.buffer.device,
            "nv12" if planar else "rgb",
            (1, *size),
            strides,
            sidecar.input[2:],
            self._image.device + 4 * index * int(np.prod(sidecar.input[1:])),
            "float32",
            *gain_and_shift(sidecar.mean, sidecar.std),
            False,
            int(self._stream),
        )

    def _postprocess(self, index: int, size: tuple[int, int], wish: Wish) -> DeviceFound:
        """Turn the logits of one image into labels, and its confidence where that is wished for."""
        assert native is not None
        _, classes, height, width = self._shape
        plane = height * width
        labels = self._array(self._labels, size, label_dtype(self._maps))
        confidence = self._array(self._confidence, size, np.float32) if wish.confidence else None
        native.upsample_argmax_cuda(
            self._logits.device + 4 * index * classes * plane,
            "float32",
            (1, self._maps, height, width),
            (classes * plane, plane, width, 1),
            size,
            labels.address,
            labels.dtype.name,
            0 if confidence is None else confidence.address,
            wish.threshold,
            int(self._stream),
        )
        return DeviceFound(labels, confidence, None)

    def _array(self, pool: Pool[Buffer], size: tuple[int, int], dtype: Any) -> DeviceArray:
        lease = pool.take(int(np.prod(size)) * np.dtype(dtype).itemsize)
        return DeviceArray(lease, size, dtype, self._device)

    def _launch(self) -> None:
        if self._captured is None:
            self._enqueue()
        else:
            ok(self._cuda, self._cuda.cudaGraphLaunch(self._captured, self._stream))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise OVSDinoError(f"{self._sidecar.file}: {self._sidecar.backend} failed to run it; the log says why")

    def _capture(self) -> None:
        """Record the engine's launches as a CUDA graph; an engine that cannot be recorded is launched each time."""
        cuda, stream = self._cuda, self._stream
        self._drop_capture()
        self._enqueue()  # the first run allocates and compiles, which must not happen during the recording
        self._wait()
        try:
            ok(cuda, cuda.cudaStreamBeginCapture(stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
            try:
                self._enqueue()
            finally:
                graph = ok(cuda, cuda.cudaStreamEndCapture(stream))
            try:
                self._captured = ok(cuda, cuda.cudaGraphInstantiate(graph, 0))
            finally:
                ok(cuda, cuda.cudaGraphDestroy(graph))
        except OVSDinoError as error:
            cuda.cudaGetLastError()  # clears it
            log.warning("%s: no CUDA graph, launching each time: %s", self._sidecar.file, error)

    def _drop_capture(self) -> None:
        if self._captured is not None:
            ok(self._cuda, self._cuda.cudaGraphExecDestroy(self._captured))
            self._captured = None

    def _record(self, index: int) -> None:
        ok(self._cuda, self._cuda.cudaEventRecord(self._events[index], self._stream))

    def _wait(self) -> None:
        ok(self._cuda, self._cuda.cudaStreamSynchronize(self._stream))


def _context(trt: ModuleType, engine: Any) -> Any:
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT; 11 has the config, but not this
        return engine.create_execution_context()
    # TensorRT-RTX compiles for a shape in the background by default: the graph recorded at the first run would keep
    # the slow kernels that stand in until then.
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def _logger(trt: ModuleType) -> Any:
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses an object whose own __init__ was not called

        def log(self, severity: Any, message: str) -> None:
            if severity in levels:
                log.log(levels[severity], "TensorRT: %s", one_line(message, 300))

    return Logger()
