"""Give an exported graph a memory: the frame before goes in next to the image, and this frame's comes out.

The graph stays as it is, whatever its precision. What `ovsdino.models.memory` computes is traced by itself and put
behind its logits, in float32 but for the attention of a float16 graph, which TensorRT fuses in float16 alone; the
affinity is read from the product that the graph makes for its own score attention. Two inputs join, `last_logits`
(1, K, 4h, 4w) and `last_affinity` (1, C, 4h, 4w), and one output, `affinity`; `logits` are now the steady ones. A
runtime feeds both back (`ovsdino.edge.tensors.beginning` before the first frame).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference
from torch import Tensor, nn

from ovsdino.deploy.export import graph
from ovsdino.deploy.export.compare import Verification, cosine
from ovsdino.deploy.export.inputs import Images, text_rows
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.trace import traced
from ovsdino.edge.labels import upsample_argmax
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.tensors import beginning, logits_shape, text_inputs
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading
from ovsdino.models.memory import Memory, MemoryConfig, remembered
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.text_rows import TextRows

__all__ = ["AFFINITY", "FrameMemory", "compare_clip", "with_memory"]

AFFINITY = "decoder.score_attention.affinity/Conv"
PREFIX = "memory"  # of the nodes and tensors that join


class FrameMemory(nn.Module):
    """One step of `remembered`, as a module that can be traced.

    Args:
        config: Its settings, which the graph then has for good.
        dtype: See `remembered`.
    """

    def __init__(self, config: MemoryConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype

    def forward(self, logits: Tensor, affinity: Tensor, last_logits: Tensor, last_affinity: Tensor) -> Tensor:
        """Return the steady logits (1, K, 4h, 4w)."""
        return remembered(logits, affinity, Memory(last_logits, last_affinity), self.config, self.dtype)[0].logits


def with_memory(exported: Exported, config: MemoryConfig | None = None) -> Exported:
    """Return a graph with a memory, and its sidecar, which is not verified yet.

    Args:
        exported: A graph for one image at a time.
        config: Settings; None takes the defaults.

    Raises:
        OVSDinoError: It is an engine, takes batches, has a memory or words inside already, or no score attention.
    """
    sidecar = exported.sidecar
    taken = sidecar.memory is not None or sidecar.baked is not None
    if sidecar.kind != "onnx" or taken or sidecar.input[0] != 1:
        raise OVSDinoError(
            f"{sidecar.file}: a memory is given to an .onnx for one image at a time that has none yet, nor words"
        )
    with reading(sidecar.file, "ONNX graph", sidecar.rebuild()):
        model = onnx.load_model_from_string(exported.data)
    source = next((node for node in model.graph.node if node.name == AFFINITY), None)
    if source is None:
        raise OVSDinoError(f"{sidecar.file}: no score attention in it to remember by; export a model with a decoder")
    inferred = shape_inference.infer_shapes(model).graph
    value = next(one for one in inferred.value_info if one.name == source.output[0])
    channels = value.type.tensor_type.shape.dim[1].dim_value
    step = _traced(config or MemoryConfig(), exported, channels)
    _join(model, step, source.output[0], value.type.tensor_type.elem_type)
    onnx.checker.check_model(model, full_check=True)
    return Exported.of(model.SerializeToString(), sidecar, memory=channels, verified=None)


def _traced(config: MemoryConfig, exported: Exported, channels: int) -> ModelProto:
    """Return the graph of one step."""
    sidecar = exported.sidecar
    (least, most), extra = sidecar.classes, int(sidecar.grouped)
    _, maps, height, width = logits_shape(sidecar, 1, min(most, least + 2))
    sizes = {"logits": maps, "affinity": channels, "last_logits": maps, "last_affinity": channels}
    # tensors of their own: torch.export takes one that is given twice for one input
    inputs = {name: torch.zeros(1, size, height, width) for name, size in sizes.items()}
    dynamic: dict[str, Any] = dict.fromkeys(inputs)
    if least != most:
        # not K, which is the text's: TensorRT takes sides of one name for equal
        side = torch.export.Dim("maps", min=least + extra, max=most + extra)
        dynamic |= {"logits": {1: side}, "last_logits": {1: side}}
    step = traced(
        FrameMemory(config, torch.float16 if sidecar.precision == "float16" else torch.float32).eval(),
        (),
        kwargs=inputs,
        input_names=list(inputs),
        output_names=["steady"],
        dynamic_shapes=dynamic,
    )
    graph.simplify(step)
    return step


def _join(model: ModelProto, step: ModelProto, affinity: str, kind: int) -> None:
    """Put the step behind the graph's logits, in place."""
    alone = f"{PREFIX}/alone"
    for node in model.graph.node:
        node.input[:] = [alone if name == "logits" else name for name in node.input]
        node.output[:] = [alone if name == "logits" else name for name in node.output]
    known = {"logits": alone, "affinity": "affinity", "steady": "logits"}
    known |= {name: name for name in ("last_logits", "last_affinity", "")}

    def renamed(name: str) -> str:
        return known.get(name, f"{PREFIX}/{name}")

    out = next(one for one in step.graph.output if one.name == "steady")
    if kind == TensorProto.FLOAT:
        model.graph.node.append(helper.make_node("Identity", [affinity], ["affinity"], f"{PREFIX}/affinity"))
    else:
        cast = helper.make_node("Cast", [affinity], ["affinity"], f"{PREFIX}/affinity", to=TensorProto.FLOAT)
        model.graph.node.append(cast)
    for node in step.graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.name = f"{PREFIX}{node.name if node.name.startswith('/') else f'/{node.name}'}"
        copied.input[:] = [renamed(name) for name in node.input]
        copied.output[:] = [renamed(name) for name in node.output]
        model.graph.node.append(copied)
    for tensor in step.graph.initializer:
        tensor.name = renamed(tensor.name)
        model.graph.initializer.append(tensor)
    for value in step.graph.input:
        if value.name in ("last_logits", "last_affinity"):
            model.graph.input.append(value)
        if value.name == "affinity":
            model.graph.output.append(value)
    del model.graph.value_info[:]
    assert out.name == "steady" and model.graph.output[0].name == "logits"


