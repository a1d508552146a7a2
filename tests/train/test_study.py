"""A study of several data sets in several processes: rows that score another row's weights, names in paths, faults."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.train.ablation import load_ablation, markdown, run_ablation
from ovsdino.train.jobs import run_tasks
from tests.support.weak_folder import make_folder, make_labelled, write_config


@pytest.fixture
def study_file(tmp_path):
    """Two variants and a second look at the first one, on two data sets of one image size, two steps each."""
    for name in ("one", "two"):
        make_labelled(make_folder(tmp_path / name))
    base = write_config(tmp_path / "one", tmp_path / "base", architecture={"short_side": 64}, optim={"steps": 2})
    tree = {
        "base": base,
        "output": str(tmp_path / "study"),
        "seeds": [0],
        "train": {"data": {"cache_features": str(tmp_path / "cache"), "annotations": "{set}/captions.jsonl"}},
        "sets": {
            name: {
                "data": {"root": str(tmp_path / name), "masks": "{set}/masks"},
                "val": {"dataset": "folder", "root": name},
            }
            for name in ("one", "two")
        },
        "variants": {
            "plain": {"decoder": False},
            "plain, with a prior": {"of": "plain", "val": {"prior": 0.5}},
            "full": {},
        },
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_every_data_set_has_every_row_and_a_second_look_trains_nothing(study_file, tmp_path):
    said: list[str] = []
    study, base = load_ablation(study_file)
    report = run_ablation(study, base, said.append)
    runs = [line for line in said if line.startswith("seed")]
    assert runs == [
        f"seed 0: {own}, {name}" for own in ("one", "two") for name in ("plain", "full", "plain, with a prior")
    ]
    assert [(row["set"], row["variant"]) for row in report["rows"]] == [
        (own, name) for own in ("one", "two") for name in ("plain", "plain, with a prior", "full")
    ]
    assert {path.name for path in (tmp_path / "study/one").iterdir() if path.is_dir()} == {"plain_0", "full_0"}
    assert (tmp_path / "study/two/plain, with a prior_0.json").is_file()
    assert all("trimap_miou" in row and "boundary_iou" not in row for row in report["rows"])
    text = markdown(report)
    assert text.startswith("**one**\n\n| variant | mIoU | gain | boundary F1 | gain | mIoU within 8 px | gain |")
    assert text.count("| plain, with a prior |") == 2 and "\n**two**\n" in text
    other = json.loads((tmp_path / "study/two/full_0/settings.json").read_text())
    assert other["data"]["masks"].endswith("two/masks") and "{set}" not in json.dumps(other)


def test_two_processes_give_the_scores_of_one(study_file, tmp_path):
    study, base = load_ablation(study_file)
    alone = run_ablation(study, base, str)
    again, base = load_ablation(study_file, (f"output={tmp_path / 'again'}",))
    shared = run_ablation(again, base, str, jobs=2)
    for one, two in zip(alone["rows"], shared["rows"], strict=True):
        assert {k: v for k, v in one.items() if k != "ms"} == {k: v for k, v in two.items() if k != "ms"}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("variants.x={of: none}", "variants.x.of: expected a variant that is trained, got 'none'"),
        ("variants.x={of: 'plain, with a prior'}", "variants.x.of: expected a variant that is trained"),
        ("variants.x={of: plain, optim: {steps: 3}}", "variants.x: is not trained by itself, so optim cannot change"),
        ("sets={../x: {}}", "sets: '../x' cannot be the name of a folder"),
        ("sets.one.val.prior=-1", "val.prior: expected a number in"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(study_file, tmp_path, change, shown):
    with pytest.raises(OVSDinoError, match=shown):
        load_ablation(study_file, (change,))
    assert not (tmp_path / "study").exists()


def test_tasks_in_processes_pass_on_lines_and_mistakes():
    said: list[str] = []
    run_tasks(_work, ["a", "b", "c"], 2, said.append)
    assert sorted(said) == ["did a", "did b", "did c"]
    with pytest.raises(OVSDinoError, match="no d"):
        run_tasks(_work, ["a", "d"], 2, said.append)
    with pytest.raises(OVSDinoError, match="ValueError: broken"):
        run_tasks(_work, ["a", "e"], 2, said.append)


def _work(task, log):
    if task == "d":
        raise OVSDinoError("no d")
    if task == "e":
        raise ValueError("broken")
    log(f"did {task}")


def test_a_background_has_two_readings_and_a_threshold_by_captions(tmp_path, monkeypatch):
    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.models.backbone import freeze
    from ovsdino.train.weak import scoring
    from tests.support.weak_folder import trainer

    folder = make_folder(tmp_path / "data")
    it = trainer(write_config(folder, tmp_path / "run", architecture={"short_side": 64}))
    root = tmp_path / "labelled"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(2):
        label = np.zeros((64, 64), np.uint8)
        label[:, :32], label[0] = 1 + i, 255
        Image.fromarray(np.full((64, 64, 3), 60 * i, np.uint8)).save(root / f"images/{i}.png")
        Image.fromarray(label).save(root / f"labels/{i}.png")
    it.val_set = SegmentationDataset(root, ["background", "red paint", "grey wall"], has_background=True)
    freeze(it.model)

    def answer(trainer, features, text, prior):  # the left half is the first class's, the right half nearly nothing's
        logits = torch.zeros(1, 2, 16, 16)
        logits[:, 0, :, :8], logits[:, 1, :, 8:] = 0.6 * scale, 0.1 * scale
        return logits

    scale = it.model.log_scale.exp()
    monkeypatch.setattr(scoring, "answers", answer)
    found = scoring.score(it)
    # Two of six training images say "red paint", all say "grey wall". Above 0.1 the first alone is shown, and is right
    # in two of six; below, both are shown, and eight of twelve are right: that is better.
    assert found["threshold"] < 0.1
    assert found["miou_words"] == pytest.approx((0.5 + 0.0) / 2, abs=0.03)
    monkeypatch.setattr(scoring, "background_threshold", lambda *_: 0.3)
    found = scoring.score(it)
    # the right half is background: image 0 is right all over, image 1 has its left half wrong
    assert found["miou"] == pytest.approx((1.0 + 0.5 + 0.0) / 3, abs=0.03)
    assert found["trimap_miou"] == pytest.approx((1.0 + 0.5 + 0.0) / 3, abs=0.06)


def test_gaps_take_the_nearest_label():
    from ovsdino.train.weak.scoring import filled

    target = np.array([[0, 0, 255, 255, 255, 1]], np.int64)
    assert filled(target, target == 255)[0, [0, 1, 2, 4, 5]].tolist() == [0, 0, 0, 1, 1]
    assert filled(target, target == 9) is target
