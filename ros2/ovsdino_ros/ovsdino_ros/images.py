"""Read the pixels of `sensor_msgs/Image` and `CompressedImage`, from rclpy or from a bag.

Any object with a message's fields serves: nothing of ROS is imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ovsdino.edge.pixels import nv12_to_rgb, ycbcr_to_rgb
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.images import MAX_PIXELS, load_image

__all__ = ["ENCODINGS", "read_image"]

# bytes of a pixel, and where its red, green and blue are
PACKED = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "8UC3": (3, (2, 1, 0)),  # OpenCV's name, and its order
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}
# of two neighboring pixels, where the first one's luma, and blue and red chroma are
PAIRED = {
    "yuv422": (1, 0, 2),
    "uyvy": (1, 0, 2),
    "yuv422_yuy2": (0, 1, 3),
    "yuyv": (0, 1, 3),
}
ENCODINGS = (*PACKED, *PAIRED, "nv12")


def read_image(message: Any) -> tuple[np.ndarray, bool]:
    """Return the pixels of an image message.

    YUV is read as ITU-R BT.601, limited range, as cv_bridge does. Rows may have bytes to spare (`step`), and widths and
    heights may be odd.

    Args:
        message: A `sensor_msgs/Image` (`height`, `width`, `encoding`, `step`, `data`) of one of `ENCODINGS`, or a
            `sensor_msgs/CompressedImage` (`format`, `data`) that holds a JPEG or PNG.

    Returns:
        (H, W, 3) uint8 RGB and False; or, of an "nv12" image of even size, NV12 (H * 3 // 2, W) uint8 and True.

    Raises:
        OVSDinoError: An encoding that is not read, or fewer bytes than the size asks for.
    """
    data = np.frombuffer(message.data, np.uint8)
    if not hasattr(message, "encoding"):
        return _compressed(data, str(message.format)), False
    encoding, height, width, step = str(message.encoding), int(message.height), int(message.width), int(message.step)
    if not 0 < height * width <= MAX_PIXELS:
        raise OVSDinoError(f"an image of {width}x{height}: expected at least one pixel, and at most {MAX_PIXELS:,}")
    if encoding in PACKED:
        size, places = PACKED[encoding]
        rows = _rows(data, height, step, width * size, encoding).reshape(height, width, size)
        return np.ascontiguousarray(rows[:, :, list(places)]), False
    if encoding in PAIRED:
        return _paired(data, height, width, step, encoding), False
    if encoding == "nv12":
        return _nv12(data, height, width, step)
    raise OVSDinoError(f"encoding {one_line(encoding, 40)!r} is not read: expected one of {', '.join(ENCODINGS)}")


def _compressed(data: np.ndarray, form: str) -> np.ndarray:
    if "compressedDepth" in form:
        raise OVSDinoError("a compressed depth image: expected a picture; remap the topic to the camera's color image")
    return load_image(data.tobytes(), name="the compressed image")


def _rows(data: np.ndarray, count: int, step: int, used: int, encoding: str) -> np.ndarray:
    """Return the used bytes of each row, (count, used); the last row may end with them."""
    if step < used:
        raise OVSDinoError(f"a {encoding} image has steps of {step} bytes: expected at least {used}")
    short = (count - 1) * step + used - len(data)
    if short > 0:
        raise OVSDinoError(f"a {encoding} image lacks {short} of its bytes")
    if len(data) < count * step:
        data = np.concatenate([data, np.zeros(count * step - len(data), np.uint8)])
    return data[: count * step].reshape(count, step)[:, :used]


def _paired(data: np.ndarray, height: int, width: int, step: int, encoding: str) -> np.ndarray:
    """Read YUV 4:2:2; where an odd row ends within its last pair, that pair's missing chroma is its neighbor's."""
    first, blue, red = PAIRED[encoding]
    pairs = (width + 1) // 2
    whole = step >= 4 * pairs
    used = 4 * pairs if whole else 2 * width
    # the last row too must hold the whole pair, or it is read as if it ended within it
    if whole and len(data) < (height - 1) * step + used:
        whole, used = False, 2 * width
    rows = _rows(data, height, step, used, encoding)
    if not whole and width % 2:  # the last pair's red chroma and second pixel, which is cut off below
        spare = rows[:, -4:-2] if width > 1 else np.full((height, 2), 128, np.uint8)
        rows = np.concatenate([rows, spare], 1)
    pixels = rows.reshape(height, pairs, 4)
    luma = pixels[:, :, [first, first + 2]].reshape(height, 1, pairs, 2)
    chroma = pixels[:, :, [blue, red]].reshape(height, 1, pairs, 1, 2)
    return np.ascontiguousarray(ycbcr_to_rgb(luma, chroma)[:, :width])


def _nv12(data: np.ndarray, height: int, width: int, step: int) -> tuple[np.ndarray, bool]:
    """Read NV12: all rows of luma, then half as many of chroma, of the same step."""
    down, across = (height + 1) // 2, (width + 1) // 2
    luma = _rows(data, height, step, width, "nv12")
    chroma = _rows(data[height * step :], down, step, 2 * across, "nv12")
    if height % 2 == 0 and width % 2 == 0:
        return np.concatenate([luma, chroma]), True
    luma = np.pad(luma, ((0, height % 2), (0, width % 2)), "edge")
    return np.ascontiguousarray(nv12_to_rgb(np.concatenate([luma, chroma]))[:height, :width]), False
