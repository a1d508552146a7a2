"""Captioned images: the three kinds give the same records; every fault is one line that says where."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.captions import CaptionRecord, open_captions
from ovsdino.data.tar_index import expand_shards
from ovsdino.errors import OVSDinoError

CAPTIONS = {"a.png": ("a red car", "a car"), "b.png": ("green, \u2028 blue",), "c.png": ("sky",)}


def png(value):
    data = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def write_tar(path, files):
    """files: name -> bytes, or a TarInfo to lay down as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if data is not info:
                info.size = len(data)
            archive.addfile(info, None if data is info else io.BytesIO(data))
    return path


@pytest.fixture
def root(tmp_path):
    """Write the same three images as all three kinds; image i is filled with 10 i."""
    for i, name in enumerate(CAPTIONS):
        for folder in ("images", "train2014"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(png(10 * i))
    lines = [json.dumps({"image": n, "captions": c}, ensure_ascii=False) for n, c in CAPTIONS.items()]
    (tmp_path / "captions.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    ids = {name: 7 + i for i, name in enumerate(CAPTIONS)}
    coco = {
        "images": [{"id": i, "file_name": name} for name, i in ids.items()] + [{"id": 99, "file_name": "z.png"}],
        "annotations": [{"image_id": ids[n], "caption": f"{c}\n"} for n in reversed(CAPTIONS) for c in CAPTIONS[n]],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2014.json").write_text(json.dumps(coco))
    write_tar(
        tmp_path / "tars/x-000.tar",
        {"a.json": json.dumps({"captions": CAPTIONS["a.png"], "width": 8}).encode(), "a.png": png(0)},
    )
    write_tar(
        tmp_path / "tars/x-001.tar",
        {
            "./b.png": png(10),
            "./b.txt": CAPTIONS["b.png"][0].encode(),
            "c.png": png(20),
            "c.txt": b"sky\n",
            "c.cls": b"",
        },
    )
    return tmp_path


def kinds(root):
    return [
        open_captions("jsonl", root / "images", root / "captions.jsonl"),
        open_captions("coco", root, "train2014"),
        open_captions("webdataset", root / "tars", "x-{000..001}.tar"),
    ]


def test_the_kinds_give_the_same_records_and_images(root):
    expected = [CaptionRecord(name, captions) for name, captions in CAPTIONS.items()]
    for found in kinds(root):
        assert [found.record(i) for i in range(len(found))] == expected
        assert [found.read(i).mean() for i in range(3)] == [0, 10, 20] and found.read(0).shape == (6, 8, 3)


def test_a_box_comes_along_in_lines_and_in_tars(root):
    row = {"image": "a.png", "caption": "car", "box": [1, 2, 3, 4]}
    (root / "boxes.jsonl").write_text(json.dumps(row))
    write_tar(root / "boxes/x.tar", {"a.png": png(0), "a.json": json.dumps(row).encode()})
    for found in (
        open_captions("jsonl", root / "images", root / "boxes.jsonl"),
        open_captions("webdataset", root / "boxes", "*.tar"),
    ):
        assert found.record(0) == CaptionRecord("a.png", ("car",), (1, 2, 3, 4))


def test_patterns_of_tars_match_and_list(root):
    names = [root / "tars/x-000.tar", root / "tars/x-001.tar"]
    for pattern in ("*.tar", "x-{000..001}.tar", "{x-000,x-001}.tar", "x-00?.tar", "x-{001,*}.tar"):
        assert sorted(expand_shards(root / "tars", pattern)) == names


def test_an_index_is_kept_and_made_again_when_the_tar_changes(root):
    path = root / "tars/x-000.tar"
    kinds(root)
    cache = root / "tars/x-000.tar.index.json"
    tree = json.loads(cache.read_text())
    tree["files"][0][3] = json.dumps({"caption": "from the cache"})
    cache.write_text(json.dumps(tree))
    assert kinds(root)[2].record(0).captions == ("from the cache",)
    write_tar(path, {"a.png": png(50), "a.txt": b"new"})
    os.utime(path, ns=(1, 1))
    found = open_captions("webdataset", root / "tars", "x-000.tar")
    assert found.record(0).captions == ("new",) and found.read(0).mean() == 50
    tree = json.loads(cache.read_text())
    rows = [["a.png", -5, 3, None], ["a.png", 0.5, 3, None], [5, 0, 3, None], ["a.png", 0, 3, 7], ["a.png"], 5]
    for damage in ("{", "[]", "{}", "[" * 100_000, *(json.dumps(tree | {"files": [row]}) for row in rows)):
        cache.write_text(damage)
        assert open_captions("webdataset", root / "tars", "x-000.tar").read(0).mean() == 50


def test_a_folder_that_cannot_be_written_is_indexed_in_memory(root, monkeypatch):
    monkeypatch.setattr("ovsdino.data.tar_index.os.access", lambda *_: False)
    assert kinds(root)[2].read(2).mean() == 20
    assert sorted(p.name for p in (root / "tars").iterdir()) == ["x-000.tar", "x-001.tar"]


def one_line_of(kind, root, annotations):
    with pytest.raises(OVSDinoError) as error:
        open_captions(kind, root, annotations)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png", "caption"', "line 3: not a readable captioned image: Expecting ':'"),
        ('{"image": "z.png", "caption": "x"}', "has no image 'z.png'"),
        ('{"image": "../captions.jsonl", "caption": "x"}', "has no image '../captions.jsonl'"),
        ('{"caption": "x"}', "line 3: not a readable captioned image"),
        ('{"image": "a.png", "caption": " "}', "line 3: not a readable captioned image"),
        (
            '{"image": "a.png", "caption": "x", "box": [0, 0, 0, 5]}',
            "captioned image: box [0, 0, 0, 5]",
        ),
        ('["a.png"]', "line 3: not a readable captioned image"),
        ('{"image": "a.png", "caption": "x", "box": [0, 0, 1e400, 5]}', "cannot convert float infinity"),
        ('{"image": "a.png", "caption": "x", "box": [0, 0, 4, 1e30]}', "expected left, top, width, height"),
        ('{"image": "a.png", "caption": "x", "box": ["0", 0, 4, 1]}', "expected numbers"),
        ('{"image": "a.png", "caption": "x", "box": 4}', "line 3: not a readable captioned image"),
        ("[" * 100_000, "line 3: not a readable captioned image"),
    ],
)
def test_a_damaged_line_is_named_by_its_number(root, line, message):
    (root / "bad.jsonl").write_text('{"image": "a.png", "caption": "x"}\n\n' + line)
    assert message in one_line_of("jsonl", root / "images", root / "bad.jsonl")


def test_missing_files_and_kinds_are_said(root):
    assert "expected jsonl, coco or webdataset, got 'csv'" in one_line_of("csv", root, "x")
    assert "captions_val2017.json: no such file; see data.annotations" in one_line_of("coco", root, "val2017")
    assert "no file matches 'y*.tar'" in one_line_of("webdataset", root / "tars", "y*.tar")
    assert "x-002.tar: no such file" in one_line_of("webdataset", root / "tars", "x-{000..002}.tar")
    assert "lists more than 100000" in one_line_of("webdataset", root, "{0..9999999999}{0..9999999999}.tar")
    (root / "empty.jsonl").write_text("\n")
    assert "no caption in it" in one_line_of("jsonl", root / "images", root / "empty.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["annotations"][1].pop("caption"), "annotations[1]: not a readable caption of COCO: 'caption'"),
        (lambda t: t["images"][0].pop("id"), "images[0]: not a readable image of COCO: 'id'"),
        (lambda t: t["annotations"].append({"image_id": 5, "caption": "x"}), "a caption of image 5"),
        (lambda t: t["annotations"].append({"image_id": 99, "caption": "x"}), "has no image 'z.png'"),
        (lambda t: t["annotations"].clear(), "no caption in it"),
        (lambda t: t.update(annotations=5), "no list `annotations`"),
        (lambda t: t.pop("images"), "no list `images`"),
        (lambda t: t["annotations"].append({"image_id": [5], "caption": "x"}), "annotations[4]: not a readable"),
        (lambda t: t["images"][0].update(file_name=5), "images[0]: not a readable image of COCO"),
    ],
)
def test_faults_in_cocos_file(root, change, message):
    path = root / "annotations/captions_train2014.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    assert message in one_line_of("coco", root, "train2014")


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": link("a.png", "/etc/passwd"), "a.txt": b"x"}, "a.png is not a plain file; links are not followed"),
        ({"../a.png": png(0)}, "'../a.png' leads out of the tar"),
        ({"/a.png": png(0)}, "'/a.png' leads out of the tar"),
        ({"a.txt": b"x"}, "a has a caption and no image"),
        ({"a.png": png(0)}, "a: not a readable captioned image (.txt or .json)"),
        ({"a.png": png(0), "a.json": b'{"caption": 3}'}, "a: not a readable captioned image (.txt or .json)"),
        ({"a.png": png(0), "a.json": b"{"}, "a: not a readable captioned image (.txt or .json)"),
        ({"a.png": png(0), "a.txt": b"\xff"}, "a.txt: not a readable text in UTF-8"),
        ({"a.png": png(0), "a.jpg": png(0), "a.txt": b"x"}, "a has two images, a.png and a.jpg"),
        ({"b.png": png(0), "b.txt": b"x"}, "b.png is in"),
        ({}, "no captioned image"),
    ],
)
def test_faults_in_a_tar(root, files, message):
    write_tar(root / "bad/a.tar", {"b.png": png(0), "b.txt": b"x"} if "b.png" in files else {})
    write_tar(root / "bad/b.tar", files)
    assert message in one_line_of("webdataset", root / "bad", "*.tar")


