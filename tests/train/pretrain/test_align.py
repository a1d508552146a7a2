"""The alignment in closed form: the evidence for words, the ridge, and the command on a few pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ovsdino.models import zoo
from ovsdino.train.pretrain import align
from ovsdino.train.pretrain.align import Moments, Words, main, picture_targets, solve
from ovsdino.train.pretrain.hypernyms import Hypernyms

TABLE = Hypernyms(
    classes=("n1", "n2", "n3"),
    names={"n1": ("tabby",), "n2": ("Persian",), "n3": ("car",), "n4": ("cat", "true cat")},
    above={"n1": "n4", "n2": "n4"},
)


def rows_of(texts: Sequence[str]) -> Tensor:
    """A row for each text, a function of it alone."""
    generators = [torch.Generator().manual_seed(sum(text.encode())) for text in texts]
    return F.normalize(torch.stack([torch.randn(384, generator=g) for g in generators]), dim=-1)


@pytest.fixture
def words() -> Words:
    return Words.of(TABLE, rows_of)  # type: ignore[arg-type]


def test_the_evidence_for_a_word_is_the_mean_over_its_classes(words: Words) -> None:
    assert words.names == ["car", "cat", "persian", "tabby", "true cat"]
    torch.testing.assert_close(words.weight, torch.tensor([1, 2**0.5, 1, 1, 2**0.5]) / (3 + 2 * 2**0.5))
    torch.testing.assert_close(words.rows.norm(dim=1), torch.ones(5))
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    e = logits.exp()[0]
    cat = ((e[0] + e[1]) / 2).log()
    expected = torch.stack([logits[0, 2], cat, logits[0, 1], logits[0, 0], cat])
    expected = expected - (expected * words.weight).sum()
    torch.testing.assert_close(words.evidence(logits)[0], expected)
    assert words.evidence(torch.tensor([[1000.0, 0.0, 0.0]])).isfinite().all()


def test_the_head_is_the_weighted_ridge_regression(words: Words) -> None:
    torch.manual_seed(0)
    features = torch.randn(200, 6)
    targets = (features @ torch.randn(6, 384) + torch.randn(384)) @ words.rows.T  # what a head can give
    positions, pictures = Moments.empty(6, 384), Moments.empty(6, 384)
    for part in (slice(0, 80), slice(80, 200)):
        positions.add(features[part], words.goals(targets[part]))
    head, bias = solve(positions, pictures, words, pull=0.3, ridge=1e-6, row_ridge=1e-5)
    fitted = (features @ head.T + bias) @ words.rows.T
    torch.testing.assert_close(fitted, targets, rtol=1e-2, atol=1e-2)
    shrunk, _ = solve(positions, pictures, words, pull=0.3, ridge=10.0, row_ridge=1e-5)
    assert (features @ shrunk.T @ words.rows.T).norm() < 0.5 * (features @ head.T @ words.rows.T).norm()


def test_a_picture_asks_for_the_names_of_its_word(words: Words) -> None:
    targets = picture_targets(TABLE, words, ["tabby", "car", "car", "nothing known"], 2.0)
    car, tabby = 2.0 * (1 - 0.5) / 0.5**0.5, 2.0 * (1 - 0.25) / 0.25**0.5
    torch.testing.assert_close(targets[1, 0].item(), car)
    torch.testing.assert_close(targets[0, [1, 3, 4]], torch.full((3,), tabby))
    assert (targets[3] <= 0).all() and not targets[:, 2].any()  # no picture of a Persian


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model("tf_efficientnet_lite2.in1k").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "pictures").mkdir()
    lines = []
    for index, word in enumerate(("tench", "sports car", "cats")):
        noise = torch.randint(0, 256, (40, 56 + 8 * index, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "caption": word}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_the_command_writes_a_head_that_lite2_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(align, "SentenceEncoder", lambda _: rows_of)  # it is of an extra; nothing here depends on it
    output, backbone = folder / "head.safetensors", folder / "model.safetensors"
    arguments = {
        "output": output,
        "backbone-weights": backbone,
        "pictures": folder / "pictures",
        "captions": folder / "captions.jsonl",
        "images": folder / "pictures",
        "positions": 20,
        "picture-side": 48,
        "image-side": 32,
    }
    argv = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    assert main(argv) == 0
    assert "a head of 20 positions and 3 pictures" in capsys.readouterr().out
    found = load_file(output)
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "backbone.head.weight": (384, 1280),
        "backbone.head.bias": (384,),
        "text_tower.center": (384,),
    }
    assert all(value.isfinite().all() for value in found.values()) and found["backbone.head.weight"].any()
    model = zoo.create_model("lite2", backbone_weights=backbone, projection=output)
    assert torch.equal(model.text_tower.center.half(), found["text_tower.center"])
    assert torch.equal(model.backbone.head.weight.half(), found["backbone.head.weight"])
    first = output.read_bytes()
    assert main(argv) == 0 and output.read_bytes() == first

    state = {k: v for k, v in load_file(backbone).items() if not k.startswith("classifier.")}
    save_file(state, backbone)
    assert main(argv) == 2
    assert "has no classifier" in capsys.readouterr().err
