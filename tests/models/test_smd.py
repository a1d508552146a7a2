"""The decoder's gate and its structure term: what a shut gate leaves, and what the sizes of the parameters mean."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ovsdino.models.config import SMDConfig
from ovsdino.models.smd import StructureModulatedDecoder, unit_variance

CONFIG = SMDConfig(width=32, heads=2, head_dim=8, structure_rank=7, value_dim=16)


def decoder(config: SMDConfig = CONFIG, seed: int = 0) -> StructureModulatedDecoder:
    """A decoder as if trained: every linear map but the structure embedding's at random, the gate's and W_out too."""
    torch.manual_seed(seed)
    made = StructureModulatedDecoder(config, 24, 20).eval()
    for linear in [made.out, *([made.gate] if config.gate == "output" else [])]:
        torch.nn.init.normal_(linear.weight, std=0.3)
    return made


def inputs(batch: int = 2, h: int = 3, w: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 24, h, w, generator=generator), torch.randn(batch, 20, h, w, generator=generator)


def test_a_shut_gate_leaves_the_features_bit_for_bit() -> None:
    smd, (features, structure) = decoder(), inputs()
    with torch.no_grad():
        assert not torch.equal(smd(features, structure), features)
        smd.gate.bias.fill_(-math.inf)
        assert torch.equal(smd(features, structure), features)


def test_a_gate_shut_at_some_tokens_leaves_those() -> None:
    smd, (features, structure) = decoder(), inputs()
    with torch.no_grad():
        smd.gate.weight.mul_(1e4)  # now it is 0 or 1
        gate = smd.gate_map(features, structure)
        changed = (smd(features, structure) != features).any(1, keepdim=True)
    assert (gate == 0).any() and (gate == 1).any()
    assert torch.equal(changed, gate > 0)


def test_the_gate_weighs_what_the_decoder_adds_to_each_token() -> None:
    smd, (features, structure) = decoder(), inputs()
    ungated = decoder(replace(CONFIG, gate="none"))
    ungated.load_state_dict({k: v for k, v in smd.state_dict().items() if not k.startswith("gate.")})
    with torch.no_grad():
        change = ungated(features, structure) - features
        gate = smd.gate_map(features, structure)
        torch.testing.assert_close(smd(features, structure), features + gate * change)
    assert gate.shape == (2, 1, 3, 5) and ((gate > 0) & (gate < 1)).all()


def test_a_fresh_gate_is_nearly_shut_everywhere() -> None:
    smd = StructureModulatedDecoder(CONFIG, 24, 20)
    expected = torch.full((2, 1, 3, 5), 1 / (1 + math.exp(2)))
    torch.testing.assert_close(smd.gate_map(*inputs()).detach(), expected)


def test_a_decoder_without_a_gate_has_no_map() -> None:
    with pytest.raises(ValueError, match="the gate is 'none'"):
        StructureModulatedDecoder(replace(CONFIG, gate="none"), 24, 20).gate_map(*inputs())


def test_the_structure_term_has_a_mean_of_twice_lambda_over_all_pairs() -> None:
    e = unit_variance(5 + 3 * torch.randn(2, 2, 40, 7, dtype=torch.float32))
    distances = torch.cdist(e, e).square().mean((2, 3))
    torch.testing.assert_close(distances, torch.full((2, 2), 2.0))
    assert decoder().blocks[0].strength().tolist() == pytest.approx([0.5, 0.5])  # so a mean of 1 at the start


def test_the_size_of_the_structure_embedding_says_nothing() -> None:
    smd, (features, structure) = decoder(), inputs()
    with torch.no_grad():
        before = smd(features, structure)
        for block in smd.blocks:
            block.structure.weight.mul_(7.0)
        torch.testing.assert_close(smd(features, structure), before)
        for block in smd.blocks:
            block.log_lambda.add_(3.0)
        assert (smd(features, structure) - before).abs().max() > 1e-2


def test_images_of_a_batch_do_not_meet() -> None:
    smd, (features, structure) = decoder(), inputs()
    with torch.no_grad():
        alone = [smd(features[i : i + 1], structure[i : i + 1]) for i in range(2)]
        torch.testing.assert_close(smd(features, structure), torch.cat(alone))


@pytest.mark.parametrize(("batch", "h", "w"), [(1, 1, 1), (0, 3, 5)])
def test_a_grid_of_one_token_and_a_batch_of_none_are_finite(batch: int, h: int, w: int) -> None:
    smd, (features, structure) = decoder(), inputs(batch, h, w)
    found = smd(features, structure)
    assert found.shape == features.shape and found.isfinite().all()
    found.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in smd.parameters())


def test_under_autocast_it_stays_near_float32() -> None:
    smd, (features, structure) = decoder(), inputs()
    with torch.no_grad():
        exact = smd(features, structure)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = smd(features.bfloat16(), structure.bfloat16())
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()
