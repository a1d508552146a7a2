"""The probe: its parts against independent values, planted boundaries, the command's contract."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ovsdino
from ovsdino.cli import main
from ovsdino.data.bsds import BoundarySample
from ovsdino.errors import OVSDinoError
from ovsdino.eval.probe import (
    Probe,
    Ridge,
    Row,
    _at_most_fine,
    _boundary_map,
    _targets,
    contrast_auc,
    image_gradient,
    probe,
    recommended_taps,
    write_csv,
    write_plot,
)
from ovsdino.models.backbone import freeze
from ovsdino.models.zoo import build_model
from ovsdino.pipeline import Segmenter


class Planted:
    """Images of two colors that meet at a random column; everybody drew that border."""

    def __init__(self, images: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.samples = [self._sample(i) for i in range(images)]

    def _sample(self, index: int) -> BoundarySample:
        border = int(self.rng.integers(50, 190))
        image = np.zeros((160, 240, 3), np.uint8)
        image[:, :border], image[:, border:] = self.rng.integers(0, 256, (2, 3))
        segments = np.zeros((2, 160, 240), np.int32)
        segments[:, :, border:] = 1
        return BoundarySample(str(index), image, segments)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> BoundarySample:
        return self.samples[index]


@pytest.fixture(scope="module")
def result() -> Probe:
    segmenter = ovsdino.load("nano", "cpu", short_side=160)
    seen: list[tuple[int, int]] = []
    found = probe(segmenter, Planted(12, 0), Planted(5, 1), limit=10, progress=lambda *step: seen.append(step))  # type: ignore[arg-type]
    assert seen == [(i, 15) for i in range(1, 16)]
    return found


def test_every_layer_has_its_row_in_the_order_of_the_forward_pass(result: Probe) -> None:
    blocks = [f"stage {i}" for i in range(5)]
    modules = ["final map", "F", "SAE structure S", "SAE guide G", "F' (SMD)", "SAE boundary", "image gradient"]
    assert [row.name for row in result.rows] == [*blocks, *modules]
    assert [row.block for row in result.rows] == [0, 1, 2, 3, 4, *[None] * 7]
    assert [row.trained for row in result.rows] == [*[True] * 10, False, False]
    # The last stage, of stride 32, is read at the tokens' grid, 15 wide where the stage is 8.
    assert [row.stride for row in result.rows] == [2, 4, 8, 16, 16, 16, 16, 16, 4, 16, None, None]
    assert (result.train_images, result.val_images) == (10, 5)
    assert all(0 <= row.f <= 1 and (row.contrast is None) == (row.name == "SAE boundary") for row in result.rows)


def test_planted_borders_are_found(result: Probe) -> None:
    rows = {row.name: row for row in result.rows}
    assert rows["image gradient"].f > 0.99 and (rows["image gradient"].contrast or 0) > 0.98
    assert rows["stage 0"].contrast is not None and rows["stage 0"].contrast > 0.95
    best = max(result.rows[:5], key=lambda row: row.f)
    assert best.f > 0.3 and result.peak_block == best.block
    assert result.fade == pytest.approx(best.f - result.rows[4].f) and 0 <= result.fade_error < 0.5
    assert len(result.taps) == 4 and list(result.taps) == sorted(result.taps)


def test_ridge_finds_a_planted_line_from_pieces_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator) * torch.tensor([1, 10, 0.1, 1, 1.0]) + torch.tensor([0, 1e3, 0, 5, 0])
    weight, bias = torch.randn(5, 2, generator=generator), torch.tensor([0.5, -2.0])
    ridge = Ridge()
    for part in x.split(130):
        ridge.update(part, part @ weight + bias)
    found, offset = ridge.solve()
    torch.testing.assert_close(found, weight, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(x @ found + offset, x @ weight + bias, rtol=5e-3, atol=0.1)


def test_ridge_survives_a_constant_channel() -> None:
    x = torch.cat([torch.randn(50, 1), torch.full((50, 1), 7.0)], 1)
    ridge = Ridge()
    ridge.update(x, 2 * x[:, :1] + 1)
    weight, bias = ridge.solve()
    torch.testing.assert_close(x @ weight + bias, 2 * x[:, :1] + 1, rtol=1e-2, atol=1e-2)


def test_roc_area_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.4
    wins = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert contrast_auc(values, positive) == pytest.approx(np.mean(wins))
    assert contrast_auc(values, np.zeros(60, bool)) == 0.5


def test_taps_are_the_best_of_four_stretches() -> None:
    assert recommended_taps([3, 2, 1, 1, 1, 2, 5, 6, 5, 1, 2, 0]) == (0, 5, 7, 10)
    assert recommended_taps([1, 2]) == (0, 1)


def test_gradient_of_a_ramp_is_its_slope() -> None:
    ramp = torch.zeros(3, 40, 40)
    ramp[1] = 0.01 * torch.arange(40.0)
    inside = image_gradient(ramp)[8:-8, 8:-8]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.01), rtol=1e-4, atol=1e-6)


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(OVSDinoError, match="limit is 0"):
        probe(ovsdino.load("nano", "cpu"), Planted(1, 0), Planted(1, 0), limit=0)  # type: ignore[arg-type]


def small() -> Probe:
    rows = [
        Row(name=f"block {i}", block=i, trained=True, f=0.5 - i / 10, precision=0.5, recall=0.5, contrast=0.8)
        for i in range(2)
    ]
    edge = Row(name="SAE boundary", block=None, trained=False, f=0.6, precision=0.6, recall=0.6, contrast=None)
    return Probe(
        train_images=1,
        val_images=1,
        rows=(*rows, edge),
        peak_block=0,
        fade=0.1,
        fade_error=0.01,
        contrast_fade=0.0,
        taps=(0, 1),
    )


def test_csv_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(small(), tmp_path / "new" / "a.csv")
    with (tmp_path / "new" / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["block 0", "block 1", "SAE boundary"]
    assert rows[1]["f"] == "0.4" and rows[2]["contrast"] == ""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert write_plot(small(), tmp_path / "a.png", "title")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 800
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not write_plot(small(), tmp_path / "b.png", "title") and not (tmp_path / "b.png").exists()


@pytest.fixture
def bsds(tmp_path: Path) -> Path:
    for split, seed in (("train", 0), ("val", 1)):
        for folder in ("images", "segments"):
            (tmp_path / "bsds500" / split / folder).mkdir(parents=True)
        for sample in Planted(2, seed).samples:
            Image.fromarray(sample.image).save(tmp_path / "bsds500" / split / "images" / f"{sample.stem}.png")
            for person, segments in enumerate(sample.segments):
                path = tmp_path / "bsds500" / split / "segments" / f"{sample.stem}_{person}.png"
                Image.fromarray(segments.astype(np.uint16)).save(path)
    return tmp_path


def test_the_command_follows_its_contract(bsds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["probe", "--dataset", "bsds500", "--root", str(bsds), "--model", "nano", "--short-side", "64"]
    assert main([*line, "--output", str(bsds / "out"), "--device", "cpu", "--json"]) == 0
    out, _ = capsys.readouterr()
    data = json.loads(out)
    assert out.count("\n") == 1
    assert (data["dataset"], data["model"], data["short_side"]) == ("bsds500", "nano", 64)
    assert (data["train_images"], data["val_images"], len(data["rows"]), len(data["taps"])) == (2, 2, 12, 4)
    assert Path(data["csv"]).is_file() and (data["plot"] is None or Path(data["plot"]).is_file())
    assert main([*line, "--output", str(bsds / "out"), "--device", "cpu"]) == 0
    assert "recommended taps" in capsys.readouterr().out


def lite2(*, decoder: bool) -> Segmenter:
    """Return lite2 with random weights."""
    torch.manual_seed(0)
    return Segmenter(freeze(build_model("lite2", decoder=decoder)), "cpu", short_side=160)


def test_stages_of_a_cnn_are_read_at_their_own_strides() -> None:
    found = probe(lite2(decoder=False), Planted(6, 0), Planted(4, 1))  # type: ignore[arg-type]
    stages = [f"stage {i}" for i in range(5)]
    assert [row.name for row in found.rows] == [*stages, "final map", "F", "image gradient"]
    assert [row.block for row in found.rows] == [0, 1, 2, 3, 4, None, None, None]
    assert [row.stride for row in found.rows] == [2, 4, 8, 16, 16, 16, 16, None]
    assert [row.channels for row in found.rows] == [16, 24, 48, 120, 352, 1280, 384, None]
    rows = {row.name: row for row in found.rows}
    assert all((rows[f"stage {i}"].contrast or 0) > 0.95 for i in range(2))  # random weights keep colors apart
    assert found.taps == (1, 2, 3, 4)  # stage 0 is finer than the encoder's first level


def test_a_head_without_weights_has_no_row() -> None:
    segmenter = lite2(decoder=True)
    segmenter.model.aligned = False  # as the zoo loads it where no file has a head
    names = [row.name for row in probe(segmenter, Planted(2, 0), Planted(1, 1)).rows]  # type: ignore[arg-type]
    assert "F" not in names and "F' (SMD)" not in names and "SAE structure S" in names


def test_a_decoder_behind_a_cnn_has_its_rows() -> None:
    segmenter = lite2(decoder=True)
    found = probe(segmenter, Planted(2, 0), Planted(1, 1))  # type: ignore[arg-type]
    rows, sae = {row.name: row for row in found.rows}, segmenter.model.config.sae
    modules = ["SAE structure S", "SAE guide G", "F' (SMD)", "SAE boundary", "image gradient"]
    assert [row.name for row in found.rows][7:] == modules
    assert [(rows[name].channels, rows[name].stride) for name in modules[:3]] == [
        (sae.structure_dim, 16),
        (sae.guide_dim, 4),
        (384, 16),
    ]


@pytest.mark.parametrize(("height", "cells"), [(8, 4), (16, 2), (32, 1)])
def test_a_layer_predicts_the_cells_of_its_own_positions(height: int, cells: int) -> None:
    """On a grid of 8 x 8 tokens the boundary's cell is the same one whatever the stride it is read at."""
    segments = np.zeros((1, 128, 128), np.int32)
    segments[:, :, 72:] = 1
    sample = BoundarySample("0", np.zeros((128, 128, 3), np.uint8), segments)
    target = _targets(sample, torch.zeros(5, height, height), (8, 8))
    assert target.shape == (height**2, cells**2)
    again = _boundary_map(target.T.reshape(cells**2, height, height))
    assert again.shape == (32, 32)
    assert again.sum(0).nonzero().flatten().tolist() in ([17], [18], [17, 18]) and again.max() == 1


def test_positions_finer_than_the_cells_are_read_together() -> None:
    features = torch.arange(2 * 8 * 8.0).view(2, 8, 8)
    found = _at_most_fine(features, (1, 1))
    assert found.shape == (8, 4, 4)
    assert sorted(found[:, 1, 2].tolist()) == sorted(features[:, 2:4, 4:6].flatten().tolist())
    assert torch.equal(_at_most_fine(features, (2, 2)), features)
