"""Inputs of the ops: logits of a photograph, masks like objects."""

from __future__ import annotations

import functools
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# 150 things, as many as ADE20K has classes.
NOUNS = (
    "wall building sky floor tree ceiling road bed window grass cabinet sidewalk person earth door table mountain "
    "plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk rock "
    "wardrobe lamp bathtub railing cushion base box column signboard drawer counter sand sink skyscraper "
    "fireplace refrigerator grandstand path stairs runway case pillow screen stairway river bridge bookcase blind "
    "toilet flower book hill bench countertop stove palm kitchen computer swivel boat bar arcade hovel bus towel "
    "light truck tower chandelier awning streetlight booth television airplane track clothes pole land bannister "
    "escalator ottoman bottle buffet poster stage van ship fountain conveyor canopy washer plaything pool stool "
    "barrel basket waterfall tent bag minibike cradle oven ball food step tank trade microwave pot animal bicycle "
    "lake dishwasher projector blanket sculpture hood sconce vase traffic tray ashcan fan pier crt plate monitor "
    "bulletin shower radiator glass clock flag roof leaf"
)


@functools.cache
def image_logits(device: str) -> tuple[Tensor, str]:
    """Return logits of 150 classes for a photograph, (1, 150, h, w), and their origin.

    The shipped nano model reads scikit-learn's china.jpg; without either, classes are the colors and places of 150
    pixels of the picture (a made one without scikit-learn), which gives regions and borders of the same kind.
    """
    try:
        from sklearn.datasets import load_sample_image

        picture = load_sample_image("china.jpg")
    except (ImportError, OSError):
        waves = np.sin(np.linspace(0, 9, 640))[None, :, None] + np.cos(np.linspace(0, 7, 427))[:, None, None]
        picture = ((np.floor(waves * np.array([2.0, 3.0, 4.0])) * 40 + 128).clip(0, 255)).astype(np.uint8)
    try:
        import ovsdino

        segmenter = ovsdino.load("nano", device=device)
        with torch.inference_mode():
            logits = segmenter.decode(segmenter.encode_image(picture), NOUNS.split())
        return logits.clone().float(), "logits of nano on china.jpg"
    except (ImportError, AttributeError, ValueError) as error:
        print(f"nano is not at hand ({error}): logits from colors", file=sys.stderr, flush=True)
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float().to(device) / 255
    pixels = F.interpolate(pixels, (73, 146), mode="area")
    rows, columns = torch.meshgrid(
        torch.linspace(0, 1, 73, device=device), torch.linspace(0, 2, 146, device=device), indexing="ij"
    )
    features = torch.cat([pixels, rows[None, None], columns[None, None]], 1).flatten(2)[0]  # (5, N)
    chosen = features[:, torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(0))[:150].to(device)]
    distance = torch.cdist(chosen.T, features.T).square()
    return (-40 * distance).view(1, 150, 73, 146), "logits from the colors of a photograph"


def resized(logits: Tensor, h: int, w: int) -> Tensor:
    return F.interpolate(logits, (h, w), mode="bilinear", align_corners=False).contiguous()


def blobs(count: int, side: int, share: float) -> Tensor:
    """Return (1, count, side * side) bool: ellipses of about `share` of the area, like an object's mask."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    radius = (share * side * side / np.pi) ** 0.5
    masks = np.zeros((count, side, side), bool)
    for mask in masks:
        stretch, (cy, cx) = random.uniform(0.6, 1.7), random.uniform(radius, side - radius, 2)
        mask[:] = ((y - cy) / stretch) ** 2 + ((x - cx) * stretch) ** 2 < radius**2
    return torch.from_numpy(masks.reshape(1, count, -1))
