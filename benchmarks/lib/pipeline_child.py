"""One process of `studies/pipeline_costs.py`: it measures whatever version of ovsdino it finds, by public names only.

PYTHONPATH=CHECKOUT python benchmarks/lib/pipeline_child.py large PHOTOGRAPH FOLDER
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORDS_LARGE, WORDS_MANY = 150, 10_000
ADJECTIVES = """red blue green old new big small dark bright wet dry clean dirty long short wide narrow high low round
flat empty full open closed broken wooden metal stone glass plastic white black gray brown yellow orange purple pink
young tall heavy light soft hard warm cold quiet loud modern"""


def words(count: int) -> list[str]:
    """Return so many phrases of two words that nano knows."""
    from ovsdino.contrast import contrast_phrases

    phrases = [f"{adjective} {thing}" for adjective in ADJECTIVES.split() for thing in contrast_phrases()]
    return [*contrast_phrases(), *phrases][:count]


def timed(call: Callable[[], Any]) -> float:
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def large(photograph: str, folder: str) -> dict[str, Any]:
    """Measure a photograph of 4000x3000: bare labels and default options in turn, and what writes the pictures."""
    from PIL import Image

    import ovsdino

    rng = np.random.default_rng(0)
    small = Image.open(photograph).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
    noise = rng.integers(-3, 4, (3000, 4000, 3), dtype=np.int16)
    pixels = (np.asarray(small, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8)
    segmenter, names = ovsdino.load("nano", "cpu"), words(WORDS_LARGE)
    result = segmenter.segment(pixels, names)
    segmenter.segment(pixels, names, scores=False)
    rounds = [
        (timed(lambda: segmenter.segment(pixels, names, scores=False)), timed(lambda: segmenter.segment(pixels, names)))
        for _ in range(5)
    ]
    out = {"bare_ms": [bare for bare, _ in rounds], "default_ms": [full for _, full in rounds]}
    out["overlay_ms"] = [timed(result.overlay) for _ in range(2)]
    out["save_ms"] = [timed(lambda: result.save(folder, "photograph"))]
    if "format" in inspect.signature(result.save).parameters:
        out["save_jpg_ms"] = [timed(lambda: result.save(folder, "photograph", format="jpg")) for _ in range(2)]
    masks = [timed(result.masks)]
    return {key: [round(value, 1) for value in values] for key, values in {**out, "masks_ms": masks}.items()}


def many(photograph: str, _: str) -> dict[str, Any]:
    """Measure 10 000 words on the photograph: memory above the idle process, which has segmented with two words."""
    import ovsdino

    segmenter, names = ovsdino.load("nano", "cpu"), words(WORDS_MANY)
    segmenter.segment(photograph, ["road", "car"])
    page, seen, over = os.sysconf("SC_PAGE_SIZE"), [0.0], threading.Event()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6

    def watch() -> None:
        while not over.wait(0.002):
            seen[0] = max(seen[0], resident())

    idle, watcher = resident(), threading.Thread(target=watch)
    watcher.start()
    first = timed(lambda: segmenter.segment(photograph, names))
    over.set()
    watcher.join()
    again = [timed(lambda: segmenter.segment(photograph, names)) for _ in range(2)]
    labels = segmenter.segment(photograph, names).labels
    return {
        "idle_mb": round(idle, 1),
        "above_idle_mb": round(seen[0] - idle, 1),
        "first_ms": round(first, 1),
        "again_ms": [round(value, 1) for value in again],
        "labels": labels.ravel()[::97].tolist(),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(json.dumps({"large": large, "many": many}[sys.argv[1]](*sys.argv[2:])))
