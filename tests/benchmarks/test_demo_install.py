"""The recorded size and time of `make demo`, and what the Makefile says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ovsdino.benchmarks.studies.demo_install import disk_bytes, text

ROOT = Path(__file__).resolve().parents[2]


def test_the_makefile_says_what_was_measured() -> None:
    report = json.loads((ROOT / "benchmarks/results/demo_install.json").read_text())
    assert report["all_mb"] <= 2500 and report["first_s"] <= 180
    (said,) = re.findall(r"^demo:.*\(([\d.]+) GB, (\d+) minutes\)$", (ROOT / "Makefile").read_text(), re.M)
    assert float(said[0]) == round(report["environment_mb"] / 1000, 1)
    assert report["first_s"] <= 60 * int(said[1])
    assert len(report["printed"]) <= 4 and report["printed"][-1].startswith("look at ")
    assert f"{report['first_s']:.0f} s at first" in text(report)


def test_the_bytes_on_disk_are_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1" * 100_000)
    assert 100_000 <= disk_bytes(tmp_path) < 200_000
