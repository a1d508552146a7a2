"""A stage that teaches names: what learns, what stays, and what keeps the other words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ovsdino.errors import OVSDinoError
from ovsdino.models.zoo import build_model
from ovsdino.train.mixed.kept import PARTS, Kept, train_words_alone
from tests.support.mixed_folder import make_folder, trainer, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


def test_only_the_head_and_the_smd_learn(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run", only_words=True, optim={"warmup": 0}))
    assert all(name.startswith(tuple(f"model.{part}" for part in PARTS)) for name in run.trained)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train_mode()
    run.train_step(next(run.batches(0, 1)))
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert "backbone.head.weight" in changed and all(name.startswith(PARTS) for name in changed)


def test_nothing_is_lost_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run", only_words=True))
    batch = next(run.batches(0, 1))
    assert run.losses(batch)["kept"].item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        run.model.backbone.head.weight.add_(torch.randn_like(run.model.backbone.head.weight) * 0.1)
    assert run.losses(batch)["kept"] > 0.01
    assert not any(parameter.requires_grad for parameter in run.objective.kept.parameters())


def test_kept_is_the_divergence_of_the_other_words_scores() -> None:
    torch.manual_seed(0)
    kept = Kept(build_model("nano"), F.normalize(torch.randn(7, 256), dim=1))
    old, new = torch.randn(2, 256, 3, 4), torch.randn(2, 256, 3, 4)

    def shares(tokens: torch.Tensor) -> torch.Tensor:
        flat = F.normalize(tokens.permute(0, 2, 3, 1).reshape(-1, 256).double(), dim=1)
        return (20 * flat @ kept.rows.double().T).softmax(1)

    p, q = shares(old), shares(new)
    expected = (p * (p / q).log()).sum(1).mean().item()
    assert kept([old[:1], old[1:]], [new[:1], new[1:]]).item() == pytest.approx(expected, rel=1e-4)


def test_a_model_without_a_decoder_is_refused() -> None:
    with pytest.raises(OVSDinoError, match="only_words: needs a model with a head"):
        train_words_alone(build_model("nano", decoder=False))
