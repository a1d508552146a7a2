"""The list of the phrases that a configuration trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovsdino.train.mixed.grounded import main


def test_names_and_their_neighbors_lend_and_held_out_words_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    (tmp_path / "words.txt").write_text("roadway\ntrees\nviolin\n")
    (tmp_path / "shown.txt").write_text("traffic cone\nviolin\n")
    (tmp_path / "run.yaml").write_text(
        "supervision: mixed\nmodel: nano\noutput: run\nexclude: [street]\nlabels:\n  camvid:\n    dataset: camvid\n"
        "    root: data\n    text:\n      vocabulary: words.txt\n"
        "      names: {road: [road, street], tree: [tree], sky: [sky]}\n"
    )
    output = tmp_path / "grounded.txt"
    assert main([str(tmp_path / "run.yaml"), "--extra", str(tmp_path / "shown.txt"), "--output", str(output)]) == 0
    lines = output.read_text().splitlines()
    listed = [line for line in lines if not line.startswith("#")]
    assert [line for line in listed if line.startswith("+")] == ["+road", "+roadway", "+sky", "+tree", "+trees"]
    assert {"violin", "traffic cone", "zebra"} < set(listed) and not any("street" in line for line in listed[:5])
    assert sorted(line.lstrip("+") for line in listed) == [line.lstrip("+") for line in listed]
