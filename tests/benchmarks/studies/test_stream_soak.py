"""The soak of the stream loop, shortened; in full: python benchmarks/studies/stream_soak.py --seconds 180."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovsdino.benchmarks.studies import stream_soak
from ovsdino.errors import OVSDinoError
from tests.support import tiny


@pytest.mark.slow
@pytest.mark.parametrize("cameras", [1, 2])
def test_every_fault_of_a_camera_is_survived_and_told(tmp_path, cameras):
    bank = tiny.bank("road", "car", "sky").save(tmp_path / "bank.safetensors")
    graphs = [tiny.graph(tmp_path / f"{name}.onnx", batch=(1, cameras)) for name in ("large", "small")]
    report = stream_soak.soak(*graphs, bank, seconds=24.0, cameras=cameras)
    del report["checks"]["memory grew by less than 1%"]  # 24 s are warm-up
    assert all(report["checks"].values()), report
    assert report["rss_mb"]["growth_percent"] < 10


@pytest.mark.parametrize(
    ("arguments", "message"), [({"seconds": 5.0}, "12 or more"), ({"bank": Path("b.safetensors")}, "together, or none")]
)
def test_bad_options_are_refused_in_one_line(arguments, message):
    with pytest.raises(OVSDinoError, match=message):
        stream_soak.StreamSoak(**arguments).run()
