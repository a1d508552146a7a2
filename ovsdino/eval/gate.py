"""The preservation gate's map over an image: where the decoder may change the features."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.legend import with_legend
from ovsdino.pipeline import Segmenter

__all__ = ["draw_gate", "gate_map"]

STEPS = 5  # levels of the picture, from the least gate of the image to the largest
SHUT, OPEN = np.array([24.0, 44.0, 110.0]), np.array([255.0, 214.0, 10.0])


def gate_map(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
    """Return the gate of each token of an image (H, W, 3) uint8, (h, w) float32 in 0..1.

    Raises:
        OVSDinoError: The model has no gate of its output.
    """
    smd = segmenter.model.decoder.smd if segmenter.model.decoder is not None else None
    if smd is None or smd.config.gate != "output":
        kind = "no SMD" if smd is None else f"a gate of kind {smd.config.gate!r}"
        raise OVSDinoError(f"{segmenter.name}: it has {kind}; only a gate of the decoder's output has a map")
    features = segmenter.encode_image(image)
    assert features.backbone is not None and features.structure is not None
    with torch.inference_mode():
        gate = smd.gate_map(features.backbone.float(), features.structure.tokens.float())
    return gate[0, 0].float().cpu().numpy()


def draw_gate(image: np.ndarray, gate: np.ndarray) -> Image.Image:
    """Return the image and, to its right, the gate's map over a gray copy, with the levels' values below.

    Args:
        image: (H, W, 3) uint8.
        gate: (h, w) in 0..1.
    """
    low, high = float(gate.min()), float(gate.max())
    level = np.clip((gate - low) / max(high - low, 1e-6) * STEPS, 0, STEPS - 1).astype(np.uint8)
    height, width = image.shape[:2]
    fine = np.asarray(Image.fromarray(level).resize((width, height), Image.Resampling.NEAREST))
    colors = SHUT + np.linspace(0, 1, STEPS)[:, None] * (OPEN - SHUT)
    gray = image.astype(np.float32).mean(2, keepdims=True)
    over = 0.45 * gray + 0.55 * colors[fine]
    both = np.concatenate([image, over.round().clip(0, 255).astype(np.uint8)], 1)
    edges = np.linspace(low, high, STEPS + 1)
    entries = []
    for index in range(STEPS):
        red, green, blue = (round(value) for value in colors[index])
        name = f"gate {edges[index]:.3f} to {edges[index + 1]:.3f}"
        entries.append((name, (red, green, blue), float((level == index).mean())))
    return with_legend(Image.fromarray(both), entries)