def test_a_tar_that_is_cut_or_compressed_is_refused(root):
    path = root / "tars/x-001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:600])
    assert "x-001.tar: not a readable uncompressed tar" in one_line_of("webdataset", root / "tars", "*.tar")
    path.write_bytes(whole)
    found = open_captions("webdataset", root / "tars", "*.tar")
    path.write_bytes(whole[:530])
    with pytest.raises(OVSDinoError, match=r"cannot read b\.png: the file ends before it does"):
        found.read(1)
    with tarfile.open(root / "tars/z.tar", "w:gz") as archive:
        archive.add(root / "images/a.png", "a.png")
    assert "z.tar: not a readable uncompressed tar" in one_line_of("webdataset", root / "tars", "z.tar")


def test_a_header_that_points_back_does_not_go_round_in_circles(root):
    path = write_tar(root / "bad/a.tar", {"a.png": b"x", "b.txt": b"x", "c.txt": b"x"})
    whole, third = bytearray(path.read_bytes()), 2048  # each file is a block of header and one of data
    # The next header is looked for 1536 bytes before the data at 2560: at b.txt. tarfile (Python 3.11.7) never ends.
    whole[third + 124 : third + 136] = (-1536).to_bytes(12, "big", signed=True)
    whole[third + 148 : third + 156] = b" " * 8
    whole[third + 148 : third + 156] = b"%06o\0 " % sum(whole[third : third + 512])
    path.write_bytes(whole)
    assert "c.txt ends after the tar does" in one_line_of("webdataset", root / "bad", "*.tar")


