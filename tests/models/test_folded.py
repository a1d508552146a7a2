"""The folded form of a network: the same arithmetic, made anew for other weights, and nothing of it in the state."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ovsdino.models.backbone import build_backbone, freeze
from ovsdino.models.catalog import NANO
from ovsdino.models.config import BackboneConfig
from ovsdino.models.efficientnet import EfficientNetLite
from ovsdino.models.folded import EXACT, FoldedForms, _Convolution, fold_norms, folded
from tests.support.cnn import CNN, JOINED

NETWORKS = {"lite": NANO.backbone, "swish": CNN, "joined": JOINED}


def lively(config: BackboneConfig) -> nn.Module:
    """Return a backbone whose batch norms do something."""
    torch.manual_seed(0)
    backbone = freeze(build_backbone(config))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 2)
            module.bias.normal_(0, 0.1)
    return backbone


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (80, 48), (16, 16)])
@pytest.mark.parametrize("name", NETWORKS)
def test_in_inference_mode_the_maps_are_those_of_the_network(name: str, size: tuple[int, int]) -> None:
    backbone, image = lively(NETWORKS[name]), torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, taps = backbone(image)
    with torch.inference_mode():
        found, same = backbone(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    for a, b in zip(same, taps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_no_norm_is_left_and_the_network_keeps_its_own() -> None:
    network = EfficientNetLite(NANO.backbone.timm_name).eval()
    before = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert before == 49 and not any(isinstance(module, nn.BatchNorm2d) for module in folded(network).modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == before


def test_other_weights_are_folded_anew() -> None:
    backbone, image = lively(CNN), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        first = backbone(image)[0]
        form = backbone._forms.of(backbone.cnn, image)[0]
        assert backbone._forms.of(backbone.cnn, image)[0] is form
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        assert backbone._forms.of(backbone.cnn, image)[0] is not form  # its weights are laid out for the other number
        torch.set_num_threads(threads)
    backbone.load_state_dict(lively(CNN).state_dict())
    with torch.inference_mode():
        assert backbone._forms.of(backbone.cnn, image)[0] is not form
    with torch.no_grad():
        backbone.cnn.conv_stem.weight.mul_(2)
    with torch.inference_mode():
        assert not torch.allclose(backbone(image)[0], first)


def test_training_gradients_and_exports_see_the_network_itself() -> None:
    network, image, forms = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(1, 3, 4, 4), FoldedForms()
    with torch.inference_mode():
        assert forms.of(network, image)[0] is network  # in training mode
    with torch.no_grad():
        assert forms.of(network.eval(), image)[0] is network
    assert forms.of(network, image)[0] is network


def test_a_copy_and_a_pickle_hold_no_form() -> None:
    backbone, image = lively(JOINED), torch.randn(1, 3, 32, 32)
    keys = list(backbone.state_dict())
    with torch.inference_mode():
        expected = backbone(image)[0]
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert not other._forms._forms
        with torch.inference_mode():
            assert torch.equal(other(image)[0], expected)
    assert list(backbone.state_dict()) == keys


def test_under_autocast_the_network_runs_in_bfloat16() -> None:
    backbone, image = lively(NANO.backbone), torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, taps = backbone(image)
        form = backbone._forms.of(backbone.cnn, image)[0]
    with torch.inference_mode():
        expected = backbone(image)[0]
    assert taps[-1].dtype == torch.bfloat16
    kinds = [module.weight.dtype for module in form.modules() if isinstance(module, _Convolution)]
    assert kinds[:EXACT] == [torch.float32] * EXACT and set(kinds[EXACT:]) == {torch.bfloat16}
    assert torch.nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_folded_in_place_leave_the_maps_as_they_were(name: str) -> None:
    backbone, image = lively(NETWORKS[name]), torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        expected, _ = backbone(image)
        found, _ = fold_norms(backbone)(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
