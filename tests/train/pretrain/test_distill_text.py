"""Distilling nano's text tower, from a teacher that gives each word a random place."""

import random
import signal
import zlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ovsdino.models.text import HashedTextTower
from ovsdino.models.zoo import NANO
from ovsdino.train.config import CommonConfig
from ovsdino.train.pretrain import distill_text
from ovsdino.train.pretrain.distill_text import TextDistiller, main


def place(word):
    return torch.randn(400, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


@pytest.fixture(autouse=True)
def teacher(monkeypatch):
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefgh", k=rng.randint(3, 7))) for _ in range(450)]

    def load_teacher():
        return lambda names: F.normalize(torch.stack([*map(place, names)]), dim=-1), vocabulary

    monkeypatch.setattr(distill_text, "load_teacher", load_teacher)


def run(output, *more):
    return main(["--output", str(output), "--words", "420", "--phrases", "40", "--steps", "2", *more])


def test_the_tower_and_its_words_are_written_and_the_seed_decides_them(tmp_path, capsys):
    (tmp_path / "extra.txt").write_text("zebra crossing\n\n")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(tmp_path / f"{name}.safetensors", "--seed", seed, "--extra", str(tmp_path / "extra.txt")) == 0
    assert "cosine to the teacher: words" in capsys.readouterr().out
    words = (tmp_path / "a.words.txt").read_text().splitlines()
    assert words[-1] == "zebra crossing" and "" not in words
    towers = [load_file(tmp_path / f"{name}.safetensors") for name in "abc"]
    assert all(torch.equal(towers[0][key], towers[1][key]) for key in towers[0])
    assert not torch.equal(towers[0]["out.weight"], towers[2]["out.weight"])
    tower = HashedTextTower(NANO.embed_dim, NANO.text.width, NANO.text.buckets)
    tower.load_state_dict({key: value.float() for key, value in towers[0].items()})
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [f"{name}.safetensors" for name in "abc"]


def test_a_later_step_draws_the_rows_that_it_would_have_drawn(tmp_path):
    tower = HashedTextTower(8, 16, 100)
    targets = torch.eye(8)

    def rows(start):
        torch.manual_seed(3)
        it = TextDistiller(CommonConfig(output=str(tmp_path / "run")), 5, tower, [*"abcdefgh"], targets, 6)
        return [*it.batches(start, 5)]

    whole = rows(0)
    assert len(whole) == 5 and all(torch.equal(a, b) for a, b in zip(whole[3:], rows(3), strict=True))
    assert all(batch[:256].max() < 6 and batch.max() == 7 for batch in whole)


def test_ctrl_c_ends_it_with_nothing_written(tmp_path, capsys, monkeypatch):
    step = TextDistiller.train_step

    def interrupted(it, batch):
        signal.raise_signal(signal.SIGINT)
        return step(it, batch)

    monkeypatch.setattr(TextDistiller, "train_step", interrupted)
    assert run(tmp_path / "a.safetensors") == 130
    assert "stopped by SIGINT at step 1, nothing written" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(("words", "shown"), [(["--output", "a", "--steps", "x"], "--steps"), ([], "--output")])
def test_a_mistake_is_one_line(capsys, words, shown):
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert shown in error and "\n" not in error
