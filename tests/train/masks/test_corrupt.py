"""Corrupted masks: what each kind does, how often, the same for the same seed; the command that writes them."""

import hashlib
import json

import numpy as np
import pytest

from ovsdino.cli import main
from ovsdino.data.masks import Manifest, MaskStore, PseudoMask, decode, encode_image, names_digest
from ovsdino.errors import OVSDinoError
from ovsdino.train.masks.corrupt import KINDS, corrupt_masks, corrupt_rows, corrupt_store

SIZE = (360, 480)


def tiles(count=48, side=60):
    """(count, 360, 480): the squares of a 6 x 8 board, so every mask has neighbors."""
    masks = np.zeros((count, *SIZE), bool)
    for index in range(count):
        top, left = side * (index // 8), side * (index % 8)
        masks[index, top : top + side, left : left + side] = True
    return masks


def row(name="a.png", masks=None):
    masks = tiles() if masks is None else masks
    found = [PseudoMask(mask=m, predicted_iou=0.5 + i / 100, stability_score=0.9) for i, m in enumerate(masks)]
    return json.loads(json.dumps(encode_image(name, SIZE, found)))


def spoiled(kind, masks=None, share=1.0, seeds=range(4)):
    """Pairs of a mask and what became of it, of one kind."""
    masks = tiles() if masks is None else masks
    return [
        (masks[index], new)
        for seed in seeds
        for index, (what, new) in enumerate(corrupt_masks(masks, share, np.random.default_rng(seed)))
        if what == kind
    ]


def box(mask):
    y, x = np.nonzero(mask)
    return y.min(), x.min(), y.max() + 1, x.max() + 1


@pytest.fixture
def store(tmp_path):
    """Five images, two a shard."""
    names = [f"{i}.png" for i in range(5)]
    manifest = Manifest(
        generator="felzenszwalb", settings={"sigma": 0.8}, images=5, names_sha256=names_digest(names), shard_size=2
    )
    masks = MaskStore.create(tmp_path / "masks", manifest)
    for shard in range(3):
        masks.write(shard, [row(names[i], tiles(12)) for i in masks.images_of(shard)])
    return masks


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("[ms]*-*.jsonl"))}


def test_a_merged_mask_is_two_whole_tiles_that_touch():
    for mask, new in spoiled("merge"):
        assert (new & mask).sum() == 3600 and new.sum() == 7200
        top, left, bottom, right = box(new)
        assert (bottom - top, right - left) in {(60, 120), (120, 60)}


def test_without_a_neighbor_that_touches_the_nearest_is_merged_and_a_lone_mask_dilated():
    apart = tiles()[[0, 2, 7]]
    first = [new for mask, new in spoiled("merge", apart, seeds=range(30)) if np.array_equal(mask, apart[0])]
    assert first and all(np.array_equal(new, apart[0] | apart[1]) for new in first)
    for mask, new in spoiled("merge", apart[:1], seeds=range(12)):
        assert (new & mask).sum() == 3600 and 65 <= box(new)[2] <= 75


def test_masks_that_hold_one_another_are_not_merged():
    whole = np.ones((1, *SIZE), bool)
    nested = np.concatenate([tiles()[:1], whole])
    for mask, new in spoiled("merge", nested, seeds=range(12)):
        assert not np.array_equal(new, nested[0] | nested[1]) or mask.all()


def test_a_dilated_mask_grows_by_a_disc_of_5_to_15_pixels():
    masks = tiles()[9:10]  # away from the image's border
    sizes = []
    for mask, new in spoiled("dilate", masks, seeds=range(40)):
        top, left, bottom, right = box(new)
        growth = 60 - top
        assert (left, bottom, right) == (60 - growth, 120 + growth, 120 + growth) and (new & mask).sum() == 3600
        assert not new[top, left]  # a disc, so corners are round
        sizes.append(growth)
    assert 5 <= min(sizes) <= 8 and 12 <= max(sizes) <= 15
    doubled = np.zeros((1, 720, 960), bool)
    doubled[0, 300:420, 300:420] = True
    growths = [300 - box(new)[0] for _, new in spoiled("dilate", doubled, seeds=range(40))]
    assert min(growths) >= 10 and 15 < max(growths) <= 30


def test_a_shifted_mask_moves_by_a_share_of_its_box_and_at_least_8_pixels():
    long = np.zeros((1, *SIZE), bool)
    long[0, 100:140, 100:300] = True  # 40 x 200
    for _, new in spoiled("shift", long, seeds=range(40)):
        top, left, bottom, right = box(new)
        dy, dx = (top - 100) / 40, (left - 100) / 200
        assert new.sum() == 8000 and (bottom - top, right - left) == (40, 200)
        assert np.hypot(dy, dx) <= 0.27 and np.hypot(top - 100, left - 100) >= 7
        assert np.hypot(dy, dx) >= 0.09
    small = np.zeros((1, *SIZE), bool)
    small[0, 100:104, 100:104] = True  # a quarter of its side is one pixel
    for _, new in spoiled("shift", small, seeds=range(40)):
        assert np.hypot(box(new)[0] - 100, box(new)[1] - 100) == pytest.approx(8, abs=0.8)


