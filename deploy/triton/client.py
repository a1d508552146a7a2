"""Send an image to NVIDIA Triton Inference Server over HTTP and save the labels.

    pip install tritonclient[http]
    python deploy/triton/client.py street.jpg --url localhost:8000 --sidecar model.onnx.json --output labels.png

The model is `ovsdino_labels`: RGB pixels in, labels out. The names of the labels are in the graph's sidecar.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["main", "request", "segment"]


def segment(client: Any, pixels: np.ndarray, model: str = "ovsdino_labels") -> np.ndarray:
    """Return the labels of one image.

    Args:
        client: A `tritonclient.http.InferenceServerClient`.
        pixels: (H, W, 3) uint8 RGB, of the size that the model was exported for.
        model: Name of the model on the server.

    Returns:
        (H, W) uint8.
    """
    inputs, outputs = request(pixels)
    labels: np.ndarray = client.infer(model, inputs, outputs=outputs).as_numpy("labels")[0]
    return labels


def request(pixels: np.ndarray) -> tuple[list[Any], list[Any]]:
    """Return the inputs and the outputs that are asked for, for `client.infer`."""
    from tritonclient.http import InferInput, InferRequestedOutput

    image = InferInput("image", [1, *pixels.shape], "UINT8")
    image.set_data_from_numpy(pixels[None])
    return [image], [InferRequestedOutput("labels")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0."""
    parser = argparse.ArgumentParser(description="Segment an image on a Triton server.")
    parser.add_argument("image", type=Path)
    parser.add_argument("--url", default="localhost:8000", help="address of the server's HTTP port")
    parser.add_argument("--model", default="ovsdino_labels", help="name of the model on the server")
    parser.add_argument("--sidecar", type=Path, required=True, help="the graph's sidecar, for its size and its words")
    parser.add_argument("--output", type=Path, default=Path("labels.png"))
    options = parser.parse_args(arguments)
    from tritonclient.http import InferenceServerClient

    facts = json.loads(options.sidecar.read_bytes())
    _, _, height, width = facts["input"]
    picture = Image.open(options.image).convert("RGB")
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    with InferenceServerClient(options.url) as client:
        labels = segment(client, pixels, options.model)
    Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST).save(options.output)
    names = [*facts["baked"]["names"], *(["none of them"] if facts["baked"]["none"] else [])]
    for label, count in enumerate(np.bincount(labels.ravel(), minlength=len(names))):
        print(f"{label:3d} {names[label]}: {count / labels.size:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
