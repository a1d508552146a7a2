"""Frames as cameras give them, made of a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError

__all__ = ["frame_size", "nv12_of"]

NAMED = {"720p": (720, 1280), "1080p": (1080, 1920)}


def frame_size(text: str) -> tuple[int, int]:
    """Return (H, W) of "720p", "1080p" or HEIGHTxWIDTH.

    Raises:
        OVSDinoError: Neither, or a side that is odd or beyond 8192.
    """
    if text in NAMED:
        return NAMED[text]
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and 0 < int(part) <= 8192 and int(part) % 2 == 0 for part in parts):
        raise OVSDinoError(f"frame is {text!r}: expected 720p, 1080p or HEIGHTxWIDTH with even sides up to 8192")
    return int(parts[0]), int(parts[1])


def nv12_of(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture as a frame of NV12, ITU-R BT.601, limited range.

    Args:
        image: (h, w, 3) uint8 RGB; it is stretched to the frame.
        height: Of the frame in pixels, even.
        width: Likewise.

    Returns:
        (H * 3 // 2, W) uint8: H rows of Y, then H / 2 rows of Cb and Cr in turn, each the mean of four pixels.
    """
    stretched = np.asarray(Image.fromarray(image).resize((width, height)), np.float32) / 255
    red, green, blue = (stretched[..., channel] for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colors = np.stack(((blue - luma) / 1.772, (red - luma) / 1.402), -1)  # Cb, Cr in -0.5..0.5
    halved = colors.reshape(height // 2, 2, width // 2, 2, 2).mean((1, 3))
    rows = np.concatenate((16 + 219 * luma, 128 + 224 * halved.reshape(height // 2, width)))
    return np.rint(rows).clip(0, 255).astype(np.uint8)
