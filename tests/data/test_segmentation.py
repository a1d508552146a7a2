"""Labelled data sets: zips and folders, partners, ids beyond the classes, hostile names."""

import io
import json
import multiprocessing
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.check import check_dataset
from ovsdino.data.datasets import open_dataset
from ovsdino.data.names import CAMVID
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import expand_paths, load_image
from ovsdino.io.tree import ImageSource


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
    assert (len(dataset), dataset.stems, dataset.names) == (2, ("a", "b"), CAMVID)
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
    monkeypatch.setattr("ovsdino.io.tree.MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(OVSDinoError, match=r"images/bomb\.png unpacks to more than 1,000,000 bytes"):
        open_dataset("camvid", archive, "val")[2]


def test_label_of_another_size_is_named(archive):
    with zipfile.ZipFile(archive / "camvid_val.zip", "a") as file:
        file.writestr("images/odd.png", png(np.zeros((2, 2, 3), np.uint8)))
        file.writestr("labels/odd.png", png(np.zeros((3, 2), np.uint8)))
    with pytest.raises(OVSDinoError, match=r"odd\.png is 2x2, its label 2x3"):
        open_dataset("camvid", archive, "val")[2]


@pytest.mark.parametrize(
    ("name", "prepare", "message"),
    [
        ("imagenet", None, "unknown data set"),
        ("camvid", None, "neither camvid_val.zip nor"),
        ("camvid", "junk", "not a readable zip file"),
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


def folder(root, images, labels, names=("x", "y")):
    """Write a data set of the kind "folder": {path below root: bytes}."""
    for name, data in {
        **{f"images/{k}": v for k, v in images.items()},
        **{f"labels/{k}": v for k, v in labels.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "classes.json").write_text(json.dumps(list(names)), encoding="utf-8-sig")
    return root


def zipped(root):
    """Write the same files as folder_val.zip in a folder of its own."""
    home = root.with_name(root.name + "_zip")
    home.mkdir()
    with zipfile.ZipFile(home / "folder_val.zip", "w") as archive:
        for path in root.rglob("*.*"):
            archive.write(path, path.relative_to(root))
    (home / "classes.json").write_bytes((root / "classes.json").read_bytes())
    return home


def jpeg(array, orientation=1):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
LABEL = np.arange(24, dtype=np.uint8).reshape(4, 6) % 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_as_segment_reads_them_and_labels_as_they_are(tmp_path, orientation):
    turned = orientation > 4  # the shown image is 6 high and 4 wide
    label = np.arange(24, dtype=np.uint8).reshape((6, 4) if turned else (4, 6)) % 2
    root = folder(tmp_path / "set", {"a.jpg": jpeg(PICTURE, orientation)}, {"a.png": png(label)})
    for home in (root, zipped(root)):
        sample = open_dataset("folder", home)[0]
        assert np.array_equal(sample.image, load_image(root / "images" / "a.jpg"))
        assert np.array_equal(sample.label, label)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    # where the pixel stored at row 0 and column 0 is shown, and its neighbor: EXIF 2.3, tag 0x0112
    [(5, [(0, 0), (1, 0)]), (6, [(0, 3), (1, 3)]), (7, [(5, 3), (4, 3)]), (8, [(5, 0), (4, 0)])],
)
def test_a_label_drawn_on_the_stored_pixels_is_turned_with_the_image(tmp_path, orientation, expected):
    label = np.zeros((4, 6), np.uint8)
    label[0, :2] = 1, 255
    root = folder(tmp_path / "set", {"a.jpg": jpeg(PICTURE, orientation)}, {"a.png": png(label)})
    found = open_dataset("folder", root)[0].label
    assert found.shape == (6, 4)
    assert [int(found[spot]) for spot in expected] == [1, 255] and (found == 0).sum() == 22


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(PICTURE[:, :, 0].astype(np.uint16) * 257),
        Image.fromarray(np.dstack([PICTURE, PICTURE[:, :, 0]])),
        Image.fromarray(PICTURE[:, :, 0]),
        Image.fromarray(PICTURE).convert("P"),
    ],
    ids=["16 bits", "alpha", "gray", "palette"],
)
def test_all_kinds_of_images_are_read_as_segment_reads_them(tmp_path, picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    root = folder(tmp_path / "set", {"a.png": buffer.getvalue()}, {"a.png": png(LABEL)})
    for home in (root, zipped(root)):
        assert np.array_equal(open_dataset("folder", home)[0].image, load_image(root / "images" / "a.png"))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (("a.png", "a.jpg"), ("a.png",), r"images/a\.jpg and images/a\.png have one name"),
        (("a.png",), ("a.png", "a.tif"), r"labels/a\.png and labels/a\.tif have one name"),
        (("x/a.png", "x/a.jpg"), ("x/a.png",), r"images/x/a\.jpg and images/x/a\.png have one name"),
        (("x/a.png",), ("y/a.png",), "2 files lack their image or label partner, e.g. 'x/a'"),
        (("a.png",), ("a.jpg",), r"labels/a\.jpg: is not a PNG"),
    ],
)
def test_pairs_that_luck_would_decide_are_refused(tmp_path, images, labels, message):
    root = folder(tmp_path / "set", dict.fromkeys(images, png(PICTURE)), dict.fromkeys(labels, png(LABEL)))
    for home in (root, zipped(root)):
        with pytest.raises(OVSDinoError, match=message):
            open_dataset("folder", home)


