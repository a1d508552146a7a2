"""Compare the output of every module with the same tensor of an exported graph: where does it begin to depart?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from ovsdino.deploy.export.compare import check_weights, cosine
from ovsdino.deploy.export.inputs import Images, contrast_rows, text_rows
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.rounded import Rounded
from ovsdino.edge.tensors import text_inputs
from ovsdino.errors import OVSDinoError
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.ops import preprocess

__all__ = ["Departure", "per_layer"]


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One module of the model and its tensor in the graph.

    Attributes:
        module: Path of the torch module.
        cosine: Cosine of its output in PyTorch float32 and in the graph.
        largest: Largest magnitude in PyTorch; float16 ends at 65504.
    """

    module: str
    cosine: float
    largest: float


def per_layer(model: OVSDINO, exported: Exported, images: Images) -> list[Departure]:
    """Compare every module that the graph's node names tell, in the order in which the graph computes them.

    Args:
        model: The model that was exported, on the CPU.
        exported: The graph.
        images: The first is used.

    Raises:
        OVSDinoError: The file is of other weights, or an engine, whose inner tensors cannot be read.
    """
    data, sidecar = exported
    check_weights(model, sidecar)
    if sidecar.kind != "onnx":
        raise OVSDinoError(
            f"{sidecar.file}: --per-layer reads the .onnx it was built from; an engine's tensors are fused away"
        )
    last = _last_tensors(onnx.load_model_from_string(data))
    batch, _, height, width = sidecar.input
    text = text_rows(model, images.names, sidecar.classes)
    image = preprocess(torch.from_numpy(images.pixels[0].copy()), (height, width), sidecar.mean, sidecar.std)
    inputs = image.expand(batch, -1, -1, -1).contiguous()
    contrast = contrast_rows(sidecar)
    rows = [torch.from_numpy(one) for one in text_inputs(sidecar, text, contrast).values()]
    seen = _outputs(model, set(last), inputs, rows)
    wanted = [tensor for tensor in dict.fromkeys(last.values()) if tensor != "logits"]
    found = Rounded(data, sidecar, wanted).run(inputs.numpy(), text, contrast)
    departures = []
    for module, tensor in last.items():
        ours = seen.get(module)
        # A module that returns several tensors, or one in another layout than the graph's, is told by its parts.
        if isinstance(ours, Tensor) and ours.numel() and found[tensor].shape == tuple(ours.shape):
            largest = float(ours.abs().max())
            departures.append(Departure(module=module, cosine=cosine(ours.numpy(), found[tensor]), largest=largest))
    return departures


def _last_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Return the last tensor of each module by the names of the nodes, in the order of the graph."""
    last: dict[str, str] = {}
    for node in model.graph.node:
        parts = node.name.rpartition("/")[0].split(".")
        for length in range(1, len(parts) + 1) if node.op_type != "Cast" else ():
            module = ".".join(parts[:length])  # an inner module's last tensor is the outer one's until it makes another
            last.pop(module, None)
            last[module] = node.output[0]
    return last


def _outputs(model: OVSDINO, names: set[str], image: Tensor, text: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run the model and return the outputs of its modules of these names."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name, module in model.named_modules()
        if name in names
    ]
    try:
        with torch.inference_mode():
            model(image, *text)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
