"""The store of pseudo-masks: rows come back as they were written, damaged ones are one line of error."""

import json

import numpy as np
import pytest

from ovsdino.data.masks import MaskStore, PseudoMask, decode, encode_image
from ovsdino.errors import OVSDinoError


def square(top, left, side=8, quality=0.9, stability=0.9):
    mask = np.zeros((32, 40), bool)
    mask[top : top + side, left : left + side] = True
    return PseudoMask(mask=mask, predicted_iou=quality, stability_score=stability)


def test_masks_come_back_as_they_were_written():
    row = json.loads(json.dumps(encode_image("a.png", (32, 40), [square(1, 2, 4), square(10, 20, 9, 0.5, 0.25)])))
    assert [m["area"] for m in row["masks"]] == [81, 16]
    assert [m["bbox"] for m in row["masks"]] == [[20, 10, 9, 9], [2, 1, 4, 4]]  # x, y, w, h
    assert row["masks"][0]["predicted_iou"] == 0.5 and row["masks"][0]["stability_score"] == 0.25
    assert np.array_equal(decode(row), [square(10, 20, 9).mask, square(1, 2, 4).mask])
    assert decode(encode_image("a.png", (32, 40), [])).shape == (0, 32, 40)


def store_of(folder, row, **fields):
    """Return a store of one image as another program might have left it."""
    folder.mkdir(exist_ok=True)
    manifest = {"generator": "g", "settings": {}, "images": 1, "names_sha256": "0" * 64, "shard_size": 32, "format": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    (folder / "shard-00000.jsonl").write_text((row if isinstance(row, str) else json.dumps(row)) + "\n")
    return folder


def row_of(**changes):
    """Return a row of one square, its mask changed."""
    row = json.loads(json.dumps(encode_image("a.png", (32, 40), [square(1, 2)])))
    row["masks"][0] |= changes
    return row


def everything(folder):
    """Read a store in both ways that training and the command do."""
    store = MaskStore.open(folder)
    assert not store.missing()
    for row in store.rows():
        decode(row)
    return store.find("a.png")


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (row_of(segmentation={"size": [1 << 40, 1], "counts": "1"}), r"size is \[1099511627776, 1\], the image's is"),
        (row_of(segmentation={"size": [1 << 33, 1], "counts": "1"}), "mask 0: run lengths: size is"),
        (row_of(segmentation={"size": [32, 40], "counts": "22"}), "they sum to 4, the image has 1280 pixels"),
        (row_of(segmentation={"size": [32, 40], "counts": None}), "counts is not a text of run lengths"),
        (row_of(segmentation=[1, 2]), "mask 0: expected area, bbox"),
        (row_of(area=63), "64 pixels, the area says 63"),
        (row_of(area=float("nan")), "mask 0: expected area, bbox"),
        (row_of(bbox=[2, 1, 8, 1e9]), "mask 0: expected area, bbox"),
        (row_of(bbox=[2, 1, 8, 80]), "leaves the image of 32x40"),
        (row_of(predicted_iou="0.9"), "mask 0: expected area, bbox"),
        (row_of() | {"height": 1 << 40}, "an image of 1099511627776x40 pixels"),
        (row_of() | {"height": -32}, "an image of -32x40 pixels"),
        (row_of() | {"height": 32.0}, "height and width in pixels"),
        (row_of() | {"masks": 3}, "not a readable line of masks"),
        ([], "not a readable line of masks"),
        ("[" * 100_000, "not a readable"),
        ('{"image":"a.png"', "not a readable"),
    ],
)
def test_a_line_that_no_run_wrote_is_one_line_of_error(tmp_path, row, shown):
    folder = store_of(tmp_path / "m", row)
    with pytest.raises(OVSDinoError, match=shown) as caught:
        everything(folder)
    assert "shard-00000.jsonl" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"images": 0},
        {"images": True},
        {"images": 10**15},
        {"images": 10**15, "shard_size": 1 << 60},
        {"shard_size": 0},
        {"shard_size": -1},
        {"shard_size": 1.5},
        {"settings": None},
        {"generator": 1},
        {"names_sha256": "x"},
        {"format": 2},
        {"more": 1},
    ],
    ids=str,
)
def test_a_manifest_that_no_run_wrote_is_refused_at_once(tmp_path, fields):
    with pytest.raises(OVSDinoError, match=r"manifest.json|images of") as caught:
        everything(store_of(tmp_path / "m", row_of(), **fields))
    assert "\n" not in str(caught.value)


def test_masks_of_more_pixels_than_memory_holds_are_not_decoded(tmp_path):
    full = {"size": [10_000, 10_000], "counts": [0, 10_000 * 10_000]}
    mask = {"segmentation": full, "area": 10**8, "bbox": [0, 0, 10_000, 10_000]}
    masks = [mask | {"predicted_iou": 1.0, "stability_score": 1.0}] * 1000
    folder = store_of(tmp_path / "m", {"image": "a.png", "height": 10_000, "width": 10_000, "masks": masks})
    with pytest.raises(OVSDinoError, match="1000 masks of 10000x10000 pixels; at most"):
        everything(folder)
