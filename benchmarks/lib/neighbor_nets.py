"""Networks of others that `studies/neighbors.py` times: random weights, a square image, what follows the network."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Neighbor", "clipseg", "lr_aspp", "yolo11", "yoloe"]

Outputs = tuple[Tensor, ...]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
# Random weights find nothing, so the threshold lets this many boxes of the image into NMS, and so many masks are made.
CANDIDATES, MASKS = 100, 20


@dataclass(frozen=True)
class Neighbor:
    """A network and what makes labels or masks of its outputs.

    Attributes:
        name: In the table.
        words: "any" or the number of classes that it was built for.
        gives: "labels" or "masks".
        network: Maps an image (1, 3, S, S) to a tuple of tensors.
        finish: Maps these to labels (S, S) or masks (n, S, S).
        parameters: Of what an image goes through, the words' encoder left out.
        statistics: Mean and standard deviation of the input.
    """

    name: str
    words: str
    gives: str
    network: nn.Module
    finish: Callable[[Outputs], Tensor]
    parameters: int
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET

    def prepared(self, image: Tensor) -> Tensor:
        """Return an image (S, S, 3) uint8 as the network takes it."""
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in self.statistics)
        return ((image.permute(2, 0, 1)[None].float() / 255 - mean) / deviation).contiguous()


class Outlet(nn.Module):
    """A network by a function of it that returns a tuple of tensors."""

    def __init__(self, network: nn.Module, forward: Callable[[Any, Tensor], Outputs]) -> None:
        super().__init__()
        self.network, self.by = network, forward
        self.eval()

    def forward(self, image: Tensor) -> Outputs:
        return self.by(self.network, image)


def lr_aspp(side: int) -> Neighbor:
    """Return torchvision's LR-ASPP on MobileNetV3-Large, 21 classes."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    wrapped = Outlet(network, lambda net, image: (net(image)["out"],))
    return Neighbor("LR-ASPP MobileNetV3-L", "21", "labels", wrapped, lambda out: out[0][0].argmax(0), _size(network))


def clipseg(side: int, words: int) -> Neighbor:
    """Return transformers' CLIPSeg rd64: the image goes through CLIP once, through the decoder once a word."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    network = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config={"image_size": side, "patch_size": 16})).eval()
    embeddings = torch.randn(words, network.config.projection_dim)
    network.clip.text_model = nn.Identity()  # the words are encoded before

    def forward(net: Any, image: Tensor) -> Outputs:
        states = net.clip.vision_model(image, output_hidden_states=True).hidden_states
        return (net.decoder([states[i + 1] for i in net.extract_layers], embeddings).logits,)

    def finish(out: Outputs) -> Tensor:
        return F.interpolate(out[0][None], (side, side), mode="bilinear", align_corners=False)[0].argmax(0)

    return Neighbor("CLIPSeg rd64", "any", "labels", Outlet(network, forward), finish, _size(network))


def yolo11(side: int, folder: Path, image: Tensor) -> Neighbor:
    """Return YOLO11n-seg, 80 classes, batch norms folded; `folder` holds the package ultralytics."""
    network = _ultralytics(folder, "nn.tasks").SegmentationModel("yolo11n-seg.yaml", verbose=False).eval()
    network.fuse(verbose=False)
    return _yolo("YOLO11n-seg", "80", network, side, folder, image, 80)


def yoloe(side: int, folder: Path, image: Tensor, words: int) -> Neighbor:
    """Return YOLOE-11n-seg with the words folded into its head, as it runs once they are set."""
    network = _ultralytics(folder, "nn.tasks").YOLOESegModel("yoloe-11n-seg.yaml", verbose=False).eval()
    rows = F.normalize(torch.randn(1, words, 512), dim=-1)
    network.set_classes([f"word {index}" for index in range(words)], rows)
    network.fuse(verbose=False)
    head = network.model[-1]
    for part in ("savpe", "reprta"):  # visual prompts, and the words' encoder: an image does not go through them
        if hasattr(head, part):
            delattr(head, part)
    return _yolo("YOLOE-11n-seg", "any", network, side, folder, image, words)


def _yolo(name: str, words: str, network: Any, side: int, folder: Path, image: Tensor, classes: int) -> Neighbor:
    nms = _ultralytics(folder, "utils.nms").non_max_suppression
    process_mask = _ultralytics(folder, "utils.ops").process_mask
    wrapped = Outlet(network, lambda net, image: tuple(net(image)[0][:2]))

    def finish(out: Outputs, threshold: float) -> Tensor:
        found = nms(out[0], conf_thres=threshold, iou_thres=0.7, max_det=MASKS, nc=classes, max_time_img=10)[0]
        masks: Tensor = process_mask(out[1][0], found[:, 6:], found[:, :4], (side, side), upsample=True)
        return masks

    found = Neighbor(name, words, "masks", wrapped, lambda out: out[0], _size(network), PLAIN)
    with torch.inference_mode():
        best = wrapped(found.prepared(image))[0][0, 4 : 4 + classes].amax(0)
    threshold = float(best.sort(descending=True).values[CANDIDATES])
    return Neighbor(name, words, "masks", wrapped, lambda out: finish(out, threshold), found.parameters, PLAIN)


def _ultralytics(folder: Path, module: str) -> Any:
    """Return a module of the package in a folder of its own."""
    if str(folder) not in sys.path:
        os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="ultralytics-"))
        os.environ.setdefault("YOLO_OFFLINE", "1")
        sys.path.append(str(folder))
    return importlib.import_module(f"ultralytics.{module}")


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
