"""The forms of labeling tools, read back by pycocotools, supervision and readers that follow each tool's rule."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import ovsdino
from ovsdino.results import Segmentation


@pytest.fixture(scope="module")
def result() -> Segmentation:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (9, 12)), np.ones((7, 9), int)).astype(np.uint8)
    labels[10:12, 20:23] = 0
    labels[rng.integers(0, 63, 30), rng.integers(0, 108, 30)] = 2
    image = rng.integers(0, 255, (63, 108, 3), dtype=np.uint8)
    names, scores = ("road", "sky", "traffic light"), (0.9, 0.8, 0.7)
    return Segmentation(labels=labels, names=names, scores=scores, background=True, image=image, source="in/street.png")


def test_coco_is_read_back_by_pycocotools(result: Segmentation, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    (tmp_path / "street.json").write_text(json.dumps(result.to_coco(image_id=7)))
    data = coco.COCO(tmp_path / "street.json")
    assert data.imgs[7]["file_name"] == "street.png"
    for index, name in enumerate(result.names):
        (category,) = data.getCatIds(catNms=[name])
        found = data.loadAnns(data.getAnnIds(imgIds=[7], catIds=[category]))
        masks = [data.annToMask(one) for one in found]
        np.testing.assert_array_equal(np.sum(masks, 0), result.labels == index)  # instances do not overlap
        assert [one["area"] for one in found] == [int(mask.sum()) for mask in masks]
    assert len(result.to_coco(instances=False)["annotations"]) == 3


def test_yolo_is_read_back_by_readers_that_round_and_that_cut_off(result: Segmentation) -> None:
    lines = result.to_yolo().splitlines()
    assert len(lines) == len(result.instances())
    for cut in (np.trunc, np.round):
        masks = np.zeros((3, *result.labels.shape), np.uint8)
        for line in lines:
            number, *values = line.split()
            points = cut(np.array(values, np.float32).reshape(-1, 2) * (108, 63)).astype(np.int32)
            cv2.fillPoly(masks[int(number)], [points], 1)
        assert_masks(masks, result)


def assert_masks(masks: np.ndarray, result: Segmentation) -> None:
    """A part inside a hole of another class's part is drawn by its own line; no class is drawn over its own holes."""
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(mask > 0, result.labels == index)


def test_yolo_and_labelme_are_read_back_by_supervision(result: Segmentation, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    assert result.image is not None
    for folder in ("images", "yolo", "labelme"):
        (tmp_path / folder).mkdir()
    Image.fromarray(result.image).save(tmp_path / "images" / "street.png")
    (tmp_path / "yolo" / "street.txt").write_text(result.to_yolo())
    (tmp_path / "data.yaml").write_text(json.dumps({"names": list(result.names)}))
    (tmp_path / "labelme" / "street.json").write_text(json.dumps(result.to_labelme()))
    yolo = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "yolo"), str(tmp_path / "data.yaml"), force_masks=True
    )
    labelme = supervision.DetectionDataset.from_labelme(str(tmp_path / "images"), str(tmp_path / "labelme"))
    for data in (yolo, labelme):
        ((_, _, found),) = list(data)
        for index, name in enumerate(result.names):
            mask = found.mask[found.class_id == data.classes.index(name)].any(0)
            np.testing.assert_array_equal(mask, result.labels == index)


def test_labelme_holds_what_its_reader_asks_for(result: Segmentation) -> None:
    file = json.loads(json.dumps(result.to_labelme()))
    assert (file["imagePath"], file["imageHeight"], file["imageWidth"]) == ("street.png", 63, 108)
    groups = {shape["group_id"] for shape in file["shapes"]}
    assert len(groups) == len(file["shapes"]) == len(result.instances())
    assert {shape["label"] for shape in file["shapes"]} == set(result.names)


def test_regions_are_iterated_cut_out_and_scored(result: Segmentation) -> None:
    assert [(region.name, region.score, region.area) for region in result] == [
        (name, score, int((result.labels == index).sum()))
        for index, (name, score) in enumerate(zip(result.names, result.scores or (), strict=True))
    ]
    whole = result.region("road")
    np.testing.assert_array_equal(whole.mask, result.mask("road"))
    left, top, right, bottom = whole.box
    cut = np.asarray(result.crop("road"))
    assert result.image is not None
    np.testing.assert_array_equal(cut[..., :3], result.image[top:bottom, left:right])
    np.testing.assert_array_equal(cut[..., 3] > 0, whole.inside)
    parts = result.instances(least_pixels=20)
    assert all(part.area >= 20 for part in parts) and {part.score for part in parts} <= {0.9, 0.8, 0.7}
    certain = Segmentation(
        labels=result.labels, names=result.names, background=True, confidence=(result.labels / 4).astype(np.float16)
    )
    assert [part.score for part in certain.instances()][:1] == [0.0]
    assert {part.score for part in certain.instances() if part.name == "traffic light"} == {0.5}


def test_a_class_without_pixels_has_an_empty_region_and_nothing_to_cut_out() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    one = Segmentation(labels=np.zeros((4, 5), np.uint8), names=("road", "sky"), image=image)
    assert one.region("sky").area == 0 and not one.region("sky").mask.any()
    assert [region.name for region in one] == ["road"]
    with pytest.raises(ovsdino.OVSDinoError, match="'sky' was not found in this image"):
        one.crop("sky")
    assert one.to_yolo().startswith("0 ") and one.to_coco()["annotations"][0]["area"] == 20


def test_a_notebook_shows_the_overlay_or_the_labels(result: Segmentation) -> None:
    for shown in (result, Segmentation(labels=result.labels, names=result.names, background=True)):
        assert shown._repr_png_().startswith(b"\x89PNG")
    assert result.plot(legend=False).shape == (63, 108, 3)


def test_a_table_has_a_row_for_each_label(result: Segmentation) -> None:
    pytest.importorskip("pandas")
    table = result.to_pandas()
    assert table["name"].tolist() == [*result.names, "background"]
    assert table["pixels"].sum() == 63 * 108 and table["fraction"].sum() == pytest.approx(1, abs=1e-5)
