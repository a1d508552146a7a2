"""Labelled data sets: zips and folders, partners, ids beyond the classes, hostile names."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.segmentation import CAMVID_NAMES, open_dataset
from ovsdino.errors import OVSDinoError


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    label = np.array([[0, 1, 2], [9, 11, 255]], np.uint8)
    with zipfile.ZipFile(tmp_path / "camvid_val.zip", "w") as file:
        file.writestr("images/b.png", png(np.full((2, 3, 3), 7, np.uint8)))
        file.writestr("labels/b.png", png(label))
        file.writestr("images/a.png", png(np.zeros((1, 2, 3), np.uint8)))
        file.writestr("labels/a.png", png(np.zeros((1, 2), np.uint8)))
    return tmp_path


def test_zip_is_read_in_order_and_ids_beyond_the_classes_are_ignored(archive):
    dataset = open_dataset("camvid", archive, "val")
    assert (len(dataset), dataset.stems, dataset.names) == (2, ("a", "b"), CAMVID_NAMES)
    sample = dataset[1]
    assert sample.label.tolist() == [[0, 1, 2], [9, 255, 255]]
    assert sample.image.shape == (2, 3, 3) and sample.image.dtype == np.uint8 and sample.image[0, 0, 0] == 7


def test_image_without_label_is_named(archive):
    with zipfile.ZipFile(archive / "camvid_val.zip", "a") as file:
        file.writestr("images/lonely.png", png(np.zeros((1, 1, 3), np.uint8)))
    with pytest.raises(OVSDinoError, match="lonely"):
        open_dataset("camvid", archive, "val")


def test_entries_that_leave_the_archive_are_not_seen(archive):
    with zipfile.ZipFile(archive / "camvid_val.zip", "a") as file:
        file.writestr("../images/evil.png", b"")
        file.writestr("/images/evil.png", b"")
    assert "evil" not in open_dataset("camvid", archive, "val").stems


def test_files_that_unpack_to_too_much_are_refused(archive, monkeypatch):
    with zipfile.ZipFile(archive / "camvid_val.zip", "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/bomb.png", bytes(2_000_000))
        file.writestr("labels/bomb.png", png(np.zeros((2, 2), np.uint8)))
    monkeypatch.setattr("ovsdino.data.segmentation.MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(OVSDinoError, match=r"images/bomb\.png unpacks to more than 1,000,000 bytes"):
        open_dataset("camvid", archive, "val")[2]


def test_label_of_another_size_is_named(archive):
    with zipfile.ZipFile(archive / "camvid_val.zip", "a") as file:
        file.writestr("images/odd.png", png(np.zeros((2, 2, 3), np.uint8)))
        file.writestr("labels/odd.png", png(np.zeros((3, 2), np.uint8)))
    with pytest.raises(OVSDinoError, match=r"odd\.png is \(3, 2\)"):
        open_dataset("camvid", archive, "val")[2]


@pytest.mark.parametrize(
    ("name", "prepare", "message"),
    [
        ("imagenet", None, "unknown data set"),
        ("camvid", None, "neither camvid_val.zip nor"),
        ("camvid", "junk", "not a zip file"),
        ("folder", "images", "classes.json is missing"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, prepare, message):
    if prepare == "junk":
        (tmp_path / "camvid_val.zip").write_bytes(b"junk")
    if prepare == "images":
        (tmp_path / "images").mkdir()
    with pytest.raises(OVSDinoError, match=message):
        open_dataset(name, tmp_path, "val")


def test_camvid_itself(data_root):
    dataset = open_dataset("camvid", data_root, "val")
    assert len(dataset) == 101
    sample = dataset[0]
    assert sample.image.shape == (360, 480, 3) and sample.label.shape == (360, 480)
    assert set(np.unique(sample.label)) <= {*range(11), 255}
