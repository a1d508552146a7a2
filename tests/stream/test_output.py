"""What `ovsdino stream --output` writes is whole or is not there, and replaces no input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino import cli
from ovsdino.errors import OVSDinoError
from ovsdino.stream import output as stream_output
from ovsdino.stream.capture import Frame
from ovsdino.stream.output import VIDEO_CODECS, OverlayWriter
from ovsdino.stream.result import StreamResult
from ovsdino.stream.sources import SourceOptions, files_of, make_source
from ovsdino.stream.video_file import check_video
from tests.support import tiny

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")

PICTURES = 12
NOISE = np.random.default_rng(0).integers(0, 255, (PICTURES, 48, 64, 3), dtype=np.uint8)


def result(number: int) -> StreamResult:
    frame = Frame(number, number / 10, NOISE[number % PICTURES])
    labels = np.zeros((48, 64), np.uint8)
    return StreamResult(frame=frame, labels=labels, engine="e", finished=number / 10, inference_ms=1.0, stale=False)


def write(path: Path, pictures: int = PICTURES, **options: object) -> OverlayWriter:
    with OverlayWriter(path, ["road"], fps=10, keep_all=True, **options) as writer:  # type: ignore[arg-type]
        for number in range(1, pictures + 1):
            writer(result(number))
    return writer


def count(path: Path) -> int:
    video, found = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        found += 1
    return found


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
def test_a_video_without_its_last_byte_or_picture_is_found_out(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole{suffix}"
    write(path)
    check_video(path, PICTURES)
    assert count(path) == PICTURES
    with pytest.raises(OVSDinoError, match=f"holds {PICTURES} of {PICTURES + 1} pictures"):
        check_video(path, PICTURES + 1)
    data = path.read_bytes()
    for length in {*range(0, len(data), max(1, len(data) // 40)), len(data) - 1, len(data) - 2, len(data) - 100}:
        path.write_bytes(data[:length])
        with pytest.raises(OVSDinoError, match="cut off"):
            check_video(path, PICTURES)


FULL = """
import sys
from pathlib import Path
from ovsdino.errors import OVSDinoError
from tests.stream.test_output import write
try:
    write(Path(sys.argv[1]))
except OVSDinoError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.avi", "folder"])
def test_a_full_disk_is_an_error_and_leaves_no_half_of_a_file(name: str, tmp_path: Path) -> None:
    """`ulimit -f` stands in for the full disk: the next kilobyte is refused in the same way."""
    limit = 1 if name == "folder" else 8  # KiB: less than one picture of noise, or than the video
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {limit}; exec "$0" -c "$1" "$2"', sys.executable, FULL, tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    assert "cannot write: " in done.stdout and ("cut off" in done.stdout or "File too large" in done.stdout)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_video_ends_whole_while_there_is_room_for_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = OverlayWriter(tmp_path / "out.mp4", ["road"], fps=10, keep_all=True)
    for number in range(1, 5):
        writer(result(number))
    while writer.written < 4:
        pass
    monkeypatch.setattr(stream_output, "LEAST_FREE", sys.maxsize)
    writer(result(5))
    with pytest.raises(OVSDinoError, match=r"out.mp4: the disk is full: the video ends after 4 pictures"):
        writer.close()
    assert count(tmp_path / "out.mp4") == 4 and os.listdir(tmp_path) == ["out.mp4"]


def test_a_video_without_a_picture_gets_no_name_and_an_old_one_stays(tmp_path: Path) -> None:
    write(tmp_path / "new.avi", pictures=0)
    assert os.listdir(tmp_path) == []
    (tmp_path / "old.avi").write_bytes(b"old")
    write(tmp_path / "old.avi", pictures=0)
    assert (tmp_path / "old.avi").read_bytes() == b"old" and os.listdir(tmp_path) == ["old.avi"]


def test_a_folder_that_cannot_be_written_is_told_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("file/out.avi", "file/out"):
        with pytest.raises(OVSDinoError, match=r"cannot (write|make the folder): Not a directory"):
            OverlayWriter(tmp_path / name, ["road"], fps=10, keep_all=True)


