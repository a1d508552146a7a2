"""A run on several kinds of images: what each step asks for, what learns, resuming, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ovsdino.contrast import contrast_phrases, rivals
from ovsdino.errors import OVSDinoError
from ovsdino.models.weights import read_packaged, read_safetensors
from ovsdino.models.zoo import create_model
from ovsdino.train.__main__ import main
from ovsdino.train.config import RunConfig
from ovsdino.train.initial import changed_model, load_initial
from tests.support.mixed_folder import make_folder, trainer, write_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data"))


def part_of(run, labels: torch.Tensor, seed: int = 0):
    """Return what a step asks for of images with these labels (B, H, W)."""
    images = torch.zeros(len(labels), 3, *labels.shape[1:])
    return run.sets["streets"].part((images, labels), torch.Generator().manual_seed(seed), run.contrast, run)


LABELS = torch.tensor([[[0, 1], [2, 255]]])


def test_all_classes_are_asked_for_and_none_is_last(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run", contrast={"drop": 0.0}))
    part = part_of(run, LABELS)
    assert torch.equal(part.labels, LABELS) and part.rows.shape == (3, 256) and part.weights.shape == (4,)
    assert part.weights[3] == 1 and part.edges and part.weight == 1
    # Contrast phrases that a class answers to, or that are too near to one, do not compete.
    kept = rivals(("road", "sky", "zebra"))
    assert "road" not in {contrast_phrases()[i] for i in kept}
    near = (run.contrast @ part.rows.T).amax(1) >= 0.6
    expected = run.contrast[[i for i in kept if not near[i]]]
    torch.testing.assert_close(part.contrast, expected)


def test_pixels_of_classes_that_are_dropped_are_none_of_these(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run", contrast={"drop": 1.0}))
    seen = set()
    for seed in range(3):
        part = part_of(run, LABELS, seed)
        assert part.rows.shape == (1, 256)  # with a probability of one, all but one are dropped
        (own,) = (part.labels == 0).nonzero().tolist()
        number = int(LABELS[tuple(own)])
        expected = torch.where(number == LABELS, 0, 1).where(LABELS != 255, 255)
        assert torch.equal(part.labels, expected)
        rows = run.sets["streets"].text.classes
        torch.testing.assert_close(part.rows[0], rows[number])
        others = rows[[k for k in range(3) if k != number]]
        torch.testing.assert_close(part.contrast[-2:], others)  # they compete for their pixels
        assert part.weights.tolist() == [run.sets["streets"].weights[number].item(), 1]
        seen.add(number)
    assert len(seen) > 1


def test_words_that_are_held_out_are_no_neighbors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("ROAD\nroads\n")  # read as the name itself, as near as can be
    text = "labels.streets.text."
    overrides = [f"{text}vocabulary={tmp_path / 'words.txt'}", f"{text}neighbour_min_cosine=0.99"]

    def near(held: str) -> int:
        run = trainer(
            write_config(folder, tmp_path / held), *overrides, f"{text}neighbour_margin=0", f"exclude=[{held}]"
        )
        return sum(len(rows) for rows in run.sets["streets"].text.neighbours)

    assert near("street") >= 1 and near("ROAD") == near("street") - 1


def test_every_term_is_there_and_teaches(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run", optim={"steps": 2, "warmup": 0}))
    batch = next(run.batches(0, 1))
    run.train_mode()
    terms = run.losses(batch)
    assert terms.keys() == {"cross_entropy", "dice", "coarse", "boundary", "affinity", "pictures"}
    assert all(value.isfinite() and value > 0 for value in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    silent = {n for n, p in run.trained.items() if p.grad is None or not p.grad.abs().sum() > 0}
    # W_out is zero at the start, and what is before it learns only once it is not.
    assert all("decoder.smd." in name for name in silent)
    assert not any(n.startswith("model.text_tower.") for n in run.trained)
    backbone = {id(p) for p in run.model.backbone.parameters()} - {id(p) for p in run.model.backbone.head.parameters()}
    for group, rate in zip(run.optimizer.param_groups, run.rates, strict=True):
        assert {id(p) in backbone for p in group["params"]} == {rate == run.config.backbone_rate}


def test_a_slow_gate_lets_what_it_multiplies_learn_as_if_it_were_open(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run", optim={"gate_rate": 0.01}))
    rate_of = {
        id(p): rate for group, rate in zip(run.optimizer.param_groups, run.rates, strict=True) for p in group["params"]
    }
    smd = run.model.decoder.smd
    assert {rate_of[id(p)] for p in smd.gate.parameters()} == {0.01}
    features, structure = (
        torch.randn(1, smd.project.in_features, 2, 2),
        torch.randn(1, smd.structure_norm.weight.numel(), 2, 2),
    )
    gate = smd.gate_map(features, structure).mean().item()
    assert [rate_of[id(p)] * gate for p in smd.out.parameters()] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("override", "left_out"),
    [
        ("pictures.root=''", {"pictures"}),
        ("edges.root=''", set()),  # the labels' edges still teach them
        ("labels.streets.edges=false", set()),
        ("loss.affinity=0", set()),
    ],
)
def test_a_source_that_is_not_named_is_left_out(folder: Path, tmp_path: Path, override: str, left_out: set) -> None:
    run = trainer(write_config(folder, tmp_path / "run"), override)
    terms = run.losses(next(run.batches(0, 1)))
    every = {"cross_entropy", "dice", "coarse", "boundary", "affinity", "pictures"}
    assert terms.keys() == every - left_out
    if override == "loss.affinity=0":
        assert terms["affinity"] == 0


def test_a_run_goes_on_as_if_it_had_not_stopped(folder: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([write_config(folder, whole)]) == 0
    path = write_config(folder, part)
    assert main([path, "optim.steps=2"]) == 0  # the rate falls from step 2.4 of 4 on
    assert main([path]) == 0
    one, other = (load_file(place / "last.safetensors") for place in (whole, part))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    rows = [json.loads(line) for line in (part / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    assert create_model("nano", checkpoint=part / "last.safetensors").decoder_trained


def test_the_val_split_of_every_label_set_is_measured(folder: Path, tmp_path: Path) -> None:
    run = trainer(write_config(folder, tmp_path / "run"))
    measured = run.measured()
    assert [*measured] == ["val"]
    dataset, rows = measured["val"]
    assert len(dataset) == 3 and rows.shape == (3, 256)
    found = run.validate(None)
    assert 0 <= found["miou"] <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels={}", "labels: name at least one data set with pixel labels"),
        ("labels.streets.height=30", "labels.streets.height: expected a multiple of 16, the patch size, got 30"),
        ("labels.streets.hight=32", "labels.streets: unknown key 'hight'"),
        ("labels.streets.root=/nowhere", "/nowhere"),
        ("labels.streets.exclude=['']", "labels.streets.exclude[0]: expected 1 to 1000 entries, got 0"),
        ("labels.streets.exclude=['0', '1', '2']", "no training image is left"),
        ("labels.streets.text.names={moon: [moon]}", "text.names: 'moon' is not a class of folder: road, sky, zebra"),
        ("pictures.annotations=/nowhere.jsonl", "/nowhere.jsonl"),
        ("edges.root=/nowhere", "/nowhere"),
        ("teacher.weights=/nowhere.pth", "/nowhere.pth: no such file"),
        ("contrast.drop=2", "contrast.drop: expected a number in [0, 1], got 2.0"),
        ("loss.words=-1", "loss.words: expected a number in [0, 1e+06], got -1.0"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main([write_config(folder, tmp_path / "run"), override]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_run_does_not_replace_the_weights_it_reads(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.safetensors").write_bytes((folder / "text.safetensors").read_bytes())
    with pytest.raises(OVSDinoError, match="the result would replace an input"):
        trainer(write_config(folder, run, text_weights=str(run / "last.safetensors")))


def test_a_run_begins_with_a_whole_model_of_an_earlier_one(folder: Path, tmp_path: Path) -> None:
    assert main([write_config(folder, tmp_path / "first")]) == 0
    learned = read_safetensors(tmp_path / "first/last.safetensors")
    second = trainer(write_config(folder, tmp_path / "second", initial=str(tmp_path / "first/last.safetensors")))
    state = second.model.state_dict()
    assert all(torch.equal(state[key].to(value.dtype), value) for key, value in learned.items())


def test_a_run_begins_with_the_shipped_model(folder: Path, tmp_path: Path) -> None:
    state = trainer(write_config(folder, tmp_path / "run", initial="shipped")).model.state_dict()
    assert all(torch.equal(state[key].to(value.dtype), value) for key, value in read_packaged("nano").items())


def test_a_model_that_is_not_shipped_cannot_be_begun_with(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="no weights are shipped for lite2"):
        load_initial(changed_model(RunConfig(model="lite2")), "shipped")
