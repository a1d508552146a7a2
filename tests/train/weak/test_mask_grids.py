"""Masks on the grid of cells, and the agreement of their edges, from their own boxes: equal to the whole image's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovsdino.train.weak.mask_grids import _box, edge_steps, mask_agreement, shares
from ovsdino.train.weak.robust import edge_agreement

SIZE = (36, 50)


def masks():
    rng = np.random.default_rng(0)
    found = np.zeros((6, *SIZE), np.uint8)
    found[0, 3:20, 5:9], found[1, :, 30:], found[2, 35, 49], found[3] = 1, 1, 1, rng.random(SIZE) < 0.5
    found[4, 10:30, 10:40] = rng.random((20, 30)) < 0.8
    return found  # the last one is empty


@pytest.mark.parametrize("size", [(9, 12), (8, 11), (36, 50)])
def test_shares_are_those_of_interpolation(size):
    whole = torch.from_numpy(masks())
    expected = F.interpolate(whole[None].float(), size, mode="area")[0]
    found = np.stack([shares(mask, _box(mask), size) for mask in masks()])
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, rtol=1e-5, atol=1e-6)


def test_the_agreement_is_that_of_the_whole_image():
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, *SIZE)).astype(np.uint8))
    expected = edge_agreement(image[None], torch.from_numpy(masks())[None].bool())[0]
    steps = edge_steps(image)
    found = [mask_agreement(mask, _box(mask), steps) for mask in masks()]
    assert found == pytest.approx(expected.tolist(), abs=1e-5) and found[5] == 0.5