def test_what_leaves_the_image_is_lost():
    corner = np.zeros((1, *SIZE), bool)
    corner[0, :4, :4] = True
    results = [new for _, new in spoiled("shift", corner, seeds=range(40))]
    assert any(new is None for new in results) and any(new is not None and new.sum() == 16 for new in results)
    assert all(new is None for _, new in spoiled("drop"))


def test_a_share_is_spoiled_and_each_kind_as_often_as_another():
    masks = np.tile(tiles()[:, ::6, ::6], (10, 1, 1))
    kinds = [kind for kind, _ in corrupt_masks(masks, 0.3, np.random.default_rng(0))]
    hit = [kind for kind in kinds if kind]
    assert len(hit) / 480 == pytest.approx(0.3, abs=0.05)
    for kind in KINDS:
        assert hit.count(kind) / len(hit) == pytest.approx(0.25, abs=0.08)


def test_a_row_is_rewritten_with_its_areas_and_boxes_and_keeps_its_scores():
    before = row()
    after = corrupt_rows(before, 0.5, 7)
    scores = {tuple(mask["bbox"]): mask["predicted_iou"] for mask in before["masks"]}
    masks = decode(after)
    assert len(masks) < 48 and after["image"] == "a.png"
    assert [m["area"] for m in after["masks"]] == sorted((int(m.sum()) for m in masks), reverse=True)
    kept = 0
    for mask, found in zip(masks, after["masks"], strict=True):
        top, left, bottom, right = box(mask)
        assert found["bbox"] == [left, top, right - left, bottom - top]
        if tuple(found["bbox"]) in scores:
            kept += 1
            assert found["predicted_iou"] == scores[tuple(found["bbox"])]
    assert 15 <= kept <= 33
    assert {m["predicted_iou"] for m in after["masks"]} <= set(scores.values())


def test_the_same_seed_and_image_give_the_same_row():
    assert corrupt_rows(row(), 0.5, 7) == corrupt_rows(row(), 0.5, 7)
    assert corrupt_rows(row(), 0.5, 7)["masks"] != corrupt_rows(row(), 0.5, 8)["masks"]
    assert corrupt_rows(row(), 0.5, 7)["masks"] != corrupt_rows(row("b.png"), 0.5, 7)["masks"]
    empty = encode_image("a.png", (0, 0), [])
    assert corrupt_rows(empty, 0.5, 7) == empty


def test_parts_and_a_stopped_run_write_what_one_run_writes(store, tmp_path):
    whole = corrupt_store(store, tmp_path / "whole", 0.5, 3)
    assert whole.missing() == [] and whole.manifest.settings == {"sigma": 0.8, "corrupt": {"share": 0.5, "seed": 3}}
    assert [r["image"] for r in whole.rows()] == [f"{i}.png" for i in range(5)]
    assert corrupt_store(store, tmp_path / "parts", 0.5, 3, (1, 2)).missing() == [0, 2]
    corrupt_store(store, tmp_path / "parts", 0.5, 3)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole") and len(digests(tmp_path / "whole")) == 3
    with pytest.raises(OVSDinoError, match="made with settings"):
        corrupt_store(store, tmp_path / "parts", 0.4, 3)
    with pytest.raises(OVSDinoError, match="corrupted already"):
        corrupt_store(whole, tmp_path / "twice", 0.5, 3)
    store.path(1).unlink()
    with pytest.raises(OVSDinoError, match=r"shard-00001.jsonl: .*run `ovsdino masks` again"):
        corrupt_store(store, tmp_path / "unfinished", 0.5, 3)


def test_the_command_writes_a_corrupted_copy(store, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["masks", "--from", str(store.folder), "--corrupt", "0.5", "--output", str(out)]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["generator"] == "felzenszwalb" and report["shards_missing"] == 0
    corrupted = MaskStore.open(out)
    assert report["statistics"]["masks"] == sum(len(r["masks"]) for r in corrupted.rows()) < 60
    assert next(corrupted.rows()) == corrupt_rows(next(store.rows()), 0.5, 0)  # seed 0 where none is given
    assert not (out / "samples.jpg").exists()
    assert main(command) == 0 and "samples" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--from", "MASKS"], "needs --corrupt"),
        (["--corrupt", "0.3"], "--corrupt 0.3 is given without --from"),
        (["--seed", "1"], "--seed 1 is given without --from"),
        ([], "--images FOLDER"),
        (["--from", "MASKS", "--corrupt", "1.5"], "--corrupt 1.5: expected"),
        (["--from", "MASKS", "--corrupt", "0.3", "--generator", "felzenszwalb"], "leave out one of them"),
        (["--from", "MASKS", "--corrupt", "0.3", "--checkpoint", "x.pth"], "leave out one of them"),
        (["--from", "/nowhere", "--corrupt", "0.3"], "no such file; make the masks"),
    ],
)
def test_mistakes_are_one_line(store, tmp_path, capsys, options, shown):
    options = [str(store.folder) if option == "MASKS" else option for option in options]
    assert main(["masks", "--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert shown in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
