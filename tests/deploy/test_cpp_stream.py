"""The stream in C++, and its side of TensorRT: compiled for both forms of the API, run on a device that is played here.

TensorRT's headers are not part of this repository. `tests/deploy/stand_in` has the names that are used; with
OVSDINO_TENSORRT_INCLUDE, a folder of NVIDIA's own headers, the same file is compiled against those.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.native import native
from tests.support import cpp, device, tiny
from tests.support.cpp import ROOT, SOURCE, refused, run

pytestmark = cpp.NEEDS_A_COMPILER

STAND_IN = Path(__file__).parent / "stand_in"
HEIGHT, WIDTH = 48, 64
BANK = tiny.bank("a", 'b "c"', "d")
RTX = ["-DTRT_MAJOR_RTX=1"]


def cuda_include() -> Path:
    """The folder of CUDA's own headers, which triton and NVIDIA's packages bring."""
    places = [Path("/usr/local/cuda/include")]
    for name, inside in (("triton", "backends/nvidia/include"), ("nvidia", "cu13/include")):
        found = importlib.util.find_spec(name)
        places += [Path(place) / inside for place in (found.submodule_search_locations or ())] if found else []
    for place in places:
        if (place / "cuda_runtime_api.h").is_file():
            return place
    pytest.skip("cuda_runtime_api.h is missing")


def compiler(*options: str, headers: Path = STAND_IN) -> list[object]:
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-O0", "-pthread", "-DOVSDINO_WITH_TENSORRT"]
    flags += ['-DOVSDINO_TENSORRT_BACKEND="tensorrt"', f"-I{SOURCE}", f"-I{ROOT / 'csrc' / 'include'}"]
    return ["c++", *flags, "-isystem", headers, "-isystem", cuda_include(), *options]


@pytest.fixture(scope="module")
def stream(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ovsdino_stream with TensorRT, on the device that is played."""
    program = tmp_path_factory.mktemp("stream") / "ovsdino_stream"
    sources = [SOURCE / f"{name}.cpp" for name in ("stream", "segmenter", "graph_tensorrt")]
    sources += [STAND_IN / "device.cpp", ROOT / "csrc" / "cpu" / "preprocess_host.cpp"]
    done = run(*compiler(), *sources, programs / "libovsdino_edge.a", "-o", program)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An engine, which the played TensorRT takes for the tiny graph's, and its words."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "tiny.engine").write_bytes(b"an engine")
    facts = {"kind": "engine", "backend": "tensorrt", "version": "10.3.0", "target": "sm87"}
    tiny.sidecar(folder / "tiny.engine", **facts).save(folder / "tiny.engine")
    BANK.save(folder / "bank")
    return {"--model": folder / "tiny.engine", "--bank": folder / "bank"}


def command(stream: Path, files: dict[str, Path], **options: object) -> list[object]:
    given = {**files, "--size": f"{WIDTH}x{HEIGHT}", **{f"--{n.replace('_', '-')}": v for n, v in options.items()}}
    return [stream, *(part for pair in given.items() for part in pair)]


def frames(count: int, *, nv12: bool = True) -> np.ndarray:
    """Frames of blocks of 8 pixels, (count, ...) uint8."""
    shape = (count, HEIGHT * 3 // 16, WIDTH // 8) if nv12 else (count, HEIGHT // 8, WIDTH // 8, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).repeat(8, 1).repeat(8, 2)


def counted(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("frames "))
    return {name: int(count) for name, count in (part.split() for part in line.split(";")[0].split(", "))}


@pytest.mark.parametrize("nv12", [True, False])
def test_every_frame_of_a_file_gets_the_labels_of_the_python_runtime(
    stream: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nv12: bool
) -> None:
    pictures = frames(5, nv12=nv12)
    pictures.tofile(tmp_path / "raw")
    options = {"input": tmp_path / "raw", "output": tmp_path / "out", "every_frame": "on", "partition": "on"}
    done = run(*command(stream, files, format="nv12" if nv12 else "rgb", **options))
    assert counted(done) == {"frames": 5, "captured": 5, "dropped": 0, "stale": 0, "misses": 0}
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["frame"] for result in results] == [1, 2, 3, 4, 5]
    assert all(result["camera_to_mask_ms"] >= result["inference_ms"] > 0 for result in results)
    if native is None:
        pytest.skip("ovsdino._C is missing")
    with device.segmenter(monkeypatch, tmp_path, device.Cuda(), BANK) as segmenter:
        for picture, result in zip(pictures, results, strict=True):
            expected = segmenter.segment(picture, nv12=nv12)
            np.testing.assert_array_equal(np.asarray(Image.open(result["labels"])), expected.labels)
            shares = {name: share for name, share in zip(BANK.names, expected.fractions, strict=True) if share}
            assert result["shares"] == pytest.approx(shares, abs=1e-6)


