"""Windows: their offsets, the merge of their scores, and a batch that shrinks when memory runs out."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.models.catalog import get_config
from ovsdino.timing import Clock
from ovsdino.windows import Batches, autocast, check_window, large_input, merge_windows, window_offsets


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (448, 448, 224, [0]),
        (300, 448, 224, [0]),
        (672, 448, 224, [0, 224]),
        (700, 448, 224, [0, 224, 252]),
        (800, 448, 224, [0, 224, 352]),
        (10, 4, 4, [0, 4, 6]),
    ],
)
def test_window_offsets_end_at_the_border(length: int, window: int, stride: int, expected: list[int]) -> None:
    assert window_offsets(length, window, stride) == expected


def halves(crops: Tensor) -> Tensor:
    """Ten classes on half the grid: class k is k + 1 times the mean of four pixels."""
    return F.avg_pool2d(crops, 2) * torch.arange(1.0, 11.0).view(1, -1, 1, 1)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_scores_on_the_networks_grid_are_the_mean_over_the_windows(size: int) -> None:
    image = torch.rand(1, 8, 14)
    # windows of 8 at x = 0, 4, 6; their means agree where they overlap, so the merge is the pooled image itself
    found = merge_windows(halves, image, 8, 4, Batches(size), Clock())
    torch.testing.assert_close(found, halves(image[None])[0])


def test_scores_brought_to_pixels_are_upsampled_within_their_window() -> None:
    image = torch.rand(1, 6, 10)
    clock = Clock()
    found = merge_windows(halves, image, 6, 4, Batches(2), clock, to_pixels=True, align_corners=True)
    windows = [
        F.interpolate(halves(image[None, :, :, x : x + 6]), (6, 6), mode="bilinear", align_corners=True) for x in (0, 4)
    ]
    expected = torch.zeros(10, 6, 10)
    expected[:, :, :6] += windows[0][0]
    expected[:, :, 4:] += windows[1][0]
    expected[:, :, 4:6] /= 2
    torch.testing.assert_close(found, expected)
    assert set(clock.ms) == {"merge"}


def test_refining_sees_each_windows_own_pixels_and_background_comes_first() -> None:
    image = torch.arange(40.0).view(1, 4, 10)
    seen: list[tuple[int, int]] = []

    def refine(scores: Tensor, pixels: Tensor) -> Tensor:
        seen.append((int(pixels[0, 0, 0]), int(pixels[0, -1, -1])))
        return scores * 0 + pixels

    options = {"to_pixels": True, "refine": refine, "background": 0.25}
    found = merge_windows(lambda x: x, image, 4, 4, Batches(8), Clock(), **options)
    assert seen == [(0, 33), (4, 37), (6, 39)]
    assert torch.equal(found, torch.cat([torch.full_like(image, 0.25), image]))


def test_a_batch_is_halved_for_good_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def network(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no room")
        return 2 * batch

    batches, batch = Batches(8), torch.arange(9.0)
    with caplog.at_level(logging.WARNING, "ovsdino"):
        assert torch.equal(batches.run(network, batch), 2 * batch)
        assert torch.equal(batches.run(network, batch[:3]), 2 * batch[:3])
    assert sizes == [8, 4, 2, 2, 2, 2, 1, 2, 1] and batches.size == 2
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: batches of 4 from now on",
        "out of memory: batches of 2 from now on",
    ]


def test_sizes_and_windows_out_of_range_are_named() -> None:
    with pytest.raises(OVSDinoError, match="batch_size is 0: expected at least 1"):
        Batches(0)
    with pytest.raises(OVSDinoError, match="window is 50: nano needs a multiple of 16, for instance 48"):
        check_window(50, 16, "nano")
    check_window(48, 16, "nano")


def test_float32_shuts_out_the_callers_autocast() -> None:
    x, place = torch.rand(4, 4), torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with autocast(place, torch.float32):
            assert (x @ x).dtype == torch.float32
    with autocast(place, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16


def test_an_input_of_many_tokens_is_hinted_at() -> None:
    config = get_config("nano")
    assert large_input(config, 1024, 1024) is None
    assert "10560 tokens" in (large_input(config, 1408, 1920) or "") and "window=704" in str(
        large_input(config, 1040, 1024)
    )
