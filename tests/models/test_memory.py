"""Memory across frames: its formula pixel by pixel, and what must pass it unharmed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ovsdino.models.memory import Memory, MemoryConfig, moved, remembered

OPEN = MemoryConfig(cut=0.0)


def frame(seed: int = 0, classes: int = 3, h: int = 2, w: int = 3, channels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (4 * h, 4 * w)
    logits = 3 * torch.randn(1, classes, *shape, generator=generator)
    return logits, 0.4 * torch.randn(1, channels, *shape, generator=generator)


def direct(x: Tensor, a: Tensor, memory: Memory, config: MemoryConfig) -> np.ndarray:
    """The formula of one image, pixel by pixel, in float64; keys are of the pixel's tile and the eight around."""
    x_, a_, y_, b_ = (one[0].double().numpy() for one in (x, a, memory.logits, memory.affinity))
    out = np.zeros_like(x_)
    for r, c in np.ndindex(*x_.shape[1:]):
        tile = 4 * config.reach
        keys = [
            (v, u)
            for v, u in np.ndindex(*x_.shape[1:])
            if abs(v // tile - r // tile) <= 1 and abs(u // tile - c // tile) <= 1
        ]
        rows, columns = zip(*keys, strict=True)
        away = (((np.array(keys) - (r, c)) / 4) ** 2).sum(1)
        distance = ((a_[:, r, c, None] - b_[:, rows, columns]) ** 2).sum(0)
        weights = np.exp(-config.strength * (distance + config.gamma**2 * away))
        weights /= weights.sum()
        near = ((a_[:, r, c] - b_[:, rows, columns] @ weights) ** 2).sum()
        gate = config.most * np.exp(-config.tolerance * near)
        out[:, r, c] = (1 - gate) * x_[:, r, c] + gate * (y_[:, rows, columns] @ weights)
    return out


def test_equal_to_the_formula() -> None:
    (x, a), (y, b) = frame(), frame(1)
    b = a + 0.3 * b
    config = MemoryConfig(cut=0.0, most=0.8, tolerance=0.7, strength=3.0, gamma=0.5)
    found, _ = remembered(x, a, Memory(y, b), config)
    np.testing.assert_allclose(found.logits[0].numpy(), direct(x, a, Memory(y, b), config), atol=2e-5)
    assert torch.equal(found.affinity, a)


def test_a_beginning_and_a_cut_leave_a_frame_bit_for_bit() -> None:
    (x, a), (y, b) = frame(), frame(1)
    first, level = remembered(x, a, None)
    assert torch.equal(first.logits, x) and level.tolist() == [0.0]
    after, level = remembered(x, a, Memory(y, 3 + b))
    assert torch.equal(after.logits, x) and float(level) < 0.01


def test_the_same_frame_again_is_known_and_keeps_its_labels() -> None:
    x, a = frame()
    a = 8 * a  # every pixel unlike all others: it finds itself
    found, level = remembered(x, a, Memory(x, a))
    assert float(level) > 0.99
    torch.testing.assert_close(found.logits, x, atol=0.2, rtol=0.05)


def test_noise_in_the_logits_is_averaged_and_moves_with_the_structure() -> None:
    generator = torch.Generator().manual_seed(5)
    truth = torch.zeros(1, 2, 16, 24)
    truth[:, 0, :, :10], truth[:, 1, :, 10:] = 1.0, 1.0
    memory, wrong = None, []
    for step in range(12):
        now = truth.roll(step // 2, 3)
        noisy = now + 0.8 * torch.randn(now.shape, generator=generator)
        memory, _ = remembered(noisy, 2 * now, memory, OPEN)
        wrong.append(
            [(one.argmax(1) != now.argmax(1))[..., 8:].float().mean().item() for one in (noisy, memory.logits)]
        )
    alone, steady = np.mean(wrong[6:], axis=0)
    assert alone > 0.15 and steady < 0.02


def test_something_new_in_the_image_keeps_its_own_logits() -> None:
    x, a = frame(h=4, w=4)
    y, b = -x, torch.zeros_like(a)
    a = torch.zeros_like(a)
    a[..., 4:8, 4:8] = 3.0  # there is nothing like it in the memory
    found, level = remembered(x, a, Memory(y, b), OPEN)
    assert torch.allclose(found.logits[..., 4:8, 4:8], x[..., 4:8, 4:8], atol=1e-5)
    assert not torch.allclose(found.logits[..., 8:, 8:], x[..., 8:, 8:], atol=0.1)
    assert 0.9 < float(level) < 0.95  # 240 of 256 pixels are known


def test_each_image_of_a_batch_has_its_own_memory_and_cut() -> None:
    (x, a), (y, b) = frame(), frame(1)
    both = Memory(torch.cat([y, y]), torch.cat([a, 3 + b]))
    found, level = remembered(torch.cat([x, x]), torch.cat([a, a]), both)
    alone, _ = remembered(x, a, Memory(y, a))
    torch.testing.assert_close(found.logits[:1], alone.logits)
    assert torch.equal(found.logits[1:], x) and level[0] > 0.77 > level[1]


def test_a_memory_moves_by_whole_cells_exactly_and_between_them_keeps_a_plane() -> None:
    y, b = frame(h=4, w=5)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(20.0), indexing="ij")
    b[:] = columns - 2 * rows
    found = moved(Memory(y, b), torch.stack([columns - 2, rows + 1], -1)[None])
    torch.testing.assert_close(found.logits[..., :-1, 2:], y[..., 1:, :-2], atol=1e-4, rtol=1e-4)
    between = moved(Memory(y, b), torch.stack([columns + 0.5, rows], -1)[None])
    torch.testing.assert_close(between.affinity[..., 3:-3], b[..., 3:-3] + 0.5, atol=1e-4, rtol=1e-4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, a = frame()
    with pytest.raises(ValueError, match="one grid"):
        remembered(x, a[..., 4:], None)
    with pytest.raises(ValueError, match="memory of logits"):
        remembered(x, a, Memory(x[:, :2], a))
