"""The figures over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.stream.metrics import COUNTERS, GAUGES, MetricsServer

SUMMARY = {name: place for place, name in enumerate((*COUNTERS, *GAUGES))}
SUMMARY |= {"camera_to_mask_ms": {"p50": 12.5, "p99": 40.0}, "inference_ms": None}


def test_the_figures_are_served_to_this_machine() -> None:
    with MetricsServer(0, lambda: SUMMARY) as server:
        host, port = server.address
        assert host == "127.0.0.1"
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            lines = answer.read().decode().splitlines()
        assert f"ovsdino_dropped_total {SUMMARY['dropped']}" in lines and f"ovsdino_fps {SUMMARY['fps']}" in lines
        assert 'ovsdino_camera_to_mask_ms{part="p99"} 40.0' in lines
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{host}:{port}/", timeout=10)
        with pytest.raises(OVSDinoError, match=f"--metrics {port}: cannot listen"):
            MetricsServer(port, lambda: SUMMARY)
