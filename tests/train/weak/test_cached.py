"""Kept features: a window is the part of the whole image that it says, and the run on them is a run like others."""

import dataclasses
import gc
import json
import weakref

import pytest
import torch

from ovsdino.data.captions import open_captions
from ovsdino.data.masks import MaskStore
from ovsdino.errors import OVSDinoError
from ovsdino.models.zoo import create_model
from ovsdino.pipeline import Segmenter
from ovsdino.train.weak.frozen import FrozenImages, TensorFolder, Window, frozen_digest
from tests.support.weak_folder import curve, gradients, make_folder, make_labelled, trainer, write_config

SIDE = 64  # pixels of a picture, and of its features: 4 x 4 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("cached") / "data")


def cached(folder, output, regions=0, **changes):
    """The configuration of a run on kept features, 2 x 3 tokens a window, 3 x 3 with boxes."""
    data = {"cache_features": str(output.parent / "cache"), "regions": regions}
    if regions:
        data |= {"annotations": str(folder / "boxes.jsonl"), "height": 48}
    return write_config(folder, output, data=data, architecture={"short_side": SIDE}, **changes)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_sample_is_a_part_of_the_whole_image(folder, tmp_path, flip):
    it = trainer(cached(folder, tmp_path / "run"), f"data.flip={flip}")
    places = set()
    for position in range(12):
        sample = it.data[position]
        left, top, right, bottom, mirror = sample.places[0].tolist()
        assert mirror == flip and (round(right - left, 6), round(bottom - top, 6)) == (3 / 4, 2 / 4)
        x, y = round(left * 4), round(top * 4)
        places.add((x, y))
        whole = it.frozen[sample.sources[0]]
        assert sample.images.shape == (1, 3, 32, 48) and sample.maps[0].shape[-2:] == (2, 3)
        for found, kept in zip((sample.images * 255, *sample.maps), (whole.pixels, *whole.maps), strict=True):
            step = kept.shape[-1] // 4
            expected = kept[:, y * step : (y + 2) * step, x * step : (x + 3) * step]
            expected = expected.flip(-1) if flip else expected
            torch.testing.assert_close(found[0].float(), expected.float(), rtol=0, atol=1e-3)
        # the first mask of a picture is its left part, the second the rest; both were drawn where they are seen
        columns = 24 + 4 * int(sample.sources[0].split("/")[1][0])
        cells = (torch.arange(16) * 4 < columns)[x * 4 : (x + 3) * 4]
        cells = cells.flip(-1) if flip else cells
        parts = {tuple(mask[0].tolist()) for mask in sample.masks[0] if mask.any()}
        assert parts <= {tuple(cells.tolist()), tuple((~cells).tolist())} and len(parts) == 1 + (0 < cells.sum() < 12)
    assert len(places) > 3


def test_features_of_a_whole_image_are_the_networks(folder, tmp_path):
    model = create_model("nano")
    segmenter = Segmenter(model, short_side=SIDE)
    captions = open_captions("jsonl", folder, folder / "captions.jsonl")
    names = [captions.record(i).image for i in range(len(captions))]
    kept = FrozenImages(tmp_path, segmenter, folder, lambda name: captions.read(names.index(name)))
    assert kept.fill(names) == 6 and kept.fill(names) == 0
    text = model.encode_text(["red paint", "grey wall"])
    expected = segmenter.decode(segmenter.encode_image(captions.read(2)), text)
    with torch.no_grad():
        found = model.decode(kept.features(names[2]), text)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)  # logits of about 10; the features are float16
    assert kept[names[0]].size == (SIDE, SIDE)


def test_the_key_is_the_frozen_part_the_size_and_the_source(tmp_path):
    one, other = create_model("nano"), create_model("nano")
    torch.nn.init.zeros_(other.backbone.head.weight)
    assert frozen_digest(one) == frozen_digest(other)
    torch.nn.init.zeros_(other.backbone.cnn.bn2.weight)
    assert frozen_digest(one) != frozen_digest(other)
    folders = {
        FrozenImages(tmp_path, Segmenter(model, short_side=side), source, lambda _: None).files.folder
        for model, side, source in ((one, 64, "a"), (one, 64, "b"), (one, 96, "a"), (other, 64, "a"))
    }
    assert len(folders) == 4


def test_a_damaged_file_is_named_and_a_missing_one_made(tmp_path):
    def make(name):
        return {"x": torch.full((2,), float(len(name)))}

    kept = TensorFolder(tmp_path)
    assert kept.fill(["a", "bb", "a"], make) == 2 and kept.get("ccc", make)["x"].tolist() == [3, 3]
    kept.path("a").write_bytes(b"nothing")
    with pytest.raises(OVSDinoError, match=r"not a readable file of frozen features: .*; remove"):
        TensorFolder(tmp_path).get("a", make)


