"""The result object: shares, masks, colors, and the forms other tools read, on a map worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ovsdino
from ovsdino.errors import OVSDinoError
from ovsdino.results import Segmentation

#  road road sky sky
#  road road sky bg      (sky is the second class, "moon" has no pixel, 3 is background)
LABELS = np.array([[0, 0, 1, 1], [0, 0, 1, 3]], dtype=np.uint8)
IMAGE = np.full((2, 4, 3), 100, np.uint8)


def result(**changes: object) -> Segmentation:
    options: dict[str, object] = {
        "labels": LABELS,
        "names": ("road", "sky", "moon"),
        "scores": (0.9, 0.8, 0.0),
        "background": True,
        "image": IMAGE,
    }
    return Segmentation(**{**options, **changes})  # type: ignore[arg-type]


def test_fractions_count_pixels_of_every_label() -> None:
    assert result().fractions == (4 / 8, 3 / 8, 0.0, 1 / 8)
    assert result().all_names == ("road", "sky", "moon", "background")


def test_a_printed_result_says_what_was_found() -> None:
    labels = np.array([[0, 0, 0, 2], [2, 2, 3, 3]], np.uint8)
    result = Segmentation(labels=labels, names=("sky", "car", "road"), background=True)
    assert repr(result) == "<Segmentation 4x2: sky 37.5%, road 37.5%>"
    assert repr(Segmentation(labels=labels * 0 + 1, names=("a",), background=True)) == "<Segmentation 4x2: nothing>"


def test_masks_partition_the_image() -> None:
    masks = result().masks()
    assert masks.shape == (3, 2, 4) and masks.dtype == bool
    np.testing.assert_array_equal(masks[1], [[0, 0, 1, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(result().mask("sky"), masks[1])
    np.testing.assert_array_equal(result().mask("background"), [[0, 0, 0, 0], [0, 0, 0, 1]])
    for wrong in ("cat", 4, -1):
        with pytest.raises(OVSDinoError, match="no class"):
            result().mask(wrong)


def test_json_form_has_every_class_and_the_background() -> None:
    data = json.loads(json.dumps(result(stages_ms={"encode": 2.0, "decode": 1.5}).to_dict()))
    assert (data["width"], data["height"], data["ms"]) == (4, 2, 3.5)
    assert data["classes"] == [
        {"name": "road", "fraction": 0.5, "score": 0.9, "found": True, "familiarity": None},
        {"name": "sky", "fraction": 0.375, "score": 0.8, "found": True, "familiarity": None},
        {"name": "moon", "fraction": 0.0, "score": 0.0, "found": False, "familiarity": None},
        {"name": "background", "fraction": 0.125, "score": None, "found": None, "familiarity": None},
    ]


def test_json_form_says_how_well_the_words_are_known() -> None:
    classes = result(familiarity=(1.0, 0.75, 0.0)).to_dict()["classes"]
    assert [entry["familiarity"] for entry in classes] == [1.0, 0.75, 0.0, None]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_rle_decodes_to_the_masks_and_skips_absent_classes() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    entries = json.loads(json.dumps(result().to_rle()))
    assert [(e["category_id"], e["name"], e["score"], e["area"]) for e in entries] == [
        (0, "road", 0.9, 4),
        (1, "sky", 0.8, 3),
    ]
    assert entries[1]["bbox"] == [2.0, 0.0, 2.0, 2.0]
    for entry in entries:
        np.testing.assert_array_equal(coco.decode(entry["segmentation"]), entry["category_id"] == LABELS)


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_detections_hold_masks_boxes_and_names() -> None:
    pytest.importorskip("supervision")
    found = result().to_supervision()
    assert found.class_id.tolist() == [0, 1]
    assert found.data["class_name"].tolist() == ["road", "sky"]
    assert found.xyxy.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2]]
    np.testing.assert_allclose(found.confidence, [0.9, 0.8])
    np.testing.assert_array_equal(found.mask[1], LABELS == 1)
    nothing = result(labels=np.full((2, 4), 3, np.uint8)).to_supervision()
    assert len(nothing) == 0


def test_label_png_keeps_the_indices_and_carries_the_palette(tmp_path: Path) -> None:
    path = result().to_png(tmp_path / "labels.png")
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), LABELS)
        colors = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colors[0, 0], (130, 0, 102))  # the palette's road
    np.testing.assert_array_equal(colors[1, 3], (0, 0, 0))


def test_more_than_256_labels_are_written_as_16_bits(tmp_path: Path) -> None:
    labels = np.array([[0, 299]], dtype=np.int16)
    many = Segmentation(labels=labels, names=tuple(f"n{i}" for i in range(300)))
    with Image.open(many.to_png(tmp_path / "labels.png")) as picture:
        np.testing.assert_array_equal(np.asarray(picture), labels)


def test_overlay_mixes_the_color_in_the_given_share() -> None:
    plain = result().overlay(alpha=0.25, boundaries=False, legend=False)
    assert plain.size == (4, 2)
    # 0.75 * 100 + 0.25 * (130, 0, 102), rounded half to even
    np.testing.assert_array_equal(np.asarray(plain)[0, 0], (108, 75, 100))
    np.testing.assert_array_equal(np.asarray(plain)[1, 3], (75, 75, 75))


def test_overlay_draws_borders_only_where_classes_meet() -> None:
    without = np.asarray(result().overlay(boundaries=False, legend=False)).astype(int)
    lined = np.asarray(result().overlay(legend=False)).astype(int)
    changed = (without != lined).any(2)
    np.testing.assert_array_equal(changed, [[0, 1, 0, 1], [0, 1, 1, 0]])


def test_legend_adds_a_strip_below_and_leaves_the_picture() -> None:
    wide = np.full((40, 400, 3), 100, np.uint8)
    labels = np.zeros((40, 400), np.uint8)
    big = Segmentation(labels=labels, names=("road",), image=wide)
    with_legend = np.asarray(big.overlay())
    assert with_legend.shape[1] == 400 and with_legend.shape[0] > 52
    np.testing.assert_array_equal(with_legend[:40], np.asarray(big.overlay(legend=False)))


def test_overlay_refuses_what_does_not_fit() -> None:
    with pytest.raises(OVSDinoError, match="5x2"):
        result().overlay(np.zeros((2, 5, 3), np.uint8))
    with pytest.raises(OVSDinoError, match="does not hold its image"):
        result(image=None).overlay()
    with pytest.raises(OVSDinoError, match="alpha"):
        result().overlay(alpha=1.5)


def test_save_writes_both_pictures(tmp_path: Path) -> None:
    written = result().save(tmp_path / "new" / "folder", "a")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["a_labels.png", "a_overlay.png"]
    assert set(written) == {"overlay", "labels"}


def test_overlay_is_saved_as_a_jpeg_where_that_is_asked_for(tmp_path: Path) -> None:
    written = result().save(tmp_path, format="jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image_labels.png", "image_overlay.jpg"]
    with Image.open(written["overlay"]) as picture:
        assert picture.format == "JPEG" and picture.size == result().overlay().size
    assert result().save(tmp_path)["labels"].name == "image_2_labels.png"
    with pytest.raises(OVSDinoError, match="expected png or jpg"):
        result().save(tmp_path, format="gif")


def test_save_in_a_loop_writes_each_image_under_its_own_name(tmp_path: Path) -> None:
    for source in ("in/b.jpg", "in/a.jpg", "in/b.jpg"):
        result(source=source).save(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*_labels.png")) == ["a_labels.png", "b_labels.png"]


def test_save_numbers_pixels_without_a_file_and_replaces_none(tmp_path: Path) -> None:
    for count in range(1, 8):
        result(labels=LABELS if count % 2 else LABELS[:, ::-1].copy()).save(tmp_path)
    names = ["image", *(f"image_{number}" for number in range(2, 8))]
    assert {p.name for p in tmp_path.glob("*_labels.png")} == {f"{name}_labels.png" for name in names}
    for number, name in enumerate(names, 1):
        with Image.open(tmp_path / f"{name}_labels.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), LABELS if number % 2 else LABELS[:, ::-1])
    (tmp_path / "image_3_labels.png").unlink()
    result().save(tmp_path)
    assert len(list(tmp_path.glob("*_labels.png"))) in (7, 8)  # a gap may be filled, never a file replaced


def test_a_result_does_not_replace_the_image_it_was_made_of(tmp_path: Path) -> None:
    source = tmp_path / "a_labels.png"
    Image.new("RGB", (4, 2)).save(source)
    before = source.read_bytes()
    (tmp_path / "link.png").symlink_to(source)
    one = result(source=str(tmp_path / "link.png"))
    for write in (lambda: one.to_png(source), lambda: one.save(tmp_path, "a")):
        with pytest.raises(OVSDinoError, match="would replace an input"):
            write()
    assert source.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a_labels.png", "link.png"]


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_result_does_not_change_when_the_frame_is_written_over(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    frame = pixels.copy()
    given = frame if kind == "array" else torch.from_numpy(frame).permute(2, 0, 1)
    found = ovsdino.load("nano", "cpu", short_side=64).segment(given, "road, sky")
    before = np.asarray(found.overlay())
    frame[:] = 0
    np.testing.assert_array_equal(found.image, pixels)
    np.testing.assert_array_equal(np.asarray(found.overlay()), before)


def test_a_result_knows_the_file_of_its_image(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "street.png")
    segmenter = ovsdino.load("nano", "cpu", short_side=64)
    opened = Image.open(tmp_path / "street.png")
    images = [tmp_path / "street.png", opened, (tmp_path / "street.png").read_bytes(), np.zeros((64, 64, 3), np.uint8)]
    found = segmenter.segment_batch(images, "road, sky")
    assert [one.source for one in found] == [str(tmp_path / "street.png")] * 2 + [None] * 2


def test_two_labels_called_background_are_refused() -> None:
    with pytest.raises(ValueError, match="a class is called 'background', as the label 3 is"):
        result(names=("road", "Background", "moon"))
    assert result(names=("road", "sky", "background"), background=False, labels=LABELS % 3).mask(
        "background"
    ).any() is (np.False_)


@pytest.mark.parametrize("labels", [LABELS.astype(float), LABELS[0], np.array([[4]]), np.array([[-1]])])
def test_labels_out_of_range_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels"):
        result(labels=labels)
