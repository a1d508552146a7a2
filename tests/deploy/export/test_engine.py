"""Engines really built by TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest
import torch
from onnx import helper

from ovsdino.deploy.export.engine import build_engine, int8_linears
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.tensorrt_api import Layer
from ovsdino.deploy.quantization.job import quantize_file
from ovsdino.deploy.quantization.options import QuantizeOptions
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from tests.support.block import pictures
from tests.support.small import small_model


def test_an_engine_for_two_gpus_and_its_sidecar(rtx: ModuleType, small: Path, tmp_path: Path) -> None:
    path, layers = tmp_path / "small.engine", tmp_path / "layers.json"
    settings = BuildOptions(backend="tensorrt_rtx", target="sm86,sm89", workspace=256, effort=1, layers=layers)
    built, seconds = build_engine(Exported.read(small), settings)
    assert seconds > 0
    sidecar = publish(path, built)
    assert sidecar.read(path) == built.data
    sidecar.check_runtime("tensorrt_rtx", rtx.__version__, "sm89")
    with pytest.raises(OVSDinoError, match="built for sm86,sm89, this device is sm87"):
        sidecar.check_runtime("tensorrt_rtx", rtx.__version__, "sm87")
    before = Sidecar.load(small)
    assert (sidecar.kind, sidecar.weights, sidecar.classes) == ("engine", before.weights, (1, 40))
    assert Sidecar.load(path) == sidecar and sidecar.file == "small.engine"
    told = json.loads(layers.read_text())
    # A head size of 16 is the smallest that TensorRT fuses, with 16-wide values; the ViT's two, the SMD's one, and that
    # on the scores.
    assert set(told["attention"]["fused"] + told["attention"]["apart"]) == {
        "backbone.vit.blocks.0.attn/Softmax",
        "backbone.vit.blocks.1.attn/Softmax",
        "decoder.smd.blocks.0/Softmax",
        "decoder.score_attention/Softmax",
    }
    assert any("backbone.vit.blocks.0.mlp.fc1/MatMul" in layer["nodes"] for layer in told["layers"])


def test_linears_count_as_int8_where_their_product_reads_int8() -> None:
    nodes = [
        *(helper.make_node("DequantizeLinear", [f"{name}_int8", "scale"], [name]) for name in ("x", "q", "k", "v")),
        *(helper.make_node("MatMul", ["x", name], [f"x{name}"], name=f"{name}/MatMul") for name in ("q", "k", "v")),
        helper.make_node("MatMul", ["xq", "xk"], ["scores"], name="attention/MatMul"),
    ]
    graph = helper.make_model(helper.make_graph(nodes, "linears", [], []))
    layers = [
        Layer(name="one", kind="gemm", nodes=("q/MatMul", "x_dq"), reads=("Int8",)),
        Layer(name="two", kind="kgen", nodes=("q/MatMul", "k/MatMul"), reads=("Int8",)),  # makes its floats
        Layer(name="three", kind="gemm", nodes=("k/MatMul", "attention/MatMul"), reads=("Half", "Half")),
    ]
    assert int8_linears(graph, layers) == (["q/MatMul"], ["k/MatMul", "v/MatMul"])


def test_every_quantized_linear_of_a_vit_is_int8_in_the_engine(rtx: ModuleType, small: Path, tmp_path: Path) -> None:
    int8 = tmp_path / "int8.onnx"
    images = pictures(tmp_path / "images", 2)
    quantize_file(QuantizeOptions(input=small, output=int8, calibration=images, threads=1, least_agreement=0.0))
    built, _ = build_engine(Exported.read(int8), BuildOptions(backend="tensorrt_rtx", target="sm86", effort=1))
    found = built.sidecar.quantised
    assert isinstance(found, dict) and found["float_in_engine"] == []
    assert found["int8_in_engine"] == found["linears"] > 2 * 6  # two blocks of q, k, v, proj, fc1, fc2, and more


@pytest.mark.parametrize("batch", [1, 2])
def test_a_dynamic_batch_is_free(small: Path, batch: int) -> None:
    image, text = torch.randn(batch, 3, 48, 80), torch.nn.functional.normalize(torch.randn(5, 32), dim=-1)
    with torch.no_grad():
        expected = small_model()(image, text)
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": image.numpy(), "text": text.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.01, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timing_cache": Path("cache.bin")}, "tensorrt_rtx times nothing while it builds"),
        ({"dla": 0}, "no DLA core; leave out --dla"),
        ({"workspace": -1}, "workspace is -1: expected 0 to"),
        ({"effort": 9}, "effort is 9: expected 0 to 5"),
        ({"target": "sm87"}, "has no target sm87"),
    ],
)
def test_settings_that_cannot_be(rtx: ModuleType, small: Path, settings: dict[str, Any], message: str) -> None:
    asked = BuildOptions(**{"backend": "tensorrt_rtx", "target": "sm86", **settings})
    with pytest.raises(OVSDinoError, match=message):
        build_engine(Exported.read(small), asked)
