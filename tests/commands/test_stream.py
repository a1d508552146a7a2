"""`ovsdino stream`: its sources, the overlays it writes, signals, usage errors, and that it needs no torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino import cli
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.errors import OVSDinoError
from ovsdino.stream import output as stream_output
from ovsdino.stream.capture import Capture, Frame, LatestFrame
from ovsdino.stream.loop import Engine, Stream
from ovsdino.stream.output import STALE_COLOR, OverlayWriter, output_of, overlay
from ovsdino.stream.result import StreamResult
from ovsdino.stream.sources import Pace, SourceOptions, make_source, playing_rate
from tests.support import tiny

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")

FAST = SourceOptions(keep_all=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four gray pictures of rising brightness, of two sizes."""
    for number in range(4):
        size = (48, 36) if number < 3 else (64, 36)
        Image.new("RGB", size, (40 * number + 20,) * 3).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames at 24 a second: red, then blue."""
    path = tmp_path / "two colors.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 24.0, (64, 48))
    for number in range(12):
        color = (0, 0, 255) if number < 6 else (255, 0, 0)  # OpenCV's order: blue, green, red
        writer.write(np.full((48, 64, 3), color, np.uint8))
    writer.release()
    return path


def frames_of(name: str, options: SourceOptions = FAST) -> list[np.ndarray]:
    source = make_source(name, options)()
    source.open()
    frames = []
    while source.grab() is not None:
        frames.append(source.retrieve())
    source.close()
    return frames


def result(pixels: np.ndarray, number: int = 1, *, stale: bool = False, captured: float = 0.0) -> StreamResult:
    height = pixels.shape[0] if pixels.ndim == 3 else pixels.shape[0] * 2 // 3
    labels = np.zeros((height, pixels.shape[1]), np.uint8)
    labels[:, pixels.shape[1] // 2 :] = 1
    frame = Frame(number, captured, pixels)
    return StreamResult(
        frame=frame, labels=labels, engine="e", finished=captured + 0.132, inference_ms=1.0, stale=stale
    )


def test_a_folder_gives_its_images_in_order(folder):
    frames = frames_of(str(folder))
    assert [int(frame[0, 0, 0]) for frame in frames] == [20, 60, 100, 140]
    assert frames[3].shape == (36, 64, 3)


def test_a_damaged_image_of_a_folder_does_not_end_it(folder):
    (folder / "1.png").write_bytes(b"not a picture")
    source = make_source(str(folder), FAST)()
    source.open()
    source.grab(), source.retrieve(), source.grab()
    with pytest.raises(OVSDinoError, match=r"1\.png"):
        source.retrieve()
    assert source.grab() is not None and source.retrieve()[0, 0, 0] == 100


def test_a_video_gives_its_frames_in_rgb(video):
    frames = frames_of(str(video))
    assert len(frames) == 12 and frames[0].shape == (48, 64, 3)
    red, blue = frames[0][24, 32].astype(int), frames[-1][24, 32].astype(int)
    assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]


def test_h264_is_read(tmp_path):
    """Baseline and High with B-frames, as cameras and phones write it, in order and in color."""
    av = pytest.importorskip("av", reason="an encoder of H.264 is needed to make the video")
    for profile in ("baseline", "high"):
        path = tmp_path / f"{profile}.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=24, options={"profile": profile, "crf": "12"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(12):
                picture = np.full((48, 64, 3), (20 * number, 255 - 20 * number, 128), np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            file.mux(stream.encode())
        frames = frames_of(str(path))
        assert len(frames) == 12
        reds = [int(frame[24, 32, 0]) for frame in frames]
        assert reds == sorted(reds) and abs(reds[-1] - 220) < 20 and abs(int(frames[0][24, 32, 1]) - 255) < 20


def test_h264_is_written_where_opencv_has_an_encoder_and_asking_says_nothing(tmp_path, capfd):
    found = stream_output.writes_h264.__wrapped__()
    assert capfd.readouterr().err == ""
    path = tmp_path / "out.mp4"
    with OverlayWriter(path, ["a", "b"], fps=10, keep_all=True) as writer:
        for number in range(1, 4):
            writer(result(np.zeros((480, 640, 3), np.uint8), number, captured=number / 10))
    video = cv2.VideoCapture(str(path))
    code = int(video.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    assert code == ("h264" if found else "FMP4") and len(frames_of(str(path))) == 3


def test_files_are_held_to_their_rate_and_a_late_reader_is_not_rushed(video, monkeypatch):
    now, slept = [50.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    pace = Pace(0.1)
    for _ in range(4):
        pace.wait()
    assert slept == pytest.approx([0.1] * 3)  # the first at once
    now[0] += 1.0
    for _ in range(3):
        pace.wait()
    assert slept[3:] == pytest.approx([0.1] * 2)
    assert playing_rate(str(video), SourceOptions()) == pytest.approx(24)
    assert playing_rate(str(video), SourceOptions(fps=5)) == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no/such/file.mp4", {}, "no such source"),
        ("/dev/videocam", {}, "not a camera"),
        ("0", {"keep_all": True}, "a camera does not wait"),
        ("0", {"nv12": True}, "GStreamer pipeline only"),
        ("0", {"fps": 0.0}, "fps is 0.0"),
    ],
)
def test_a_source_that_cannot_be_is_refused_in_one_line(name, options, message):
    with pytest.raises(OVSDinoError, match=message) as caught:
        make_source(name, SourceOptions(**options))
    assert "\n" not in str(caught.value)


def test_a_picture_or_an_empty_folder_is_no_source(folder, tmp_path):
    with pytest.raises(OVSDinoError, match="is an image; give its folder"):
        make_source(str(folder / "0.png"), FAST)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OVSDinoError, match="no images"):
        make_source(str(tmp_path / "empty"), FAST)


@pytest.mark.parametrize("name", ["/dev/video63", "videotestsrc ! appsink", "broken.avi"])
def test_a_source_that_cannot_be_opened_names_the_remedy(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.avi").write_bytes(b"RIFF....")
    source = make_source(name, SourceOptions())()
    with pytest.raises(OVSDinoError, match=r"group video|without GStreamer|gst-launch|decodes"):
        source.open()
    source.close()


def test_without_opencv_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(OVSDinoError, match="pip install opencv-python-headless"):
        make_source("0", SourceOptions())


def test_an_overlay_has_a_color_for_each_class_and_a_red_frame_when_it_is_stale():
    pixels = np.full((60, 80, 3), 128, np.uint8)
    fresh, stale = overlay(result(pixels), ["road", "sky"]), overlay(result(pixels, stale=True), ["road", "sky"])
    assert fresh.shape == stale.shape == (60, 80, 3)
    assert fresh[57, 3].tolist() == [129, 64, 115]  # away from the name: half of gray and of road's (130, 0, 102)
    assert fresh[57, 76].tolist() == [64, 118, 148]  # and of sky's (0, 107, 168)
    assert tuple(stale[0, 0]) == tuple(stale[-1, -1]) == STALE_COLOR != tuple(fresh[0, 0])


def test_a_rate_comes_with_a_legend_and_leaves_the_rest_of_the_picture():
    pixels = np.full((240, 320, 3), 128, np.uint8)
    plain, rated = (overlay(result(pixels, stale=True), ["road", "sky"], rate) for rate in (None, 12.3))
    assert plain.shape == (240, 320, 3) and rated.shape[0] > 240 and rated.shape[1:] == (320, 3)
    changed = (plain != rated[:240]).any(-1)
    assert changed[220:, 160:].any() and not changed[:200].any() and not changed[:, :160].any()


def test_an_overlay_of_nv12_is_drawn_in_color():
    nv12 = np.full((90, 80), 128, np.uint8)
    assert overlay(result(nv12), ["road", "sky"]).shape == (60, 80, 3)


def test_overlays_go_into_a_folder_by_sequence_number(tmp_path):
    with OverlayWriter(tmp_path / "out", ["a", "b"], fps=10, keep_all=True) as writer:
        for number in (3, 7):
            writer(result(np.zeros((36, 48, 3), np.uint8), number))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000003.jpg", "00000007.jpg"]
    assert (writer.written, writer.left_out) == (2, 0)


def test_overlays_of_several_sources_have_a_place_each(tmp_path):
    assert output_of(tmp_path / "out", 1, 2) == tmp_path / "out" / "1"
    assert output_of(tmp_path / "out.mp4", 1, 2) == tmp_path / "out-1.mp4"
    assert output_of(tmp_path / "out.mp4", 0, 1) == tmp_path / "out.mp4"


@pytest.mark.parametrize(("keep_all", "pictures"), [(True, 3), (False, 11)])
def test_a_video_of_overlays_runs_as_fast_as_the_frames_were_taken(tmp_path, keep_all, pictures):
    path = tmp_path / "out.avi"
    with OverlayWriter(path, ["a", "b"], fps=10, keep_all=keep_all) as writer:
        for number, captured in ((1, 5.0), (2, 5.2), (3, 6.0)):  # one second at 10 a second: the first and ten more
            size = (36, 48, 3) if number < 3 else (72, 96, 3)  # a source that changes its size
            writer._queue.put(result(np.zeros(size, np.uint8), number, captured=captured))
        assert not path.exists()
    read = frames_of(str(path))
    assert len(read) == pictures and {frame.shape for frame in read} == {(36, 48, 3)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.avi"]


def test_an_overlay_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(OVSDinoError, match="expected a folder, or a video file"):
        OverlayWriter(tmp_path / "out.gif", ["a"], fps=10, keep_all=True)
    writer = OverlayWriter(tmp_path / "out", ["only one"], fps=10, keep_all=True)
    bad = result(np.zeros((36, 48, 3), np.uint8))
    bad.labels[:] = 9  # no such class
    writer(bad)
    with pytest.raises(ValueError, match=r"labels span 9\.\.9, expected 0\.\.0"):
        writer.close()


def run(capsys, *arguments: str) -> tuple[int, dict, str]:
    code = cli.main(["stream", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert len(out.strip().splitlines()) == 1
    return code, json.loads(out), err


def test_the_command_segments_every_frame_of_a_folder_with_a_model_of_the_zoo(folder, tmp_path, capsys):
    out = tmp_path / "out"
    code, summary, _ = run(
        capsys, str(folder), "--classes", "road, sky", "--every-frame", "--deadline-ms", "60000", "--output", str(out)
    )
    assert code == 0 and summary["ended"] == "source"
    assert (summary["frames"], summary["dropped"], summary["stale"], summary["size_changes"]) == (4, 0, 0, 1)
    assert summary["engines"] == {"nano": 4} and summary["output"]["written"] == 4
    assert Image.open(out / "00000004.jpg").size == (64, 36)


def test_with_a_memory_a_video_comes_out_whole(tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(0)
    scene = cv2.resize(generator.integers(0, 255, (9, 20, 3), dtype=np.uint8), (160, 72))
    clip, out = tmp_path / "clip.avi", tmp_path / "out.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 72))
    for step in range(5):
        writer.write(np.ascontiguousarray(scene[:, 2 * step : 128 + 2 * step]))
    writer.release()
    words = ["--classes", "road, sky", "--every-frame", "--memory", "--key-frames", "3"]
    code, summary, _ = run(capsys, str(clip), *words, "--output", str(out))
    assert code == 0 and summary["frames"] == 5 and summary["output"]["written"] >= 5
    video = cv2.VideoCapture(str(out))
    found, picture = video.read()
    assert found and picture.shape == (72, 128, 3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["clip.avi", "out.mp4"]


def test_words_of_a_file_and_labels_as_lines(folder, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("grass, wall")
    words = ["--classes", "road, sky", "--words", str(tmp_path / "words.txt")]
    assert cli.main(["stream", str(folder), *words, "--every-frame", "--labels", "-"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["frame"] for line in lines] == [1, 2, 3, 4] and "words: grass, wall" in err and "4 frames" in err
    assert all(set(line["classes"]) <= {"grass", "wall", "background"} for line in lines)


BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "open_clip", "cv2"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Two graphs and the bank of both."""
    place = tmp_path / "exported"
    place.mkdir()
    tiny.graph(place / "large.onnx")
    tiny.graph(place / "small.onnx")
    tiny.bank("road", "car", "sky").save(place / "bank.safetensors")
    return place


