"""Engines with a memory: their state goes from frame to frame, on a device that the process plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

from ovsdino.edge import TextBank
from tests.support import device, tiny


def frame(*color: int) -> np.ndarray:
    return np.full((tiny.HEIGHT, tiny.WIDTH, 3), color, np.uint8)


@pytest.mark.parametrize("integrated", [False, True])
def test_an_engine_adds_up_its_frames_until_it_is_told_to_forget(
    integrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = TextBank(names=("red", "blue"), text=np.float32([[1, 0, 0], [0, 0, 1]]), model="tiny", weights=tiny.WEIGHTS)
    cuda = device.Cuda(integrated=integrated)
    with device.segmenter(monkeypatch, tmp_path, cuda, bank, memory=True, background=None) as engine:

        def label(color: tuple[int, int, int]) -> int:
            (found,) = np.unique(engine.segment(frame(*color), scores=False).labels)
            return int(found)

        red, blue = (250, 128, 0), (90, 128, 200)
        assert label(blue) == 1
        engine.reset()
        assert [label(red), label(blue)] == [0, 0]  # red by more than blue is blue: the sum of both is red
        engine.infer(np.zeros((1, 3, tiny.HEIGHT, tiny.WIDTH), np.float32))  # a beginning of its own
        assert label(blue) == 1
        engine.set_bank(bank)
        assert [label(red), label(blue)] == [0, 0]
    assert not cuda.blocks
