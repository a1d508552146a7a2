"""Operations and bytes of a model, counted by running its own modules on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ovsdino.models.ovsdino import OVSDINO

__all__ = ["Cost", "count", "plain_vit", "propagation_flops", "weights_of"]


@dataclass
class Cost:
    """Operations and elements moved, summed over what was run.

    Attributes:
        linear: FLOPs of linear layers and patch embeddings, those that INT8 speeds up.
        other: FLOPs of convolutions, attention and products with the text bank, float16 in either case.
        linear_elements: Activations read and written by the former.
        other_elements: Activations read and written by the latter.
    """

    linear: int = 0
    other: int = 0
    linear_elements: int = 0
    other_elements: int = 0

    def add(self, flops: int, tensors: Sequence[Tensor], *, linear: bool = False) -> None:
        elements = sum(tensor.numel() for tensor in tensors)
        if linear:
            self.linear += flops
            self.linear_elements += elements
        else:
            self.other += flops
            self.other_elements += elements

    @property
    def flops(self) -> int:
        return self.linear + self.other


class Counter(TorchFunctionMode):
    """Count the products that run under it, by part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Cost] = {}
        self.part = "backbone"

    @contextmanager
    def named(self, part: str) -> Iterator[None]:
        """Count the products of the body of a ``with`` statement to a part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        cost = self.parts.setdefault(self.part, Cost())
        if func is F.linear:
            cost.add(2 * out.numel() * args[1].shape[1], (args[0], out), linear=True)
        elif func is F.conv2d or func is torch.conv2d:
            weight, stride = args[1], args[3] if len(args) > 3 else 1
            patches = stride != (1, 1) and tuple(weight.shape[2:]) == stride  # a patch embedding is a linear layer
            cost.add(2 * out.numel() * weight[0].numel(), (args[0], out), linear=patches)
        elif func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            batch = q.shape[:-2].numel() * q.shape[-2] * k.shape[-2]
            cost.add(2 * batch * (q.shape[-1] + v.shape[-1]), (q, k, v, out))
        elif func in (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__):
            cost.add(2 * out.numel() * args[0].shape[-1], (*args[:2], out))
        elif func is torch.einsum:  # "bdhw,kd->bkhw": the coarse logits
            cost.add(2 * out.numel() * args[2].shape[-1], (*args[1:], out))
        return out


def count(model: OVSDINO, height: int, width: int, classes: int, batch: int = 1) -> dict[str, Cost]:
    """Return the cost of the parts "backbone", "sae", "smd" and "logits" (products with the bank, and refinement).

    Args:
        model: A model on the meta device.
        height: Height of the input in pixels, a multiple of the patch size.
        width: Width of the input, likewise.
        classes: Rows of the text bank.
        batch: Images.
    """
    counter = Counter()
    hooks = []
    if model.decoder is not None:
        for name in ("sae", "smd"):
            module = getattr(model.decoder, name)
            if module is not None:
                hooks += _named_by_hooks(counter, module, name)
    image = torch.empty(batch, 3, height, width, device="meta")
    text = torch.empty(classes, model.config.embed_dim, device="meta")
    try:
        with torch.inference_mode(), counter:
            features = model.encode_image(image)
            with counter.named("logits"):
                coarse = model.coarse_logits(features, text)
    finally:
        for hook in hooks:
            hook.remove()
    if model.decoder is not None and features.structure is not None:
        _refinement(counter.parts["logits"], model, coarse, features.structure.guide, text)
    return counter.parts


def _named_by_hooks(counter: Counter, module: nn.Module, name: str) -> list[Any]:
    def enter(*_: Any) -> None:
        counter.part = name

    def leave(*_: Any) -> None:
        counter.part = "backbone"

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _refinement(cost: Cost, model: OVSDINO, coarse: Tensor, guide: Tensor, text: Tensor) -> None:
    """Add `Decoder.refine` as its kernels do it: one pass over the fine logits, without the reference's temporaries."""
    batch, classes = coarse.shape[:2]
    pixels = batch * guide.shape[-2] * guide.shape[-1]
    fine = torch.empty(batch, classes, *guide.shape[-2:], device="meta")
    flops = 7 * fine.numel()  # bilinear: three interpolations of a multiplication and two additions at most
    moved = [coarse, fine]
    if model.config.upsampling == "attention":
        c = model.config.score_attention
        channels = c.affinity_dim if c.structure else 1
        flops += 2 * pixels * guide.shape[1] * channels * c.structure  # 1x1 convolution
        tiles = batch * -(-coarse.shape[2] // c.reach) * -(-coarse.shape[3] // c.reach)
        queries = (4 // c.query_stride) ** 2 + 4 * (c.rounds - 1)  # of each token; the keys are four
        flops += 2 * tiles * queries * c.reach**2 * 36 * c.reach**2 * (channels + 3 + classes)
        moved += [guide, guide[:, :channels], coarse, coarse, coarse, coarse, fine]
    if model.config.detail:
        flops += 2 * pixels * guide.shape[1] * classes + 2 * text.numel() * guide.shape[1]
        moved += [guide]
    cost.add(flops, moved)


def propagation_flops(
    size: Sequence[int],
    classes: int,
    channels: int,
    steps: Sequence[int],
    dilations: Sequence[int],
    rounds: int,
) -> int:
    """Return the FLOPs of `propagate` to so many pixels: an exponential or a power counts as one.

    Args:
        size: (H, W) of the guide.
        classes: K.
        channels: Of the guide.
        steps: See `propagate`, as the others.
        dilations: The neighbors are eight for each.
        rounds: Of the constraints.
    """
    neighbors, total = 8 * len(dilations), 0
    for level, count in enumerate(steps):
        pixels = size[0] * size[1] // 4 ** (len(steps) - 1 - level)
        affinity = neighbors * (3 * channels + 4) if count else 0
        combination = 2 * neighbors * classes + classes
        constraints = rounds * 4 * classes  # two sums and two products for each class
        total += pixels * (affinity + count * (combination + constraints))
    return total


def plain_vit(name: str, height: int, width: int) -> tuple[dict[str, Cost], int, int]:
    """Return cost, linear weights and other weights of a timm transformer by itself."""
    with torch.device("meta"):
        vit: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    counter = Counter()
    with torch.inference_mode(), counter:
        vit.forward_features(torch.empty(1, 3, height, width, device="meta"))
    return counter.parts, *weights_of(vit)


def weights_of(module: nn.Module, skip: str = "text_tower.") -> tuple[int, int]:
    """Return the parameters of the linear layers with the patch embedding, and of all the rest."""
    linear = {
        id(p)
        for m in module.modules()
        if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == m.stride != (1, 1))
        for p in m.parameters(recurse=False)
    }
    named = [(id(p), p.numel()) for name, p in module.named_parameters() if not name.startswith(skip)]
    total = sum(size for _, size in named)
    inside = sum(size for key, size in named if key in linear)
    return inside, total - inside
