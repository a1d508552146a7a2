"""The configurations for Triton and DeepStream against the graphs that they are for; neither server runs here."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovsdino.deploy.export.bake import bake
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.trace import default_size, export_graph
from ovsdino.edge import TextBank
from ovsdino.edge.onnx_graph import open_session
from ovsdino.models.catalog import get_config
from tests.support.graphs import exported
from tests.support.small import SIZE, small_model

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_UINT8": "tensor(uint8)"}


@pytest.fixture(scope="module")
def small() -> Exported:
    return export_graph(small_model(), **SIZE, batch=(1, 4), classes=(1, 40), contrast=False)


def words(exported: Exported) -> TextBank:
    rows = np.eye(3, exported.sidecar.embed_dim, dtype=np.float32)
    return TextBank(names=("road", "car", "sky"), text=rows, model="small", weights=exported.sidecar.weights)


def parsed(name: str) -> Any:
    """A model's configuration, by the server's own message."""
    messages = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs tritonclient and grpcio", exc_type=ImportError
    )
    text_format = pytest.importorskip("google.protobuf.text_format")
    config = messages.ModelConfig()
    text_format.Parse((DEPLOY / "triton" / "models" / name / "config.pbtxt").read_text(), config)
    assert config.name == name
    return config


def tensors(config: Any) -> dict[str, tuple[str, list[int]]]:
    kinds = config.DESCRIPTOR.fields_by_name["input"].message_type.fields_by_name["data_type"].enum_type
    return {
        one.name: (TYPES[kinds.values_by_number[one.data_type].name], list(one.dims))
        for one in (*config.input, *config.output)
    }


def of_graph(exported: Exported, *, batched: bool) -> dict[str, tuple[str, list[int]]]:
    """The graph's tensors as a configuration has them: -1 for a free side, without the batch that Triton forms."""
    session = open_session(exported.data, "graph")
    return {
        one.name: (one.type, [side if isinstance(side, int) else -1 for side in one.shape][1 if batched else 0 :])
        for one in (*session.get_inputs(), *session.get_outputs())
    }


def resized(found: dict[str, tuple[str, list[int]]], old: tuple[int, int], new: tuple[int, int], dim: int) -> dict:
    """The same tensors for nano's sizes in place of the small model's."""
    sides = {old[0]: new[0], old[1]: new[1], old[0] // 4: new[0] // 4, old[1] // 4: new[1] // 4, 32: dim}
    return {name: (kind, [sides.get(side, side) for side in shape]) for name, (kind, shape) in found.items()}


def test_triton_takes_the_graph_with_the_words_inside(small: Exported) -> None:
    config = parsed("ovsdino_labels")
    assert config.max_batch_size == small.sidecar.input[0] == 4
    baked = bake(small, words(small), output="labels", layout="nhwc")
    expected = resized(of_graph(baked, batched=True), (48, 80), default_size(get_config("nano")), 256)
    assert tensors(config) == expected


def test_triton_takes_the_graph_with_two_inputs() -> None:
    config = parsed("ovsdino")
    assert config.max_batch_size == 0
    single = exported(grouped=True, classes=(1, 40), contrast=False)
    nano = get_config("nano")
    assert tensors(config) == resized(of_graph(single, batched=False), (48, 80), default_size(nano), nano.embed_dim)


def test_the_client_asks_for_what_the_graph_gives(small: Exported) -> None:
    for module in ("geventhttpclient", "tritonclient.http"):
        pytest.importorskip(module, reason="needs tritonclient[http]", exc_type=ImportError)
    from ovsdino.deploy.triton.client import segment

    session = open_session(bake(small, words(small), output="labels", layout="nhwc").data, "graph")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)

    class Server:
        """ONNX Runtime behind the client's call, with the bytes that would be sent."""

        def infer(self, model: str, inputs: list[Any], outputs: list[Any]) -> Any:
            (image,) = inputs
            assert model == "ovsdino_labels" and [one.name() for one in outputs] == ["labels"]
            raw = np.frombuffer(image._get_binary_data(), np.uint8).reshape(image.shape())
            found = session.run(None, {image.name(): raw})[0]
            return type("Answer", (), {"as_numpy": lambda _self, name: found})()

    expected = session.run(None, {"image": pixels[None]})[0][0]
    assert np.array_equal(segment(Server(), pixels), expected)


def test_nvinfer_is_told_the_graphs_names_and_sizes(small: Exported) -> None:
    config = configparser.ConfigParser()
    config.read(DEPLOY / "deepstream" / "nvinfer.txt")
    told = config["property"]
    height, width = default_size(get_config("nano"))
    assert told["infer-dims"] == f"3;{height};{width}"
    found = of_graph(bake(small, words(small), output="probabilities"), batched=True)
    assert list(found) == ["image", told["output-blob-names"]]
    assert found["image"] == ("tensor(float)", [3, 48, 80])  # infer-dims' order
    assert float(told["net-scale-factor"]) == 1 and "offsets" not in told  # the normalization is inside
    assert (told["network-type"], told["model-color-format"], told["segmentation-output-order"]) == ("2", "0", "0")
