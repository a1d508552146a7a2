"""Each rival computes what its op does: only then is a ratio to it worth something."""

from __future__ import annotations

import pytest
import torch

from ovsdino.benchmarks.lib import rivals
from ovsdino.benchmarks.lib.inputs import blobs
from ovsdino.benchmarks.lib.op_cases import Setting, attention_inputs
from ovsdino.ops.guided_upsample import guided_upsample_reference
from ovsdino.ops.mask_pool import mask_pool_reference
from ovsdino.ops.preprocess import preprocess_reference
from ovsdino.ops.structure_attention import structure_attention_reference
from ovsdino.ops.upsample_argmax import upsample_argmax_confidence_reference, upsample_argmax_reference

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def logits(classes: int = 11) -> torch.Tensor:
    return torch.randn(1, classes, 9, 13, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(40, 57), (9, 13), (5, 31)])
@pytest.mark.parametrize("library", ["cv2", "numba"])
def test_labels_are_those_of_the_reference(library: str, size: tuple[int, int]) -> None:
    pytest.importorskip(library)
    rival = {"cv2": rivals.opencv_labels, "numba": rivals.numba_labels}[library]
    found, expected = rival(logits(), size), upsample_argmax_reference(logits(), size)
    assert found.shape == expected.shape and (found != expected).float().mean() < 0.002


def test_plain_labels_and_confidence_are_those_of_the_reference() -> None:
    pytest.importorskip("cv2")
    labels, confidence = upsample_argmax_confidence_reference(logits(), (40, 57))
    assert torch.equal(rivals.interpolated_argmax(logits(), (40, 57)), labels.long())
    torch.testing.assert_close(rivals.opencv_confidence(logits(), (40, 57)), confidence, atol=1e-5, rtol=1e-5)


def test_bags_of_tokens_have_the_means_and_the_gradient_of_the_reference() -> None:
    masks = blobs(7, 16, 0.03)
    features, grad = torch.randn(1, 256, 24, requires_grad=True), torch.randn(1, 7, 24)
    found, expected = rivals.bag_of_tokens(features, masks), mask_pool_reference(features, masks)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(means, features, grad)[0] for means in (found, expected)))


@pytest.mark.parametrize("tokens", [33, 2 * rivals.QUERIES + 5])
def test_attention_by_blocks_is_that_of_the_reference(tokens: int) -> None:
    inputs = attention_inputs(Setting(device="cpu", gpu=False), tokens)
    expected = structure_attention_reference(*inputs, 48**-0.5)
    torch.testing.assert_close(rivals.attention_by_blocks(*inputs), expected, atol=1e-5, rtol=1e-4)


def test_library_resizes_are_near_the_reference() -> None:
    pytest.importorskip("cv2")
    image = torch.randint(0, 256, (30, 44, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for antialias in (False, True):
        expected = preprocess_reference(image, (12, 12), MEAN, STD, antialias, torch.float32)
        for name, rival in rivals.library_resizes(12, antialias, MEAN, STD):
            most = 0.5 if "INTER_AREA" in name else 0.05  # another filter; rounded to whole levels
            assert (rival(image) - expected).abs().mean() < most


def test_compiled_rival_is_the_function_it_was_given() -> None:
    low, high = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 12, 16)
    inputs = (torch.randn(1, 5, 3, 4), low, high, torch.ones(()))
    found = rivals.compiled(guided_upsample_reference, backend="aot_eager")(*inputs)
    torch.testing.assert_close(found, guided_upsample_reference(*inputs))
