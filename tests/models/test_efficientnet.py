"""The EfficientNet-Lites against timm's: keys, spread of the random weights, features and stages."""

from __future__ import annotations

import pytest
import timm
import torch

from ovsdino.models.efficientnet import WIDTHS, EfficientNetLite


@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize("name", WIDTHS)
def test_network_is_timms_bit_for_bit(name: str, stride: int) -> None:
    reference = timm.create_model(name, pretrained=False, num_classes=0, output_stride=stride).eval()
    network = EfficientNetLite(name, stride).eval()
    state, expected = network.state_dict(), reference.state_dict()
    assert [(key, value.shape) for key, value in state.items()] == [(k, v.shape) for k, v in expected.items()]
    for key, value in expected.items():  # of one distribution at the start
        assert value.numel() < 400 or state[key].std().item() == pytest.approx(value.std().item(), rel=0.15), key
    network.load_state_dict(expected)
    assert network.num_features == reference.num_features
    assert network.feature_info == [(stage["num_chs"], stage["reduction"]) for stage in reference.feature_info]
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        final, stages = network.forward_intermediates(image, [0, 1, 2, 3, 4])
        other, maps = reference.forward_intermediates(image, indices=[0, 1, 2, 3, 4])
        assert torch.equal(network.forward_features(image), reference.forward_features(image))
    assert torch.equal(final, other) and len(stages) == len(maps) == 5
    assert all(torch.equal(a, b) for a, b in zip(stages, maps, strict=True))


def test_sides_that_no_stride_divides_are_padded_below_and_right() -> None:
    network = EfficientNetLite("tf_efficientnet_lite0.in1k").eval()
    reference = timm.create_model("tf_efficientnet_lite0.in1k", pretrained=False, num_classes=0).eval()
    reference.load_state_dict(network.state_dict())
    image = torch.randn(2, 3, 33, 49)
    with torch.no_grad():
        final, (half,) = network.forward_intermediates(image, [0])
        assert torch.equal(final, reference.forward_features(image))
    assert half.shape == (2, 16, 17, 25) and final.shape == (2, 1280, 2, 2)