def compare_clip(
    model: OVSDINO, exported: Exported, images: Images, config: MemoryConfig | None = None
) -> Verification:
    """Run consecutive frames through a graph with a memory and through PyTorch's, and compare logits and labels.

    Args:
        model: The model that was exported, on the CPU.
        exported: Of `with_memory`.
        images: The frames, in their order.
        config: Settings of the graph; None takes the defaults.

    Raises:
        OVSDinoError: The graph cannot be run here.
    """
    sidecar = exported.sidecar
    text = text_rows(model, images.names, sidecar.classes)
    rows = {name: torch.from_numpy(one) for name, one in text_inputs(sidecar, text).items()}
    words: Tensor | TextRows = TextRows(rows["text"], rows["contrast"]) if sidecar.grouped else rows["text"]
    session = open_session(exported.data, sidecar.file, 1)
    state, memory = beginning(sidecar, len(text)), None
    decoder = model.decoder
    assert decoder is not None
    agreements, cosines = [], []
    for image in images.pixels:
        pixels = preprocess(image, (sidecar.input[2], sidecar.input[3]), sidecar.mean, sidecar.std)[None]
        found = session.run(["logits", "affinity"], {"image": pixels, **text_inputs(sidecar, text), **state})
        state = {"last_logits": found[0], "last_affinity": found[1]}
        with torch.inference_mode():
            features = model.encode_image(torch.from_numpy(pixels))
            assert features.structure is not None
            affinity = decoder.score_attention.embed(features.structure.guide)
            memory, _ = remembered(model.decode(features, words), affinity, memory, config)
        both = [one[:, : len(text)] for one in (found[0], memory.logits.numpy())]
        cosines.append(cosine(*both))
        labels = [upsample_argmax(np.ascontiguousarray(one[0]), image.shape[:2])[0] for one in both]
        agreements.append(float((labels[0] == labels[1]).mean()))
    return Verification(
        cosine=float(np.mean(cosines)),
        label_agreement=float(np.mean(agreements)),
        images=len(images.pixels),
        worst_cosine=float(np.min(cosines)),
        source=f"consecutive {images.source}",
    )