def test_names_in_a_tar_need_not_be_utf8(root):
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    path = write_tar(root / "bytes/a.tar", {name: png(30), name[:-3] + "txt": b"x"})
    for _ in range(2):  # the second from the index next to it
        found = open_captions("webdataset", root / "bytes", "*.tar")
        assert found.record(0).image == name and found.read(0).mean() == 30
        assert path.with_name("a.tar.index.json").is_file()


def test_a_pipe_is_refused_as_a_tar_and_as_a_list_of_captions(root):
    os.mkfifo(root / "tars/p.tar")
    assert "p.tar: not a readable tar: it is a folder, a pipe" in one_line_of("webdataset", root / "tars", "p*.tar")
    assert "p.tar: not a readable file of captions: it is a pipe" in one_line_of(
        "jsonl", root / "images", root / "tars/p.tar"
    )


def test_an_image_in_a_tar_that_is_none_is_one_line(root):
    write_tar(root / "bad/a.tar", {"a.png": b"nothing of the kind", "a.txt": b"x"})
    with pytest.raises(OVSDinoError, match=r"a\.tar: a\.png: "):
        open_captions("webdataset", root / "bad", "*.tar").read(0)


def test_litter_of_operating_systems_in_a_tar_is_left_out(root):
    litter = {"._a.png": b"x", "__MACOSX/._a.png": b"x", "d/.DS_Store": b"x", "Thumbs.db": b"x"}
    write_tar(root / "mac/a.tar", {**litter, "a.png": png(0), "a.txt": b"x"})
    found = open_captions("webdataset", root / "mac", "*.tar")
    assert [record.image for record in found.records] == ["a.png"]
