"""Self-distillation: masks, teacher, a run that goes on as if it had not stopped, a backbone that others load."""

import json
import os
import signal
import zipfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

from ovsdino.errors import OVSDinoError
from ovsdino.io.tree import ImageSource
from ovsdino.models.zoo import build_model
from ovsdino.train.initial import load_backbone
from ovsdino.train.pretrain.config import CropStage, SelfDistillConfig
from ovsdino.train.pretrain.crops import Crops, random_masks, tokens_at
from ovsdino.train.pretrain.self_distill import SelfDistiller, main


@pytest.fixture
def archive(tmp_path):
    """A zip of four pictures, with labels that must not be read."""
    rng = np.random.default_rng(0)
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for i in range(4):
            for name in (f"set/images/{i}.png", f"set/labels/{i}.png"):
                with zipped.open(name, "w") as file:
                    Image.fromarray(rng.integers(0, 256, (40 + i, 56, 3), dtype=np.uint8)).save(file, "PNG")
    return path


def config(archive, output, **changes):
    stage = {"large": 48, "small": 32, "batch": 3}
    tree = {
        "images": [str(archive)],
        "output": str(output),
        "steps": 4,
        "warmup": 1,
        "small_crops": 2,
        "prototypes": 8,
        "log_every": 1,
        "checkpoint_every": 2,
        "stages": [stage],
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def weights(folder):
    return load_file(folder / "last.safetensors")


def logged(folder):
    """The lines of a run's steps."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def test_only_the_images_of_a_zip_are_read(archive, tmp_path):
    archive_images = ImageSource(archive)
    inside = [*map(archive_images.read, archive_images.names)]
    assert [image.shape for image in inside] == [(40 + i, 56, 3) for i in range(4)]
    zipfile.ZipFile(archive).extractall(tmp_path / "folder")
    unpacked = ImageSource(tmp_path / "folder")
    both = zip(inside, map(unpacked.read, unpacked.names), strict=True)
    assert all(np.array_equal(a, b) for a, b in both)


def test_masks_hide_their_share_of_every_second_image():
    masks = random_masks(40, 8, (0.25, 0.25))
    assert masks[::2].flatten(1).sum(1).tolist() == [16] * 20 and not masks[1::2].any()
    touching = (masks[::2, 1:] & masks[::2, :-1]).sum().item() / 20
    assert touching > 5  # 16 cells scattered over 64 would have 3.3 vertical neighbors


def test_a_small_crop_finds_its_tokens_in_the_large_one():
    # Two large crops of 4 x 4 tokens whose one channel is their column, plus 10 in the second.
    columns = torch.arange(4.0).expand(4, 4)
    tokens = torch.stack([columns, columns + 10])[..., None]
    places = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    mirrored = torch.tensor([False, True, False])
    found = tokens_at(tokens, places, mirrored, 2)[..., 0]
    assert found.shape == (3, 2, 2)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 1.0]] * 2), rtol=0, atol=0.15)  # bilinear at the border
    torch.testing.assert_close(found[1], torch.tensor([[13.0, 12.0]] * 2), rtol=0, atol=0.15)
    torch.testing.assert_close(found[2], torch.tensor([[0.5, 2.5]] * 2), rtol=0, atol=0.15)


def test_small_crops_are_where_they_say(archive):
    config = SelfDistillConfig(images=(str(archive),), small_crops=2)
    crops = Crops(config)
    gradient = torch.arange(56, dtype=torch.uint8).expand(3, 40, 56)
    crops.image = lambda index: gradient  # a picture whose color is its column
    crops.colors = {key: v2.ToDtype(torch.float32) for key in crops.colors}
    torch.manual_seed(0)
    batch = crops.draw(CropStage(large=48, small=32, batch=3))
    assert batch.large.shape == (6, 3, 48, 48) and batch.small.shape == (12, 3, 32, 32)
    for k in range(12):
        left, top, right, bottom = batch.places[k].tolist()
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        row = batch.large[k % 6, 0].mean(0)  # over the rows: a value a column
        middle = row[min(47, int(24 * (left + right)))]
        assert batch.small[k, 0].mean() == pytest.approx(middle.item(), abs=1.5)
        rising = bool(row[-1] > row[0]) != bool(batch.mirrored[k])
        assert bool(batch.small[k, 0, :, -1].mean() > batch.small[k, 0, :, 0].mean()) == rising


def test_a_run_that_was_stopped_ends_as_one_that_was_not(archive, tmp_path):
    assert main([config(archive, tmp_path / "whole")]) == 0
    first = config(archive, tmp_path / "parts")
    torch.manual_seed(5)  # the caller's generator has no say

    class Stopped(Exception):
        pass

    class Stopping(SelfDistiller):
        def train_step(self, batch):
            if self.step == 3:
                raise Stopped
            return super().train_step(batch)

    from ovsdino.settings import build_config, read_yaml

    with pytest.raises(Stopped):
        Stopping(build_config(SelfDistillConfig, read_yaml(first), "")).run()
    assert torch.load(tmp_path / "parts/checkpoint.pt", weights_only=True)["step"] == 2
    assert main([first]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = logged(tmp_path / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(np.isfinite(line["loss"]) for line in lines)


def test_the_teacher_is_the_mean_of_the_students(archive, tmp_path):
    from ovsdino.settings import build_config, read_yaml

    path = config(archive, tmp_path / "run", teacher_momentum=0.75, bf16=False)
    trainer = SelfDistiller(build_config(SelfDistillConfig, read_yaml(path), ""))
    before = trainer.student.vit.blocks[0].mlp.fc1.weight.clone()
    trainer.train_step(next(trainer.batches(0, 4)))
    after = trainer.student.vit.blocks[0].mlp.fc1.weight
    expected = 0.75 * before + 0.25 * after
    assert not torch.equal(before, after)
    torch.testing.assert_close(trainer.teacher.vit.blocks[0].mlp.fc1.weight, expected, rtol=0, atol=1e-7)


def test_the_teacher_serves_as_a_frozen_backbone(archive, tmp_path):
    main([config(archive, tmp_path / "run", steps=1)])
    model = build_model("vit6", decoder=False)
    load_backbone(model, str(tmp_path / "run/last.safetensors"))
    image = torch.randn(1, 3, 48, 64)
    features, _ = model.backbone(image)
    final = model.backbone.vit.forward_features(image)[0]
    tokens = features.flatten(2)[0].T  # the map into the text space keeps lengths and angles
    torch.testing.assert_close(tokens @ tokens.T, final @ final.T, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"images": ["/nowhere.zip"]}, "/nowhere.zip: not a folder or zip of images"),
        ({"step": 3}, "unknown key 'step'"),
    ],
)
def test_mistakes_are_one_line(archive, tmp_path, capsys, change, shown):
    assert main([config(archive, tmp_path / "run", **change)]) == 2
    error = capsys.readouterr().err
    assert shown in error and error.count("\n") == 1


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(OVSDinoError, match="no image in it"):
        ImageSource(tmp_path)


def test_ctrl_c_saves_and_the_same_command_goes_on(archive, tmp_path, capsys, monkeypatch):
    assert main([config(archive, tmp_path / "whole", checkpoint_every=100)]) == 0
    path, step = config(archive, tmp_path / "parts", checkpoint_every=100), SelfDistiller.train_step

    def interrupted(it, batch):
        if it.step == 1:
            signal.raise_signal(signal.SIGINT)
        return step(it, batch)

    monkeypatch.setattr(SelfDistiller, "train_step", interrupted)
    assert main([path]) == 130
    assert "stopped by SIGINT at step 2, all saved" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([path]) == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_full_disk_is_one_line_and_a_restart_logs_each_step_once(archive, tmp_path, capsys, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = config(archive, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main([path]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and "checkpoint.pt: cannot write: No space left on device" in error
    assert main([path]) == 0
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 4]


def test_the_precision_is_that_of_the_device_asked_for(archive, tmp_path):
    with pytest.raises(OVSDinoError, match="device: expected auto, cpu, cuda or cuda:N, got 'tpu9x'"):
        SelfDistiller(SelfDistillConfig(images=(str(archive),), device="tpu9x"))
