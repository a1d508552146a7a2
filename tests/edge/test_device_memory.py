"""Labels that stay on a device, and frames that arrive early: on a device that this process plays, and on no board."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovsdino.edge.cuda_memory import Buffer, Pool
from ovsdino.edge.device_array import DeviceArray
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.errors import OVSDinoError
from ovsdino.native import native
from ovsdino.stream.cameras import Camera
from ovsdino.stream.capture import Capture, Frame, LatestFrame
from ovsdino.stream.loop import Engine, Streams
from tests.support import device, tiny
from tests.support.device import Cuda

pytestmark = pytest.mark.skipif(native is None, reason="ovsdino._C is missing")

BANK = tiny.bank("a", "b", "c")
Make = Callable[..., EdgeSegmenter]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    return lambda cuda, bank=BANK, **options: device.segmenter(monkeypatch, tmp_path, cuda, bank, **options)


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


class OnHost(DeviceArray):
    """An array that says where it is in truth: torch and NumPy of this machine take those of the CPU alone."""

    device_type = 1


def on_host(array: DeviceArray) -> OnHost:
    return OnHost(array._lease, array.shape, array.dtype, 0)


@pytest.mark.parametrize("integrated", [False, True])
def test_labels_that_stay_on_the_device_are_those_of_the_host(make: Make, integrated: bool) -> None:
    cuda = Cuda(integrated=integrated)
    with make(cuda) as segmenter:
        expected = segmenter.segment(picture(), confidence=True)
        cuda.copies.clear()
        found = segmenter.segment_on_device(picture(), confidence=True)
        assert cuda.copies == ([] if integrated else ["up"])  # the frame; nothing comes back
        assert found.confidence is not None and found.names == BANK.names and not found.background
        assert set(found.stages_ms) == {"load", "preprocess", "encode", "postprocess"}
        np.testing.assert_array_equal(found.labels.numpy(), expected.labels)
        assert found.confidence.numpy().astype(np.float16).tobytes() == expected.confidence.tobytes()
        interface = found.labels.__cuda_array_interface__
        assert interface["data"] == (found.labels.address, False) and found.labels.address in cuda.blocks
        assert (interface["shape"], interface["typestr"]) == ((48, 64), "|u1")
        assert (interface["version"], interface["stream"], interface["strides"]) == (3, None, None)
        assert found.labels.__dlpack_device__() == (2, 0)


@pytest.mark.parametrize("integrated", [False, True])
def test_words_that_are_not_found_are_taken_out_of_labels_on_the_device(make: Make, integrated: bool) -> None:
    bank = dataclasses.replace(tiny.bank(*"abcdef"), contrast=tiny.bank("x", seed=1).text)
    cuda = Cuda(integrated=integrated)
    with make(cuda, bank, least_share=0.1, least_certainty=0.6) as segmenter:
        expected = segmenter.segment(picture())
        found = segmenter.segment_on_device(picture())
        assert found.background and 0 < sum(expected.found) < 6
        np.testing.assert_array_equal(found.labels.numpy(), expected.labels)
        cuda.copies.clear()
        segmenter.segment_on_device(picture(1))
        assert cuda.copies == (
            ["down"] if integrated else ["up", "down", "down", "up"]
        )  # frame, logits, there and back


def test_torch_and_numpy_read_the_memory_itself(make: Make) -> None:
    with make(Cuda()) as segmenter:
        found = segmenter.segment_on_device(picture(), confidence=True)
        assert found.confidence is not None
        labels, confidence = torch.from_dlpack(on_host(found.labels)), np.from_dlpack(on_host(found.confidence))
        assert labels.data_ptr() == found.labels.address and confidence.ctypes.data == found.confidence.address
        assert labels.dtype == torch.uint8 and confidence.dtype == np.float32
        np.testing.assert_array_equal(labels.numpy(), found.labels.numpy())
        found.labels.change(lambda own: own.fill(1))
        assert bool((labels == 1).all())
        with pytest.raises(BufferError):
            found.labels.__dlpack__(copy=True)
        with pytest.raises(BufferError):
            found.labels.__dlpack__(dl_device=(1, 0))


def test_memory_belongs_to_the_array_and_its_readers_and_is_used_again_after_them(make: Make) -> None:
    cuda = Cuda()
    with make(cuda) as segmenter:
        first = segmenter.segment_on_device(picture(0)).labels
        kept, address = first.numpy(), first.address
        reader = torch.from_dlpack(on_host(first))
        del first
        others = {segmenter.segment_on_device(picture(seed)).labels.address for seed in range(1, 4)}
        assert address not in others and len(others) == 1  # one more piece serves all that nobody keeps
        np.testing.assert_array_equal(reader.numpy(), kept)
        capsule = on_host(segmenter.segment_on_device(picture(1)).labels).__dlpack__()
        del reader, capsule  # one that nobody took goes back, too
        gc.collect()
        assert {segmenter.segment_on_device(picture(seed)).labels.address for seed in range(2)} <= {address, *others}
        last = segmenter.segment_on_device(picture(0)).labels
    np.testing.assert_array_equal(last.numpy(), kept)  # beyond the segmenter's end
    assert len(cuda.kinds) == 2  # it, and its side on the host
    del last
    gc.collect()
    assert cuda.kinds == []


def test_a_pool_gives_what_was_not_used_for_longest() -> None:
    pool = Pool(lambda: Buffer(Cuda()))
    leases = [pool.take(8) for _ in range(3)]
    buffers = [lease.buffer for lease in leases]
    while leases:
        leases.pop(0)
    again = [pool.take(4) for _ in range(3)]
    assert all(lease.buffer is buffer for lease, buffer in zip(again, buffers, strict=True))


def test_an_onnx_file_says_in_one_line_that_its_labels_are_on_the_cpu(tmp_path: Path) -> None:
    with EdgeSegmenter(tiny.graph(tmp_path / "tiny.onnx"), BANK, threads=1) as segmenter:
        segmenter.stage(picture())
        with pytest.raises(OVSDinoError, match="runs on the CPU; labels stay on a device with an engine"):
            segmenter.segment_on_device(picture())


def meanwhile(cuda: Cuda, work: Callable[[], None]) -> None:
    """Do some work once in another thread, while the host waits for the device."""

    def once() -> None:
        cuda.meanwhile = lambda: None
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    cuda.meanwhile = once


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("integrated", [False, True])
def test_the_next_frame_is_copied_while_the_host_waits_for_this_one(make: Make, integrated: bool, planar: bool) -> None:
    cuda = Cuda(integrated=integrated)
    frames = [picture(seed, 72, 64)[..., 0] if planar else picture(seed) for seed in range(3)]
    with make(cuda) as segmenter:
        expected = [segmenter.segment(frame, nv12=planar).labels for frame in frames]
        cuda.calls.clear()
        meanwhile(cuda, lambda: segmenter.stage(frames[1], nv12=planar))
        first = segmenter.segment(frames[0], nv12=planar)
        one, (copying, computing) = [call.split() for call in cuda.calls], (2, 1)
        uploads = [place for place, call in enumerate(one) if call == ["up", str(copying)]]
        waited = one.index(["synchronize", str(computing)])
        if integrated:
            assert uploads == [] and ["wait", str(computing)] not in one
        else:
            launched = one.index(["launch", str(computing)])
            # its own copy, the launch after it on the other stream, then the next frame's copy before this one is done
            assert uploads[0] < one.index(["wait", str(computing)]) < launched < waited < uploads[1]
            assert len(uploads) == 2
        cuda.calls.clear()
        second = segmenter.segment(frames[1], nv12=planar)
        assert not any(call.startswith("up") for call in cuda.calls)  # it is there
        third = segmenter.segment(frames[2], nv12=planar)
        assert any(call.startswith("up") for call in cuda.calls) is not integrated
    for found, wanted in zip((first, second, third), expected, strict=True):
        np.testing.assert_array_equal(found.labels, wanted)


def test_of_each_camera_the_last_two_frames_wait_on_the_device(make: Make) -> None:
    cuda = Cuda()
    frames = [picture(seed) for seed in range(4)]
    with make(cuda) as segmenter:
        for camera in (0, 1):
            for frame in frames[camera : camera + 3]:
                segmenter.stage(frame, camera=camera)
        cuda.copies.clear()
        found = segmenter.segment_batch([frames[1], frames[2], frames[3]])
        assert cuda.copies.count("up") == 0
        for one, frame in zip(found, frames[1:], strict=True):
            np.testing.assert_array_equal(one.labels, segmenter.segment(frame.copy()).labels)
    assert cuda.kinds == []
    with pytest.raises(OVSDinoError, match="closed"):
        segmenter.stage(frames[0])


class Folder:
    """A source of frames."""

    live, period_s = False, 0.0

    def __init__(self, frames: list[np.ndarray]) -> None:
        self.frames = list(frames)

    def open(self) -> None: ...

    def close(self) -> None: ...

    def grab(self) -> float | None:
        return 0.0 if self.frames else None

    def retrieve(self) -> np.ndarray:
        return self.frames.pop(0)


class Told:
    """A segmenter that notes what it is told of."""

    def __init__(self, segmenter: EdgeSegmenter) -> None:
        self.segment, self._stage = segmenter.segment, segmenter.stage
        self.staged: list[dict[str, Any]] = []

    def stage(self, image: np.ndarray, **options: Any) -> None:
        self.staged.append(options)
        self._stage(image, **options)


def test_a_stream_brings_each_frame_to_the_device_before_its_turn(make: Make) -> None:
    cuda = Cuda()
    frames = [picture(seed) for seed in range(5)]
    with make(cuda) as segmenter:
        told = Told(segmenter)
        slot: LatestFrame[Frame] = LatestFrame(keep_all=True)
        camera = Camera(Capture(lambda: Folder(frames), slot), slot)
        results: list[np.ndarray] = []
        stream = Streams([camera], [Engine("tiny", told, {"scores": False, "nv12": False})], report_s=None)
        cuda.copies.clear()
        stream.run(lambda result: results.append(result.labels))
        assert told.staged == [{"camera": 0, "nv12": False}] * 5
        assert cuda.copies.count("up") == 6  # the first one twice: it warmed the engine up
        assert len(results) == 5
        for labels, frame in zip(results, frames, strict=True):
            np.testing.assert_array_equal(labels, segmenter.segment(frame.copy()).labels)
