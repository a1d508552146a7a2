"""The report's cells, remarks and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.eval.protocol import preset
from ovsdino.eval.report import COLUMNS, PUBLISHED, read_results, render

IMAGES = {"voc21": 1449, "voc20": 1449, "context60": 5104, "context59": 5104, "cityscapes": 500, "ade20k": 2000}


def result(dataset: str, miou: float, **changes: Any) -> dict[str, Any]:
    settings = dataclasses.asdict(preset("talk2dino", dataset, 768))
    return {
        "dataset": dataset,
        "split": "val",
        "model": "b14",
        "images": IMAGES.get(dataset, 5000),
        "miou": miou,
        "iou": {"x": miou},
        "pixel_accuracy": 0.5,
        "boundary_f1": 0.25,
        "boundary_iou": None,
        "sizes": {"small": {"recall": 0.125, "found": 0.1, "regions": 3, "pixels": 9}},
        "ms_per_image": 12.3,
        "protocol": {**settings, **changes.pop("protocol", {})},
        **changes,
    }


def saved(folder: Path, name: str, data: Any) -> str:
    (folder / name).write_text(json.dumps(data))
    return str(folder / name)


def cells(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_published_rows_stand_as_they_were_published() -> None:
    text = render([])
    assert cells(text, "Talk2DINO-B") == ["no", "61.5", "35.1", "41.0", "87.1", "39.8", "28.1", "36.6", "21.1", "43.8"]
    assert cells(text, "OVS-DINO (abstract)") == ["?", "–", "–", "–", "–", "–", "–", "42.9", "–", "46.9"]
    assert cells(text, "RADSeg-B (105 M)") == ["no", "–", "–", "–", "–", "–", "–", "–", "–", "48.0"]
    assert cells(text, "**ovsdino**") == ["no"] + ["not measured"] * 9
    for row in PUBLISHED:  # the mean of each complete row is the published one, to its rounding
        if None not in row.scores:
            assert sum(row.scores) / 8 == pytest.approx(row.mean, abs=0.06)  # type: ignore[arg-type]


def test_our_rows_come_from_the_files_and_the_rest_is_not_measured(tmp_path: Path) -> None:
    files = [
        saved(tmp_path, "a.json", result("ade20k", 0.2114)),
        saved(tmp_path, "c.json", result("cityscapes", 0.3661)),
    ]
    text = render(read_results(files))
    assert cells(text, "**ovsdino b14**") == ["no", *["not measured"] * 6, "36.6", "21.1", "not measured"]
    assert cells(text, "ovsdino b14")[:6] == ["ade20k val", "2000", "21.1", "50.0", "25.0", "not measured"]
    assert cells(text, "ovsdino b14")[6:] == ["12.5", "not measured", "not measured", "12"]
    assert "[1]" not in text


def test_the_mean_needs_all_eight(tmp_path: Path) -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    files = [saved(tmp_path, f"{n}.json", result(n, v)) for n, v in zip(COLUMNS, values, strict=True)]
    row = cells(render(read_results(files)), "**ovsdino b14**")
    assert row == ["no", "10.0", "20.0", "30.0", "40.0", "50.0", "60.0", "70.0", "80.0", "45.0"]


def test_departures_from_the_protocol_are_marked(tmp_path: Path) -> None:
    changed = {"short_side": 512, "max_long_side": 2048, "cleaning": "protocol"}
    files = [
        saved(tmp_path, "a.json", result("ade20k", 0.2, images=10)),
        saved(tmp_path, "v.json", result("voc21", 0.3, protocol=changed)),
        saved(tmp_path, "c.json", result("voc20", 0.4, protocol={"name": "native"})),
        saved(tmp_path, "p.json", result("voc21", 0.5, protocol={"pamr_iterations": 10})),
    ]
    text = render(read_results(files))
    assert cells(text, "**ovsdino b14**")[1] == "30.0 [1] [2]" and cells(text, "**ovsdino b14**")[8] == "20.0 [3]"
    assert "- [1] short_side 512 in place of 448" in text and "- [3] 10 of 2000 images" in text
    assert "- [2] cleaning 'protocol' in place of 'released'" in text
    assert cells(text, "**ovsdino b14 (native)**")[4] == "40.0 [4]" and "- [4] protocol native, not talk2dino" in text
    assert cells(text, "**ovsdino b14 + PAMR**")[1] == "50.0"


def test_labels_name_rows_and_other_data_sets_keep_to_the_second_table(tmp_path: Path) -> None:
    camvid = {**result("ade20k", 0.7), "dataset": "camvid"}
    files = [
        "trained=" + saved(tmp_path, "a.json", result("ade20k", 0.3)),
        "plain=" + saved(tmp_path, "b.json", result("ade20k", 0.2)),
        saved(tmp_path, "c.json", camvid),
    ]
    text = render(read_results(files))
    assert cells(text, "**trained**")[8] == "30.0" and cells(text, "**plain**")[8] == "20.0"
    assert cells(text, "ovsdino b14")[0] == "camvid val" and "**ovsdino b14**" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a readable JSON result"),
        ("[]", "no result"),
        ('{"dataset": "voc21"}', "no result"),
        (json.dumps({**result("voc21", 0.5), "miou": 52}), "miou is 52: expected 0..1"),
        (json.dumps({**result("voc21", 0.5), "images": "many"}), "images is 'many'"),
        (json.dumps({**result("voc21", 0.5), "protocol": []}), "protocol or sizes"),
        (json.dumps({**result("voc21", 0.5), "sizes": {"small": 3}}), "sizes.small.recall"),
    ],
)
def test_files_other_than_results_are_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(OVSDinoError, match=rf"r\.json: .*{words}"):
        read_results([str(path)])


def test_missing_files_and_two_results_for_one_cell_are_named(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match=r"no\.json: no such file"):
        read_results([str(tmp_path / "no.json")])
    files = [saved(tmp_path, name, result("voc21", 0.5)) for name in ("a.json", "b.json")]
    with pytest.raises(OVSDinoError, match=r"b\.json: .*a\.json already has voc21"):
        read_results(files)
