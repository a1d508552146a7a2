"""The soak of the server, shortened; in full: python benchmarks/studies/serve_soak.py."""

from __future__ import annotations

import json

import pytest

from ovsdino.benchmarks.lib.report import RESULTS
from ovsdino.benchmarks.studies import serve_soak
from ovsdino.errors import OVSDinoError

for module in ("starlette", "uvicorn", "python_multipart", "pycocotools"):
    pytest.importorskip(module, reason="needs the extra serve")


def test_good_and_bad_requests_at_once_are_all_answered():
    report = serve_soak.soak(50, 10, warm_up=10, options=("--short-side", "64", "--device", "cpu"))
    assert report["wrong"] == [] and report["requests"] == 50
    assert sum(count for kind, count in report["kinds"].items() if kind.startswith("4")) == 10
    assert report["rss_mb"]["growth_percent"] < 25  # 50 requests are warm-up


def test_a_lost_or_wrong_answer_is_found():
    call = serve_soak.bad_calls()[0]
    assert "lost" in serve_soak.sent("http://127.0.0.1:9", call)


def test_bad_options_are_refused_in_one_line():
    with pytest.raises(OVSDinoError, match="10 or more"):
        serve_soak.ServeSoak(requests=2).run()


def test_the_kept_report_is_of_200_requests_20_at_once_none_of_them_lost():
    report = json.loads((RESULTS / "serve_soak.json").read_text())
    assert (report["requests"], report["at_once"], report["wrong"]) == (200, 20, [])
    assert all(report["checks"].values()) and report["rss_mb"]["growth_percent"] < 10
