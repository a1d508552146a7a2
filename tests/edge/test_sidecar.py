"""The sidecar: its fields, and the files that it refuses before anything is deserialized."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovsdino.edge.sidecar import GRAPH_KEY, Sidecar, sidecar_path
from ovsdino.errors import OVSDinoError
from ovsdino.models.weights import weights_digest
from ovsdino.models.zoo import build_model

ENGINE = Sidecar(
    kind="engine",
    file="nano.engine",
    sha256=hashlib.sha256(b"engine").hexdigest(),
    bytes=6,
    model="nano",
    precision="float16",
    backend="tensorrt",
    version="10.3.0",
    target="sm87",
    input=(1, 3, 352, 464),
    classes=(1, 256),
    embed_dim=192,
    stride=3.5,
    mean=(0.5, 0.25, 0.125),
    std=(1.0, 2.0, 4.0),
    short_side=352,
    patch_size=14,
    weights="ab" * 32,
    verified={"cosine": 0.9999, "label_agreement": 0.999, "images": 20},
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "nano.engine"
    path.write_bytes(b"engine")
    ENGINE.save(path)
    return path


def test_what_is_saved_is_what_is_loaded(engine: Path) -> None:
    loaded = Sidecar.load(engine)
    assert sidecar_path(engine).name == "nano.engine.json"
    assert loaded == ENGINE
    assert loaded.read(engine) == b"engine"
    loaded.check_runtime("tensorrt", "10.3.0.30", "sm87")
    loaded.check_bank(["road", "sky"], (2, 192), "ab" * 32)
    assert sorted(engine.parent.iterdir()) == [engine, sidecar_path(engine)]


def test_describes_other_data() -> None:
    copied = ENGINE.describing(b"onnx!", kind="onnx", backend="onnx")
    assert (copied.bytes, copied.kind) == (5, "onnx")
    assert copied.sha256 == hashlib.sha256(b"onnx!").hexdigest()
    copied.check_runtime("onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the sidecar is missing"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format is None"),
        ('{"format": 2}', "format is 2, this version reads 1"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_refuses_a_sidecar_that_is_none(engine: Path, content: str | None, message: str) -> None:
    if content is None:
        sidecar_path(engine).unlink()
    else:
        sidecar_path(engine).write_text(content)
    with pytest.raises(OVSDinoError, match=message) as caught:
        Sidecar.load(engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", "6"),
        ("bytes", -1),
        ("sha256", 5),
        ("input", [1, 3, 352]),
        ("input", [1, 3, 352, 1.5]),
        ("classes", None),
        ("mean", [1, "x", 2]),
        ("kind", "pickle"),
        ("backend", "cuda"),
        ("verified", 1),
        ("surprise", 1),
    ],
)
def test_refuses_a_damaged_field(engine: Path, field: str, value: Any) -> None:
    data = json.loads(sidecar_path(engine).read_text())
    data[field] = value
    sidecar_path(engine).write_text(json.dumps(data))
    with pytest.raises(OVSDinoError, match="damaged"):
        Sidecar.load(engine)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "kind": ["onnx", 1],
        "file": ["", "../x", "a/b", 5],
        "sha256": ["", "0" * 63, "A" * 64],
        "bytes": [0, 1 << 50, True],
        "model": ["", " ", "a\nb", 5],
        "precision": ["x", "int8", ""],
        "backend": ["onnx", "x"],
        "version": ["", "x", "10"],
        "target": ["", "any", "sm", "sm87,"],
        "input": [[0, 3, 352, 464], [1, 1, 352, 464], [10**9, 3, 352, 464], [1, 3, 352, 10**9], [1, 3, True, 464]],
        "classes": [[0, 5], [5, 1], [1, 10**9]],
        "embed_dim": [0, 10**9, 1.5],
        "stride": [0, -1, 8.0, "x", 1e308, math.nan, math.inf, 10**400, None],
        "mean": [[1e9, 0, 0], [math.nan] * 3, [-0.1, 0, 0], [10**400, 0, 0], [0, 0]],
        "std": [[0, 1, 1], [-1, -1, -1], [1e-30] * 3, [math.inf] * 3, [math.nan] * 3],
        "short_side": [0, 10**9],
        "patch_size": [0, 16, 10**9],
        "weights": ["", "x" * 64],
        "verified": [{}, {"cosine": -1}, {"cosine": 2, "label_agreement": 1, "images": 1}, 5, []],
        "quantised": [True, {}, "x", [1]],
        "format": [2, "1", None, True],
    }.items(),
)
def test_no_field_is_believed_outside_its_range(engine: Path, field: str, values: list[Any]) -> None:
    data = json.loads(sidecar_path(engine).read_text())
    for value in values:
        sidecar_path(engine).write_text(json.dumps({**data, field: value}))
        with pytest.raises(OVSDinoError, match=field) as caught:
            Sidecar.load(engine)
        assert "python deploy/export_trt.py --model" in str(caught.value) and "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_damaged_sidecars_are_one_line(engine: Path) -> None:
    whole, random = sidecar_path(engine).read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        sidecar_path(engine).write_bytes(data[: random.integers(1, len(data) + 1)] if random.random() < 0.3 else data)
        try:
            Sidecar.load(engine)
        except OVSDinoError as error:
            assert "\n" not in str(error)


def test_a_file_and_its_sidecar_may_be_renamed_together(engine: Path) -> None:
    other = engine.rename(engine.with_name("other.engine"))
    sidecar_path(engine).rename(sidecar_path(other))
    assert Sidecar.load(other).file == "other.engine"
    Sidecar.load(other).read(other)


def test_a_graph_tells_what_it_is_and_the_sidecar_must_agree() -> None:
    told = {GRAPH_KEY: json.dumps(ENGINE.facts())}
    ENGINE.check_graph(told)
    ENGINE.check_graph({})  # exported by an earlier version
    for field, value in {"mean": (0.25, 0.5, 0.125), "model": "b14", "classes": (1, 3), "short_side": 350}.items():
        with pytest.raises(OVSDinoError, match=f"its sidecar says {field} is .*; export it again"):
            dataclasses.replace(ENGINE, **{field: value}).check_graph(told)
    for damaged in ("", "[]", "{", "5"):
        if damaged != "[]":
            with pytest.raises(OVSDinoError, match="not a readable graph"):
                ENGINE.check_graph({GRAPH_KEY: damaged})


def test_refuses_a_bank_of_another_model() -> None:
    ENGINE.check_bank(["a"], (1, 192), "ab" * 32, "nano")
    with pytest.raises(OVSDinoError, match=r"made for b14, the sidecar of nano.engine says nano"):
        ENGINE.check_bank(["a"], (1, 192), "ab" * 32, "b14")


def test_refuses_a_file_that_was_changed(engine: Path) -> None:
    engine.write_bytes(b"enginE")
    with pytest.raises(OVSDinoError, match="changed since it was exported"):
        ENGINE.read(engine)
    engine.write_bytes(b"engin")
    with pytest.raises(OVSDinoError, match="5 bytes, its sidecar says 6"):
        ENGINE.read(engine)
    engine.unlink()
    with pytest.raises(OVSDinoError, match="no such file"):
        ENGINE.read(engine)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (("onnx", "", ""), "made for tensorrt, not for onnx"),
        (("tensorrt_rtx", "10.3.0", "sm87"), "made for tensorrt, not for tensorrt_rtx"),
        (("tensorrt", "10.3.1", "sm87"), "built by tensorrt 10.3.0, this machine has 10.3.1"),
        (("tensorrt", "", "sm87"), "this machine has none"),
        (("tensorrt", "10.3.0.30", "sm86"), "built for sm87, this device is sm86"),
        (("tensorrt", "10.3.0.30", "sm8"), "built for sm87, this device is sm8;"),
    ],
)
def test_refuses_another_machine(runtime: tuple[str, str, str], message: str) -> None:
    with pytest.raises(OVSDinoError, match=message):
        ENGINE.check_runtime(*runtime)


def test_an_engine_for_several_targets_runs_on_each() -> None:
    several = dataclasses.replace(ENGINE, backend="tensorrt_rtx", target="sm80,sm86")
    several.check_runtime("tensorrt_rtx", "10.3.0", "sm80")
    several.check_runtime("tensorrt_rtx", "10.3.0", "sm86")
    with pytest.raises(OVSDinoError, match="built for sm80,sm86, this device is sm89"):
        several.check_runtime("tensorrt_rtx", "10.3.0", "sm89")


@pytest.mark.parametrize(
    ("names", "shape", "weights", "message"),
    [
        (["a"], (2, 192), "ab" * 32, "1 names for an array of shape"),
        (["a"], (1, 384), "ab" * 32, "384 columns, nano.engine .nano. takes 192"),
        (["a"] * 257, (257, 192), "ab" * 32, "257 classes, nano.engine takes 1..256"),
        (["a"], (1, 192), "cd" * 32, "made for other weights"),
    ],
)
def test_refuses_another_bank(names: list[str], shape: tuple[int, int], weights: str, message: str) -> None:
    with pytest.raises(OVSDinoError, match=message):
        ENGINE.check_bank(names, shape, weights)


def test_the_digest_is_that_of_the_image_side_only() -> None:
    model = build_model("nano")
    before = weights_digest(model)
    with torch.no_grad():
        next(model.text_tower.parameters()).add_(1.0)
    assert weights_digest(model) == before
    with torch.no_grad():
        model.log_scale.add_(1.0)
    assert weights_digest(model) != before


def test_the_digest_sees_names_types_and_shapes() -> None:
    def of(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    digests = {
        of(a=torch.zeros(4)),
        of(b=torch.zeros(4)),
        of(a=torch.zeros(2, 2)),
        of(a=torch.zeros(4, dtype=torch.int32)),
        of(a=torch.zeros(8, dtype=torch.bfloat16)),
        of(a=torch.ones(4)),
    }
    assert len(digests) == 6
    assert of(a=torch.zeros(4).expand(4, 4).T) == of(a=torch.zeros(4, 4))
