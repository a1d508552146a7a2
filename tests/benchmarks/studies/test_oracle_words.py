"""The study of oracle words on a data set made up here, and its kept report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.benchmarks.lib.report import RESULTS, ROOT
from ovsdino.benchmarks.studies import oracle_words
from ovsdino.errors import OVSDinoError

ROAD, POLE, VOID = 3, 2, 11


def street(root: Path, count: int = 4) -> None:
    """Write pictures of 37 x 50 pixels, a dark pole on a gray road, at the side of a token."""
    for kind in ("images", "labels"):
        (root / "camvid" / "val" / kind).mkdir(parents=True)
    for index in range(count):
        label = np.full((37, 50), ROAD, np.uint8)
        label[:, 17 : 20 + index] = POLE
        colors = np.where(label[..., None] == ROAD, (140, 140, 140), (40, 40, 40)).astype(np.uint8)
        label[:, :2] = VOID
        Image.fromarray(colors).save(root / "camvid" / "val" / "images" / f"{index}.png")
        Image.fromarray(label).save(root / "camvid" / "val" / "labels" / f"{index}.png")


def test_the_image_shows_what_lies_below_the_token(tmp_path: Path) -> None:
    street(tmp_path)
    kept = tmp_path / "report.json"
    rows = ("bilinear", "propagation", "propagation, flat guide", "blurred by 1 tokens: bilinear")
    study = oracle_words.OracleWords(root=tmp_path, datasets=("camvid",), rows=rows, output=kept)
    assert study.run() == 0
    report = json.loads(kept.read_text())
    found = {row["row"]: row for row in report["datasets"]["camvid"]["rows"]}
    assert tuple(found) == rows and [row["images"] for row in found.values()] == [4, 4, 4, 2]
    assert found["propagation"]["miou"] == 1.0 > found["propagation, flat guide"]["miou"]
    assert found["bilinear"]["iou"]["car"] is None and found["bilinear"]["iou"]["road"] < 1


def test_shares_are_counted_and_blur_keeps_a_constant() -> None:
    label = np.array([[0, 0, 1, 255], [0, 1, 1, 255]])
    expected = torch.tensor([[[[0.75, 0.0]], [[0.25, 0.5]]]])
    assert torch.equal(oracle_words.shares(label, [0, 1], 2), expected)
    flat = torch.full((1, 2, 3, 4), 0.25)
    torch.testing.assert_close(oracle_words.blurred(flat, 0.7), flat)


def test_foreign_guides_are_other_images_of_the_same_size() -> None:
    images = [torch.full((1, 3, 4 + index, 4), float(index)) for index in range(4)]
    assert torch.equal(oracle_words.guide_of(images, 1, "own"), images[1])
    assert torch.equal(oracle_words.guide_of(images, 3, "foreign"), torch.full((1, 3, 7, 4), 1.0))


def test_flops_grow_with_the_classes() -> None:
    one, two, three = (oracle_words.flops((32, 48), classes) for classes in (1, 2, 3))
    assert three - two == two - one > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ("none",)}, "no such row: none"),
        ({"limit": 0}, "1 or more"),
        ({"stems": ("x",)}, "name begins with x"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    street(tmp_path, 1)
    with pytest.raises(OVSDinoError, match=message):
        oracle_words.OracleWords(root=tmp_path, datasets=("camvid",), **options).run()


def test_the_table_of_the_page_is_the_kept_report() -> None:
    report = json.loads((RESULTS / "oracle_words.json").read_text())
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    section = page.split("## Below the token\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| ([^|]+?) \| ([\d. |]+) \|$", section, re.MULTILINE))
    camvid, voc = ({row["row"]: row for row in report["datasets"][name]["rows"]} for name in ("camvid", "voc21"))
    assert len(shown) >= 10
    for name, cells in shown.items():
        expected = [camvid[name]["miou"], camvid[name]["boundary_f1"], voc[name]["miou"]]
        assert [float(cell) for cell in cells.split("|")] == pytest.approx([100 * x for x in expected], abs=0.0501)
