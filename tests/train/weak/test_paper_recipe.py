"""configs/weak_b14.yaml from masks to a score, in small: two processes, stopped and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ovsdino.cli import main
from ovsdino.models.calibration import read_measured
from ovsdino.train.start import load_config
from tests.support.recipe import write_coco, write_voc, write_weights

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs/weak_b14.yaml"


def test_the_recipe_is_the_one_that_was_measured():
    """Whole captions for the contrast, nouns for masks, the prior, each noun somewhere; masks teach the affinity."""
    config = load_config(CONFIG)
    assert config.data.caption == "both" and Path(config.data.vocabulary).name == "caption_nouns.txt"
    assert config.loss.adjust == 1.0 and config.loss.present > 0 and config.loss.pool == "heads"
    assert config.loss.affinity > 0 and config.loss.answers == "tokens"
    assert config.projection_rate == 0.1


def test_its_nouns_are_lower_case_and_each_there_once():
    nouns = (ROOT / "configs/caption_nouns.txt").read_text().splitlines()
    assert len(nouns) == len(set(nouns)) > 500
    assert all(noun == noun.strip().lower() and noun for noun in nouns)
    assert {"man", "woman", "dog", "surfboard", "frisbee", "kitchen", "toilet"} <= set(nouns)


@pytest.mark.slow
def test_it_runs_from_masks_to_a_score(tmp_path, capsys):
    """On s14, whose backbone is a fourth of b14's; with random weights no score is expected, only that all fits."""
    for split in ("train", "val"):
        write_voc(tmp_path / f"voc21_{split}.zip", 6)
    write_coco(tmp_path / "coco", tmp_path / "voc21_train.zip", 6)
    write_weights(tmp_path, 384)
    images = str(tmp_path / "coco/train2014")
    masks = str(tmp_path / "masks")
    assert main(["masks", "--images", images, "--output", masks, "--generator", "felzenszwalb"]) == 0
    run = tmp_path / "run"
    settings = {
        "model": "s14",
        "output": run,
        "threads": 1,
        "batch": 4,
        "data.root": tmp_path / "coco",
        "data.masks": masks,
        "data.sam_targets": "",
        "loss.sam": 0,
        "backbone_weights": tmp_path / "dinov2.pth",
        "clip_weights": tmp_path / "clip.pth",
        "projection": tmp_path / "projection.pth",
        "data.height": 56,
        "data.width": 56,
        "data.masks_per_image": 4,
        "data.workers": 0,
        "val.root": "",
        "eval_every": 0,
        "checkpoint_every": 1,
        "log_every": 1,
        "robust.trim_after": 1,
        "optim.warmup": 1,
        "optim.bf16": "false",
    }
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "ovsdino.train", str(CONFIG), *(f"{key}={value}" for key, value in settings.items())]
    for steps in (2, 3):
        done = subprocess.run([*line, f"optim.steps={steps}"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["step"] == steps
        assert ("resuming" in done.stderr) is (steps == 3)
    rows = [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]
    terms = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in terms] == [1, 2, 3]
    assert {"contrast", "mask", "pull", "words", "present", "affinity", "boundary", "preserve"} <= terms[0].keys()
    weights = load_file(run / "last.safetensors")
    assert not any(key.startswith("backbone.") for key in weights)
    assert any(key.startswith("text_tower.") for key in weights)
    checkpoint = str(run / "last.safetensors")
    files = ["--backbone-weights", str(tmp_path / "dinov2.pth"), "--clip-weights", str(tmp_path / "clip.pth")]
    rest = ["--short-side", "112", "--window", "112", "--device", "cpu", "--json", "--limit", "2"]
    model = ["--dataset", "voc21", "--root", str(tmp_path), "--model", "s14", "--checkpoint", checkpoint, *files, *rest]
    capsys.readouterr()
    assert main(["calibrate", *model]) == 0
    found = json.loads(capsys.readouterr().out)["background"]
    assert read_measured(checkpoint).backgrounds == {"voc21": found}
    assert main(["eval", *model]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["protocol"]["background"] == found and report["images"] == 2 and 0 <= report["miou"] <= 1
