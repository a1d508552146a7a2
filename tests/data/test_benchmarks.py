"""The eight benchmarks on miniature trees in the true layouts, with labels worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.data import names
from ovsdino.data.benchmarks import SPECS
from ovsdino.data.check import check_dataset, convert_dataset
from ovsdino.data.datasets import open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.vocabulary import Vocabulary
from tests.support import trees
from tests.support.trees import label

COUNTS = {
    "voc21": 21,
    "voc20": 20,
    "context60": 60,
    "context59": 59,
    "coco-object": 81,
    "coco-stuff": 171,
    "cityscapes": 19,
    "ade20k": 150,
}


def row(sample: Any, count: int) -> list[int]:
    return sample.label.ravel()[:count].tolist()


def test_class_counts_and_the_odd_names_are_those_of_mmsegmentation() -> None:
    assert {name: len(spec.names) for name, spec in SPECS.items()} == COUNTS
    assert [n for n, s in SPECS.items() if s.has_background] == ["voc21", "context60", "coco-object"]
    assert all((s.names[0] == "background") == s.has_background for s in SPECS.values())
    assert {"diningtable", "tvmonitor", "pottedplant", "aeroplane"} <= set(names.VOC20)
    assert {"motorbike", "bedclothes", "shelves", "pottedplant", "table"} <= set(names.CONTEXT59)
    assert names.ADE20K[7] == "bed " and names.ADE20K[8] == "windowpane" and names.ADE20K[-1] == "flag"
    assert names.COCO_STUFF[84] == "building-other" and names.COCO_STUFF[-1] == "wood"
    assert names.COCO_OBJECT[1:] == names.COCO_STUFF[:80] and names.COCO_OBJECT[-1] == "toothbrush"
    assert names.CITYSCAPES[9] == "terrain" and names.CITYSCAPES[12] == "rider"
    for spec in SPECS.values():
        assert len(set(spec.names)) == len(spec.names)
        texts = Vocabulary.of({name: name for name in spec.names}).texts
        assert tuple(text for (text,) in texts) == spec.names  # the space of "bed " reaches the model


def test_pascal_voc_with_and_without_background(tmp_path: Path) -> None:
    home = tmp_path / "VOCdevkit" / "VOC2012"
    trees.pascal(
        home, {"2007_000033": label(0, 1, 20, 255), "2007_000042": label(7)}, "SegmentationClass", "Segmentation"
    )
    trees.write(home / "JPEGImages" / "2007_000032.jpg", trees.IMAGE)  # not in the list: a training image
    dataset = open_dataset("voc21", tmp_path)
    assert dataset.stems == ("2007_000033", "2007_000042") and dataset.has_background
    assert row(dataset[0], 4) == [0, 1, 20, 255] and (dataset[1].label == 7).all()
    assert np.abs(dataset[0].image.astype(int) - trees.IMAGE).mean() < 12  # JPEG
    reduced = open_dataset("voc20", home)
    assert row(reduced[0], 4) == [255, 0, 19, 255] and not reduced.has_background
    assert reduced.names[0] == "aeroplane" and reduced.names[19] == "tvmonitor"


def test_the_list_of_the_split_decides_and_keeps_its_order(tmp_path: Path) -> None:
    trees.pascal(tmp_path, {"b": label(1), "a": label(2), "c": label(3)}, "SegmentationClass", "Segmentation")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("c\n\nb \n")
    dataset = open_dataset("voc21", tmp_path)
    assert dataset.stems == ("c", "b") and (dataset[0].label == 3).all()


def test_pascal_context_with_and_without_background(tmp_path: Path) -> None:
    home = tmp_path / "VOC2010"
    trees.pascal(home, {"2008_000002": label(0, 1, 59)}, "SegmentationClassContext", "SegmentationContext")
    assert row(open_dataset("context60", tmp_path)[0], 3) == [0, 1, 59]
    assert row(open_dataset("context59", tmp_path)[0], 3) == [255, 0, 58]


def test_ade20k_moves_down_by_one_and_ignores_zero(tmp_path: Path) -> None:
    trees.ade20k(tmp_path / "ade" / "ADEChallengeData2016", {"ADE_val_00000001": label(0, 1, 8, 150)})
    dataset = open_dataset("ade20k", tmp_path)
    assert row(dataset[0], 4) == [255, 0, 7, 149] and dataset.names[7] == "bed "


def test_cityscapes_train_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path, {("lindau", "lindau_000000_000019"): label(0, 18, 255)})
    dataset = open_dataset("cityscapes", tmp_path)
    assert dataset.stems == ("lindau_000000_000019",) and row(dataset[0], 3) == [0, 18, 255]


def test_cityscapes_label_ids_are_converted(tmp_path: Path) -> None:
    # road 7, sidewalk 8, building 11, ego vehicle 1, guard rail 14, traffic light 19, sky 23, caravan 29, train 31,
    # bicycle 33, unlabelled 0
    ids = label(7, 8, 11, 1, 14, 19, 23, 29, 31, 33, 0)
    trees.cityscapes(tmp_path / "cityscapes", {("munster", "m_1"): ids, ("frankfurt", "f_1"): ids}, "labelIds")
    dataset = open_dataset("cityscapes", tmp_path)
    assert dataset.stems == ("f_1", "m_1")
    assert row(dataset[0], 11) == [0, 1, 2, 255, 255, 6, 10, 255, 16, 18, 255]


def test_cityscapes_prefers_train_ids_where_they_are_complete(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path, {("a", "a_1"): label(7)}, "labelIds")
    trees.cityscapes(tmp_path, {("a", "a_1"): label(5)})
    assert (open_dataset("cityscapes", tmp_path)[0].label == 5).all()
    trees.cityscapes(tmp_path, {("a", "a_2"): label(7)}, "labelIds")  # conversion stopped half way
    assert [int(s.label[0, 0]) for s in open_dataset("cityscapes", tmp_path)] == [0, 0]


def test_coco_stuff_train_ids_and_raw_ids(tmp_path: Path) -> None:
    trees.coco(tmp_path / "coco_stuff164k", {"000000000139": label(0, 170, 255)}, "_labelTrainIds.png")
    assert row(open_dataset("coco-stuff", tmp_path)[0], 3) == [0, 170, 255]
    # raw: person 0, fire hydrant 10, stop sign 12 (11 does not exist), toothbrush 89, banner 91, wood 181
    raw = tmp_path / "raw"
    trees.coco(raw, {"000000000285": label(0, 10, 12, 89, 91, 181, 255)}, ".png", "stuffthingmaps/val2017")
    sample = open_dataset("coco-stuff", raw)[0]
    assert row(sample, 7) == [0, 10, 11, 79, 80, 170, 255]
    assert [names.COCO_STUFF[i] for i in (11, 79, 80)] == ["stop sign", "toothbrush", "banner"]


def test_coco_object_from_converted_and_raw_maps(tmp_path: Path) -> None:
    trees.coco(tmp_path, {"000000000139": label(0, 1, 80)}, "_instanceTrainIds.png")
    assert row(open_dataset("coco-object", tmp_path)[0], 3) == [0, 1, 80]
    raw = tmp_path / "raw"
    trees.coco(raw, {"000000000285": label(0, 12, 89, 91, 181, 255)}, ".png")
    assert row(open_dataset("coco-object", raw)[0], 6) == [1, 12, 80, 0, 0, 0]  # stuff and unlabelled: background


def test_coco_object_is_painted_from_instances(tmp_path: Path) -> None:
    # category ids: person 1 -> 1, stop sign 13 -> 12, cat 17 -> 16. Rectangles [x, y] corners on 6 x 4 pixels.
    trees.coco_instances(
        tmp_path,
        [
            {"category_id": 17, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},  # 2 x 2 at (1, 1)
            {"category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 4, 0, 4]]},  # 5 x 4, larger: below the cat
            # crowd, column by column: 20 pixels nothing, then the last column
            {"category_id": 13, "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": [16, 8]}},
        ],
        ("000000000139", "000000000285"),
    )
    dataset = open_dataset("coco-object", tmp_path)
    expected = np.full((4, 6), 1)
    expected[1:3, 1:3] = 16
    expected[:, 5] = 12
    np.testing.assert_array_equal(dataset[0].label, expected)
    assert len(dataset) == 2 and (dataset[1].label == 0).all()  # no instance: all background


@pytest.mark.parametrize(
    "points",
    [
        [-3, -2, 4, 1, 2, 6],  # three corners, two of them outside
        [2, 1, 9, 2, 5, 9],
        [-5, 2, 11, 2, 11, 3, -5, 3],  # through the whole image
        [-4, -4, -1, -4, -1, -1, -4, -1],  # all outside
    ],
)
def test_polygons_beyond_the_border_are_cut_after_they_are_filled(tmp_path: Path, points: list[float]) -> None:
    # expected: the same polygon filled on a canvas with 10 pixels more on each side, and the image cut out
    from pycocotools import mask as coco

    wide = coco.frPyObjects([[value + 10 for value in points]], 24, 26)
    expected = coco.decode(coco.merge(wide))[10:14, 10:16]
    trees.coco_instances(tmp_path, [{"category_id": 1, "segmentation": [points]}])
    np.testing.assert_array_equal(open_dataset("coco-object", tmp_path)[0].label, expected)


def test_damaged_annotations_are_named_in_one_line(tmp_path: Path) -> None:
    path = trees.coco_instances(
        tmp_path,
        [
            {"category_id": 17, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
            {"category_id": 13, "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": [16, 8]}},
        ],
    )
    sound, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(sound)
        for spot in rng.integers(0, len(data), rng.integers(1, 4)):
            data[spot] = rng.choice(list(b'0123456789{}[],:"e-.x\xff'))
        path.write_bytes(data)
        try:
            list(open_dataset("coco-object", tmp_path))
        except OVSDinoError as error:
            refused += 1
            assert str(tmp_path) in str(error) and "\n" not in str(error)
    assert refused > 150


BROKEN: list[tuple[str, Any]] = [
    ("run lengths too long", {"category_id": 1, "segmentation": {"size": [4, 6], "counts": [0, 10**9]}}),
    ("run lengths negative", {"category_id": 1, "segmentation": {"size": [4, 6], "counts": [-24, 48]}}),
    ("another size", {"category_id": 1, "segmentation": {"size": [400, 600], "counts": [240000]}}),
    ("compressed", {"category_id": 1, "segmentation": {"size": [4, 6], "counts": "PPYo1"}}),
    ("a gap in the ids", {"category_id": 12, "segmentation": [[0, 0, 1, 0, 1, 1]]}),
    ("two points", {"category_id": 1, "segmentation": [[0, 0, 1, 1]]}),
    ("odd numbers", {"category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1, 2]]}),
    ("not numbers", {"category_id": 1, "segmentation": [["a"] * 6]}),
    ("far outside", {"category_id": 1, "segmentation": [[0, 0, 1e9, 0, 1e9, 1]]}),
    ("long", {"category_id": 1, "segmentation": [[0, 0, 9e5, 0] * 4]}),
    ("not finite", {"category_id": 1, "segmentation": [[0, 0, 1, 0, 1, float("inf")]]}),
    ("nothing", {"category_id": 1, "segmentation": []}),
    ("no segmentation", {"category_id": 1}),
]


@pytest.mark.parametrize("annotation", [b[1] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_instances_are_named(tmp_path: Path, annotation: dict[str, Any]) -> None:
    trees.coco_instances(tmp_path, [annotation])
    dataset = open_dataset("coco-object", tmp_path)
    with pytest.raises(OVSDinoError, match=r"instances_val2017\.json: annotation 0: "):
        dataset[0]


@pytest.mark.parametrize("size", [(0, 6), (-4, 6), (10**9, 10**9)])
def test_sizes_that_no_image_has_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = trees.coco_instances(tmp_path, [])
    text = path.read_text().replace('"height": 4, "width": 6', f'"height": {size[0]}, "width": {size[1]}')
    path.write_text(text)
    with pytest.raises(OVSDinoError, match=r"instances_val2017\.json: .* pixels; expected 1 to"):
        open_dataset("coco-object", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', '{"images": [{}], "annotations": []}', "[" * 100_000])
def test_a_file_without_annotations_is_named(tmp_path: Path, text: str) -> None:
    trees.coco_instances(tmp_path, []).write_text(text)
    with pytest.raises(OVSDinoError, match="instances_val2017"):
        open_dataset("coco-object", tmp_path)


def test_ids_that_a_data_set_does_not_have_are_an_error(tmp_path: Path) -> None:
    trees.ade20k(tmp_path, {"one": label(0, 151)})
    with pytest.raises(OVSDinoError, match=r"annotations/validation/one\.png holds the ids \[151\]"):
        open_dataset("ade20k", tmp_path)[0]


def test_missing_files_are_named(tmp_path: Path) -> None:
    trees.pascal(tmp_path, {"a": label(1), "b": label(1)}, "SegmentationClass", "Segmentation")
    (tmp_path / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(OVSDinoError, match=r"1 files are missing, e\.g\. SegmentationClass/b\.png"):
        open_dataset("voc21", tmp_path)
    with pytest.raises(OVSDinoError, match="split is 'test': voc21 has train, val, trainval"):
        open_dataset("voc21", tmp_path, "test")
    with pytest.raises(OVSDinoError, match=r"no cityscapes there; looked for leftImg8bit/val .* gtFine_trainvaltest"):
        open_dataset("cityscapes", tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(OVSDinoError, match=r"val\.txt: no such file"):
        open_dataset("voc21", tmp_path)


@pytest.mark.parametrize("line", ["../../secret", "/etc/passwd", "sub/file", "..", "a\\b", "a\0b"])
def test_lists_cannot_lead_out_of_the_data_set(tmp_path: Path, line: str) -> None:
    trees.pascal(tmp_path, {"a": label(1)}, "SegmentationClass", "Segmentation")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text(line + "\n")
    with pytest.raises(OVSDinoError, match="is not an image name"):
        open_dataset("voc21", tmp_path)


def test_links_cannot_lead_out_of_the_data_set(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    trees.ade20k(secret, {"one": label(1)})
    # a file that is a link
    home = tmp_path / "home"
    trees.ade20k(home, {"one": label(1)})
    picture = home / "images" / "validation" / "one.jpg"
    picture.unlink()
    picture.symlink_to(secret / "images" / "validation" / "one.jpg")
    with pytest.raises(OVSDinoError, match="leads out of the data set"):
        open_dataset("ade20k", home)[0]
    # a folder that is a link
    other = tmp_path / "other"
    other.mkdir()
    for part in ("images", "annotations"):
        (other / part).symlink_to(secret / part)
    with pytest.raises(OVSDinoError, match="leads out of the data set"):
        open_dataset("ade20k", other)[0]
    # the sub-folder of the root
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "ADEChallengeData2016").symlink_to(secret)
    with pytest.raises(OVSDinoError, match="is a link that leaves"):
        open_dataset("ade20k", parent)
    # the root itself may be one
    (tmp_path / "root").symlink_to(secret)
    assert len(list(open_dataset("ade20k", tmp_path / "root"))) == 1
    # the annotation file
    file = trees.coco_instances(tmp_path / "coco", [])
    file.rename(tmp_path / "outside.json")
    file.symlink_to(tmp_path / "outside.json")
    with pytest.raises(OVSDinoError, match="leads out"):
        open_dataset("coco-object", tmp_path / "coco")


def test_check_counts_against_the_official_number(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path, {("a", "a_1"): label(7, 8), ("a", "a_2"): label(0)}, "labelIds")
    check = check_dataset("cityscapes", tmp_path)
    assert (check.images, check.expected, check.checked, check.usable) == (2, 500, 2, False)
    assert check.ids == {0: 1, 1: 1} and check.labels == "gtFine/*/*_gtFine_labelIds.png"
    assert check.problems == [
        "2 of 500 images are there; get them from: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip "
        "(Cityscapes site, after registration)"
    ]
    report = check.to_dict()
    assert report["ids"] == {"0": 1, "1": 1} and report["missing"] == {"count": 0, "first": []}


def test_check_says_what_is_missing_broken_or_unexpected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"a": label(1), "b": label(151), "c": label(2), "d": label(3), "e": label(4)}
    trees.ade20k(tmp_path, labels)
    folder = tmp_path / "annotations" / "validation"
    (folder / "a.png").unlink()
    (folder / "c.png").write_bytes(b"no picture")
    trees.write(folder / "d.png", np.ones((3, 3), np.uint8))
    check = check_dataset("ade20k", tmp_path, every=True)
    assert (check.images, check.checked, check.missing) == (4, 2, ["annotations/validation/a.png"])
    assert check.ids == {3: 1} and not check.usable
    text = "\n".join(check.problems)
    assert "1 files are missing, e.g. annotations/validation/a.png" in text and "4 of 2000 images" in text
    assert "annotations/validation/c.png: not a readable label map" in text
    assert "images/validation/d.jpg is 6x4, its label 3x3" in text
    assert "ids that ade20k does not have (151), 151 in annotations/validation/b.png" in text


def test_check_of_a_complete_set_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.coco_instances(tmp_path, [], ("000000000139", "000000000285"))
    monkeypatch.setitem(SPECS["coco-object"].expected, "val", 2)  # type: ignore[arg-type]
    check = check_dataset("coco-object", tmp_path)
    assert check.usable and "painted from the instance annotations" in check.notes[0]
    monkeypatch.setitem(SPECS["coco-object"].expected, "val", 1)  # type: ignore[arg-type]
    assert "2 images, 1 in the official split" in check_dataset("coco-object", tmp_path).notes[1]


def test_conversion_writes_the_pngs_of_mmsegmentation(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path / "city", {("a", "a_1"): label(7, 14, 33)}, "labelIds")
    (written,) = convert_dataset("cityscapes", tmp_path / "city")
    assert written == tmp_path / "city" / "gtFine" / "val" / "a" / "a_1_gtFine_labelTrainIds.png"
    assert np.asarray(Image.open(written)).ravel()[:3].tolist() == [0, 255, 18]
    assert row(open_dataset("cityscapes", tmp_path / "city")[0], 3) == [0, 255, 18]
    with pytest.raises(OVSDinoError, match="converted already"):
        convert_dataset("cityscapes", tmp_path / "city")
    trees.coco_instances(tmp_path / "coco", [{"category_id": 17, "segmentation": [[0, 0, 2, 0, 2, 4, 0, 4]]}])
    before = open_dataset("coco-object", tmp_path / "coco")[0].label
    (written,) = convert_dataset("coco-object", tmp_path / "coco")
    assert written.name == "000000000139_instanceTrainIds.png"
    after = open_dataset("coco-object", tmp_path / "coco")
    assert after.entries[0].label is not None
    np.testing.assert_array_equal(after[0].label, before)
    with pytest.raises(OVSDinoError, match="needs no conversion"):
        convert_dataset("voc21", tmp_path)


def test_a_benchmark_in_a_zip_holds_class_indices(tmp_path: Path) -> None:
    import io
    import zipfile

    def png(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue()

    with zipfile.ZipFile(tmp_path / "voc21_val.zip", "w") as archive:
        archive.writestr("images/a.png", png(trees.IMAGE))
        archive.writestr("labels/a.png", png(label(0, 20, 255)))
    dataset = open_dataset("voc21", tmp_path)
    assert dataset.has_background and row(dataset[0], 3) == [0, 20, 255]
    assert check_dataset("voc21", tmp_path).expected == 1449
    reduced = open_dataset("voc20", tmp_path)
    assert not reduced.has_background and len(reduced.names) == 20 and row(reduced[0], 3) == [255, 19, 255]