def test_an_exported_model_and_its_stand_in_run_without_torch_or_opencv(folder, exported):
    large, small, bank = (str(exported / name) for name in ("large.onnx", "small.onnx", "bank.safetensors"))
    arguments = ["stream", str(folder), "--engine", large, "--fallback", small, "--bank", bank, "--every-frame"]
    arguments += ["--deadline-ms", "0.0001", "--misses", "2", "--output", str(folder / "out"), "--json"]
    code = f"{BLOCK}import ovsdino.cli\nsys.exit(ovsdino.cli.main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["engines"] == {"large.onnx": 2, "small.onnx": 2}
    assert (summary["stale"], summary["degradations"]) == (4, 1)  # no deadline of a tenth of a microsecond can be met
    assert "results are late: large.onnx -> small.onnx" in done.stderr
    assert len(list((folder / "out").iterdir())) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "a.png", "--classes", "a", "--model", "b14"],
        ["stream", ".", "--classes", "a"],
        ["eval", "--dataset", "camvid", "--root", "."],
    ],
)
def test_a_command_that_needs_torch_says_so_where_there_is_none(folder, arguments):
    code = f"{BLOCK}import ovsdino.cli\nsys.exit(ovsdino.cli.main({arguments!r}))"
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: this needs torch, which is not installed: pip install")


