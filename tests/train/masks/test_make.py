"""Pseudo-masks: the stand-in generator, duplicates, runs that stop and go on, SAM end to end."""

import errno
import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.cli import main
from ovsdino.data.masks import MaskStore, PseudoMask, decode
from ovsdino.errors import OVSDinoError
from ovsdino.io import images as imageio
from ovsdino.io.files import lock_folder
from ovsdino.io.tree import ImageSource
from ovsdino.train.masks.generators import Felzenszwalb, without_duplicates
from ovsdino.train.masks.make import make_masks, parse_part, statistics


@pytest.fixture
def pictures(tmp_path):
    """Eleven small images: three flat squares on gray, each in its own place."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(11):
        image = np.full((48, 64, 3), 128, np.uint8)
        for j, color in enumerate(((250, 20, 20), (20, 250, 20), (20, 20, 250))):
            top, left = rng.integers(0, 32), 21 * j + rng.integers(0, 5)
            image[top : top + 16, left : left + 16] = color
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def square(top, left, side=8, quality=0.9, stability=0.9):
    mask = np.zeros((32, 40), bool)
    mask[top : top + side, left : left + side] = True
    return PseudoMask(mask=mask, predicted_iou=quality, stability_score=stability)


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
    for color in ((250, 20, 20), (20, 250, 20), (20, 20, 250)):
        truth = (image == color).all(-1)
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
    with pytest.raises(OVSDinoError, match="no such file; make the masks with `ovsdino masks`"):
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
    from ovsdino.train.masks import generators as pseudo_masks

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


def test_names_that_are_not_utf8_are_kept(pictures, tmp_path):
    name = b"\xff\xfe.png"
    (tmp_path / "d").mkdir()
    target = tmp_path / "d" / name.decode("utf-8", "surrogateescape")
    target.write_bytes((pictures / "000.png").read_bytes())
    store = make_masks(ImageSource(tmp_path / "d"), tmp_path / "out", Felzenszwalb())
    assert MaskStore.open(store.folder).find(target.name)["masks"]
    assert store.manifest.names_sha256 == hashlib.sha256(name).hexdigest()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 2), (4000, 10)])
def test_narrow_and_tiny_images_get_their_masks_and_samples(tmp_path, size):
    (tmp_path / "d").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "d/a.png")
    command = ["masks", "--images", str(tmp_path / "d"), "--output", str(tmp_path / "m")]
    assert main([*command, "--generator", "felzenszwalb"]) == 0
    with Image.open(tmp_path / "m/samples.jpg") as sheet:
        assert sheet.width == 640 and sheet.height <= 640


def test_an_output_among_the_images_is_refused_before_anything_is_written(pictures, tmp_path, capsys):
    before = digests(pictures)
    for output in (pictures, pictures / "masks", tmp_path / "link"):
        if output.name == "link":
            output.symlink_to(pictures)
        command = ["masks", "--images", str(pictures), "--output", str(output), "--generator", "felzenszwalb"]
        assert main(command) == 2
        assert "choose" in capsys.readouterr().err
    assert digests(pictures) == before


def test_masks_next_to_a_folder_called_images_are_no_images(pictures, tmp_path):
    (tmp_path / "set").mkdir()
    pictures.rename(tmp_path / "set/images")
    command = ["masks", "--images", str(tmp_path / "set"), "--output", str(tmp_path / "set/masks")]
    for _ in range(2):  # the second finds all there
        assert main([*command, "--generator", "felzenszwalb"]) == 0


def test_two_runs_in_one_folder_are_refused_and_parts_are_not(pictures, tmp_path, capsys):
    command = ["masks", "--images", str(pictures), "--output", str(tmp_path / "out"), "--generator", "felzenszwalb"]
    with lock_folder(tmp_path / "out", "run of `ovsdino masks`", (0, 2)):
        assert main(command) == 2 and "another run of `ovsdino masks` is writing" in capsys.readouterr().err
        assert main([*command, "--shard", "0/2"]) == 2
        assert main([*command, "--shard", "1/2"]) == 0
    assert main(command) == 0


def run_until(command, marker, number):
    """Starts the command line, sends it a signal once a file is there, and returns what it ended with."""
    child = subprocess.Popen([sys.executable, "-m", "ovsdino", *command], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not marker.exists() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    child.send_signal(number)
    _, said = child.communicate(timeout=120)
    return child.returncode, said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_or_interrupted_leaves_whole_shards(tmp_path, number):
    (tmp_path / "d").mkdir()
    rng = np.random.default_rng(0)
    for i in range(65):  # three shards
        blocks = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(blocks).save(tmp_path / f"d/{i:02d}.png")
    command = ["masks", "--images", str(tmp_path / "d"), "--generator", "felzenszwalb", "--output"]
    code, said = run_until([*command, str(tmp_path / "out")], tmp_path / "out/shard-00000.jsonl", number)
    if number == signal.SIGINT:
        assert code == 130 and said.strip() == "error: interrupted"
    else:
        assert code == -signal.SIGKILL
    store = MaskStore.open(tmp_path / "out")
    assert 0 not in store.missing() and 2 in store.missing()
    kept = (tmp_path / "out/shard-00000.jsonl").stat().st_mtime_ns
    (tmp_path / "out/.shard-00001.jsonl.1.00000000.tmp.jsonl").write_bytes(b"half a sh")  # as a killed writer leaves it
    assert main([*command, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/shard-00000.jsonl").stat().st_mtime_ns == kept  # what was done is not done again
    rows = [row["image"] for row in MaskStore.open(tmp_path / "out").rows()]
    assert rows == [f"{i:02d}.png" for i in range(65)]
    assert not [path for path in (tmp_path / "out").iterdir() if ".tmp" in path.name]
