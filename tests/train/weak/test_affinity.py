"""The affinity loss against pairs worked by hand."""

import math

import pytest
import torch

from ovsdino.train.weak.affinity import (
    affinity_loss,
    far_affinity_loss,
    grid_affinity_loss,
    neighbors,
    pair_loss,
    squared_distances,
)


def test_neighbors_are_half_of_the_eight():
    found = neighbors((1, 3))
    both = {*found, *((-y, -x) for y, x in found)}
    eight = {(d * y, d * x) for d in (1, 3) for y in (-1, 0, 1) for x in (-1, 0, 1)} - {(0, 0)}
    assert both == eight and len(found) == 8


def test_two_masks_on_four_cells_by_hand():
    # cells 0..3 in a row; mask A (weight 1) holds 0, 1; mask B (weight 0.5) holds 0, 1, 2; cell 3 is in none
    masks = torch.tensor([[[[1, 1, 0, 0]], [[1, 1, 1, 0]]]], dtype=torch.bool)
    weights = torch.tensor([[1.0, 0.5]])
    a = torch.tensor([0.0, 0.3, 1.0, 3.0]).view(1, 1, 1, 4).requires_grad_()
    # pairs 01: both 1.5 of 1.5, known 1; 12: both 0.5 of 1.5, share 1/3, known 1; 23: both 0 of 0.5, known 0.5
    d = [0.09, 0.49, 4.0]
    share, known = [1.0, 1 / 3, 0.0], [1.0, 1.0, 0.5]
    near = (share[0] * d[0] + share[1] * d[1]) / (share[0] + share[1])
    miss = [-math.log(1 - 0.99 * math.exp(-x)) for x in d]
    apart = [k * (1 - s) for k, s in zip(known, share, strict=True)]
    far = sum(x * m for x, m in zip(apart, miss, strict=True)) / sum(apart)
    loss = affinity_loss(a, masks, weights, (1,))
    assert loss.shape == (1,) and loss.item() == pytest.approx((near + far) / 2, abs=1e-6)
    loss.sum().backward()
    assert a.grad.isfinite().all() and a.grad[0, 0, 0, 3] < 0  # away from the cells that no mask joins it to


def test_the_loss_is_least_where_the_embedding_is_the_masks():
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, :, :3], masks[0, 1, :, 3:] = True, True
    weights = torch.ones(1, 2)
    right = torch.zeros(1, 1, 8, 8)
    right[..., 3:] = 3
    wrong = right.flip(-1)
    one, other = (affinity_loss(x, masks, weights, (1, 2)).item() for x in (right, wrong))
    assert one < 0.01 < 0.3 < other
    a = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([a], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        affinity_loss(a, masks, weights, (1, 2)).sum().backward()
        optimizer.step()
    step = (a[..., 1:] - a[..., :-1]).square().sum(1).mean((0, 1)).detach()
    assert step.argmax() == 2 and step[2] > 5 * step[[0, 1, 3, 4, 5, 6]].max()


@pytest.mark.parametrize("count", [0, 2])
def test_without_masks_of_weight_nothing_is_known(count):
    masks, a = torch.ones(2, count, 4, 4, dtype=torch.bool), torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = affinity_loss(a, masks, torch.zeros(2, count), (1, 2, 9))
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert not a.grad.any()


def test_equal_cells_that_should_differ_have_a_finite_loss():
    distance = torch.zeros(1, 3, requires_grad=True)
    loss = pair_loss(distance, torch.zeros(1, 3), torch.ones(1, 3))
    assert loss.item() == pytest.approx(-math.log(0.01) / 2, abs=1e-4)
    loss.sum().backward()
    assert distance.grad.isfinite().all() and (distance.grad < 0).all()


def test_tokens_that_lie_in_masks_in_part():
    # two tokens; mask A holds all of the first and half of the second; B half of the second alone
    masks = torch.tensor([[[1.0, 0.5], [0.0, 0.5]]])
    weights = torch.tensor([[0.4, 0.2]])
    d = torch.tensor([[[0.0, 0.7], [0.7, 0.0]]])
    both, either = 0.4 * 0.5, 0.4 * 1.0 + 0.2 * 0.5
    expected = pair_loss(torch.tensor([[0.7]]), torch.tensor([[both / either]]), torch.tensor([[either]]))
    torch.testing.assert_close(grid_affinity_loss(d, masks, weights), expected)
    heads = torch.stack([d, 2 * d], 1)
    mean = (grid_affinity_loss(d, masks, weights) + grid_affinity_loss(2 * d, masks, weights)) / 2
    torch.testing.assert_close(grid_affinity_loss(heads, masks, weights), mean)


def test_far_pairs_of_all_cells_are_all_pairs():
    generator = torch.Generator().manual_seed(1)
    masks, weights = torch.rand(2, 3, 4, 5, generator=generator) < 0.4, torch.rand(2, 3, generator=generator)
    a = torch.randn(2, 2, 4, 5, generator=generator)
    points = a.flatten(2).transpose(1, 2)
    distance = squared_distances(points)
    torch.testing.assert_close(distance, torch.cdist(points, points) ** 2, rtol=1e-4, atol=1e-4)
    expected = []
    for image in range(2):
        inside, terms = masks[image].flatten(1), ([], [], [])
        for i in range(20):
            for j in range(20):
                w = weights[image]
                either = float(w[inside[:, i] | inside[:, j]].sum())
                if i != j and either:
                    terms[0].append(distance[image, i, j])
                    terms[1].append(float(w[inside[:, i] & inside[:, j]].sum()) / either)
                    terms[2].append(min(1.0, either))
        expected.append(pair_loss(*(torch.tensor(term) for term in terms)))
    torch.testing.assert_close(far_affinity_loss(a, masks, weights, 20), torch.stack(expected))
    assert far_affinity_loss(a, masks, weights, 7).shape == (2,)
