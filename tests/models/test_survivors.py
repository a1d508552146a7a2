"""Classes decoded by chunks: the maps that win, against all maps at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ovsdino.models import survivors
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.survivors import Decode, map_bytes, surviving
from ovsdino.models.text_rows import TextRows
from ovsdino.ops import upsample_argmax
from tests.support.cnn import JOINED, small_model_on


@pytest.fixture(scope="module")
def model() -> OVSDINO:
    torch.manual_seed(0)
    model = small_model_on(JOINED)
    torch.nn.init.normal_(model.decoder.detail.weight, std=0.1)
    torch.nn.init.constant_(model.decoder.score_attention.mix, 0.5)
    return model


def rows(classes: int, contrast: int, seed: int = 0) -> TextRows:
    torch.manual_seed(seed)
    bank = torch.nn.functional.normalize(torch.randn(2 * classes + contrast, 32), dim=-1)
    words = bank[: 2 * classes].view(classes, 2, 32).clone()
    words[::3, 1] = 0  # a class of one word
    return TextRows(words, bank[2 * classes :] if contrast else None)


def decoder(model: OVSDINO, features: ImageFeatures) -> Decode:
    return lambda part, first: model.decode(features, part)


@pytest.mark.parametrize("contrast", [0, 7])
@pytest.mark.parametrize("size", [(48, 80), (16, 16)])
@pytest.mark.parametrize("target", [(97, 161), (12, 20), (4, 4)])
def test_labels_and_confidences_are_those_of_all_maps(
    model: OVSDINO, contrast: int, size: tuple[int, int], target: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, one = rows(200, contrast), map_bytes(model.config, 1, *size)
    monkeypatch.setattr(survivors, "CHUNK_BYTES", 23 * one)
    monkeypatch.setattr(survivors, "KEPT_BYTES", 2 * 23 * one)  # several prunings
    monkeypatch.setattr(survivors, "COUNTED", 1000)
    with torch.inference_mode():
        features = model.encode_image(torch.randn(1, 3, *size))
        whole = model.decode(features, text)
        found = surviving(decoder(model, features), text, one, target, confidence=True)
    assert found.maps == whole.shape[1] == 200 + (contrast > 0)
    assert found.classes.tolist() == sorted(set(found.classes.tolist())) and len(found.classes) < 150
    torch.testing.assert_close(found.logits, whole[:, found.classes], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.total, whole.logsumexp(1), atol=2e-5, rtol=1e-5)
    if contrast:
        assert found.classes[-1] == 200
    expected, certainty = upsample_argmax(whole, target, confidence=True)
    labels = found.classes.int()[upsample_argmax(found.logits, target).int()]
    assert (labels == expected.int()).float().mean() > 0.999  # a matrix product of fewer columns rounds otherwise
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence, certainty, atol=1e-4, rtol=1e-4)


def test_every_cell_has_its_largest_class_where_the_labels_are_few(model: OVSDINO) -> None:
    text = rows(150, 0)
    with torch.inference_mode():
        features = model.encode_image(torch.randn(1, 3, 48, 80))
        found, whole = surviving(decoder(model, features), text, 960, (1, 1)), model.decode(features, text)
    assert set(whole.argmax(1).unique().tolist()) <= set(found.classes.tolist())
    assert found.confidence is None


def test_a_plain_bank_of_rows_is_taken_too(model: OVSDINO) -> None:
    bank: Tensor = rows(50, 0).words[:, 0]
    with torch.inference_mode():
        features = model.encode_image(torch.randn(1, 3, 32, 48))
        found, whole = surviving(decoder(model, features), bank, 400, (30, 40)), model.decode(features, bank)
    torch.testing.assert_close(found.logits, whole[:, found.classes], atol=2e-5, rtol=1e-5)


def test_a_map_that_is_not_a_number_shows_in_the_sum(model: OVSDINO) -> None:
    text = rows(20, 3)
    text.words[4] = float("nan")
    with torch.inference_mode():
        found = surviving(decoder(model, model.encode_image(torch.randn(1, 3, 32, 48))), text, 400, (20, 20))
    assert not torch.isfinite(found.total).any()
