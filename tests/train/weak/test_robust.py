"""Defences against bad masks against values worked by hand."""

import math

import numpy as np
import pytest
import torch

from ovsdino.errors import OVSDinoError
from ovsdino.settings import build_config
from ovsdino.train.weak.config import RobustConfig
from ovsdino.train.weak.robust import (
    agreement_weight,
    edge_agreement,
    perturb_masks,
    quality_weight,
    trimmed_weights,
    weighted_mean,
)


def blocks():
    """Three 2x2 squares on a 4x6 grid: two side by side, one apart, and a mask that is empty."""
    masks = np.zeros((4, 4, 6), bool)
    masks[0, :2, :2] = masks[1, :2, 2:4] = masks[2, 2:, 5:] = True
    return masks, np.array([0.9, 0.5, 0.8, 0.0], np.float32)


def test_quality_is_the_product_of_the_two_scores():
    weight = quality_weight(torch.tensor([0.9, 1.0]), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(weight, torch.tensor([0.45, 0.0]))


def test_edge_agreement_by_hand():
    image = torch.zeros(1, 3, 2, 6)
    image[:, :, :, 3:] = torch.tensor([2.0, 1.0, 2.0])[:, None, None]  # one step of length 3, between columns 2 and 3
    masks = torch.zeros(1, 3, 2, 6, dtype=torch.bool)
    masks[0, 0, :, 3:] = True  # its edge is the step: a = 3, in a window of three pairs b = 1
    masks[0, 1, :, 4:] = True  # one pixel off: a = 0, b = 1
    masks[0, 2, :, 3:] = True
    masks[0, 2, 1, 5] = False  # two pairs more, down and across, with a = 0; the step is not in their windows
    agreement = edge_agreement(image, masks, radius=1)
    torch.testing.assert_close(agreement, torch.tensor([[3 / 4, 0.0, 3 / 4]]))
    torch.testing.assert_close(edge_agreement(7 * image, masks, radius=1), agreement)
    assert agreement_weight(agreement).tolist() == [[1, 0, 1]]
    assert agreement_weight(torch.tensor([0.4, 0.525, 0.6])).tolist() == pytest.approx([0, 0.25, 1], abs=1e-6)


def test_edge_agreement_takes_each_image_with_its_masks_and_knows_nothing_of_masks_without_edge():
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.rand(2, 3, 9, 8, generator=generator), torch.rand(2, 4, 9, 8, generator=generator) > 0.5
    both = edge_agreement(images, masks)
    torch.testing.assert_close(both[1:], edge_agreement(images[1:], masks[1:]))
    torch.testing.assert_close(both[:, 2:3], edge_agreement(images, masks[:, 2:3]))
    assert edge_agreement(images, torch.ones(2, 1, 9, 8, dtype=torch.bool)).tolist() == [[0.5], [0.5]]
    assert edge_agreement(torch.ones(2, 3, 9, 8), masks).tolist() == [[0.5] * 4] * 2
    assert edge_agreement(images, masks[:, :0]).shape == (2, 0)


def test_masks_that_were_moved_or_grown_agree_less_with_a_textured_image():
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 18
    picture = rng.normal(0, 8, (3, 64, 64)) + 40 * disc  # an edge five times the texture
    moved = np.roll(disc, 6, 1)
    grown = np.hypot(*np.mgrid[-32:32, -32:32]) < 23
    masks = torch.from_numpy(np.stack([disc, moved, grown]))[None]
    weights = agreement_weight(edge_agreement(torch.from_numpy(picture)[None], masks))[0]
    assert weights[0] == 1 and weights[1] < 0.25 and weights[2] < 0.25


def test_the_worst_share_of_the_valid_masks_is_dropped():
    losses = torch.tensor([5.0, 1.0, 9.0, 3.0, 7.0, 2.0], requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 0.0, 1.0, 0.25, 1.0])  # the largest loss is of no mask
    assert trimmed_weights(losses, weights, 0.4).tolist() == [0, 1, 0, 1, 0, 1]  # 2 of 5
    assert trimmed_weights(losses, weights, 0.39).tolist() == [0.5, 1, 0, 1, 0, 1]  # rounded down
    assert trimmed_weights(losses, weights, 0.0).tolist() == weights.tolist()
    assert not trimmed_weights(losses, weights, 0.4).requires_grad
    hundred = trimmed_weights(torch.arange(100.0), torch.ones(100), 0.29)
    assert hundred.tolist() == [1.0] * 71 + [0.0] * 29


