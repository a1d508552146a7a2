"""Training on captions and masks: it learns, two processes equal one, no fault costs more than an interval."""

import dataclasses
import json
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ovsdino.models.zoo import create_model
from ovsdino.train.__main__ import main
from ovsdino.train.segmentation import encode
from tests.support.weak_folder import (
    FORKS,
    curve,
    go,
    gradients,
    limited,
    make_folder,
    make_labelled,
    ranked,
    trainer,
    write_config,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("weak") / "data")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(("regions", "caption"), [(0, "phrases"), (3, "phrases"), (0, "both")])
def test_two_processes_have_the_gradient_of_one(folder, tmp_path, regions, caption):
    annotations = str(folder / ("boxes.jsonl" if regions else "captions.jsonl"))
    data = {"regions": regions, "caption": caption, "annotations": annotations}
    path = write_config(folder, tmp_path / "run", data=data, robust={"trim": 0.25, "trim_after": 0})
    labelled = make_labelled(tmp_path / "labelled")  # three images, so one process has two of them and one has one
    overrides = ["data.masks_per_image=2", "val.dataset=folder", f"val.root={labelled}"]
    it = trainer(path, *overrides)
    alone = it.validate(None)
    one, terms = gradients(it)
    port = free_port()
    children = [
        FORKS.Process(target=ranked, args=(rank, 2, port, path, overrides, str(tmp_path / "grad"))) for rank in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    halves = [torch.load(tmp_path / f"grad.{rank}") for rank in (0, 1)]
    assert {"contrast", "mask", "pull", "words", "present", "boundary", "preserve"} == terms.keys()
    for found, values, measured in halves:
        assert measured == alone and 0 < alone["miou"] < 1
        assert values == pytest.approx(terms, rel=1e-5)
        for name, expected in one.items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(bool(g.abs().max() > 0) for g in one.values()) > 20


def test_each_part_of_an_accumulated_step_counts_alike(folder, tmp_path):
    # The terms that compare a picture with the others' texts see one part at a time: those are left out here.
    off = {"contrast": 0.0, "pull": 0.0, "words": 0.0, "present": 0.0}
    path = write_config(folder, tmp_path / "run", loss=off, robust={"quality_weights": False, "trim": 0.0})
    whole, parts = trainer(path), trainer(path, "optim.accumulate=2")
    batch = next(iter(whole.batches(0, 1)))
    assert (batch.quality > 0).all()  # every picture has its two masks, so the halves weigh alike
    one, two = whole.train_step(batch), parts.train_step(batch)
    assert one == pytest.approx(two, rel=1e-4)
    for name, parameter in whole.trained.items():
        if parameter.grad is not None:
            torch.testing.assert_close(parts.trained[name].grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_captions_and_masks_alone_tell_the_colors_apart(folder, tmp_path):
    path = write_config(folder, tmp_path / "run", optim={"steps": 60, "lr": 3e-3, "ema": 0.5}, decoder=False)
    it = trainer(path)
    it.run()
    it.use_average()
    it.model.eval()
    words = it.model.encode_text(["red paint", "green paint", "blue paint", "grey wall"])
    right = 0
    for index in range(6):
        image = torch.from_numpy(it.data.captions.read(index).copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            labels = it.model.decode(encode(it.model, image, False), words).argmax(1)[0]
        right += int(labels[1, 0] == index % 3) + int(labels[1, -1] == 3)
    assert right >= 9  # of 12; 3 by chance


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run of 60 steps that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert main([write_config(folder, output, optim={"steps": 60}, checkpoint_every=3)]) == 0
    return output


def assert_same(one, two):
    assert curve(one) == curve(two)
    a, b = load_file(one / "last.safetensors"), load_file(two / "last.safetensors")
    assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []


def started(path, steps):
    """A child that runs the configuration, once it has logged so many steps more than there were, or has ended."""
    log = Path(path).with_suffix("") / "log.jsonl"

    def logged():
        return log.read_text().count('"kind": "train"') if log.exists() else 0

    child = FORKS.Process(target=go, args=(path,))
    child.start()
    before, begun = logged(), False
    while child.is_alive():
        now = logged()
        begun |= now < before or now > before  # what came after the checkpoint is taken out of the log first
        before = min(before, now)
        if begun and now >= before + steps:
            break
        time.sleep(0.005)
    return child


def test_twenty_kills_leave_the_same_loss_curve(folder, whole, tmp_path):
    path = write_config(folder, tmp_path / "run", optim={"steps": 60}, checkpoint_every=3)
    rng, kills = random.Random(0), 0
    while kills < 20:
        child = started(path, rng.randint(1, 4))
        time.sleep(rng.uniform(0, 0.03))
        assert child.is_alive(), f"ended after {kills} kills"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    assert main([path]) == 0
    assert_same(whole, tmp_path / "run")


def test_sigterm_saves_and_the_run_goes_on(folder, whole, tmp_path):
    path = write_config(folder, tmp_path / "run", optim={"steps": 60}, checkpoint_every=100)
    child = started(path, 3)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    assert child.exitcode == 128 + signal.SIGTERM
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["step"]
    assert 3 <= saved < 60 and max(curve(tmp_path / "run")) == saved  # the step at hand was finished and saved
    assert main([path]) == 0
    assert_same(whole, tmp_path / "run")


def test_a_full_disk_costs_no_checkpoint_that_was_there(folder, whole, tmp_path):
    path = write_config(folder, tmp_path / "run", optim={"steps": 60}, checkpoint_every=3)
    first = FORKS.Process(target=go, args=(path, ["optim.steps=6"]))
    first.start()
    first.join()
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    child = FORKS.Process(target=limited, args=(path, 200_000))
    child.start()
    child.join()
    assert child.exitcode == 2  # one line, see below
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "run").glob(".*")) == []
    assert main([path]) == 0


def test_a_full_disk_is_one_line(folder, tmp_path, capsys, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([write_config(folder, tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and "checkpoint.pt: cannot write: No space left on device" in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=3", "batch: 3 does not divide into 1 processes times optim.accumulate 2; take a multiple of 2"),
        ("loss.pool=cls", "loss.pool: expected text or heads, got 'cls'"),
        ("loss.least=0", "loss.least: expected a number in (0, 1], got 0.0"),
        ("data.regions=2", "data.regions 2 needs a box with every caption; or set it to 0"),
        ("loss.pool=heads", "the backbone of vit6 has no class token to pool by; take text"),
        ("data.masks=/nowhere", "/nowhere/manifest.json: no such file"),
        ("data.annotations=/nowhere.jsonl", "/nowhere.jsonl"),
        ("supervision=words", "supervision: expected labels, captions, mixed, got 'words'"),
        ("device=tpu9x", "device: expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_mistakes_are_one_line_and_exit_two(folder, tmp_path, capsys, override, message):
    path = write_config(folder, tmp_path / "run", optim={"accumulate": 2})
    assert main([path, override]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error:") and "\n" not in error


def test_steps_can_be_said_as_an_option(folder, tmp_path):
    assert main([write_config(folder, tmp_path / "run"), "--steps", "2", "--batch=2"]) == 0
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2


def test_a_dino_backbone_is_pooled_by_its_class_token(folder, tmp_path):
    """s14 with official-format files of random numbers: CLIP's rows, a random projection trained with the decoder."""
    torch.manual_seed(3)
    vit = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", num_classes=0)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    path = write_config(folder, tmp_path / "run", data={"height": 28, "width": 42}, loss={"pool": "heads"})
    overrides = ["model=s14", f"backbone_weights={tmp_path}/model.safetensors", "text_weights=", "optim.steps=2"]
    it = trainer(path, *overrides, "data.caption=whole")
    it.model.text_tower.weights = None  # CLIP at random: its file is in no folder of the tests
    assert not it.own_rates() and len(it.optimizer.param_groups) == 3  # nobody has trained this projection yet
    before = {k: p.detach().clone() for k, p in it.module.named_parameters()}
    it.run()
    moved = {k for k, p in it.module.named_parameters() if not torch.equal(p, before[k])}
    assert not any(k.startswith("model.backbone.") for k in moved)
    assert "model.text_tower.linear_layer.weight" in moved and any(".smd." in k for k in moved)
    written = load_file(tmp_path / "run/last.safetensors")
    assert not any(k.startswith("backbone.") for k in written) and "decoder.score_attention.mix" in written
    files = {"checkpoint": tmp_path / "run/last.safetensors", "backbone_weights": tmp_path / "model.safetensors"}
    model = create_model("s14", **files)
    assert model.decoder_trained
    it.config = dataclasses.replace(it.config, projection="published.pth")
    assert list(it.own_rates()) == list(it.model.text_tower.parameters())
