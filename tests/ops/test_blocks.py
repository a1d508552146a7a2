"""The CUDA kernels of mask_pool, upsample_argmax and guided_upsample without a GPU: their source on emulated lanes."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch import Tensor

from ovsdino.ops.guided_upsample import guided_upsample_reference
from ovsdino.ops.mask_pool import mask_pool_reference
from ovsdino.ops.upsample_argmax import upsample_argmax_confidence_reference, upsample_argmax_reference
from tests.ops import bounds
from tests.ops.harness import assert_within
from tests.ops.simt.blocks import BlockEmulator
from tests.ops.simt.emulator import MUTATIONS, SCHEDULES, Report

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> BlockEmulator:
    if not shutil.which("g++"):
        pytest.skip("no g++ here")
    return BlockEmulator(tmp_path_factory.mktemp("blocks"))


def sectors_a_load(report: Report, lane_bytes: int) -> float:
    """Sectors of 32 bytes that a warp's load of so many bytes a lane touches, on average."""
    size = lane_bytes.bit_length() - 1
    assert report.global_loads[size] > 0
    return report.global_sectors[size] / report.global_loads[size]


def masks_of(count: int, tokens: int, share: float = 0.1, batch: int = 1) -> Tensor:
    """Return random masks; the last is empty, the first full."""
    masks = torch.rand(batch, count, tokens, generator=torch.Generator().manual_seed(tokens)) < share
    masks[:, 0], masks[:, -1] = True, False
    return masks


