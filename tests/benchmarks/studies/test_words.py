"""The study of the shipped model's words, in small, and its page."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.benchmarks.lib import (
    contact_sheet,
    data_scores,
    found_words,
    models_page,
    older,
    street_words,
    unlike_images,
)
from ovsdino.benchmarks.lib.report import RESULTS, ROOT
from ovsdino.benchmarks.studies import words
from ovsdino.data.datasets import open_dataset
from ovsdino.data.names import VOC20
from ovsdino.errors import OVSDinoError
from ovsdino.models.novelty import Gaussian
from ovsdino.pipeline import Segmenter, load
from ovsdino.train.ablation import markdown
from ovsdino.vocabulary import Vocabulary
from tests.support.small import small_model

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load("nano", "cpu", short_side=96)


def test_the_page_has_the_figures_of_the_file_and_no_others() -> None:
    assert words.filled(PAGE) == PAGE
    tables = dict(re.findall(r"<!-- (\S+) -->\n(.*?)<!-- end -->", PAGE, re.DOTALL))
    assert tables["drive_study.json"] == markdown(json.loads((RESULTS / "drive_study.json").read_text()))
    prose = PAGE
    for table in tables.values():
        prose = prose.replace(table, "")
    assert re.findall(r"\d+\.\d+", prose) == []  # a figure in a sentence would go out of date unseen


def test_the_kept_report_is_of_the_shipped_weights() -> None:
    from ovsdino.models.weights import weights_digest

    path = RESULTS / models_page.MARKER
    if not path.is_file():
        pytest.skip("not measured yet")
    report = json.loads(path.read_text())
    assert report["weights"] == weights_digest(load("nano", "cpu").model)


def test_the_lists_were_fixed_and_have_the_size_that_the_page_says() -> None:
    synonyms = street_words.read_synonyms(ROOT / "configs" / "street_synonyms.json")
    assert sum(map(len, synonyms.values())) == 50 and len(set(street_words.NONSENSE)) == 10
    assert [part.every for part in contact_sheet.PARTS] == [10, 10, 5]


def test_rows_show_every_section() -> None:
    scores = {"miou": 0.4567, "ece": 0.0312}
    report: dict[str, Any] = {
        "street": {
            "images": 11,
            "few": {"road": 0.91, "car": 0.6543},
            "alone": {"car": 0.5},
            "absent": "zebra",
            "not_found": 0.909,
        },
        "nonsense": [{"word": "a", "warned": True}, {"word": "b", "warned": False}],
        "synonyms": {"words": 50, "fallen": ["post"], "beyond": 0.05},
        "datasets": {"voc21": scores, "camvid": {"miou": 0.7}},
        "adapt": {"words": {"images": 30, "val_images": 100, "iou": {"cat": [0.1, None]}, "others": [0.25, 0.24]}},
        "sheet": {"photographs": 40, "file": "a.jpg"},
        "time": {"size": [360, 480], "threads": 2, "ms": 81.2, "older_ms": 99.6},
    }
    text = models_page.table(report)
    for figure in ("car 0.654", "| 0.500 |", "91%", "1 of 2", "1: post", "0.457", "0.031", "0.700", "cat 0.100 → -"):
        assert figure in text
    assert "0.250 → 0.240" in text and "40, in [a.jpg](a.jpg)" in text and "81 ms; 100 ms" in text
    assert text.count("words.py --root data --sections") == len(models_page.rows(report)) == 11


def test_rows_show_how_adapting_did_over_all_classes() -> None:
    classes = {
        "cat": {"named": 0.7, "before": 0.1, "after": [0.5, 0.7]},
        "cow": {"named": 0.4, "before": 0.2, "after": [0.24, 0.4]},
        "bus": {"named": None, "before": None, "after": [None, None]},  # not in these images
    }
    report = {"val_images": 9, "per_word": 10, "subsets": 2, "classes": classes, "others": [0.01, -0.0149]}
    text = models_page.table({"adapt_all": report})
    assert "0.150 → 0.370 or 0.550; 0.550 by VOC's own names" in text
    assert "| 1 of 2 |" in text and "| 1.5 points |" in text and "cat 0.100 → 0.600, cow 0.200 → 0.320" in text


def street(root: Path) -> None:
    """Write three pictures of a road with a car, and one without."""
    for kind in ("images", "labels"):
        (root / "camvid" / "val" / kind).mkdir(parents=True)
    for index in range(4):
        label = np.full((96, 128), 3, np.uint8)
        label[:40] = 0
        if index:
            label[50:80, 20:60] = 8
        colors = np.array([(200, 220, 255), *[(90, 90, 90)] * 7, (180, 20, 20)], np.uint8)[label]
        Image.fromarray(colors).save(root / "camvid" / "val" / "images" / f"{index}.png")
        Image.fromarray(label).save(root / "camvid" / "val" / "labels" / f"{index}.png")


def test_the_street_sections_count_what_is_there(tmp_path: Path, nano: Segmenter) -> None:
    street(tmp_path)
    data = open_dataset("camvid", tmp_path)
    few = street_words.few_words(nano, data, range(4))
    assert few["images"] == 4 and set(few["few"]) == {"road", "car", "sky"}
    sample = data[1]
    shown = nano.segment(sample.image, ["car"], partition=False).labels == 0
    one = street_words.few_words(nano, data, [1])["alone"]["car"]
    there = sample.label == 8
    assert one == pytest.approx((shown & there).sum() / max(1, (shown | there).sum()), abs=1e-5)
    assert 0 <= few["not_found"] <= 1
    found = street_words.synonym_words(nano, data, [0, 1], {"sky": ["sky", "car wheel"], "road": ["street"]})
    assert found["words"] == 3 and found["classes"]["sky"]["synonyms"]["sky"] == found["classes"]["sky"]["iou"]
    report = street_words.nonsense_words(nano, sample.image, ["blorft", "car"])
    assert [entry["word"] for entry in report] == ["blorft", "car"] and not report[1]["warned"]


def test_found_words_are_counted_where_they_are_and_where_they_are_not(tmp_path: Path, nano: Segmenter) -> None:
    street(tmp_path)
    report = found_words.found_words(nano, open_dataset("camvid", tmp_path), [0, 1])
    there, absent = report["counts"]
    assert report["images"] == 2 and there == 5  # road and sky twice, a car once
    assert absent == 2 * (11 + len(found_words.FOREIGN)) - there
    by_share, by_both = report["share"], report["share and certainty"]
    assert set(by_share["classes"]) == {"sky", "road", "car"}
    assert by_both["there"] <= by_share["there"] and by_both["absent"] <= by_share["absent"]
    shown = models_page.table({"found": {"camvid val": report}})
    assert "2 images of camvid val: found of 5 that are there, of 47 not" in shown


def test_unlike_images_are_warned_of_by_their_distance(
    tmp_path: Path, nano: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano.model, "known", {})
    assert unlike_images.warnings_of(nano, tmp_path) == {"limit": 1.0}
    gray = [np.full((36, 48, 3), value, np.uint8) for value in range(100, 180)]
    pooled = np.concatenate([nano.pooled(nano.encode_image(image)) for image in gray])
    monkeypatch.setattr(nano.model, "known", {"gray": Gaussian.fit(pooled)})
    with zipfile.ZipFile(tmp_path / "camvid_val.zip", "w") as archive:
        for index, image in enumerate(gray[:10]):
            with archive.open(f"images/{index}.png", "w") as file:
                Image.fromarray(image).save(file, "PNG")
    report = unlike_images.warnings_of(nano, tmp_path, photographs=5, each=2)
    assert set(report["photographs"]) == {"camvid_val"} and report["photographs"]["camvid_val"]["images"] == 5
    assert report["photographs"]["camvid_val"]["warned"] <= 0.2 and report["unlike"]["noise"]["warned"] == 1
    assert set(report["unlike"]) == set(unlike_images.UNLIKE)
    assert "noise 100%" in models_page.table({"novelty": report})


def test_the_sheet_has_every_photograph_with_its_legend(tmp_path: Path, nano: Segmenter) -> None:
    street(tmp_path)
    (tmp_path / "camvid" / "val").rename(tmp_path / "street")
    part = contact_sheet.Part(archive="street", every=2, words=("road", "car", "sky"))
    count = contact_sheet.contact_sheet(nano, tmp_path, tmp_path / "sheet.jpg", [part, part], columns=3, width=160)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert count == 4 and sheet.format == "JPEG" and sheet.width == 480 and sheet.height > 2 * 120
    assert (tmp_path / "sheet.jpg").stat().st_size <= contact_sheet.MOST_BYTES


def test_an_earlier_checkout_is_timed_in_its_own_process(tmp_path: Path) -> None:
    package = tmp_path / "old" / "ovsdino"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import time\n\nclass Old:\n    def segment(self, image, words, scores):\n        assert words == ['a', 'b']\n"
        "        time.sleep(0.02)\n\ndef load(name, device):\n    return Old()\n"
    )
    image = np.zeros((4, 5, 3), np.uint8)
    found = older.time_against(lambda: None, tmp_path / "old", image, "a,b", tmp_path, rounds=3)
    assert found["older_ms"] > found["ms"]
    with pytest.raises(OVSDinoError, match="no checkout of ovsdino"):
        older.time_against(lambda: None, tmp_path, image, "a,b", tmp_path)
    (package / "__init__.py").write_text("raise SystemExit('broken')\n")
    with pytest.raises(OVSDinoError, match="its nano does not run here"):
        older.time_against(lambda: None, tmp_path / "old", image, "a,b", tmp_path)
    assert sys.executable


def test_every_class_is_adapted_to_by_several_draws(data_root: Path) -> None:
    report = data_scores.adapt_all(
        Segmenter(small_model()), data_root, [("cat", "dog")], per_word=2, subsets=2, limit=2
    )
    assert report["val_images"] == 2 and len(report["others"]) == 2 and set(report["classes"]) == {"cat", "dog"}
    assert all(len(one["after"]) == 2 for one in report["classes"].values())


def test_the_classes_of_voc_are_each_learned_once() -> None:
    learned = [word for triple in data_scores.TRIPLES for word in triple]
    assert sorted(learned) == sorted(VOC20)
    assert data_scores.TRIPLES[0] == Vocabulary.of(words.Words().adapt_words).names


def test_sections_of_the_same_weights_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    street(tmp_path)
    kept = tmp_path / "report.json"
    monkeypatch.setattr(words.Words, "load_model", lambda self: small_model())
    options: dict[str, Any] = {"root": tmp_path, "output": kept, "every": 3}
    assert words.Words(**options, sections=("street",)).run() == 0
    first = json.loads(kept.read_text())
    assert set(first) == {"model", "weights", "street"} and first["street"]["images"] == 2
    assert words.Words(**options, sections=("nonsense",)).run() == 0
    assert json.loads(kept.read_text()).keys() == first.keys() | {"nonsense"}
    kept.write_text(json.dumps({**first, "weights": "other"}))
    assert words.Words(**options, sections=("nonsense",)).run() == 0
    assert "street" not in json.loads(kept.read_text())
    assert "words that mean nothing" in capsys.readouterr().out
    with pytest.raises(OVSDinoError, match="no such section: sky"):
        words.Words(**options, sections=("sky",)).run()
    with pytest.raises(OVSDinoError, match="time needs --against PATH"):
        words.Words(**options, sections=("time",)).run()
