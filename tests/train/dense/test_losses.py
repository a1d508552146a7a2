"""Losses against values worked by hand."""

import math

import pytest
import torch

from ovsdino.train.dense.losses import (
    boundary_loss,
    boundary_targets,
    class_weights,
    coarse_labels,
    dice_loss,
    soft_cross_entropy,
)


def test_class_weights_are_inverse_powers_with_mean_one():
    # frequencies 0.8, 0.2; power 0.5: raw 1.118, 2.236; weighted mean 0.8*1.118 + 0.2*2.236 = 1.3416
    weights = class_weights(torch.tensor([80, 20]), 0.5, 10.0)
    torch.testing.assert_close(weights, torch.tensor([0.8333, 1.6667]), atol=1e-4, rtol=0)
    assert class_weights(torch.tensor([999_999, 1]), 1.0, 5.0).max() == 5.0


def test_dice_by_hand():
    probability = torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]])  # one row, two pixels, two classes
    labels = torch.tensor([[[0, 1]]])
    first = 1 - 2 * 0.9 / (0.9 + 0.2 + 1)
    second = 1 - 2 * 0.8 / (0.1 + 0.8 + 1)
    assert dice_loss(probability, labels, 2).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_dice_leaves_out_ignored_pixels_and_absent_classes():
    probability = torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]])
    labels = torch.tensor([[[0, 255]]])
    assert dice_loss(probability, labels, 2).item() == pytest.approx(1 - 1.8 / 1.9, abs=1e-6)
    assert dice_loss(probability, torch.full((1, 1, 2), 255), 2).item() == 0.0


def test_boundary_targets_by_hand():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [255, 255, 255, 255]]])
    target, valid = boundary_targets(labels, (4, 4))
    expected = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert torch.equal(target[0, 0].int(), expected.int())
    assert torch.equal(valid[0, 0], torch.tensor([[True] * 4] * 3 + [[False] * 4]))
    coarse, _ = boundary_targets(labels, (2, 2))
    assert torch.equal(coarse[0, 0].int(), torch.tensor([[1, 1], [0, 1]], dtype=torch.int32))


def test_boundary_loss_falls_to_zero_when_right_and_is_large_when_wrong():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :, 4:] = 1
    target, _ = boundary_targets(labels, (8, 8))
    assert boundary_loss((target * 2 - 1) * 30, labels).item() < 0.01
    assert boundary_loss((1 - target * 2) * 30, labels).item() > 10


def test_coarse_labels_are_shares_without_the_ignored():
    labels = torch.tensor([[[0, 1], [1, 255]]])
    share = coarse_labels(labels, (1, 1), 3)
    torch.testing.assert_close(share.flatten(), torch.tensor([1 / 3, 2 / 3, 0.0]))
    assert coarse_labels(torch.full((1, 2, 2), 255), (1, 1), 3).sum() == 0


def test_soft_cross_entropy_by_hand_with_a_distractor_class():
    logits = torch.tensor([[[[1.0]], [[0.0]], [[2.0]]]])  # the third channel names nothing
    share = torch.tensor([[[[0.25]], [[0.75]]]])
    weight = torch.tensor([2.0, 1.0])
    log_sum = math.log(math.e + 1 + math.e**2)
    by_hand = (0.5 * (log_sum - 1) + 0.75 * log_sum) / 1.25
    assert soft_cross_entropy(logits, share, weight).item() == pytest.approx(by_hand, abs=1e-6)