def test_of_equal_losses_the_first_is_dropped():
    assert trimmed_weights(torch.ones(4), torch.ones(4), 0.5).tolist() == [0, 0, 1, 1]
    assert trimmed_weights(torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)


def test_a_mask_whose_loss_is_not_finite_goes_first():
    losses = torch.tensor([2.0, math.inf, 4.0])
    weights = trimmed_weights(losses, torch.ones(3), 0.34)
    assert weights.tolist() == [1, 0, 1] and weighted_mean(losses, weights).item() == 3


def test_weighted_mean_by_hand():
    losses = torch.tensor([[2.0, 8.0], [100.0, 4.0]], requires_grad=True)
    mean = weighted_mean(losses, torch.tensor([[0.5, 0.25], [0.0, 0.25]]))
    assert mean.item() == 4.0  # (1 + 2 + 1) / 1
    mean.backward()
    assert losses.grad.tolist() == [[0.5, 0.25], [0.0, 0.25]]
    none = weighted_mean(losses, torch.zeros(2, 2))
    assert none.item() == 0 and none.requires_grad


def test_merging_joins_masks_that_touch_and_takes_the_lesser_quality():
    masks, quality = blocks()
    merged, trusted = perturb_masks(masks, quality, 1.0, 0.0, np.random.default_rng(0))
    assert np.array_equal(merged[0], masks[0] | masks[1]) and np.array_equal(merged[1], merged[0])
    assert np.array_equal(merged[2:], masks[2:])  # one touches nothing, one is empty
    assert trusted.tolist() == pytest.approx([0.5, 0.5, 0.8, 0.0])
    assert np.array_equal(masks, blocks()[0])  # what came in is as it was


def test_splitting_keeps_one_side_of_a_line_through_the_centroid():
    masks = np.zeros((1, 9, 9), bool)
    masks[0, 2:8, 1:7] = True  # centroid (4.5, 4) between cells: a line leaves 12 to 24 of 36 cells
    sizes = set()
    for seed in range(20):
        half, quality = perturb_masks(masks, np.ones(1), 0.0, 1.0, np.random.default_rng(seed))
        assert quality.tolist() == [1.0] and not (half & ~masks).any()
        turned = half[:, 2:8, 1:7] | half[:, 2:8, 1:7][:, ::-1, ::-1]
        assert turned.all()  # with its half turn it is the square again
        sizes.add(int(half.sum()))
    assert sizes <= set(range(18, 22)) and 18 in sizes
    single = np.zeros((1, 3, 3), bool)
    single[0, 1, 2] = True
    assert np.array_equal(perturb_masks(single, np.ones(1), 0.0, 1.0, np.random.default_rng(0))[0], single)


def test_noise_comes_as_often_as_asked_and_is_the_same_for_the_same_seed():
    masks = np.tile(blocks()[0][:2], (500, 1, 1))
    quality = np.ones(1000)
    new, _ = perturb_masks(masks, quality, 0.2, 0.3, np.random.default_rng(1))
    sizes = new.sum((1, 2))
    # a merge may take one of the 499 twins, which add nothing and are never drawn; a split leaves 2 or 3 of 4 cells
    assert (sizes > 4).mean() == pytest.approx(0.2, abs=0.04) and (sizes < 4).mean() == pytest.approx(0.3, abs=0.05)
    again, _ = perturb_masks(masks, quality, 0.2, 0.3, np.random.default_rng(1))
    assert np.array_equal(new, again)
    assert np.array_equal(perturb_masks(masks, quality, 0.0, 0.0, np.random.default_rng(1))[0], masks)
    assert perturb_masks(masks[:0], quality[:0], 0.5, 0.5, np.random.default_rng(1))[0].shape == (0, 4, 6)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"trim": 1.0}, r"robust.trim: expected a number in \[0, 0.99\], got 1.0"),
        ({"trim_after": -1}, r"robust.trim_after: expected a whole number in \[0, 1e\+09\], got -1"),
        ({"merge": 0.6, "split": 0.5}, "merge 0.6, split 0.5: .*no more than 1"),
        ({"split": -0.1}, r"robust.split: expected a number in \[0, 1\], got -0.1"),
    ],
)
def test_settings_out_of_range_are_one_line(changes, shown):
    with pytest.raises(OVSDinoError, match=shown):
        build_config(RobustConfig, changes, "robust")