def test_the_labels_of_the_loop_are_those_of_the_segmenter(folder, exported):
    segmenter = EdgeSegmenter(exported / "large.onnx", exported / "bank.safetensors", threads=1)
    slot, results = LatestFrame(keep_all=True), []
    capture = Capture(make_source(str(folder), FAST), slot)
    Stream(capture, slot, [Engine("large", segmenter, {"scores": False})]).run(results.append)
    assert len(results) == 4
    for one, path in zip(results, sorted(folder.glob("*.png")), strict=True):
        np.testing.assert_array_equal(one.labels, segmenter.segment(path).labels)


def test_several_sources_share_an_engine_of_two_frames(folder, exported, tmp_path, capsys):
    """Two folders, one of them after --source: labels, overlays and figures of each."""
    second = tmp_path / "second"
    second.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 48), (200 - 90 * number, 90, 20)).save(second / f"{number}.png")
    tiny.graph(exported / "two.onnx", batch=(1, 2))
    model = ["--engine", str(exported / "two.onnx"), "--bank", str(exported / "bank.safetensors")]
    both = [str(folder), "--source", str(second)]
    out = ["--output", str(tmp_path / "out"), "--labels", str(tmp_path / "labels"), "--deadlines-ms", "60000", "1e-4"]
    code, summary, _ = run(capsys, *both, *model, "--every-frame", *out)
    assert code == 0 and "source" not in summary
    assert [(one["source"], one["frames"], one["stale"]) for one in summary["cameras"]] == [
        (str(folder), 4, 0),
        (str(second), 2, 2),
    ]
    assert summary["output"] == {"path": str(tmp_path / "out"), "written": 6, "left_out": 0}
    for place, (pictures, count) in enumerate(((folder, 4), (second, 2))):
        assert len(list((tmp_path / "out" / str(place)).iterdir())) == count
        segmenter = EdgeSegmenter(exported / "large.onnx", exported / "bank.safetensors", threads=1)
        for number, path in enumerate(sorted(pictures.glob("*.png")), 1):
            labels = np.asarray(Image.open(tmp_path / "labels" / str(place) / f"{number:08d}.png"))
            np.testing.assert_array_equal(labels, segmenter.segment(path).labels)
    assert cli.main(["stream", *both, *model, "--every-frame", "--labels", "-"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted((line["camera"], line["frame"]) for line in lines) == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]


def test_banks_of_other_classes_or_another_model_are_refused(folder, exported, capsys):
    tiny.bank("road", "sky").save(exported / "other.safetensors")
    tiny.bank("road", "car", "sky", weights="1" * 64).save(exported / "foreign.safetensors")
    engines = ["--engine", str(exported / "large.onnx"), "--fallback", str(exported / "small.onnx")]
    for second, message in (("other", "other classes than"), ("foreign", "made for other weights")):
        banks = [str(exported / f"{name}.safetensors") for name in ("bank", second)]
        code, answer, _ = run(capsys, str(folder), *engines, "--bank", *banks, "--deadline-ms", "50")
        assert code == 2 and message in answer["error"], answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --engine FILE --bank FILE, or --classes"),
        (["--classes", "a", "--bank", "b.safetensors"], "go with --engine"),
        (["--engine", "e.onnx"], "0 text banks for 1 engines"),
        (["--engine", "e.onnx", "--bank", "b.safetensors", "--classes", "a"], "classes are in its --bank"),
        (["--engine", "e.onnx", "--bank", "b.safetensors", "--fallback", "f.onnx"], "without --deadline-ms"),
        (["--classes", "a", "--deadline-ms", "-1"], "deadline is -1"),
        (["--classes", "a", "--stall", "0"], "stall_s is 0"),
        (["--classes", "a", "--labels", "-"], "both print on stdout"),
        (["--classes", "a", "--source-latency-ms", "-1"], "latency_ms is -1"),
        (["--classes", "a", "--legend"], "made with --output or --show"),
        (["--classes", "a", "--deadlines-ms", "1", "2"], "2 deadlines for 1 sources"),
        (["--classes", "a", "--memory", "--source", "7"], "of one source"),
        (["--classes", "a", "--key-frames", "4"], "with --memory"),
        (["--engine", "e.onnx", "--bank", "b.safetensors", "--memory"], "goes with --classes"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(folder, capsys, arguments, message):
    code, answer, err = run(capsys, str(folder), *arguments)
    assert code == 2 and message in answer["error"]
    assert err.strip() == f"error: {answer['error']}"


LOOP = """
    import json, sys, threading, time
    from types import SimpleNamespace
    import numpy as np
    sys.modules.update(dict.fromkeys(("torch", "timm", "open_clip", "cv2"), None))
    from ovsdino.stream.capture import Capture, LatestFrame
    from ovsdino.stream.loop import Engine, Stream, stop_on_signals

    class Camera:
        live, period_s = True, 0.001
        def open(self): pass
        def close(self): pass
        def retrieve(self): return np.zeros((4, 4, 3), np.uint8)
        def grab(self):
            if {hangs}: time.sleep(3600)
            time.sleep(0.001)
            return time.monotonic()

    slot = LatestFrame()
    segmenter = SimpleNamespace(segment=lambda image: SimpleNamespace(labels=image[:, :, 0]))
    stream = Stream(Capture(Camera, slot), slot, [Engine("e", segmenter)])
    with stop_on_signals(stream.stop):
        print("ready", flush=True)
        print(json.dumps(stream.run()))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_with_its_summary_and_without_torch_or_opencv(number):
    code = textwrap.dedent(LOOP).replace("{hangs}", "False")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["ended"] == "stopped" and summary["frames"] > 5


def test_a_signal_ends_the_loop_though_the_camera_hangs():
    code = textwrap.dedent(LOOP).replace("{hangs}", "True")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and json.loads(out)["frames"] == 0