def test_sub_folders_are_paired_by_their_path(tmp_path):
    files = {"x/a.png": png(PICTURE), "y/a.png": png(PICTURE), "a.png": png(PICTURE)}
    labels = {name: png(np.full((4, 6), number % 2, np.uint8)) for number, name in enumerate(files)}
    dataset = open_dataset("folder", folder(tmp_path / "set", files, labels))
    assert dataset.stems == ("a", "x/a", "y/a")
    assert [int(sample.label[0, 0]) for sample in dataset] == [0, 0, 1]


def test_a_zip_of_two_splits_is_refused(archive):
    with zipfile.ZipFile(archive / "camvid_val.zip", "a") as file:
        file.writestr("train/images/c.png", png(PICTURE))
        file.writestr("train/labels/c.png", png(LABEL))
    with pytest.raises(OVSDinoError, match="images in images and train/images"):
        open_dataset("camvid", archive)


def test_litter_of_operating_systems_is_left_out(tmp_path):
    litter = {".DS_Store": b"x", "Thumbs.db": b"x", "._a.png": b"x", "__MACOSX/a.png": b"x", ".check/a.png": b"x"}
    root = folder(tmp_path / "set", {"a.png": png(PICTURE), **litter}, {"a.png": png(LABEL), **litter})
    for home in (root, zipped(root)):
        assert open_dataset("folder", home).stems == ("a",)
    assert [Path(name).name for name in ImageSource(root).names] == ["a.png"]
    assert [path.name for path in expand_paths([root / "images"])] == ["a.png"]


def test_a_jpeg_by_another_name_is_refused_as_a_label(tmp_path):
    root = folder(tmp_path / "set", {"a.png": png(PICTURE)}, {"a.png": jpeg(np.zeros((4, 6), np.uint8))})
    with pytest.raises(OVSDinoError, match=r"labels/a\.png: a JPEG cannot be trusted with ids"):
        open_dataset("folder", root)[0]


def test_more_classes_than_a_byte_holds(tmp_path):
    label = np.array([[0, 255, 256], [299, 300, 65535]], np.uint16)
    names = [f"thing {i}" for i in range(300)]
    root = folder(tmp_path / "set", {"a.png": png(PICTURE[:2, :3])}, {"a.png": png(label)}, names)
    dataset = open_dataset("folder", root)
    assert dataset[0].label.tolist() == [[0, 255, 256], [299, 65535, 65535]] and dataset.ignore_index == 65535
    (root / "labels" / "a.png").write_bytes(png(np.full((2, 3), 255, np.uint8)))
    assert (open_dataset("folder", root)[0].label == 255).all()
    with pytest.raises(OVSDinoError, match="300 classes; training takes at most 255"):
        open_dataset("folder", root, byte_labels=True)
    (root / "classes.json").write_text(json.dumps([*names, "thing 7"]))
    with pytest.raises(OVSDinoError, match="'thing 7' is there twice"):
        open_dataset("folder", root)


