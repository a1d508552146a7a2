"""A server of the real kind at a free port of the loopback, for as long as a test needs it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from ovsdino.serve.limits import Limits
from ovsdino.serve.server import address_of, listening, server_of

LIMITS = Limits(max_megabytes=1, max_megapixels=1, max_waiting=30, max_seconds=30, max_classes=6, max_frames=4)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an application in a thread, and yield its address."""
    with listening("127.0.0.1", 0) as bound:
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        assert server.started
        try:
            yield address_of(bound)
        finally:
            server.should_exit = server.force_exit = True  # browsers keep connections open
            thread.join(30)


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48), seed: int = 0) -> bytes:
    """Return the file of an image of (width, height): a blue half over a green one, with noise."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 30, (height, width, 3))
    pixels[: height // 2] += (90, 140, 220)
    pixels[height // 2 :] += (40, 130, 30)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind)
    return file.getvalue()