def features_of(tokens: int, channels: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> Tensor:
    return torch.randn(batch, tokens, channels, generator=torch.Generator().manual_seed(channels)).to(dtype)


def assert_means(emulator: BlockEmulator, features: Tensor, masks: Tensor, schedule: str = "random") -> Report:
    means, areas, report = emulator.mask_pool(features, masks, schedule=schedule)
    assert report.faults == 0, report.first_fault
    expected, area = mask_pool_reference(features, masks)
    most = TOLERANCE[features.dtype]
    torch.testing.assert_close(means, expected, atol=most, rtol=most)
    torch.testing.assert_close(areas, area)
    return report


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", TOLERANCE)
# One slice of channels and eight warps that share it, three slices, seven, nine; ragged ends of both sizes.
@pytest.mark.parametrize("tokens, channels", [(1, 4), (97, 30), (4096, 8), (4101, 384), (50, 800), (33, 1030)])
def test_means_are_the_reference(
    emulator: BlockEmulator, tokens: int, channels: int, dtype: torch.dtype, schedule: str
) -> None:
    assert_means(emulator, features_of(tokens, channels, dtype), masks_of(3, tokens), schedule)


def test_soft_masks_batches_and_strides(emulator: BlockEmulator) -> None:
    features = features_of(70, 48, batch=2)[:, ::2, 1:41]
    soft = torch.rand(2, 3, 35, generator=torch.Generator().manual_seed(0)) * masks_of(3, 35, 0.5, 2)
    assert_means(emulator, features, soft)
    assert_means(emulator, features, masks_of(3, 70, 0.5, 2)[..., ::2])
    assert_means(emulator, features, masks_of(3, 35, 0.5, 2))


def test_a_warp_loads_features_and_masks_in_whole_sectors(emulator: BlockEmulator) -> None:
    """128 channels of 2 bytes are 8 sectors, 512 mask bytes 16: the least there can be."""
    report = assert_means(emulator, features_of(1024, 768, torch.float16), masks_of(4, 1024))
    assert sectors_a_load(report, 8) == 8
    assert sectors_a_load(report, 16) == 16


@pytest.mark.parametrize("fault", ["no_barrier"])
def test_a_missing_barrier_is_found(emulator: BlockEmulator, fault: str) -> None:
    code = MUTATIONS.index(fault)
    assert emulator.mask_pool(features_of(97, 8), masks_of(3, 97), fault=code)[-1].faults > 0
    assert emulator.upsample_argmax(torch.randn(1, 40, 3, 5), (60, 80), fault=code)[-1].faults > 0
    assert emulator.guided_upsample(*guided_inputs((1, 3, 16, 2, 2, 4), torch.float16), 1.0, fault=code)[-1].faults > 0


# Tiles of cells: ragged ends, a tile and a part of one, single rows. Strips: small cells, the same size, shrinking.
SHAPES = [
    ((1, 40, 3, 37), (31, 403)),
    ((2, 150, 3, 5), (50, 61)),
    ((1, 33, 1, 9), (9, 131)),
    ((1, 200, 5, 1), (60, 7)),
    ((1, 19, 7, 40), (25, 140)),
    ((2, 6, 9, 11), (9, 11)),
    ((1, 5, 20, 21), (7, 9)),
]


def logits_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])).to(dtype)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape, size", SHAPES)
def test_labels_and_confidence_are_the_reference(
    emulator: BlockEmulator, shape: tuple[int, ...], size: tuple[int, int], schedule: str
) -> None:
    logits = logits_of(shape)
    labels, sure, report = emulator.upsample_argmax(logits, size, confidence=True, schedule=schedule)
    assert report.faults == 0, report.first_fault
    expected, probability = upsample_argmax_confidence_reference(logits, size)
    assert sure is not None and (labels != expected).float().mean() < 0.001
    torch.testing.assert_close(sure, probability, atol=1e-5, rtol=1e-5)
    assert torch.equal(emulator.upsample_argmax(logits, size)[0], labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_two_bytes(emulator: BlockEmulator, dtype: torch.dtype) -> None:
    logits = logits_of((1, 40, 3, 37), dtype)
    labels, _, report = emulator.upsample_argmax(logits, (31, 403))
    assert report.faults == 0, report.first_fault
    assert (labels != upsample_argmax_reference(logits.float(), (31, 403))).float().mean() < 0.001


@pytest.mark.parametrize("shape, size", [((1, 40, 3, 37), (31, 403)), ((1, 6, 9, 40), (30, 140))])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_infinite_and_nan_corners_win_where_they_win_in_torch(
    emulator: BlockEmulator, shape: tuple[int, ...], size: tuple[int, int], bad: float
) -> None:
    logits = logits_of(shape)
    logits[0, 2, 1, 4] = bad
    labels, _, report = emulator.upsample_argmax(logits, size)
    assert report.faults == 0, report.first_fault
    assert (labels != upsample_argmax_reference(logits, size)).float().mean() < 0.001


def test_neighbouring_lanes_read_neighbouring_logits(emulator: BlockEmulator) -> None:
    """32 cells of a row are 128 bytes, 5 sectors where they start between two; 32 pixels lie in few cells."""
    tiles = emulator.upsample_argmax(logits_of((1, 40, 3, 64)), (42, 896))[-1]
    strips = emulator.upsample_argmax(logits_of((1, 19, 9, 64)), (36, 256))[-1]
    assert sectors_a_load(tiles, 4) <= 5
    assert sectors_a_load(strips, 4) <= 3


# batch, classes, channels, h, w, scale: a cell of 16 pixels, of fewer, of more; ragged classes and channels.
GUIDED = [(2, 19, 64, 3, 4, 4), (1, 8, 20, 2, 5, 3), (1, 5, 7, 1, 3, 5), (1, 1, 16, 6, 1, 4)]


def guided_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, classes, channels, h, w, scale = shape
    random = torch.Generator().manual_seed(channels)
    logits = torch.randn(batch, classes, h, w, generator=random).to(dtype)
    low = torch.randn(batch, channels, h, w, generator=random).to(dtype) / 2
    return logits, low, torch.randn(batch, channels, scale * h, scale * w, generator=random).to(dtype) / 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", GUIDED)
def test_tensor_cores_upsample_as_the_reference(
    emulator: BlockEmulator, shape: tuple[int, ...], dtype: torch.dtype, schedule: str
) -> None:
    logits, low, high = guided_inputs(shape, dtype)
    out, report = emulator.guided_upsample(logits, low, high, 0.3, schedule=schedule)
    assert report.faults == 0, report.first_fault
    wide = (logits.double(), low.double(), high.double(), torch.tensor(0.3).double())
    (bound,) = bounds.guided(wide, dtype, "cuda")
    assert_within(out, guided_upsample_reference(*wide), bound)


def test_tensor_cores_read_any_strides_and_keep_nan_and_infinity_where_they_belong(emulator: BlockEmulator) -> None:
    logits, low, high = guided_inputs((1, 3, 6, 7, 7, 4), torch.float16)
    high = high.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    low = torch.cat([low, low], 3)[..., :7]
    logits[0, 1], logits[0, 2, 0, 0], high[0, 2, 25, 25] = -math.inf, math.nan, math.nan
    low[0, :, 3, 3] = 4.0  # its weight is below what float16 can hold
    out, report = emulator.guided_upsample(logits, low, high, 0.5)
    assert report.faults == 0, report.first_fault
    expected = guided_upsample_reference(logits.float(), low.float(), high.float(), torch.tensor(0.5))
    assert torch.equal(out.isnan(), expected.isnan()) and out[0, 1].isneginf().sum() == 28 * 28 - 1
    torch.testing.assert_close(out[0, 0].float(), expected[0, 0], atol=2e-3, rtol=2e-3, equal_nan=True)