def test_ids_of_few_bits_are_not_spread(tmp_path):
    # one row of the ids 0, 1, 2, 3 in a gray PNG of 2 bits, written by hand
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    body = zlib.compress(bytes([0, 0b00_01_10_11]))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    root = folder(tmp_path / "set", {"a.png": png(PICTURE[:1, :4])}, {"a.png": data}, "wxyz")
    assert open_dataset("folder", root)[0].label.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("ids", "problem", "note"),
    [
        ([0, 0, 0, 255], "hold only 0 and 255, and the 25.0%", "25.0% of the label pixels hold 255"),
        (
            [1, 1, 2, 2],
            "hold 1 to 2 and never 0, and the 50.0%",
            "50.0% of the label pixels hold ids that are not a class (2)",
        ),
        (
            [7, 8, 9, 255],
            "no pixel of the labels holds a class",
            "75.0% of the label pixels hold ids that are not a class",
        ),
        ([0, 1, 1, 255], None, "25.0% of the label pixels hold 255"),
        ([0, 1, 1, 40], None, "hold ids that are not a class (40)"),
        ([0, 1, 1, 1], None, None),
    ],
)
def test_ignored_pixels_are_said(tmp_path, ids, problem, note):
    label = np.array(ids, np.uint8).reshape(2, 2)
    root = folder(tmp_path / "set", {"a.png": png(PICTURE[:2, :2])}, {"a.png": png(label)})
    check = check_dataset("folder", root)
    assert check.usable == (problem is None)
    assert (problem is None and not check.problems) or problem in check.problems[0]
    assert (note is None and not check.notes) or note in "\n".join(check.notes)


def _pixels_of(dataset):
    return [int(sample.image.sum()) for sample in dataset]


def test_a_zip_is_read_in_forked_processes(tmp_path):
    rng = np.random.default_rng(0)
    images = {f"{i:02}.png": png(rng.integers(0, 256, (64, 64, 3), np.uint8)) for i in range(12)}
    root = zipped(folder(tmp_path / "set", images, dict.fromkeys(images, png(np.zeros((64, 64), np.uint8)))))
    dataset = open_dataset("folder", root)
    expected = _pixels_of(dataset)  # the parent has the archive open before it forks
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_pixels_of, [dataset] * 8) == [expected] * 8
    # without pickling: the children inherit the very object
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(0 if all(_pixels_of(dataset) == expected for _ in range(5)) else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def test_a_small_zip_that_unpacks_to_much_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("ovsdino.io.tree.MAX_FILE_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(2_000_000))
    source = ImageSource(tmp_path / "bomb.zip")
    with pytest.raises(OVSDinoError, match=r"a\.png unpacks to more than 1,000,000 bytes"):
        source.read("a.png")


def test_damaged_zips_are_named_in_one_line(tmp_path):
    root = folder(
        tmp_path / "set", {"a.png": png(PICTURE), "b.jpg": jpeg(PICTURE)}, {"a.png": png(LABEL), "b.png": png(LABEL)}
    )
    sound = (zipped(root) / "folder_val.zip").read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "classes.json").write_text('["x", "y"]')
    refused = 0
    for number in range(150):
        data = bytearray(sound[: rng.integers(1, len(sound))] if number % 5 == 0 else sound)
        for spot in rng.integers(0, len(data), rng.integers(1, 6)):
            data[spot] = rng.integers(0, 256)
        (tmp_path / "folder_val.zip").write_bytes(data)
        try:
            list(open_dataset("folder", tmp_path))
            for name in (source := ImageSource(tmp_path / "folder_val.zip")).names:
                source.read(name)
        except OVSDinoError as error:
            refused += 1
            assert "folder_val.zip" in str(error) and "\n" not in str(error)
    assert refused > 75


def test_camvid_itself(data_root):
    dataset = open_dataset("camvid", data_root, "val")
    assert len(dataset) == 101
    sample = dataset[0]
    assert sample.image.shape == (360, 480, 3) and sample.label.shape == (360, 480)
    assert set(np.unique(sample.label)) <= {*range(11), 255}