def test_a_trainer_that_is_done_with_leaves_no_map_behind(folder, tmp_path):
    it = trainer(cached(folder, tmp_path / "run"))
    next(it.batches(0, 1))
    kept = [weakref.ref(part) for part in (it, it.frozen, it.frozen.files, it.data.grids, it.model)]
    gc.disable()  # what is left to the collector holds a gigabyte for the length of the next run
    try:
        del it
        assert [part() for part in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_windows_are_mirrored_with_their_columns():
    grid = torch.arange(24).view(1, 4, 6)
    assert Window(1, 0, 1, 1).of(grid, 2).tolist() == [[[2, 3], [8, 9]]]
    assert Window(1, 0, 1, 1, mirror=True).of(grid, 2).tolist() == [[[3, 2], [9, 8]]]


@pytest.mark.parametrize("regions", [0, 3])
def test_a_run_on_kept_features_goes_on_where_it_stopped(folder, tmp_path, regions):
    path = cached(folder, tmp_path / "run", regions, optim={"steps": 4}, checkpoint_every=2)
    whole = trainer(path)
    whole.run()
    part = trainer(path, f"output={tmp_path / 'part'}", "optim.steps=2", "optim.decay=0")
    reference = trainer(path, f"output={tmp_path / 'reference'}", "optim.decay=0")
    part.run()
    reference.run()
    again = trainer(path, f"output={tmp_path / 'part'}", "optim.decay=0")
    assert again.resume() and again.step == 2
    again.run()
    assert curve(tmp_path / "part") == curve(tmp_path / "reference")
    assert set(curve(tmp_path / "run")) == {1, 2, 3, 4}


def test_a_captioned_box_keeps_its_place(folder, tmp_path):
    it = trainer(cached(folder, tmp_path / "run", 3))
    boxes = [json.loads(line) for line in (folder / "boxes.jsonl").read_text().splitlines()]
    seen = 0
    for position in range(40):
        sample = it.data[position]
        left, top, right, bottom, mirror = sample.places[0].tolist()
        for region, texts in zip(sample.regions[0].tolist(), sample.texts[0], strict=True):
            if not texts:
                continue
            seen += 1
            x0, y0, x1, y1 = region
            x0, x1 = (1 - x1, 1 - x0) if mirror else (x0, x1)
            found = [left + x0 * (right - left), top + y0 * (bottom - top)]
            found += [(x1 - x0) * (right - left), (y1 - y0) * (bottom - top)]
            known = [row["box"] for row in boxes if row["image"] == sample.sources[0]]
            assert [round(v * SIDE) for v in found] in known
    assert seen >= 20


def test_what_kept_features_cannot_serve_is_refused(folder, tmp_path):
    path = cached(folder, tmp_path / "run")
    with pytest.raises(OVSDinoError, match=r"less than data\.width 96 x data\.height 32"):
        trainer(path, "data.width=96").data[0]
    with pytest.raises(OVSDinoError, match=r"data\.cache_features takes captions of boxes with data\.regions"):
        trainer(path, f"data.annotations={folder / 'boxes.jsonl'}").data[0]
    with pytest.raises(OVSDinoError, match=r"no class token|no attention"):
        trainer(path, "loss.pool=heads")


def test_masks_weigh_as_robust_says(folder, tmp_path):
    it = trainer(cached(folder, tmp_path / "run"), "robust.quality_weights=true", "robust.agreement=true")
    plain = trainer(cached(folder, tmp_path / "run"))
    assert plain.data.grids.files.folder == it.data.grids.files.folder
    sure = {round(0.9 * q, 4) for q in (0.95, 0.8)}
    for position in range(6):
        weights = it.data[position].quality[0]
        assert all(any(abs(w - s) < 1e-4 for s in sure) for w in weights[weights > 0].tolist())  # true edges: 1 each
        assert set(plain.data[position].quality[0].tolist()) <= {0.0, 1.0}


def test_masks_of_images_of_another_size_are_refused(folder, tmp_path):
    it = trainer(cached(folder, tmp_path / "run"))
    store = MaskStore.open(folder / "masks")
    with pytest.raises(OVSDinoError, match="64 x 32 pixels, its masks 64 x 64"):
        store.of_size("images/0.png", (32, 64))
    assert dataclasses.is_dataclass(it.frozen["images/0.png"])


def test_scores_of_kept_features_and_of_the_network_agree(folder, tmp_path):
    from ovsdino.models.backbone import freeze
    from ovsdino.train.weak.scoring import score

    labelled = make_labelled(tmp_path / "labelled")
    found = []
    for keep in (True, False):
        path = cached(folder, tmp_path / "run")
        more = [f"val.root={labelled}", "val.dataset=folder", "val.prior=0.5"]
        it = trainer(path, *more, *([] if keep else ["data.cache_features="]))
        freeze(it.model)
        found.append(score(it))
    assert found[0].keys() == {"miou", "boundary_f1", "trimap_miou", "pixel_accuracy"}
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.parametrize("more", [[], ["loss.answers=tokens"], ["loss.answers=tokens", "loss.other=0.1"]])
def test_affinities_and_words_before_the_upsampling_learn(folder, tmp_path, more):
    path = write_config(
        folder,
        tmp_path / "run",
        data={"cache_features": str(tmp_path / "cache")},
        architecture={"short_side": SIDE},
        loss={"affinity": 1.0, "structure": 0.5},
    )
    it = trainer(path, *more)
    found, terms = gradients(it)
    assert {"affinity", "structure", "words", "present"} <= terms.keys()
    assert all(0 < value < 20 for name, value in terms.items() if name != "preserve")
    affinity = found["model.decoder.score_attention.affinity.weight"]
    assert affinity.abs().max() > 0 and all(gradient.isfinite().all() for gradient in found.values())
    assert found["model.decoder.smd.blocks.0.structure.weight"].abs().max() > 0


def test_a_class_of_no_text_takes_from_all_and_belongs_to_every_caption(folder, tmp_path):
    it, other = (
        trainer(cached(folder, tmp_path / "run"), "loss.answers=tokens", f"loss.other={v}") for v in (0.0, 1.0)
    )
    batch = next(it.batches(0, 1))
    words = [run.losses(batch)["words"].item() for run in (it, other)]
    assert words[1] < 1e-3 < words[0]  # with a cosine of 1 everything is of no text, and no absent text is seen
