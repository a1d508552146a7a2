"""How a step of weak training is taken: texts as they are, temperatures bounded, what is trained already slowly."""

import json
import math

import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.train.weak.trainer import WeakTrainer
from tests.support.weak_folder import make_folder, trainer, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("weak") / "data")


def test_captions_are_read_as_they_are_and_all_of_a_step_together(folder, tmp_path):
    it = trainer(write_config(folder, tmp_path / "run"), "data.caption=whole")
    calls, read = [], it.model.text_tower.read

    def noted(names, templates=None):
        calls.append((tuple(names), templates))
        return read(names, templates)

    it.model.text_tower.read = noted
    batch = next(iter(it.batches(0, 1)))
    it.train_step(batch)
    said = dict.fromkeys(text for image in batch.texts for texts in image for text in texts)
    assert calls == [(tuple(said), ("{}",))]
    assert set(said) <= {"red paint, grey wall", "green paint, grey wall", "blue paint, grey wall"}


def test_both_compares_images_with_captions_and_masks_with_phrases(folder, tmp_path):
    path = write_config(folder, tmp_path / "run")
    terms, texts = {}, {}
    for caption in ("whole", "phrases", "both"):
        it = trainer(path, f"data.caption={caption}")
        calls, read = [], it.model.text_tower.read
        it.model.text_tower.read = lambda names, templates, calls=calls, read=read: (
            calls.append(tuple(names)) or read(names, templates)
        )
        batch = next(iter(it.batches(0, 1)))
        terms[caption] = {name: value.item() for name, value in it.losses(batch).items()}
        texts[caption] = batch
        assert len(calls) == 1 and len(set(calls[0])) == len(calls[0])  # one reading of all texts of a step
    both = texts["both"]
    assert both.captions == texts["whole"].captions == texts["whole"].texts
    assert both.texts == texts["phrases"].texts == texts["phrases"].captions != both.captions
    for name, value in terms["both"].items():
        expected = terms["whole" if name == "contrast" else "phrases"][name]
        assert value == pytest.approx(expected, rel=1e-5), name
    for name in ("contrast", "words", "present", "pull"):
        assert terms["whole"][name] != pytest.approx(terms["phrases"][name], rel=1e-3), name


def test_temperatures_are_clamped_to_a_hundred(folder, tmp_path):
    it = trainer(write_config(folder, tmp_path / "run"))
    batches = it.batches(0, 2)
    it.model.log_scale.data.fill_(math.log(50.0))
    it.train_step(next(batches))
    assert abs(it.model.log_scale.item() - math.log(50.0)) < 0.1  # a step of the rate, and no more
    for scale in (it.model.log_scale, it.module.mask_scale):
        scale.data.fill_(7.0)
    it.train_step(next(batches))
    for scale in (it.model.log_scale, it.module.mask_scale):
        assert scale.item() == pytest.approx(math.log(100.0), abs=1e-6)


def test_what_was_loaded_trained_is_trained_at_a_tenth_of_the_rate(folder, tmp_path, monkeypatch):
    path = write_config(folder, tmp_path / "run", optim={"lr": 0.002, "warmup": 0, "decay": 0.0})
    assert [len(group["params"]) > 0 for group in trainer(path).optimizer.param_groups] == [True, True, True]
    monkeypatch.setattr(WeakTrainer, "own_rates", lambda it: dict.fromkeys(it.model.backbone.head.parameters(), 0.1))
    it = trainer(path)
    head = it.model.backbone.head
    it.train_step(next(iter(it.batches(0, 1))))
    groups = it.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.002, 0.002, 0.02, 0.0002, 0.0002])
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.0, 0.05, 0.0]
    assert groups[3]["params"] == [head.weight] and groups[4]["params"] == [head.bias]
    assert sum(len(group["params"]) for group in groups) == len(it.trained)
    it.save()
    assert trainer(path).resume()
    monkeypatch.undo()
    with pytest.raises(OVSDinoError, match=r"its run trained other parameters than this one; remove it"):
        trainer(path).resume()


def test_a_damaged_image_is_one_line_from_a_worker_too(folder, tmp_path):
    root = make_folder(tmp_path / "data")
    for image in (root / "images").glob("*.png"):
        image.write_bytes(b"no picture")
    it = trainer(write_config(root, tmp_path / "run"), "data.workers=1")
    with pytest.raises(OVSDinoError, match=r"\.png: not a JPEG") as caught:
        next(iter(it.batches(0, 1)))
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_is_the_users_to_see(folder, tmp_path):
    it = trainer(write_config(folder, tmp_path / "run"))
    it.module.mask_bias.data.fill_(float("nan"))
    with pytest.raises(OVSDinoError, match=r"step 0: the gradient is not finite; lower optim\.lr"):
        it.train_step(next(iter(it.batches(0, 1))))
    assert torch.isfinite(it.model.log_scale)


def test_the_log_tells_of_the_gate_and_of_the_structure_term(folder, tmp_path):
    path = write_config(folder, tmp_path / "run", optim={"lr": 1e-3, "warmup": 0, "steps": 3}, log_every=1)
    it = trainer(path)
    it.run()
    lines = [row for row in map(json.loads, it.folder.log.read_text().splitlines()) if row["kind"] == "train"]
    assert lines[0]["gate"] == pytest.approx(1 / (1 + math.exp(2)), abs=1e-6)  # of the step, so before its update
    assert 0.05 < lines[2]["gate"] < 0.25 and lines[2]["gate"] != lines[0]["gate"]
    # The mean of lambda |e_i - e_j|^2 is 2 lambda, lambda = 0.5 at the start, and each step is ten rates at the most.
    for name in ("structure_0", "structure_1"):
        assert lines[0][name] == pytest.approx(1) and 0 < abs(lines[2][name] - 1) < 0.05


def test_scalars_are_trained_at_ten_times_the_rate_and_do_not_decay(folder, tmp_path):
    it = trainer(write_config(folder, tmp_path / "run", optim={"lr": 0.001, "warmup": 0}))
    group = it.optimizer.param_groups[2]
    names = [name.removeprefix("model.") for name, p in it.trained.items() if any(p is q for q in group["params"])]
    assert names == [
        *("mask_scale", "mask_bias", "log_scale"),
        *(f"decoder.smd.blocks.{i}.log_lambda" for i in (0, 1)),
        "decoder.smd.gate.bias",
        *(f"decoder.score_attention.{name}" for name in ("log_lambda", "gamma", "mix")),
    ]
    it.train_step(next(iter(it.batches(0, 1))))
    assert group["lr"] == pytest.approx(0.01) and group["weight_decay"] == 0.0


def test_phrases_of_other_captions_join_a_step_as_negatives(folder, tmp_path):
    path = write_config(folder, tmp_path / "run")
    it = trainer(path, "data.distractors=2", "batch=1")
    assert len(it.phrases) == len(set(it.phrases)) >= 4
    batch = next(iter(it.batches(0, 1)))
    own = {text for image in batch.texts for texts in image for text in texts}
    drawn = it.distractors(sorted(own))
    assert len(drawn) == 2 and not own & set(drawn) and set(drawn) <= set(it.phrases)
    assert it.distractors(sorted(own)) == drawn  # of the seed and the step alone
    positives = it.inputs(batch).positives
    assert positives.shape[-1] == len(own) + 2 and not positives[..., -2:].any()
    assert trainer(path, "data.distractors=999", "batch=1").distractors(sorted(own)) and not it.distractors([])
    it.train_step(batch)
