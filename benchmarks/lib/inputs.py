"""Inputs of the ops: logits of a photograph, masks like objects."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import ovsdino

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
    """Return nano's logits of 150 classes for a photograph, (1, 150, h, w), and their origin.

    The photograph is scikit-learn's china.jpg; without scikit-learn a made picture takes its place.
    """
    name = "china.jpg"
    try:
        from sklearn.datasets import load_sample_image

        picture = load_sample_image(name)
    except (ImportError, OSError):
        name = "a made picture"
        waves = np.sin(np.linspace(0, 9, 640))[None, :, None] + np.cos(np.linspace(0, 7, 427))[:, None, None]
        picture = ((np.floor(waves * np.array([2.0, 3.0, 4.0])) * 40 + 128).clip(0, 255)).astype(np.uint8)
    segmenter = ovsdino.load("nano", device=device)
    with torch.inference_mode():
        logits = segmenter.decode(segmenter.encode_image(picture), NOUNS.split())
    return logits.clone().float(), f"logits of nano on {name}"


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
