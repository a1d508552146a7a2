"""Optical flow between a video's neighboring frames, cheap enough for every one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovsdino.io.video import import_cv2

__all__ = ["Flow", "Followed"]

LEVELS = 20  # of 255, by which a cell's brightness may depart from that of its place in the frame before


@dataclass(frozen=True)
class Followed:
    """Motion since the frame before, on a grid.

    Attributes:
        places: (h, w, 2) float32, x and y in cells of each cell's place in the frame before.
        explained: Share of the cells, 0..1, that are as bright as their place was.
    """

    places: np.ndarray
    explained: float


class Flow:
    """Follow the frames of one video by Dense Inverse Search (Kroeger et al., ECCV 2016), OpenCV's fastest preset.

    It takes 2.4 ms of one core at 480x360; the finer presets take 5 and 22 ms, and moved labels no better
    (docs/video.md).

    Raises:
        OVSDinoError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        self._cv2 = import_cv2()
        self._search = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.reset()

    def reset(self) -> None:
        """Forget the frame before."""
        self._gray: np.ndarray | None = None

    def follow(self, frame: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> Followed | None:
        """Return the motion since the frame before; None for a first frame, and for one of another size.

        Args:
            frame: (H, W, 3) uint8 RGB, or (H, W) gray.
            size: (height, width) in pixels at which the flow is computed.
            grid: (h, w) in cells at which it is returned.
        """
        cv2 = self._cv2
        frame = np.ascontiguousarray(frame)
        gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        gray = cv2.resize(gray, size[::-1], interpolation=cv2.INTER_AREA)
        before, self._gray = self._gray, gray
        if before is None or before.shape != gray.shape:
            return None
        back = self._coarse(self._search.calc(gray, before, None), grid)
        scale = np.array([grid[1] / size[1], grid[0] / size[0]], np.float32)
        rows, columns = np.indices(grid, np.float32)
        places = np.stack([columns, rows], -1) + scale * back
        then = cv2.remap(self._coarse(before, grid), places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        explained = cv2.absdiff(self._coarse(gray, grid), then) < LEVELS
        return Followed(places, float(explained.mean()))

    def moved(self, maps: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return maps (C, h, w) float32 as `ovsdino.models.memory.moved` does, without torch: bicubic, to 1/32 cell.

        Args:
            maps: Of the frame before.
            places: Of `Followed`.
        """
        cv2 = self._cv2
        found = np.empty_like(maps)
        for first in range(0, len(maps), 4):  # remap takes four channels at once
            part = np.ascontiguousarray(maps[first : first + 4].transpose(1, 2, 0))
            own = cv2.remap(part, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            found[first : first + 4] = own.reshape(part.shape).transpose(2, 0, 1)
        return found

    def _coarse(self, image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        found: np.ndarray = self._cv2.resize(image, grid[::-1], interpolation=self._cv2.INTER_AREA)
        return found
