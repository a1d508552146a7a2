"""One transformer block in miniature as an exported graph, its inputs, and pictures to calibrate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ovsdino.deploy.quantization import calibrate
from ovsdino.edge.sidecar import Sidecar
from ovsdino.models.zoo import get_config

SIDE, WIDTH, TEXT = 8, 32, 24
LINEARS = ["q", "k", "fc1", "fc2", "head"]
NARROW = ("embed", "gate")  # 3 inputs, 4 outputs


def weights() -> dict[str, np.ndarray]:
    """Of `network`. Two channels of the first norm are 60 times as large as the others, as in a trained ViT."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    gain = np.ones(WIDTH, np.float32)
    gain[[3, 17]] = 60
    found = {
        "embed": normal(3, WIDTH),
        "q": normal(WIDTH, WIDTH),
        "k": normal(WIDTH, WIDTH),
        "fc1": normal(WIDTH, 64),
        "fc2": normal(64, WIDTH),
        "head": normal(WIDTH, TEXT),
        "detail": normal(TEXT, TEXT),
        "gate": normal(WIDTH, 4),
        "gain": gain,
        "bias": random.normal(size=WIDTH).astype(np.float32),
        "flat": np.ones(WIDTH, np.float32),
        "bias_q": random.normal(size=WIDTH).astype(np.float32),
        "scale": np.array(0.02, np.float32),
    }
    for name in ("q", "k"):
        found[name][[3, 17]] *= 0.02  # what training does with such channels
    return found


def network() -> onnx.ModelProto:
    """One transformer block in miniature: two linears on one norm, attention, a residual, a norm with other readers."""
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=name or f"{output}/{kind}", **attributes))
        return output

    add("Transpose", ["image"], "hwc", perm=[0, 2, 3, 1])
    add("Reshape", ["hwc", "tokens"], "pixels")
    add("MatMul", ["pixels", "embed"], "x", "embed/MatMul")
    add("LayerNormalization", ["x", "gain", "bias"], "normed", axis=-1)
    add("MatMul", ["normed", "q"], "q_product", "q/MatMul")
    add("Add", ["q_product", "bias_q"], "query")
    add("MatMul", ["normed", "k"], "key", "k/MatMul")
    add("Transpose", ["key"], "key_t", perm=[0, 2, 1])
    add("MatMul", ["query", "key_t"], "scores", "attention/MatMul")
    add("Mul", ["scores", "scale"], "scaled")
    add("Softmax", ["scaled"], "attended", axis=-1)
    add("MatMul", ["attended", "x"], "mixed", "attention/MatMul_2")
    add("Add", ["x", "mixed"], "residual")
    add("LayerNormalization", ["residual", "flat", "bias"], "second", axis=-1)
    add("MatMul", ["second", "gate"], "gates", "gate/MatMul")  # four outputs: left alone, and so a reader of the norm
    add("ReduceMean", ["gates", "last"], "gate_mean", keepdims=1)
    add("MatMul", ["second", "fc1"], "hidden", "fc1/MatMul")
    add("Tanh", ["hidden"], "active")
    add("MatMul", ["active", "fc2"], "mlp", "fc2/MatMul")
    add("Add", ["mlp", "gate_mean"], "gated")
    add("Add", ["residual", "gated"], "y")
    add("MatMul", ["y", "head"], "features", "head/MatMul")
    add("MatMul", ["text", "detail"], "words", "detail/MatMul")
    add("Transpose", ["words"], "words_t", perm=[1, 0])
    add("MatMul", ["features", "words_t"], "similarity", "similarity/MatMul")
    add("Transpose", ["similarity"], "similarity_t", perm=[0, 2, 1])
    add("Reshape", ["similarity_t", "grid"], "logits")
    stored = [numpy_helper.from_array(value, name) for name, value in weights().items()]
    shapes = {"tokens": [1, SIDE * SIDE, 3], "grid": [1, -1, SIDE, SIDE], "last": [-1]}
    stored += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "block",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
            helper.make_tensor_value_info("text", TensorProto.FLOAT, ["K", TEXT]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "K", SIDE, SIDE])],
        stored,
    )
    opset = helper.make_opsetid("", 18)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[opset], ir_version=9))


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    text = random.normal(size=(5, TEXT)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return [{"image": random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32), "text": text} for _ in range(count)]


def run(model: onnx.ModelProto, inputs: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return calibrate.run(model, inputs, 1)


def saved(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """The network as an exported file with its sidecar."""
    path = folder / "block_fp32.onnx"
    path.write_bytes((model or network()).SerializeToString())
    config = get_config("nano")
    sidecar = Sidecar(
        kind="onnx",
        file=path.name,
        sha256="",
        bytes=0,
        model="nano",
        precision="float32",
        backend="onnx",
        version="",
        target="any",
        input=(1, 3, SIDE, SIDE),
        classes=(1, 256),
        embed_dim=TEXT,
        stride=1.0,
        mean=config.mean,
        std=config.std,
        short_side=SIDE,
        patch_size=1,
        weights="0" * 64,
    )
    sidecar.describing(path.read_bytes(), **changes).save(path)
    return path


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    for index in range(count):
        pixels = random.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        pixels[0, 0] = index
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder
