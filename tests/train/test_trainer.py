"""Training: batches are functions of (seed, step), runs resume bit for bit, configuration errors are named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ovsdino.data.datasets import open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.eval.evaluate import evaluate
from ovsdino.models.zoo import build_model
from ovsdino.pipeline import Segmenter
from ovsdino.train.__main__ import main
from ovsdino.train.dense.batches import BatchSource
from ovsdino.train.dense.config import DataConfig, DenseConfig, StageConfig, TextSupervision
from ovsdino.train.dense.text import TextBank
from ovsdino.train.dense.trainer import DenseTrainer
from ovsdino.train.start import load_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes: the left half of an image is red, the right half blue."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(4):
            label = np.zeros((40, 56), np.uint8)
            label[:, 20 + 4 * i :] = 1
            label[0] = 255
            image = np.where(label[..., None] == 1, [20, 20, 200], [200, 20, 20]) + rng.integers(-15, 15, (40, 56, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "images" / f"{i}.png")
            Image.fromarray(label).save(root / split / "labels" / f"{i}.png")
    (root / "classes.json").write_text('["red", "blue"]')
    return root


def config_file(folder, tmp_path, **changes):
    text_tower = tmp_path / "text.safetensors"
    from safetensors.torch import save_file

    torch.manual_seed(7)
    save_file(build_model("vit6").text_tower.state_dict(), text_tower)
    tree = {
        "model": "vit6",
        "output": str(tmp_path / "run"),
        "text_weights": str(text_tower),
        "checkpoint_every": 2,
        "eval_every": 4,
        "log_every": 1,
        "data": {"dataset": "folder", "root": str(folder), "mix": 0.5, "mix_classes": ["blue"]},
        "optim": {"steps": 4, "warmup": 1},
        "stages": [{"until": 0.5, "height": 32, "width": 32, "batch": 2}, {"height": 32, "width": 48, "batch": 2}],
        **changes,
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def test_batches_are_functions_of_seed_and_step(folder):
    dataset = open_dataset("folder", folder, "train")
    stages = (StageConfig(height=32, width=32, batch=3),)
    one = BatchSource(dataset, DataConfig(mix_classes=("blue",)), stages, seed=3)
    two = BatchSource(dataset, DataConfig(mix_classes=("blue",)), stages, seed=3)
    first, again, other = one.batch(5, 10), two.batch(5, 10), two.batch(6, 10)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (3, 3, 32, 32) and first[1].shape == (3, 32, 32)
    assert set(first[1].unique().tolist()) <= {0, 1, 255}


def test_labels_stay_on_their_pixels_through_crop_flip_and_mixing(folder):
    dataset = open_dataset("folder", folder, "train")
    config = DataConfig(colour=0.0, mix=1.0, mix_classes=("blue",))
    source = BatchSource(dataset, config, (StageConfig(height=32, width=32, batch=4, area=0.2),), seed=0)
    agreed = []
    for step in range(5):
        images, labels = source.batch(step, 5)
        blue = images[:, 2] > images[:, 0]
        known = labels != 255
        agreed.append((blue == (labels == 1))[known].float().mean())
    assert min(agreed) > 0.95  # all but the interpolated seam


def test_resumed_run_equals_an_uninterrupted_one(folder, tmp_path):
    whole = config_file(folder, tmp_path, output=str(tmp_path / "whole"))
    assert main([str(whole)]) == 0
    halves = config_file(folder, tmp_path, output=str(tmp_path / "halves"))
    trainer = DenseTrainer(load_config(halves), log=print)
    steps = iter(range(10))

    class Killed(Exception):
        pass

    def kill(step, *_):
        if next(steps) == 2:  # after the checkpoint of step 2, in the middle of the interval
            raise Killed

    with pytest.raises(Killed):
        trainer.run(kill)
    assert main([str(halves)]) == 0
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "halves"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    losses = [
        {r["step"]: r["loss"] for r in map(json.loads, (tmp_path / name / "log.jsonl").open()) if r["kind"] == "train"}
        for name in ("whole", "halves")
    ]
    assert losses[0] == losses[1]


def test_plain_head_learns_two_colors(folder, tmp_path):
    path = config_file(
        folder,
        tmp_path,
        decoder=False,
        optim={"steps": 40, "warmup": 2, "lr": 2e-3, "ema": 0.5, "bf16": False},
        eval_every=40,
        stages=[{"height": 32, "width": 48, "batch": 4}],
    )
    trainer = DenseTrainer(load_config(path), log=print)
    assert trainer.run()["miou"] > 0.8
    assert (tmp_path / "run" / "last.safetensors").is_file()
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_training_measures_what_eval_measures(folder, tmp_path):
    trainer = DenseTrainer(load_config(config_file(folder, tmp_path)), log=print)
    measured = trainer.evaluate(trainer.val_set, trainer.text.classes)
    trainer.use_average()
    assert measured["miou"] == evaluate(Segmenter(trainer.model), trainer.val_set).scores.miou
    assert 0 < measured["miou"] < 1


def test_val_chooses_nothing_and_the_selection_images_are_not_trained_on(folder, tmp_path, capsys):
    path = config_file(folder, tmp_path, eval_every=1)
    assert main([str(path)]) == 0
    assert not (tmp_path / "run/best.safetensors").exists()
    assert json.loads(capsys.readouterr().out)["best_miou"] == -1
    assert main([str(path), "data.selection=0.25", f"output={tmp_path}/chosen"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "chosen/log.jsonl").read_text().splitlines()]
    measured = {kind: [r["miou"] for r in rows if r["kind"] == kind] for kind in ("selection", "val")}
    assert len(measured["selection"]) == len(measured["val"]) == 4
    assert json.loads(capsys.readouterr().out)["best_miou"] == max(measured["selection"])
    assert (tmp_path / "chosen/best.safetensors").is_file()
    trainer = DenseTrainer(load_config(path, ["data.selection=0.25"]), log=print)
    assert trainer.train_set.stems == ("0", "1", "2") and trainer.selection_set.stems == ("3",)
    assert np.array_equal(trainer.selection_set[0].label, open_dataset("folder", folder, "train")[3].label)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_selection_that_leaves_no_image_on_one_side_is_refused(folder, tmp_path, share):
    with pytest.raises(OVSDinoError, match=rf"data.selection {share}: is [04] of 4 training images"):
        DenseTrainer(load_config(config_file(folder, tmp_path), [f"data.selection={share}"]), log=print)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.stepz=3", "unknown key 'stepz'"),
        ("optim.steps=many", "optim.steps: expected int"),
        ("data.root", "key=value"),
        ("data.mix_classes=[green]", "data.mix_classes: 'green' is not a class of the data: red, blue"),
        ("optim.accumulate=3", "stages[0].batch: 2 does not divide into the 3 parts of optim.accumulate"),
        ("stages=[{height: 30}]", "stages[0].height: expected a multiple of 16, the patch size, got 30"),
        ("stages=[]", "stages: expected 1 to 100 entries, got 0"),
        ("architecture={smd: {width: -1}}", "smd.width"),
        ("architecture={backbone: {taps: [99]}}", "taps: expected blocks from 0 to 5, got [99]"),
        ("stages=3", "stages: expected a list"),
        ("data.dataset=imagenet", "unknown data set"),
        ("data.root=/nowhere", "no such folder"),
        ("model=giant", "unknown model"),
        ("text_weights=/nowhere.safetensors", "/nowhere.safetensors: no such file"),
        ("text.names={green: [x]}", "'green' is not a class"),
        ("text.vocabulary=/nowhere.txt", "/nowhere.txt: no such file; see text.vocabulary"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_two(folder, tmp_path, capsys, override, message):
    assert main([str(config_file(folder, tmp_path)), override]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error:") and "\n" not in error


def test_missing_configuration_is_exit_two(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err


def test_held_out_word_among_the_phrases_is_refused(folder, tmp_path, capsys):
    override = "text={names: {red: [crimson]}, exclude: [crimson]}"
    assert main([str(config_file(folder, tmp_path)), override]) == 2
    assert "also a training phrase" in capsys.readouterr().err


def test_learning_rate_warms_up_stays_and_falls(folder, tmp_path):
    trainer = DenseTrainer(
        load_config(config_file(folder, tmp_path), ["optim.steps=100", "optim.warmup=10"]), log=print
    )
    assert trainer.learning_rate(4) == pytest.approx(0.5e-3)
    assert trainer.learning_rate(30) == trainer.learning_rate(59) == 1e-3
    assert trainer.learning_rate(80) == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5))
    assert trainer.learning_rate(100) == pytest.approx(1e-5)


def test_yaml_numbers_in_exponent_form_are_floats(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optim: {lr: 1e-3}")
    assert load_config(path) == DenseConfig(optim=DenseConfig().optim)


def test_vocabulary_gives_distractors_and_neighbors_but_no_held_out_word(tmp_path):
    model = build_model("vit6")
    rows = {
        "red": [1.0, 0.0, 0.0],
        "blue": [0.0, 1.0, 0.0],
        "crimson": [0.9, 0.1, 0.4],  # near red alone
        "purple": [0.7, 0.7, 0.0],  # near both
        "justice": [0.0, 0.0, 1.0],  # near none
        "navy": [0.1, 0.9, 0.0],  # near blue, held out
        "navyblue": [0.0, 1.0, 0.1],  # begins with a held-out word
    }
    model.encode_text = lambda names: torch.nn.functional.normalize(torch.tensor([rows[n] for n in names]), dim=1)
    path = tmp_path / "words.txt"
    path.write_text("\n".join(["crimson", "purple", "justice", "navy", "navyblue", ""]))
    config = DenseConfig(text=TextSupervision(vocabulary=str(path), exclude=("navy",), num_distractors=2))
    bank = TextBank(model, ("red", "blue"), config.text, "folder")
    torch.testing.assert_close(bank.distractors, torch.tensor([rows["justice"]]))
    assert [len(n) for n in bank.neighbours] == [1, 0]
    never, always = (bank.draw(torch.Generator().manual_seed(0), p) for p in (0.0, 1.0))
    assert never.tolist() == [rows["red"], rows["blue"], rows["justice"]]
    torch.testing.assert_close(always[0], bank.neighbours[0][0])
    assert always[1].tolist() == rows["blue"]
