"""Reports: printed or kept as JSON, and tables put into pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovsdino.benchmarks.lib.report import ReportOptions, placed


def test_a_table_takes_the_place_of_the_one_before() -> None:
    page = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\nkept\n<!-- end -->\n"
    new = placed(page, "x", "new\n")
    assert new == page.replace("old", "new") and placed(new, "x", "new") == new
    with pytest.raises(ValueError, match="no lines <!-- z -->"):
        placed(page, "z", "new")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_report_is_printed_and_kept(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ReportOptions(output=tmp_path / "r.json", json=as_json)
    assert options.publish({"ms": 1.5, "name": "größer"}, lambda report: f"{report['ms']} ms") == 0
    out = capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"ms": 1.5, "name": "größer"}
    assert (json.loads(out)["ms"] == 1.5) if as_json else (out == "1.5 ms\n")
