"""Labels of a stream as PNG files and as JSON lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ovsdino.stream.capture import Frame
from ovsdino.stream.labels import LabelWriter
from ovsdino.stream.result import StreamResult

LABELS = np.array([[0, 0, 1], [2, 2, 2]], np.uint8)
RESULT = StreamResult(
    frame=Frame(7, 100.0, np.zeros((2, 3, 3), np.uint8)),
    labels=LABELS,
    engine="nano",
    finished=100.25,
    inference_ms=80.0,
    stale=True,
    names=("road", "car"),
)


def test_a_line_tells_the_frame_its_age_and_the_share_of_each_word() -> None:
    out = io.StringIO()
    writer = LabelWriter("-", out)
    writer(RESULT)
    line = json.loads(out.getvalue())
    assert line.pop("classes") == {"road": 0.333333, "car": 0.166667, "background": 0.5}
    told = {"frame": 7, "captured": 100.0, "age_ms": 250.0, "stale": True, "engine": "nano", "inference_ms": 80.0}
    assert line == told and writer.written == 1


def test_a_picture_holds_the_labels(tmp_path: Path) -> None:
    LabelWriter(str(tmp_path / "labels"))(RESULT)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels" / "00000007.png")), LABELS)
