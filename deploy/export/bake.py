"""Bake a text bank into a graph: one input, camera pixels, and logits, probabilities or labels out.

It is what servers and pipelines take that feed one image tensor: NVIDIA Triton, DeepStream's nvinfer, Isaac ROS. The
words are constants, the normalization is inside, and `EdgeSegmenter` refuses such a file: it has its own of both.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ovsdino.deploy.export import graph
from ovsdino.deploy.export.defaults import BAKED_AGREEMENT
from ovsdino.deploy.export.inputs import Images
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.rounded import with_roundings
from ovsdino.deploy.export.trace import write_facts
from ovsdino.edge.bank import TextBank
from ovsdino.edge.labels import upsample_argmax
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.pixels import preprocess, resize
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import text_inputs
from ovsdino.errors import OVSDinoError
from ovsdino.levels import gain_and_shift

__all__ = ["Layout", "Output", "bake", "baked_agreement", "check_baked"]

Layout = Literal["nchw", "nhwc"]
Output = Literal["logits", "probabilities", "labels"]
MOST_LABELS = 256  # of uint8


def bake(exported: Exported, bank: TextBank, *, output: Output = "logits", layout: Layout = "nchw") -> Exported:
    """Return a graph with the words inside.

    Its input `image` holds RGB pixels of 0..255: (B, 3, H, W) float32 in the layout "nchw", which nvinfer feeds with a
    scale of 1; (B, H, W, 3) uint8 in "nhwc", as cameras and files give them. The output has the name of its kind:
    `logits` and `probabilities` (their softmax) are (B, M, h, w) float32, on the graph's own grid; `labels` is
    (B, H, W) uint8, the largest logit of each pixel after bilinear upsampling. M is the number of words K, and K + 1
    where the bank has contrast rows: the last map, and the label K, are pixels of none of the words.
    `EdgeSegmenter` also takes out words that it does not find (`least_share`, `least_certainty`); a graph does not.

    Args:
        exported: A graph of `export_graph`, with inputs for image and words.
        bank: The words.
        output: What comes out.
        layout: How the pixels lie.

    Raises:
        OVSDinoError: The bank is not of this model, or has more words than uint8 labels.
    """
    sidecar = exported.sidecar
    contrast = bank.contrast
    sidecar.check_bank(
        bank.names,
        (len(bank), bank.text.shape[1]),
        bank.weights,
        bank.model,
        words=max(bank.words, default=1),
        contrast=0 if contrast is None else len(contrast),
    )
    maps = len(bank) + (contrast is not None)
    if output == "labels" and maps > MOST_LABELS:
        raise OVSDinoError(f"{len(bank)} words: labels are uint8, which holds {MOST_LABELS} with that of none of them")
    model = onnx.load_model_from_string(exported.data)
    rows = text_inputs(sidecar, bank.padded() if bank.words else bank.text, contrast)
    _set_words(model, {name: np.ascontiguousarray(value, np.float32) for name, value in rows.items()})
    _set_pixels(model, sidecar, layout)
    _set_output(model, sidecar, output, maps, cut=sidecar.grouped and contrast is None)
    del model.graph.value_info[:]
    graph.drop_unused(model.graph)
    facts = {"names": list(bank.names), "none": contrast is not None, "layout": layout, "output": output}
    described = sidecar.describing(b"", classes=(len(bank), len(bank)), words=None, contrast=None, baked=facts)
    write_facts(model, described)
    onnx.checker.check_model(model, full_check=True)
    return Exported.of(model.SerializeToString(), described)


def baked_agreement(baked: Exported, exported: Exported, bank: TextBank, images: Images) -> float:
    """Return the share of pixels that a baked graph and the one that it was made from label alike.

    Both run in ONNX Runtime, a float16 graph with its roundings. The labels of the second are `EdgeSegmenter`'s: its
    preprocessing, its upsampling, and the largest logit.

    Args:
        baked: See `bake`.
        exported: The graph before.
        bank: The words.
        images: Images to run, each resized to the graph's size.
    """
    facts = baked.sidecar.baked
    assert facts is not None
    batch, _, height, width = exported.sidecar.input
    mine, theirs = _session(baked), _session(exported)
    rows = text_inputs(exported.sidecar, bank.padded() if bank.words else bank.text, bank.contrast)
    maps, shares = len(bank) + bool(facts["none"]), []
    for picture in images.pixels:
        pixels = resize(np.ascontiguousarray(picture), (height, width))
        image = preprocess(pixels, (height, width), exported.sidecar.mean, exported.sidecar.std)
        expected = theirs.run(["logits"], {"image": np.stack([image] * batch), **rows})[0][0, :maps]
        fed = pixels if facts["layout"] == "nhwc" else pixels.transpose(2, 0, 1).astype(np.float32)
        found = mine.run(None, {"image": np.stack([fed] * batch)})[0][0]
        if facts["output"] == "probabilities":  # logits but for one number a cell, which cancels
            found = np.log(np.maximum(found, np.finfo(np.float32).tiny))
        if facts["output"] != "labels":
            found = upsample_argmax(np.ascontiguousarray(found), (height, width))[0]
        labels = upsample_argmax(np.ascontiguousarray(expected), (height, width))[0]
        shares.append(float((labels == found).mean()))
    return float(np.mean(shares))


def check_baked(agreement: float, images: Images) -> None:
    """Refuse a baked graph that labels too many pixels otherwise.

    Raises:
        OVSDinoError: It does.
    """
    if not agreement >= BAKED_AGREEMENT:
        raise OVSDinoError(
            f"the baked graph departs: label agreement {agreement:.6f} on {len(images.pixels)} {images.source}; "
            f"expected at least {BAKED_AGREEMENT}. Use the graph without --bake"
        )


def _session(exported: Exported) -> Any:
    """Open a graph in ONNX Runtime as it is written, see `Rounded`."""
    data = exported.data
    if exported.sidecar.precision != "float32":
        model = onnx.load(io.BytesIO(data))
        with_roundings(model)
        data = model.SerializeToString()
    return open_session(data, exported.sidecar.file)


def _set_words(model: ModelProto, rows: dict[str, np.ndarray]) -> None:
    """Turn the inputs of words into constants."""
    graph.replace(model.graph.input, [value for value in model.graph.input if value.name not in rows])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in rows.items())


def _set_pixels(model: ModelProto, sidecar: Sidecar, layout: Layout) -> None:
    """Put the normalization in front: x * gain + shift."""
    (image,) = model.graph.input
    batch = image.type.tensor_type.shape.dim[0]
    size: int | str = batch.dim_param or batch.dim_value
    _, _, height, width = sidecar.input
    for node in model.graph.node:
        node.input[:] = ["image_normalized" if name == "image" else name for name in node.input]
    nodes: list[NodeProto] = []
    last = "image"
    if layout == "nhwc":
        nodes.append(helper.make_node("Cast", [last], ["image_float"], "image/Cast", to=TensorProto.FLOAT))
        nodes.append(
            helper.make_node("Transpose", ["image_float"], ["image_planes"], "image/Transpose", perm=[0, 3, 1, 2])
        )
        last = "image_planes"
    for name, values in zip(("gain", "shift"), gain_and_shift(sidecar.mean, sidecar.std), strict=True):
        array = np.array(values, np.float32).reshape(1, 3, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(array, f"image_{name}"))
    nodes.append(helper.make_node("Mul", [last, "image_gain"], ["image_scaled"], "image/Mul"))
    nodes.append(helper.make_node("Add", ["image_scaled", "image_shift"], ["image_normalized"], "image/Add"))
    shape = [size, height, width, 3] if layout == "nhwc" else [size, 3, height, width]
    kind = TensorProto.UINT8 if layout == "nhwc" else TensorProto.FLOAT
    graph.replace(model.graph.input, [helper.make_tensor_value_info("image", kind, shape)])
    graph.replace(model.graph.node, [*nodes, *model.graph.node])


def _set_output(model: ModelProto, sidecar: Sidecar, output: Output, maps: int, *, cut: bool) -> None:
    """Put what is asked for in place of the logits.

    Args:
        model: The graph, in place.
        sidecar: Its sidecar.
        output: What comes out.
        maps: Number of maps M.
        cut: The graph gives one more map, of a contrast that the bank lacks.
    """
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    size: int | str = batch.dim_param or batch.dim_value
    _, _, height, width = sidecar.input
    grid = [round(height / sidecar.stride), round(width / sidecar.stride)]
    for node in model.graph.node:
        node.output[:] = ["logits_all" if name == "logits" else name for name in node.output]
        node.input[:] = ["logits_all" if name == "logits" else name for name in node.input]
    last = "logits_all"

    def add(kind: str, inputs: list[str], result: str, **attributes: Any) -> str:
        model.graph.node.append(helper.make_node(kind, inputs, [result], f"{output}/{kind}", **attributes))
        return result

    def keep(name: str, values: Any, dtype: type) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    if cut:
        ends = [keep("maps_start", [0], np.int64), keep("maps_end", [maps], np.int64), keep("maps_axis", [1], np.int64)]
        last = add("Slice", [last, *ends], "logits_cut")
    if output == "labels":
        scales = keep("labels_scales", [1, 1, height / grid[0], width / grid[1]], np.float32)
        last = add("Resize", [last, "", scales], "logits_fine", mode="linear")  # half-pixel centers by default
        last = add("ArgMax", [last], "labels_wide", axis=1, keepdims=0)  # the first of equals
        add("Cast", [last], "labels", to=TensorProto.UINT8)
        value = helper.make_tensor_value_info("labels", TensorProto.UINT8, [size, height, width])
    else:
        if output == "probabilities":
            add("Softmax", [last], "probabilities", axis=1)
        else:
            add("Identity", [last], "logits")
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [size, maps, *grid])
    graph.replace(model.graph.output, [value])