def test_the_newest_frame_is_segmented_and_late_results_are_stale(
    stream: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Forty frames come at once to an engine of 30 ms: the last is always taken, most before it never."""
    frames(40).tofile(tmp_path / "raw")
    slow = {**os.environ, "STAND_IN_MS": "30"}
    for deadline, late in ((1, True), (1e8, False)):
        done = run(*command(stream, files, input=tmp_path / "raw", deadline_ms=deadline), env=slow)
        counts, results = counted(done), [json.loads(line) for line in done.stdout.splitlines()]
        numbers = [result["frame"] for result in results]
        assert numbers == sorted(numbers) and numbers[-1] == 40
        assert counts["captured"] == 40 == counts["frames"] + counts["dropped"] and counts["dropped"] > 20
        assert counts["frames"] == len(results)
        assert {result["stale"] for result in results} == {late}
        assert counts["stale"] == counts["misses"] == (len(results) if late else 0)
    aged = run(*command(stream, files, input=tmp_path / "raw", deadline_ms=1e5, source_latency_ms=2e5), env=slow)
    assert counted(aged)["stale"] == counted(aged)["frames"] and counted(aged)["misses"] == 0


def test_a_pipe_is_read_until_it_ends_or_the_program_is_told_to(stream: Path, files: dict[str, Path]) -> None:
    pipe = subprocess.PIPE
    started = command(stream, files)
    with subprocess.Popen(list(map(str, started)), stdin=pipe, stdout=pipe, stderr=pipe) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        first, second = frames(2)
        for picture in (first, second):  # the second comes when the first is done
            running.stdin.write(picture.tobytes())
            running.stdin.flush()
            assert json.loads(running.stdout.readline())["stale"] is False
        running.stdin.write(b"part of a frame")
        running.stdin.flush()
        running.send_signal(signal.SIGTERM)  # while the reader waits for the rest
        assert running.wait(60) == 0
        assert running.stderr.read().startswith(b"frames 2, captured 2, dropped 0")
    done = subprocess.run(list(map(str, started)), input=first.tobytes() + b"part", capture_output=True, check=False)
    assert done.returncode == 0 and b"a part of a frame at the end was left out" in done.stderr
    few = subprocess.run(
        list(map(str, [*started, "--frames", 1, "--every-frame", "on"])),
        input=frames(3).tobytes(),
        capture_output=True,
        check=False,
    )
    assert few.returncode == 0 and few.stdout.count(b"\n") == 1


@pytest.mark.parametrize("integrated", [False, True])
def test_where_memory_is_shared_frames_and_labels_are_not_copied(
    stream: Path, files: dict[str, Path], tmp_path: Path, integrated: bool
) -> None:
    frames(2).tofile(tmp_path / "raw")
    told = {**os.environ, "STAND_IN_CALLS": "1", **({"STAND_IN_INTEGRATED": "1"} if integrated else {})}
    done = run(*command(stream, files, input=tmp_path / "raw", every_frame="on"), env=told)
    assert done.returncode == 0
    calls = [line.removeprefix("call ") for line in done.stderr.splitlines() if line.startswith("call ")]
    runs = 3  # with the one that warms up; the words go up before
    assert calls.count("up") == (0 if integrated else runs + 1)
    assert calls.count("down") == (0 if integrated else runs)
    assert calls.count("malloc-mapped") == (3 if integrated else 0)
    assert calls.count("malloc") == (2 if integrated else 5)  # images and logits inside
    assert calls.count("malloc-host") == (1 if integrated else 4)  # logits, which the certainty is computed of


def test_what_is_wrong_is_said_in_one_line(stream: Path, files: dict[str, Path], tmp_path: Path) -> None:
    assert run(stream, "--help").stdout.startswith("usage: ovsdino_stream")
    (tmp_path / "short").write_bytes(b"short")
    assert "no whole frame came: 5 bytes of 4608" in refused(*command(stream, files, input=tmp_path / "short"))
    assert "cannot read" in refused(*command(stream, files, input=tmp_path / "none"))
    for options, words in (
        ({"size": "63x48"}, "NV12 has an even width"),
        ({"format": "yuyv"}, "expected rgb or nv12"),
        ({"deadline_ms": 0}, "--deadline-ms is"),
        ({"fps": 3}, "unknown option --fps"),
    ):
        assert words in refused(*command(stream, files, **options))


def headers() -> list[object]:
    real = os.environ.get("OVSDINO_TENSORRT_INCLUDE")
    why = "OVSDINO_TENSORRT_INCLUDE names no folder of TensorRT's headers"
    return [
        pytest.param(STAND_IN, RTX, id="TensorRT-RTX"),
        pytest.param(Path(real or "/"), [], id="NVIDIA's headers", marks=pytest.mark.skipif(not real, reason=why)),
    ]


@pytest.mark.parametrize("include, options", headers())
def test_the_other_form_of_the_api_compiles(include: Path, options: list[str]) -> None:
    done = run(*compiler(*options, headers=include), "-fsyntax-only", SOURCE / "graph_tensorrt.cpp")
    assert done.returncode == 0, done.stderr[-3000:]
