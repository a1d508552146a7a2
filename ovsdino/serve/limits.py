"""Bounds of a request, and of how many may wait."""

from __future__ import annotations

from dataclasses import dataclass

from ovsdino.errors import OVSDinoError

__all__ = ["Limits"]

RANGES = {
    "max_megabytes": (1, 1024),
    "max_megapixels": (1, 100),  # `ovsdino.io.images` decodes no more
    "max_waiting": (1, 1024),
    "max_seconds": (1, 3600),
    "max_classes": (1, 32_767),
    "max_frames": (1, 10_000),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    A request beyond one is answered with a status of 4xx or 503, and a sentence.
    """

    max_megabytes: int = 32
    """Largest body of a request in MB (10^6 bytes); more is answered by 413."""
    max_megapixels: int = 40
    """Largest image in millions of pixels, told before it is decoded; more is answered by 413."""
    max_waiting: int = 32
    """Requests that are read, wait or run at once; a further one is answered by 503 and Retry-After."""
    max_seconds: int = 60
    """Time of a request in seconds: 408 where its body takes longer, 503 where its turn does not come."""
    max_classes: int = 200
    """Classes in one request; more are answered by 400."""
    max_frames: int = 64
    """Frames of a video that the page segments."""

    def checked(self) -> Limits:
        """Return these limits.

        Raises:
            OVSDinoError: A number is out of range.
        """
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise OVSDinoError(f"--{name.replace('_', '-')} is {value}: expected {low}..{high}")
        return self
