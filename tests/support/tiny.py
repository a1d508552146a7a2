"""A graph of the exporter's form, small enough to work out by hand: a 4x4 patch's mean color against the bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ovsdino.deploy.export.publish import Exported
from ovsdino.edge.bank import TextBank
from ovsdino.edge.sidecar import Sidecar

HEIGHT, WIDTH, PATCH, DIM = 24, 32, 4, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
WEIGHTS = "0" * 64
SCALE = 4.0


def graph(path: Path, batch: int | tuple[int, int] = 1, inputs: tuple[str, str] = ("image", "text")) -> Path:
    """logits[b, k] = SCALE * sum_d text[k, d] * mean of the patch's channel d; written with its sidecar."""
    h, w = HEIGHT // PATCH, WIDTH // PATCH
    size: int | str = batch if isinstance(batch, int) else "B"
    most = batch if isinstance(batch, int) else batch[1]
    constants = {
        "flat": np.array([0, DIM, h * w], np.int64),  # 0: as it was
        "grid": np.array([0, 0, h, w], np.int64),
        "scale": np.array(SCALE, np.float32),
    }
    nodes = [
        helper.make_node("AveragePool", [inputs[0]], ["cells"], kernel_shape=[PATCH] * 2, strides=[PATCH] * 2),
        helper.make_node("Reshape", ["cells", "flat"], ["tokens"]),
        helper.make_node("MatMul", [inputs[1], "tokens"], ["cosine"]),
        helper.make_node("Mul", ["cosine", "scale"], ["rows"]),
        helper.make_node("Reshape", ["rows", "grid"], ["logits"]),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, [size, 3, HEIGHT, WIDTH]),
                helper.make_tensor_value_info(inputs[1], TensorProto.FLOAT, ["K", DIM]),
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, "K", h, w])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    sidecar(path, input=(most, 3, HEIGHT, WIDTH)).save(path)
    return path


def sidecar(path: Path, **changes: Any) -> Sidecar:
    """Return the sidecar that the exporter would write for the file."""
    facts: dict[str, Any] = {
        "kind": "onnx",
        "file": path.name,
        "sha256": "",
        "bytes": 0,
        "model": "tiny",
        "precision": "float32",
        "backend": "onnx",
        "version": "",
        "target": "any",
        "input": (1, 3, HEIGHT, WIDTH),
        "classes": (1, 300),
        "embed_dim": DIM,
        "stride": float(PATCH),
        "mean": MEAN,
        "std": STD,
        "short_side": HEIGHT,
        "patch_size": PATCH,
        "weights": WEIGHTS,
    }
    return Sidecar(**{**facts, **changes}).describing(path.read_bytes())


def another(path: Path) -> Exported:
    """Return 13 bytes to publish in the place of a file, with the file's sidecar otherwise."""
    return Exported.of(b"another graph", sidecar(path))


def bank(*names: str, seed: int = 0, weights: str = WEIGHTS, columns: int = DIM) -> TextBank:
    """Return random rows of length one for the given names."""
    rows = np.random.default_rng(seed).standard_normal((len(names), columns))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return TextBank(names=names, text=rows.astype(np.float32), model="tiny", weights=weights)


def expected_logits(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Compute the graph's formula: (3, H, W) normalized, (K, 3) -> (K, h, w)."""
    cells = image.reshape(3, HEIGHT // PATCH, PATCH, WIDTH // PATCH, PATCH).mean((2, 4), dtype=np.float64)
    return SCALE * np.einsum("kd,dhw->khw", text, cells)
