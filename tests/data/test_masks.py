"""Pseudo-masks: the store, the stand-in generator, duplicates, runs that stop and go on, SAM end to end."""

import errno
import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino import imageio
from ovsdino.cli import main
from ovsdino.data.images import ImageSource
from ovsdino.data.masks import MaskStore, PseudoMask, decode, encode_image
from ovsdino.errors import OVSDinoError
from ovsdino.train.pseudo_masks import Felzenszwalb, make_masks, parse_part, statistics, without_duplicates


@pytest.fixture
def pictures(tmp_path):
    """Eleven small images: three flat squares on grey, at places of their own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(11):
        image = np.full((48, 64, 3), 128, np.uint8)
        for j, colour in enumerate(((250, 20, 20), (20, 250, 20), (20, 20, 250))):
            top, left = rng.integers(0, 32), 21 * j + rng.integers(0, 5)
            image[top : top + 16, left : left + 16] = colour
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


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


def test_of_two_masks_that_nearly_coincide_the_better_one_stays():
    worse, better, apart = square(0, 0, 10, 0.5), square(0, 0, 10, 0.9), square(20, 20, 10, 0.1)
    nested = square(0, 0, 9, 0.2)  # 81 of 100 pixels
    kept = without_duplicates([worse, apart, nested, better], 0.9)
    assert [k is m for k, m in zip(kept, (better, nested, apart), strict=True)] == [True] * 3
    assert without_duplicates([better, nested], 0.8) == [better]


def test_felzenszwalb_finds_flat_squares_and_trusts_them(pictures):
    source = ImageSource(pictures)
    image = source.read("000.png")
    masks = Felzenszwalb(min_area=0.01)(image)
    for colour in ((250, 20, 20), (20, 250, 20), (20, 20, 250)):
        truth = (image == colour).all(-1)
        overlaps = [(m.mask & truth).sum() / (m.mask | truth).sum() for m in masks]
        best = masks[int(np.argmax(overlaps))]
        assert max(overlaps) > 0.7 and best.stability_score > 0.7 and best.predicted_iou > 0.5


def test_a_stopped_run_goes_on_to_the_same_files(pictures, tmp_path):
    source, generator = ImageSource(pictures), Felzenszwalb()
    make_masks(source, tmp_path / "whole", generator, shard_size=4)
    assert [p.name for p in sorted((tmp_path / "whole").iterdir())] == [
        "manifest.json",
        *(f"shard-{i:05d}.jsonl" for i in range(3)),  # 11 images, 4 a shard
    ]

    class Stopped(Exception):
        pass

    calls = 0

    def stopping(image):
        nonlocal calls
        calls += 1
        if calls == 6:  # in the second shard
            raise Stopped
        return generator(image)

    wrapped = type("Stopping", (), {"name": generator.name, "settings": generator.settings, "__call__": None})()
    type(wrapped).__call__ = lambda self, image: stopping(image)
    with pytest.raises(Stopped):
        make_masks(source, tmp_path / "parts", wrapped, shard_size=4)
    assert (tmp_path / "parts/shard-00000.jsonl").exists() and not (tmp_path / "parts/shard-00001.jsonl").exists()
    make_masks(source, tmp_path / "parts", generator, shard_size=4)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_parts_together_make_what_one_process_makes(pictures, tmp_path, monkeypatch):
    source, generator = ImageSource(pictures), Felzenszwalb()
    make_masks(source, tmp_path / "whole", generator, shard_size=4)
    store = make_masks(source, tmp_path / "parts", generator, (1, 2), shard_size=4)
    assert store.missing() == [0, 2]
    with pytest.raises(OVSDinoError, match=r"shard-00000.jsonl: .*run `ovsdino masks` again"):
        list(store.rows())
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    make_masks(source, tmp_path / "parts", generator, parse_part(None), shard_size=4)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_a_full_disk_leaves_no_half_shard(pictures, tmp_path, monkeypatch):
    source, generator = ImageSource(pictures), Felzenszwalb()
    real, written = imageio.os.fsync, 0

    def full(descriptor):
        nonlocal written
        written += 1
        if written == 3:  # the manifest, a shard, then no space
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(imageio.os, "fsync", full)
    with pytest.raises(OVSDinoError, match="No space left"):
        make_masks(source, tmp_path / "out", generator, shard_size=4)
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["manifest.json", "shard-00000.jsonl"]
    monkeypatch.undo()
    assert make_masks(source, tmp_path / "out", generator, shard_size=4).missing() == []


def test_a_damaged_image_does_not_stop_the_others(pictures, tmp_path):
    (pictures / "001.png").write_bytes((pictures / "001.png").read_bytes()[:60])
    said = []
    store = make_masks(ImageSource(pictures), tmp_path / "out", Felzenszwalb(), log=said.append)
    assert len(said) == 1 and "001.png" in said[0]
    rows = list(store.rows())
    assert rows[1]["masks"] == [] and rows[2]["masks"] and len(rows) == 11
    assert statistics(store)["images_without_masks"] == 1


def test_masks_of_other_settings_are_not_mixed(pictures, tmp_path):
    make_masks(ImageSource(pictures), tmp_path / "out", Felzenszwalb(), (9, 10))
    with pytest.raises(OVSDinoError, match=r"made with settings .*choose another --output"):
        make_masks(ImageSource(pictures), tmp_path / "out", Felzenszwalb(sigma=1.0))
    (pictures / "extra.png").write_bytes((pictures / "000.png").read_bytes())
    with pytest.raises(OVSDinoError, match="made with images 11, this run has 12"):
        make_masks(ImageSource(pictures), tmp_path / "out", Felzenszwalb())
    with pytest.raises(OVSDinoError, match="no masks here"):
        MaskStore.open(tmp_path)


def test_the_command_reports_and_draws(pictures, tmp_path, capsys):
    command = ["masks", "--images", str(pictures), "--output", str(tmp_path / "out"), "--generator", "felzenszwalb"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["shards_missing"] == 0 and report["statistics"]["images"] == 11
    assert report["statistics"]["masks"] == sum(len(row["masks"]) for row in MaskStore.open(tmp_path / "out").rows())
    assert json.loads((tmp_path / "out/statistics.json").read_text()) == report["statistics"]
    with Image.open(tmp_path / "out/samples.jpg") as sheet:
        assert sheet.size == (1280, 6 * 240)  # 11 pairs, two a line


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--generator", "sam"], "needs --checkpoint"),
        (["--generator", "felzenszwalb", "--checkpoint", "x.pth"], "has no weights"),
        (["--generator", "felzenszwalb", "--shard", "2/2"], "expected i/n"),
        (["--generator", "felzenszwalb", "--images", "/nowhere"], "/nowhere: not a folder or zip"),
    ],
)
def test_mistakes_are_one_line(pictures, tmp_path, capsys, options, shown):
    assert main(["masks", "--images", str(pictures), "--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert shown in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sam_runs_end_to_end_on_an_official_checkpoint(pictures, tmp_path, monkeypatch):
    segment_anything = pytest.importorskip("segment_anything")
    from ovsdino.train import pseudo_masks

    torch.manual_seed(0)
    torch.save(segment_anything.sam_model_registry["vit_b"]().state_dict(), tmp_path / "sam_vit_b.pth")
    for path in list(pictures.iterdir())[2:]:
        path.unlink()
    # Weights drawn at random predict nothing of worth, so nothing is filtered.
    generator = pseudo_masks.SegmentAnything(
        tmp_path / "sam_vit_b.pth", points_per_side=2, predicted_iou=-10.0, stability_score=0.0
    )
    store = make_masks(ImageSource(pictures), tmp_path / "out", generator)
    rows = list(store.rows())
    assert len(rows) == 2 and all(decode(row).shape[1:] == (48, 64) for row in rows)
    assert store.manifest.settings["model"] == "vit_b" and sum(len(row["masks"]) for row in rows) > 0
    assert generator.embed(np.zeros((48, 64, 3), np.uint8)).shape == (256, 64, 64)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(OVSDinoError, match="not an official SAM checkpoint"):
        pseudo_masks.SegmentAnything(tmp_path / "other.pth")
