"""Capture times: of a pipeline with a delay, by GStreamer where it is installed, and of a latency that is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ovsdino.stream import sources
from ovsdino.stream.gstreamer import GStreamerSource, _pixels, has_gstreamer
from ovsdino.stream.sources import OpenCVSource, SourceOptions, gives_nv12

needs_gstreamer = pytest.mark.skipif(not has_gstreamer(), reason="needs GStreamer's Python binding, python3-gi")
DELAY_S = 0.47
TEST = "videotestsrc is-live=true ! video/x-raw,format={format},width=64,height=48,framerate=30/1"


@needs_gstreamer
@pytest.mark.parametrize("delay_s", [0.0, DELAY_S])
def test_a_queues_delay_is_part_of_a_frames_age(delay_s: float) -> None:
    from gi.repository import Gst

    left: dict[int, float] = {}  # when each buffer left the camera, by its stamp

    def note(_pad: object, info: Gst.PadProbeInfo) -> Gst.PadProbeReturn:
        left[info.get_buffer().pts] = time.monotonic()
        return Gst.PadProbeReturn.OK

    queue = f"! queue max-size-time=0 max-size-buffers=0 min-threshold-time={int(delay_s * 1e9)}" if delay_s else ""
    camera = TEST.format(format="RGB").replace("videotestsrc", "videotestsrc name=camera")
    source = GStreamerSource(f"{camera} {queue} ! appsink")
    source.open()
    source._pipeline.get_by_name("camera").get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, note)
    wrong, ages = [], []
    try:
        for _ in range(20):
            taken, now = source.grab(), time.monotonic()
            stamp = source._sample.get_buffer().pts
            if stamp in left:
                wrong.append(taken - left[stamp])
                ages.append(now - taken)
            assert source.retrieve().shape == (48, 64, 3)
    finally:
        source.close()
    assert len(wrong) >= 10 and abs(float(np.median(wrong))) < 0.05  # a busy machine may hold up single frames
    assert float(np.median(ages)) >= 0.95 * delay_s


BITS, WIDE = 48, 8  # milliseconds since 1970 as gray blocks
CAMERA = (
    "( appsrc name=camera is-live=true format=time do-timestamp=true "
    f"caps=video/x-raw,format=GRAY8,width={BITS * WIDE},height=16,framerate=30/1 "
    f"! queue max-size-time=0 max-size-buffers=0 min-threshold-time={int(DELAY_S * 1e9)} "
    "! videoconvert ! video/x-raw,format=I420 ! jpegenc ! rtpjpegpay name=pay0 )"
)


@pytest.fixture
def address() -> Iterator[str]:
    """Address of an RTSP camera whose frames show when they were taken, and leave it DELAY_S later."""
    if not has_gstreamer():
        pytest.skip("needs GStreamer's Python binding, python3-gi")
    gi = pytest.importorskip("gi")
    try:
        gi.require_version("GstRtspServer", "1.0")
    except ValueError:
        pytest.skip("needs gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good")
    from gi.repository import GLib, Gst, GstRtspServer

    class Media(GstRtspServer.RTSPMedia):
        def do_setup_rtpbin(self, rtpbin: Any) -> bool:
            rtpbin.set_property("rtcp-sync-send-time", False)  # its reports tell when a frame was taken, not sent
            return True

    def film(camera: Any) -> None:
        good = True
        while good:
            bits = (int(1e3 * time.time()) >> np.arange(BITS)) & 1
            rows = np.tile(np.repeat(bits * 219 + 16, WIDE).astype(np.uint8), (16, 1))
            good = camera.emit("push-buffer", Gst.Buffer.new_wrapped(rows.tobytes())) == Gst.FlowReturn.OK
            time.sleep(1 / 30)

    def configure(_factory: Any, media: Any) -> None:
        camera = media.get_element().get_by_name("camera")
        threading.Thread(target=film, args=(camera,), daemon=True).start()

    factory, server, loop = GstRtspServer.RTSPMediaFactory(), GstRtspServer.RTSPServer(), GLib.MainLoop()
    factory.set_launch(CAMERA)
    factory.set_shared(True)
    factory.set_media_gtype(Media)
    factory.connect("media-configure", configure)
    server.set_address("127.0.0.1")
    server.set_service("0")
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    yield f"rtsp://127.0.0.1:{server.get_bound_port()}/camera"
    loop.quit()
    thread.join(5)


@needs_gstreamer
@pytest.mark.parametrize("told", [True, False])
def test_the_age_of_a_network_cameras_frame_is_the_true_one(address: str, told: bool) -> None:
    meta = "add-reference-timestamp-meta=true" if told else ""
    pipeline = f"rtspsrc location={address} latency=50 {meta} ! rtpjpegdepay ! jpegdec ! videoconvert"
    source = GStreamerSource(f"{pipeline} ! video/x-raw,format=GRAY8 ! appsink", 0.0 if told else DELAY_S)
    source.open()
    wrong, end = [], time.monotonic() + 30
    try:
        while len(wrong) < 40 and time.monotonic() < end:
            taken = source.grab()
            assert taken is not None
            shift = time.time() - time.monotonic()
            blocks = source.retrieve()[8, :, 0].reshape(BITS, WIDE)[:, WIDE // 2]
            shown = int(((blocks > 128).astype(np.int64) << np.arange(BITS)).sum()) / 1e3 - shift
            buffer = source._sample.get_buffer()
            if not told or buffer.get_reference_timestamp_meta() is not None:  # the first report takes seconds
                wrong.append(taken - shown)
    finally:
        source.close()
    print(
        f"age of {len(wrong)} frames wrong by {1e3 * np.median(wrong):.1f} ms, at most {1e3 * np.abs(wrong).max():.1f}"
    )
    assert len(wrong) == 40 and abs(float(np.median(wrong))) < 0.05


@needs_gstreamer
@pytest.mark.parametrize("form", ["RGB", "BGR", "NV12", "GRAY8"])
def test_frames_of_each_format(form: str) -> None:
    source = GStreamerSource(
        TEST.format(format=form).replace("videotestsrc", "videotestsrc pattern=white") + "! appsink"
    )
    source.open()
    try:
        assert source.grab() is not None
        pixels = source.retrieve()
    finally:
        source.close()
    if form == "NV12":
        assert (
            pixels.shape == (72, 64) and pixels[:48].min() == 235 and np.abs(pixels[48:].astype(int) - 128).max() <= 1
        )
    else:
        assert pixels.shape == (48, 64, 3) and pixels.min() >= 234


def test_rows_with_bytes_to_spare_are_read() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    rows = np.pad(rgb.reshape(4, 18), ((0, 0), (0, 2))).reshape(-1)[:-2]
    assert np.array_equal(_pixels(rows, "RGB", 6, 4, [20], [0]), rgb)
    assert np.array_equal(_pixels(rows, "BGR", 6, 4, [20], [0]), rgb[:, :, ::-1])


class Camera:
    """OpenCV's capture of a camera that gives no time of its own."""

    def grab(self) -> bool:
        return True


def test_a_latency_that_is_told_is_part_of_a_live_frames_age() -> None:
    for kind, latency_s in (("address", DELAY_S), ("file", 0.0)):
        source = OpenCVSource(kind, "somewhere", SourceOptions(latency_ms=1e3 * DELAY_S))
        source._video = Camera()
        assert abs(time.monotonic() - source.grab() - latency_s) < 0.05
    with pytest.raises(ValueError, match="latency_ms is -1"):
        SourceOptions(latency_ms=-1)


def test_a_pipelines_last_format_switches_nv12_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gives_nv12("nvarguscamerasrc ! nvvidconv ! video/x-raw, format=(string)NV12, width=640 ! appsink")
    assert gives_nv12('v4l2src ! video/x-raw,format="NV12" ! appsink')
    assert not gives_nv12("src ! video/x-raw(memory:NVMM),format=NV12 ! nvvidconv ! video/x-raw,format=BGR ! appsink")
    assert not gives_nv12("videotestsrc ! appsink") and not gives_nv12("format=NV12.mp4")
    monkeypatch.setattr(sources, "has_gstreamer", lambda: True)
    assert isinstance(sources.make_source("videotestsrc ! appsink", SourceOptions())(), GStreamerSource)
