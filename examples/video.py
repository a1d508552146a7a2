"""Segment a video, a folder of frames or a camera, frame by frame, with labels that do not flicker.

python examples/video.py [FILE | FOLDER | CAMERA NUMBER]
"""

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

import ovsdino


def pan(frames=5):
    """Yield frames of a camera that pans over a photograph; for who has no video at hand."""
    photograph = np.asarray(Image.open(files("sklearn") / "datasets/images/china.jpg"))
    for left in np.linspace(0, 160, frames).astype(int):
        yield photograph[:360, left : left + 480]


source = sys.argv[1] if len(sys.argv) > 1 else pan()
if isinstance(source, str) and source.isdecimal():
    source = int(source)  # the number of a camera

segmenter = ovsdino.load("nano")
Path("outputs").mkdir(exist_ok=True)
for number, result in enumerate(segmenter.stream(source, "sky, temple, tree")):
    shares = ", ".join(f"{name} {share:.0%}" for name, share in zip(result.names, result.fractions, strict=False))
    print(f"frame {number}: {shares}, {result.ms:.0f} ms")
    result.overlay(legend=False).save(f"outputs/frame_{number:04}.jpg")
