"""The C++ library: built here without any runtime; its reader, preprocessing and labels against the Python ones.

With ONNX Runtime's C header and library below CMAKE_PREFIX_PATH the program itself is built and compared too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.deploy.export.publish import publish
from ovsdino.edge.bank import TextBank
from ovsdino.edge.labels import leave_out_unfound, sure_shares, upsample_argmax
from ovsdino.edge.pixels import nv12_to_rgb, preprocess
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.edge.sidecar import Sidecar, sidecar_path
from tests.support import cpp, tiny
from tests.support.cpp import build, configure, refused, run
from tests.support.graphs import exported

pytestmark = cpp.NEEDS_A_COMPILER


def test_the_reader_finds_names_and_shape(programs: Path, tmp_path: Path) -> None:
    names = ('Straße "A"', "voiture 🚗", "back\\slash")
    tiny.bank(*names, weights="ab" * 32).save(tmp_path / "bank")
    done = run(programs / "ovsdino_check", "bank", tmp_path / "bank")
    assert done.returncode == 0 and done.stdout.splitlines() == [f"tiny {'ab' * 32} (3, 3)", *names]
    data = (tmp_path / "bank").read_bytes()
    escaped = data.decode("latin-1").encode("latin-1").replace("🚗".encode(), rb"\\ud83d\\ude97")
    length = int.from_bytes(data[:8], "little") + len(escaped) - len(data)
    (tmp_path / "bank").write_bytes(length.to_bytes(8, "little") + escaped[8:])
    assert TextBank.load(tmp_path / "bank").names == names
    assert run(programs / "ovsdino_check", "bank", tmp_path / "bank").stdout.splitlines()[1:] == list(names)


def grouped_bank(counts: tuple[int, ...], contrast: int, seed: int = 0, weights: str = tiny.WEIGHTS) -> TextBank:
    """A bank of classes with so many words each, and so many contrast rows."""
    names = tuple(f"class {number}" for number in range(len(counts)))
    words = tiny.bank(*map(str, range(sum(counts))), seed=seed).text
    others = tiny.bank(*map(str, range(contrast)), seed=seed + 1).text if contrast else None
    return TextBank(names=names, text=words, model="tiny", weights=weights, words=counts, contrast=others)


@pytest.mark.parametrize("counts, contrast", [((1, 3, 2), 4), ((2, 1), 0), ((1, 1, 1), 5)])
def test_the_reader_pads_words_and_finds_contrast_rows(
    programs: Path, tmp_path: Path, counts: tuple[int, ...], contrast: int
) -> None:
    bank = grouped_bank(counts, contrast)
    bank.save(tmp_path / "bank")
    done = run(programs / "ovsdino_check", "bank", tmp_path / "bank")
    assert done.returncode == 0, done.stderr
    *_, words, others, padded = done.stdout.splitlines()
    assert words == "words " + " ".join(map(str, counts)) and others == f"contrast {contrast}"
    assert np.array_equal(np.array(padded.split()[1:], np.float32), bank.padded().ravel())


def bank_file(header: object, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ROWS = np.array([[1, 0, 0], [0, 0.6, 0.8]], np.float32).tobytes()
METADATA = {"format": "1", "names": '["road", "car"]', "model": "nano", "weights": "ab"}
TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def header(metadata: dict[str, object] | None = None, **tensor: object) -> dict[str, object]:
    return {"__metadata__": {**METADATA, **(metadata or {})}, "text": {**TENSOR, **tensor}}


ONE_ROW = {"dtype": "F32", "shape": [1, 3], "data_offsets": [24, 36]}


def grouped_header(**contrast: object) -> dict[str, object]:
    return {**header({"format": "2", "words": "[]"}), "contrast": {**ONE_ROW, **contrast}}


MALFORMED = {
    "empty": b"",
    "short": b"\x01\x00",
    "huge header": b"\xff" * 8 + b"{}",
    "header past the end": (1000).to_bytes(8, "little") + b"{}",
    "no JSON": bank_file("{", ROWS),
    "deep JSON": bank_file("[" * 100000, ROWS),
    "half a surrogate": bank_file('{"\\ud800": 1}', ROWS),
    "a name twice": bank_file('{"text": 1, "text": 2}', ROWS),
    "no UTF-8": bank_file(header({"model": "xx"}), ROWS).replace(b"xx", b"\xc0\xaf"),
    "newline in a field": bank_file(header({"format": "1\n2"}), ROWS),
    "control character": bank_file('{"te\nxt": 1}', ROWS),
    "a list": bank_file([1, 2], ROWS),
    "no metadata": bank_file({"text": TENSOR}, ROWS),
    "two tensors": bank_file({**header(), "other": TENSOR}, ROWS),
    "format": bank_file(header({"format": "3"}), ROWS),
    "contrast in format 1": bank_file({**header(), "contrast": ONE_ROW}, ROWS + ROWS[:12]),
    "contrast over the words": bank_file(grouped_header(data_offsets=[0, 12]), ROWS),
    "contrast after a gap": bank_file(grouped_header(data_offsets=[28, 40]), ROWS + bytes(4) + ROWS[:12]),
    "contrast of another width": bank_file(grouped_header(shape=[1, 2], data_offsets=[24, 32]), ROWS + ROWS[:8]),
    "contrast not of length one": bank_file(grouped_header(), ROWS + bytes(12)),
    "too few words": bank_file(header({"format": "2", "words": "[1]"}), ROWS),
    "too many words": bank_file(header({"format": "2", "words": "[2, 1]"}), ROWS),
    "no words": bank_file(header({"format": "2", "words": "[2, 0]"}), ROWS),
    "words without end": bank_file(header({"format": "2", "words": "[1, 9007199254740992]"}), ROWS),
    "dtype": bank_file(header(dtype="F16"), ROWS),
    "rank": bank_file(header(shape=[6]), ROWS),
    "negative": bank_file(header(shape=[-2, -3]), ROWS),
    "no rows": bank_file(header(shape=[0, 3], data_offsets=[0, 0]), b""),
    "overflow": bank_file(header(shape=[4294967296, 4294967296]), ROWS),
    "fraction": bank_file(header(shape=[2.5, 3]), ROWS),
    "large number": bank_file(header(shape=[1e308, 1e308]), ROWS),
    "offset": bank_file(header(data_offsets=[4, 28]), ROWS),
    "cut data": bank_file(header(), ROWS[:-1]),
    "more data": bank_file(header(), ROWS + b"\0"),
    "names no list": bank_file(header({"names": "{}"}), ROWS),
    "names no text": bank_file(header({"names": "[1, 2]"}), ROWS),
    "name count": bank_file(header({"names": '["a"]'}), ROWS),
    "not of length one": bank_file(header(), np.full(6, 2, np.float32).tobytes()),
    "not a number": bank_file(header(), np.full(6, np.nan, np.float32).tobytes()),
}


def test_malformed_banks_are_refused_in_one_line(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bank"
    path.write_bytes(bank_file(header(), ROWS))
    assert run(programs / "ovsdino_check", "bank", path).returncode == 0
    for name, data in MALFORMED.items():
        path.write_bytes(data)
        line = refused(programs / "ovsdino_check", "bank", path)
        assert str(path) in line and "not a text bank" in line, name
    assert "No such file" in refused(programs / "ovsdino_check", "bank", tmp_path / "none")
    assert "not a regular file" in refused(programs / "ovsdino_check", "bank", tmp_path)


def test_a_bank_with_changed_bytes_is_read_or_refused(programs: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    good = bank_file(header(), ROWS)
    path = tmp_path / "bank"
    for _ in range(100):
        data = bytearray(good)
        for _ in range(generator.integers(1, 4)):
            data[generator.integers(len(data))] = generator.integers(256)
        path.write_bytes(data)
        done = run(programs / "ovsdino_check", "bank", path)
        assert done.returncode == 0 or (done.returncode == 2 and done.stderr.startswith("error: ")), bytes(data)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 1000])
def test_sha256(programs: Path, tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert (
        run(programs / "ovsdino_check", "sha256", tmp_path / "file").stdout.strip() == hashlib.sha256(data).hexdigest()
    )


@pytest.mark.parametrize("source", [(72, 96), (36, 48), (37, 53), (30, 20), (5, 1), (1, 1)])
def test_preprocess_is_that_of_the_python_runtime(programs: Path, tmp_path: Path, source: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.ppm")
    for size in ((36, 48), (20, 31), (1, 1), (90, 7)):
        done = run(programs / "ovsdino_check", "preprocess", tmp_path / "image.ppm", *size, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        out = np.fromfile(tmp_path / "out", np.float32).reshape(3, *size)
        assert np.array_equal(out, preprocess(image, size, (0.5,) * 3, (0.25,) * 3))


def test_nv12_is_the_rgb_of_the_python_runtime_byte_for_byte(programs: Path, tmp_path: Path) -> None:
    """Every pair of levels of luma and each chroma, and their combinations at random."""
    frame = np.random.default_rng(0).integers(0, 256, (768, 512), dtype=np.uint8)
    frame[:256].reshape(-1)[:] = np.arange(256 * 512) // 2 % 256
    frame[512:, 0::2], frame[512:, 1::2] = np.arange(256)[:, None], np.arange(256)
    frame.tofile(tmp_path / "frame")
    done = run(programs / "ovsdino_check", "nv12", tmp_path / "frame", 512, 512, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.fromfile(tmp_path / "out", np.uint8).reshape(512, 512, 3), nv12_to_rgb(frame))
    assert "NV12 has an even width" in refused(
        programs / "ovsdino_check", "nv12", tmp_path / "frame", 511, 512, tmp_path / "out"
    )


@pytest.mark.parametrize("classes, threshold", [(5, None), (5, 0.4), (300, None), (255, 0.1), (256, 0.1)])
def test_labels_are_those_of_the_python_runtime(
    programs: Path, tmp_path: Path, classes: int, threshold: float | None
) -> None:
    logits = np.random.default_rng(0).standard_normal((classes, 6, 8)).astype(np.float32)
    logits.tofile(tmp_path / "logits")
    arguments = [tmp_path / "logits", classes, 6, 8, 48, 60, tmp_path / "out.pgm"]
    done = run(programs / "ovsdino_check", "labels", *arguments, *([] if threshold is None else [threshold]))
    assert done.returncode == 0, done.stderr
    found = np.asarray(Image.open(tmp_path / "out.pgm"))
    assert np.array_equal(found, upsample_argmax(logits, (48, 60), threshold)[0])


@pytest.mark.parametrize("share, certainty", [(0.0, 0.5), (0.01, 0.5), (0.0, 0.8), (0.001, 0.9), (0.001, 0.999)])
def test_found_words_are_those_of_the_python_runtime(
    programs: Path, tmp_path: Path, share: float, certainty: float
) -> None:
    logits = np.random.default_rng(0).standard_normal((30, 9, 12)).astype(np.float32)
    logits[-1] += 1.5  # the contrast
    logits.tofile(tmp_path / "logits")
    arguments = [tmp_path / "logits", 30, 9, 12, 48, 60, tmp_path / "out.pgm", share, certainty]
    done = run(programs / "ovsdino_check", "found", *arguments)
    assert done.returncode == 0, done.stderr
    labels = upsample_argmax(logits, (48, 60))[0]
    kept = leave_out_unfound(labels, 29, share, sure_shares(logits, certainty))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.pgm")), labels)
    assert certainty > 0.99 or kept.any()
    assert share == 0 or not kept.all()


def test_a_bad_image_is_refused_in_one_line(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.ppm"
    for data, words in (
        (b"", "not a binary PPM"),
        (b"P5\n1 1\n255\n\0", "not a binary PPM"),
        (b"P6\n", "damaged PPM header"),
        (b"P6 # a comment\n2 1\n255\n" + bytes(5), "expected"),
        (b"P6\n0 1\n255\n", "expected 1 to"),
        (b"P6\n999999999 999999999\n255\n", "expected 1 to"),
        (b"P6\n1 1\n65535\n" + bytes(6), "levels"),
    ):
        path.write_bytes(data)
        assert words in refused(programs / "ovsdino_check", "preprocess", path, 2, 2, tmp_path / "out")


def test_the_program_says_in_one_line_what_is_wrong(programs: Path, tmp_path: Path) -> None:
    segment = programs / "ovsdino_segment"
    assert run(segment, "--help").stdout.startswith("usage: ovsdino_segment")
    tiny.bank("road", "car").save(tmp_path / "bank")
    model = tiny.graph(tmp_path / "tiny.onnx")
    Image.new("RGB", (8, 6)).save(tmp_path / "image.ppm")
    files = {"--model": model, "--bank": tmp_path / "bank", "--image": tmp_path / "image.ppm"}
    files["--output"] = tmp_path / "labels.pgm"

    def line(**changes: object) -> str:
        given = {**files, **{f"--{name}": value for name, value in changes.items()}}
        return refused(segment, *(x for pair in given.items() for x in pair))

    assert "built without a runtime for onnx" in line()
    assert "--bank is missing" in refused(segment)
    assert "unknown option --models" in line(models=1)
    assert 'threads is "0"' in line(threads=0) and "--background is" in line(background="x")
    assert "expected 0 to 1" in line(background=1.5)
    assert "None.json: cannot read" in line(model=tmp_path / "None")
    tiny.bank("road", weights="1" * 64).save(tmp_path / "other")
    assert "made for other weights" in line(bank=tmp_path / "other")
    tiny.bank("road", columns=4).save(tmp_path / "other")
    assert "4 columns" in line(bank=tmp_path / "other")
    tiny.bank(*map(str, range(301))).save(tmp_path / "other")
    assert "takes 1..300" in line(bank=tmp_path / "other")
    grouped_bank((1, 2), 3).save(tmp_path / "other")
    assert "2 words a class and 3 contrast rows, tiny.onnx takes one row a class" in line(bank=tmp_path / "other")
    assert '--partition is "yes"' in line(partition="yes") and "--least-share is" in line(**{"least-share": 2})
    assert "least_certainty is 1.0" in line(**{"least-certainty": 1})
    sidecar = sidecar_path(model).read_text()
    for field, value in (("mean", [1e9, 0, 0]), ("std", [1e-30] * 3)):
        sidecar_path(model).write_text(json.dumps({**json.loads(sidecar), field: value}))
        assert f"not a sidecar: {field} is not within" in line()
    sidecar_path(model).write_text("{}")
    assert "not a sidecar" in line()


@pytest.mark.parametrize("runtime", ["ONNXRUNTIME", "TENSORRT"])
def test_a_runtime_asked_for_and_missing_is_fatal(tmp_path: Path, runtime: str) -> None:
    done = configure(tmp_path, f"-DOVSDINO_WITH_{runtime}=ON", "-DCMAKE_FIND_ROOT_PATH=/nowhere", *FIND_NOTHING)
    assert done.returncode != 0 and f"OVSDINO_WITH_{runtime}" in done.stderr and "not found" in done.stderr


FIND_NOTHING = [f"-DCMAKE_FIND_ROOT_PATH_MODE_{kind}=ONLY" for kind in ("INCLUDE", "LIBRARY")]


def test_labels_through_onnx_runtime_are_those_of_python(tmp_path: Path) -> None:
    if configure(tmp_path / "build", "-DOVSDINO_WITH_ONNXRUNTIME=ON").returncode != 0:
        pytest.skip("ONNX Runtime's C header and library are not below CMAKE_PREFIX_PATH")
    segment = build(tmp_path / "build", "-DOVSDINO_WITH_ONNXRUNTIME=ON") / "ovsdino_segment"
    model = tiny.graph(tmp_path / "tiny.onnx")
    bank = tiny.bank("road", "car", "sky")
    bank.save(tmp_path / "bank")
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((128, 96)))
    (tmp_path / "image.rgb").write_bytes(image.tobytes())
    command = [segment, "--model", model, "--bank", tmp_path / "bank", "--image", tmp_path / "image.rgb"]
    command += ["--size", "128x96", "--output", tmp_path / "out.pgm", "--threads", "1"]
    for threshold in (None, 0.5):
        done = run(*command, *([] if threshold is None else ["--background", threshold]))
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
            "load",
            "preprocess",
            "encode",
            "postprocess",
        ]
        expected = EdgeSegmenter(model, bank, threads=1, background=threshold).segment(image).labels
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out.pgm")), expected)
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert "changed since it was exported" in refused(*command)
    assert os.path.getsize(tmp_path / "out.pgm") > 128 * 96


def test_groups_of_rows_through_onnx_runtime_give_the_labels_of_python(tmp_path: Path) -> None:
    """Several words a class, the contrast's pixels, words that are not found, a partition, and a threshold."""
    if configure(tmp_path / "build", "-DOVSDINO_WITH_ONNXRUNTIME=ON").returncode != 0:
        pytest.skip("ONNX Runtime's C header and library are not below CMAKE_PREFIX_PATH")
    segment = build(tmp_path / "build", "-DOVSDINO_WITH_ONNXRUNTIME=ON") / "ovsdino_segment"
    model = tmp_path / "small.onnx"
    publish(model, exported(grouped=True, classes=(1, 40)))
    facts = Sidecar.load(model)
    rows = np.random.default_rng(0).standard_normal((37, facts.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    words, contrast = (1, 3, 2, *[1] * 26), rows[32:]
    names = tuple(f"class {number}" for number in range(len(words)))
    bank = TextBank(
        names=names, text=rows[:32], model=facts.model, weights=facts.weights, words=words, contrast=contrast
    )
    bank.save(tmp_path / "bank")
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    (tmp_path / "image.rgb").write_bytes(image.tobytes())
    command = [segment, "--model", model, "--bank", tmp_path / "bank", "--image", tmp_path / "image.rgb"]
    command += ["--size", "80x48", "--output", tmp_path / "out.pgm", "--threads", "1"]
    for options in (
        {},
        {"least_share": 0, "least_certainty": 0},
        {"least_share": 0.02, "least_certainty": 0.6},
        {"partition": True},
        {"background": 0.3, "least_certainty": 0.5},
    ):
        given = {f"--{name.replace('_', '-')}": "on" if value is True else value for name, value in options.items()}
        done = run(*command, *(part for pair in given.items() for part in pair))
        assert done.returncode == 0, done.stderr
        with EdgeSegmenter(model, bank, threads=1, **options) as edge:  # type: ignore[arg-type]
            expected = edge.segment(image)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out.pgm")), expected.labels), options
        missing = [line.removeprefix("not found: ") for line in done.stdout.splitlines() if "not found" in line]
        assert missing == [name for name, there in zip(names, expected.found, strict=True) if not there] or (
            options == {"partition": True} and not missing
        )
    assert expected.background and any(expected.found)
