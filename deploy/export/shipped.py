"""Write the graph of a shipped model that the package carries: for images of any size, without the weights.

    python -m ovsdino.deploy.export.shipped

The weights are stored once, in the model's safetensors file: the graph names them, and `ovsdino.edge.shipped_graph`
gives them to ONNX Runtime. So other weights of the same model need no other graph. It is traced by TorchScript, which
keeps the arithmetic of sizes; `torch.export` proves each of its steps and was not done after four minutes.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto

from ovsdino.console import say
from ovsdino.deploy.export import graph
from ovsdino.deploy.export.trace import OPSET, default_size, for_export, quiet
from ovsdino.edge.shipped_graph import graph_path
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.ops.compat import recording

__all__ = ["without_weights"]

AXES = {
    "image": {2: "H", 3: "W"},
    "text": {0: "K", 1: "words"},
    "contrast": {0: "C"},
    "logits": {1: "maps", 2: "h", 3: "w"},
}


def without_weights(model: OVSDINO) -> bytes:
    """Return the graph of a model, its weights named but not in it.

    Args:
        model: An `OVSDINO` with a CNN for its backbone and a decoder, in eval mode.

    Returns:
        An ONNX file: `image` (1, 3, H, W), `text` (K, words, D) and `contrast` (C, D) in, `logits` (1, K + 1, h, w)
        out, all float32. Each stored tensor is external, by its name in the model's state.

    Raises:
        OVSDinoError: The graph has a weight that is none of the model's.
    """
    height, width = default_size(model.config)
    dim = model.config.embed_dim
    inputs = (torch.zeros(1, 3, height, width), torch.zeros(3, 2, dim), torch.zeros(5, dim))
    with quiet(), torch.no_grad(), recording(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        torch.onnx.export(
            for_export(model, height, width, "float32"),
            inputs,
            file,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=False,
            input_names=list(AXES)[:3],
            output_names=list(AXES)[3:],
            dynamic_axes=AXES,
        )
        traced = onnx.load(file)
    graph.name_by_module(traced)
    graph.order_gelu(traced)
    graph.drop_unused(traced.graph)
    traced.producer_name, traced.producer_version = "ovsdino", ""
    known = model.state_dict()
    for tensor in traced.graph.initializer:
        if tensor.name not in known or list(tensor.dims) != list(known[tensor.name].shape):
            raise OVSDinoError(f"{model.config.name}: the graph's weight {tensor.name} is none of the model's")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=f"{model.config.name}.safetensors")
    return bytes(traced.SerializeToString(deterministic=True))


@dataclass(frozen=True, kw_only=True)
class WriteShipped:
    """Write the graph of a shipped model into the package, without the weights."""

    model: str = "nano"
    """Model whose weights are shipped."""

    def run(self) -> int:
        from ovsdino.models.zoo import create_model

        path = graph_path(self.model)
        data = without_weights(create_model(self.model))
        with atomic_write(path) as file:
            file.write(data)
        say(f"wrote {path} ({len(data):,} bytes)")
        return 0


if __name__ == "__main__":
    from ovsdino.parsing import run_script

    sys.exit(run_script(WriteShipped, "ovsdino.deploy.export.shipped"))
