"""The masks of a study's controls: whose they are, how large, and that the labels' regions are named as such."""

import json

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.datasets import open_dataset
from ovsdino.data.masks import Manifest, MaskStore, PseudoMask, decode, encode_image, names_digest
from ovsdino.errors import OVSDinoError
from ovsdino.train.masks.controls import main, write_control

NAMES = [f"images/{i}.png" for i in range(5)]
SIZES = [(24, 32), (24, 32), (32, 24), (24, 32), (24, 32)]


def disc(size, i):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - 10) ** 2 + (x - 8 - i) ** 2 < (4 + i) ** 2


@pytest.fixture
def store(tmp_path):
    """Five images, the i-th with a disc of radius 4 + i, scored 0.5 + i / 10, and with a speck."""
    rows = []
    for i, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        masks = [
            PseudoMask(mask=mask, predicted_iou=0.5 + i / 10, stability_score=0.9)
            for mask in (disc(size, i), np.pad(np.ones((1, 2), bool), ((0, size[0] - 1), (0, size[1] - 2))))
        ]
        rows.append(encode_image(name, size, masks))
    manifest = Manifest(
        generator="felzenszwalb", settings={"a": 1}, images=5, names_sha256=names_digest(NAMES), shard_size=2
    )
    made = MaskStore.create(tmp_path / "masks", manifest)
    for shard in range(3):
        made.write(shard, [rows[i] for i in made.images_of(shard)])
    return made


def test_every_image_gets_the_masks_of_another_and_none_twice(store, tmp_path):
    made = list(write_control(store, tmp_path / "foreign", "foreign", 3).rows())
    owners = [round(10 * (row["masks"][0]["predicted_iou"] - 0.5)) for row in made]
    assert sorted(owners) == [0, 1, 2, 3, 4] and all(owner != i for i, owner in enumerate(owners))
    for row, size, owner in zip(made, SIZES, owners, strict=True):
        assert (row["height"], row["width"]) == size
        if size == SIZES[owner]:
            assert np.array_equal(decode(row)[0], disc(size, owner))
    again = list(write_control(store, tmp_path / "again", "foreign", 3).rows())
    assert again == made


def test_rectangles_have_the_areas_of_the_masks(store, tmp_path):
    made = list(write_control(store, tmp_path / "rectangles", "rectangles").rows())
    for old, new in zip(store.rows(), made, strict=True):
        assert [m["predicted_iou"] for m in new["masks"]] == [m["predicted_iou"] for m in old["masks"]]
        for before, after in zip(old["masks"], new["masks"], strict=True):
            assert after["bbox"][2] * after["bbox"][3] == after["area"]
            assert after["area"] == pytest.approx(before["area"], rel=0.15)
    places = {tuple(row["masks"][0]["bbox"][:2]) for row in made}
    assert len(places) > 2
    other = list(write_control(store, tmp_path / "other", "rectangles", 1).rows())
    assert other != made


def test_regions_of_the_labels_are_parted_and_named_as_such(store, tmp_path, capsys):
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
    for i, size in enumerate(SIZES):
        label = np.zeros(size, np.uint8)
        label[2:8, 2:8], label[12:20, 10:20], label[-1] = 1, 1, 255
        Image.fromarray(label).save(root / f"train/labels/{i}.png")
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(root / f"train/images/{i}.png")
    (root / "classes.json").write_text('["wall", "door"]')
    command = ["--from", str(store.folder), "--kind", "segments", "--dataset", "folder", "--root", str(root)]
    assert main([*command, "--output", str(tmp_path / "segments")]) == 0
    assert "regions of the LABELS" in capsys.readouterr().err
    made = MaskStore.open(tmp_path / "segments")
    assert "LABELS" in json.dumps(made.manifest.settings)
    for row in made.rows():
        masks = decode(row)
        assert [m["area"] for m in row["masks"]] == [masks[0].sum(), 80, 36] and masks.sum(0).max() == 1
    with pytest.raises(OVSDinoError, match="made with settings"):
        write_control(store, tmp_path / "segments", "foreign")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--kind", "segments"], "--kind segments takes regions of labels"),
        (["--kind", "foreign", "--dataset", "camvid"], "--kind foreign reads no labels"),
        (["--kind", "none"], "none"),
    ],
)
def test_options_that_do_not_fit_are_refused(store, tmp_path, options, shown, capsys):
    assert main(["--from", str(store.folder), "--output", str(tmp_path / "out"), *options]) == 2
    assert shown in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_of_other_images_are_refused(store, tmp_path):
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / "train" / kind).mkdir(parents=True)
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(root / f"train/{kind}/7.png")
    (root / "classes.json").write_text('["wall"]')
    with pytest.raises(OVSDinoError, match=r"images/0\.png: the data set has no labels of it"):
        write_control(store, tmp_path / "out", "segments", labels=open_dataset("folder", root, "train"))