def test_what_a_killed_recording_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os\nfrom tests.stream.test_output import *\n"
        "writer = OverlayWriter(Path(os.sys.argv[1]), ['road'], fps=10, keep_all=True)\n"
        "for number in range(1, 401): writer(result(number))\n"
        "while writer.written < 400: pass\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = tmp_path / "killed.avi"
    subprocess.run([sys.executable, "-c", code, killed], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".killed.avi.") and left.stat().st_size
    write(tmp_path / "next.avi")
    assert os.listdir(tmp_path) == ["next.avi"]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A video and a folder of pictures, and other names for both."""
    write(tmp_path / "clip.avi")
    (tmp_path / "frames").mkdir()
    for number in (1, 2):
        Image.fromarray(NOISE[number]).save(tmp_path / "frames" / f"{number:08d}.jpg")
    (tmp_path / "link.avi").symlink_to("clip.avi")
    (tmp_path / "hard.avi").hardlink_to(tmp_path / "clip.avi")
    (tmp_path / "other").symlink_to("frames")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("clip.avi", "clip.avi"),
        ("clip.avi", "frames/../clip.avi"),
        ("link.avi", "clip.avi"),
        ("clip.avi", "link.avi"),
        ("clip.avi", "hard.avi"),
        ("frames", "frames"),
        ("frames", "other"),
        ("filesrc location=clip.avi ! decodebin ! appsink", "clip.avi"),
        ('filesrc location="clip.avi" ! decodebin ! appsink', "clip.avi"),
        ("file://clip.avi", "clip.avi"),
    ],
)
def test_the_output_is_never_the_source(
    source: str, output: str, sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sources)
    before = {path: path.read_bytes() for path in sources.rglob("*") if path.is_file()}
    assert cli.main(["stream", source, "--classes", "road,sky", "--output", output]) == 2
    assert capsys.readouterr().err == f"error: {output}: the result would replace an input; choose another --output\n"
    assert {path: path.read_bytes() for path in sources.rglob("*") if path.is_file()} == before


def test_a_frame_that_is_linked_into_the_output_folder_is_not_replaced(sources: Path) -> None:
    (sources / "linked").mkdir()
    (sources / "linked" / "a.jpg").symlink_to("../frames/00000001.jpg")
    before = (sources / "frames" / "00000001.jpg").read_bytes()
    with pytest.raises(OVSDinoError, match=r"00000001\.jpg: the result would replace an input"):
        write(sources / "frames", inputs=files_of(str(sources / "linked")))
    assert (sources / "frames" / "00000001.jpg").read_bytes() == before


@pytest.mark.parametrize("name", ["0001", "holiday! 2024", "a://b", "/dev/null/../../{dir}/0"])
def test_a_folder_is_read_whatever_it_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = name.replace("/dev/null/../../{dir}", str(tmp_path))
    Path(name).mkdir(parents=True)
    Image.fromarray(NOISE[0]).save(Path(name) / "1.png")
    source = make_source(name, SourceOptions(keep_all=True))()
    source.open()
    assert source.grab() is not None
    np.testing.assert_array_equal(source.retrieve(), NOISE[0])


@pytest.mark.parametrize("name", ["clip_\udce9.avi", "folder_\udce9/clip.avi"])
def test_a_name_that_opencv_cannot_take_is_one_line(name: str, tmp_path: Path) -> None:
    """OpenCV's binding reads the null pointer that such a name becomes."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"video")
    with pytest.raises(OVSDinoError, match=r"_\\udce9.*OpenCV takes names in UTF-8 only"):
        make_source(str(path), SourceOptions())
    with pytest.raises(OVSDinoError, match=r"_\\udce9.*OpenCV takes names in UTF-8 only"):
        OverlayWriter(path, ["road"], fps=10, keep_all=True)
    assert path.read_bytes() == b"video"


def test_a_folder_that_is_not_named_in_utf8_is_read_and_written(tmp_path: Path) -> None:
    folder = tmp_path / "frames_\udce9"
    folder.mkdir()
    Image.fromarray(NOISE[0]).save(folder / "1_\udce9.png", "PNG")
    source = make_source(str(folder), SourceOptions(keep_all=True))()
    source.open()
    source.grab()
    np.testing.assert_array_equal(source.retrieve(), NOISE[0])
    write(tmp_path / "out_\udce9", pictures=1)
    assert os.listdir(tmp_path / "out_\udce9") == ["00000001.jpg"]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OVSDinoError, match=r"pipe\.mp4: is a pipe"):
        make_source(str(tmp_path / "pipe.mp4"), SourceOptions())


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://admin:hunter2@127.0.0.1:1/live",
        "rtspsrc location=rtsp://admin:hunter2@127.0.0.1:1/live user-pw=hunter2 ! appsink",
    ],
)
def test_no_password_is_printed(source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.graph(tmp_path / "tiny.onnx")
    tiny.bank("road", "sky").save(tmp_path / "bank.safetensors")
    engine = ["--engine", str(tmp_path / "tiny.onnx"), "--bank", str(tmp_path / "bank.safetensors")]
    assert cli.main(["stream", source, *engine, "--json"]) == 2
    out, err = capfd.readouterr()
    assert "cannot be opened" in out or "without GStreamer" in out
    assert "hunter2" not in out + err
    with pytest.raises(OVSDinoError, match="a camera does not wait") as caught:
        make_source(source, SourceOptions(keep_all=True))
    assert "hunter2" not in str(caught.value) and "***" in str(caught.value)
