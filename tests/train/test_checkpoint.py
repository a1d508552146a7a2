"""The layout of checkpoints: a run that was begun with an earlier version continues with this one."""

import pytest
import torch

from ovsdino.train.dense.trainer import DenseTrainer
from ovsdino.train.pretrain.config import CropStage, SelfDistillConfig
from ovsdino.train.pretrain.self_distill import SelfDistiller
from ovsdino.train.start import load_config
from tests.support.weak_folder import make_folder, trainer, write_config
from tests.train.pretrain.test_self_distill import archive  # noqa: F401  (a fixture)
from tests.train.test_trainer import config_file, folder  # noqa: F401  (a fixture)

OPTIMIZER = {"state", "param_groups"}


def saved(it):
    it.save()
    return torch.load(it.folder.checkpoint, weights_only=True)


def groups(state):
    return [(len(group["params"]), group["weight_decay"]) for group in state["optimiser"]["param_groups"]]


def check_segmentation(it, state):
    assert set(state) == {"step", "best", "seconds", "trained", "ema", "optimiser", "config"}
    assert set(state["optimiser"]) == OPTIMIZER
    assert state["trained"].keys() == state["ema"].keys() == it.trained.keys()


def test_a_run_on_labels(folder, tmp_path):  # noqa: F811
    it = DenseTrainer(load_config(config_file(folder, tmp_path)), log=print)
    state = saved(it)
    check_segmentation(it, state)
    assert all(name.startswith("model.") for name in state["trained"])
    # Decayed are matrices but for the positions; frozen is the text tower. Scalars: the temperature, lambda of
    # two blocks, the gate's bias, and lambda, gamma and mix of the upsampling.
    assert groups(state) == [(72, 0.05), (118, 0.0), (7, 0.0)]
    assert state["config"]["supervision"] == "labels" and state["config"]["optim"]["steps"] == 4


def test_a_run_on_captions(tmp_path):
    it = trainer(write_config(make_folder(tmp_path / "data"), tmp_path / "run"))
    state = saved(it)
    check_segmentation(it, state)
    own = [name for name in state["trained"] if not name.startswith("model.")]
    assert own == ["mask_scale", "mask_bias"]
    assert groups(state) == [(47, 0.05), (66, 0.0), (9, 0.0)]


def test_a_run_towards_sams_embedding(tmp_path):
    path = write_config(make_folder(tmp_path / "data"), tmp_path / "run", loss={"sam": 1.0})
    with pytest.raises(Exception, match=r"loss\.sam 1\.0 needs data\.sam_targets or sam_checkpoint"):
        trainer(path)
    from ovsdino.train.initial import changed_model
    from ovsdino.train.weak.objective import WeakObjective

    config = load_config(path)
    names = [name for name, _ in WeakObjective(changed_model(config), config).named_parameters()]
    assert [n for n in names if not n.startswith("model.")] == [
        "mask_scale",
        "mask_bias",
        "alignment.project.weight",
        "alignment.project.bias",
    ]


def test_self_distillation(archive, tmp_path):  # noqa: F811
    stages = (CropStage(large=48, small=32, batch=3),)
    config = SelfDistillConfig(images=(str(archive),), output=str(tmp_path / "run"), prototypes=8, stages=stages)
    state = saved(SelfDistiller(config))
    assert set(state) == {"step", "seconds", "config", "student", "teacher", "dino", "optimiser"}
    assert state["student"].keys() == state["teacher"].keys()
    assert {name.partition(".")[0] for name in state["student"]} == {"vit", "mask_token", "head"}
    assert groups(state) == [(31, 0.05), (55, 0.0)]  # positions decay here, unlike elsewhere
