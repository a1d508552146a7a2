"""Rivals and controls of the video's memory on clips of a few pixels, and the page's table."""

from __future__ import annotations

import json

import numpy as np
import torch

from ovsdino.benchmarks.lib.report import RESULTS, placed
from ovsdino.benchmarks.lib.steady import EncodedClip, control, exponential, flow_mean, steady, without_structure
from ovsdino.benchmarks.studies import video
from ovsdino.eval.flow import Motion
from ovsdino.models.memory import MemoryConfig


def clip(shift: int = 1, frames: int = 4) -> EncodedClip:
    """A step in two classes that moves to the right, with noise in the logits."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(2, 8, 16)
    truth[0, :, :6], truth[1, :, 6:] = 4.0, 4.0
    moved = torch.stack([truth.roll(shift * step, 2) for step in range(frames)])
    back = np.zeros((8, 16, 2), np.float32)
    back[..., 0] = -shift
    motions = [Motion(back=back, reliable=np.ones((8, 16), bool))] * (frames - 1)
    return EncodedClip(moved + torch.randn(moved.shape, generator=generator), moved, motions)


def test_an_exponential_mean_by_hand() -> None:
    made = EncodedClip(torch.tensor([0.0, 4.0, 8.0]).view(3, 1, 1, 1), torch.zeros(3, 1, 1, 1), [])
    assert exponential(made, 0.25).flatten().tolist() == [0.0, 3.0, 6.75]


def test_a_mean_along_the_flow_follows_what_moves() -> None:
    made = clip()
    exact = EncodedClip(made.affinity, made.affinity, made.motions)
    inner = np.s_[..., 4:14]
    torch.testing.assert_close(flow_mean(exact, 0.9)[inner], made.affinity[inner])
    assert (exponential(exact, 0.9) - made.affinity).abs().max() > 2


def test_controls_differ_from_the_memory() -> None:
    made = clip(frames=6)
    open_, order = MemoryConfig(cut=0.0), torch.tensor([0, 3, 0, 2, 1, 4])
    found = [steady(made, open_), without_structure(made, open_), control(made, made, order, open_)]
    assert all(torch.equal(one[0], made.logits[0]) for one in found)
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[0], found[2])
    wrong = [(one.argmax(1) != made.affinity.argmax(1))[-1].float().mean() for one in found]
    assert wrong[0] <= wrong[1]


def test_labels_of_a_still_never_change_and_displaced_ones_of_a_moving_edge_do() -> None:
    truth = np.zeros((32, 64), np.int64)
    truth[:, 20:] = 1
    still = Motion(back=np.zeros((32, 64, 2), np.float32), reliable=np.ones((32, 64), bool))
    found = video.most([truth] * 9, [still] * 8, (8, 16))
    assert set(found.values()) == {1.0} and len(found) == 5
    moving = video.most([np.roll(truth, step, 1) for step in range(9)], [still] * 8, (8, 16))
    assert moving["truth displaced by 1 pixels"] > moving["truth displaced by 3 pixels"]


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    report = json.loads((RESULTS / "video.json").read_text(encoding="utf-8"))
    page = video.PAGE.read_text(encoding="utf-8")
    for name, table in video.TABLES.items():
        assert placed(page, name, table(report)) == page, "run python benchmarks/studies/video.py --page"
