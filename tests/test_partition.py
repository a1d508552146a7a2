"""`Segmenter` with the contrast vocabulary: pixels that belong to none of the words, and words that are not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.contrast import contrast_phrases
from ovsdino.errors import OVSDinoError
from ovsdino.models.text import TextTower
from ovsdino.models.text_rows import TextRows
from ovsdino.pipeline import Segmenter

WORDS = {"red": 0, "crimson": 0, "green": 1, "zebra": 1}
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Colors(nn.Module):
    """Words are colors, and every other phrase is blue: logits are 8 times the color of a 4 x 4 patch."""

    stride_multiple = 4

    def __init__(self, contrast: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            name="colors", contrast=contrast, short_side=24, mean=(0.0,) * 3, std=(1.0,) * 3, patch_size=4
        )
        self.text_tower = TextTower()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def encode_text(self, texts: Any) -> Tensor:
        return torch.stack([torch.eye(3)[[WORDS.get(word, 2) for word in group]].mean(0) for group in texts])

    def encode_image(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 4) * self.scale

    def decode(
        self, features: Tensor, text: Tensor | TextRows, prior: Tensor | None = None, tau: float = 0.5
    ) -> Tensor:
        if isinstance(text, TextRows):
            return text.reduced(lambda rows: self.decode(features, rows))
        return torch.einsum("bdhw,kd->bkhw", features, text)


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(Colors())  # type: ignore[arg-type]


def stripes(*colors: tuple[int, int, int], width: int = 16) -> np.ndarray:
    """24 pixels high, a stripe of each color."""
    return np.concatenate([np.full((24, width, 3), color, np.uint8) for color in colors], 1)


def middle(labels: np.ndarray, width: int = 16) -> list[int]:
    """The label in the middle of each stripe."""
    return labels[12, width // 2 :: width].tolist()


def test_a_pixel_of_none_of_the_words_is_background(segmenter: Segmenter) -> None:
    result = segmenter.segment(stripes(RED, GREEN, BLUE), "red, green")
    assert middle(result.labels) == [0, 1, 2]
    assert result.labels.dtype == np.uint8
    assert result.all_names == ("red", "green", "background") and result.found == (True, True)


def test_a_partition_gives_every_pixel_a_word(segmenter: Segmenter) -> None:
    result = segmenter.segment(stripes(RED, GREEN, BLUE), "red, green", partition=True)
    assert not result.background and result.labels.max() <= 1


def test_a_model_that_was_not_made_for_it_partitions_unless_asked() -> None:
    segmenter = Segmenter(Colors(contrast=False))  # type: ignore[arg-type]
    image = stripes(RED, GREEN, BLUE)
    assert not segmenter.segment(image, "red, green").background
    assert middle(segmenter.segment(image, "red, green", partition=False).labels) == [0, 1, 2]


def test_one_word_alone_works(segmenter: Segmenter) -> None:
    result = segmenter.segment(stripes(BLUE, RED), "red")
    assert middle(result.labels) == [1, 0]
    assert result.scores is not None and result.scores[0] > 0.9


def test_a_word_that_is_not_there_is_not_found(segmenter: Segmenter) -> None:
    result = segmenter.segment(stripes(RED, BLUE), "red, zebra")
    assert result.found == (True, False) and result.fractions[1] == 0
    assert [entry["found"] for entry in result.to_dict()["classes"]] == [True, False, None]


def test_a_word_on_too_few_pixels_is_not_found_nor_painted(segmenter: Segmenter) -> None:
    image = stripes(BLUE, BLUE)
    image[8:12, 8:12] = GREEN  # 1/48 of the image
    found = segmenter.segment(image, "red, green", least_share=0.01)
    assert found.found == (False, True) and found.scores is not None and found.scores[1] > 0.4
    rare = segmenter.segment(image, "red, green", least_share=0.03)
    assert rare.found == (False, False) and (rare.labels == 2).all() and rare.scores == (0.0, 0.0)
    with pytest.raises(OVSDinoError, match="least_share is 1"):
        segmenter.segment(image, "red", least_share=1)


def test_a_word_that_is_nowhere_certain_is_not_found(segmenter: Segmenter) -> None:
    faint = (150, 0, 120)  # red leads blue by 8 * 30 / 255: a probability of 0.72
    image = stripes(faint, GREEN, BLUE)
    result = segmenter.segment(image, "red, green")
    assert result.found == (False, True) and middle(result.labels) == [2, 1, 2]
    assert result.scores is not None and result.scores[0] == 0
    assert segmenter.segment(image, "red, green", least_certainty=0.7).found == (True, True)
    assert segmenter.segment(image, "red, green", least_certainty=0).found == (True, True)
    assert segmenter.segment(image, "red, crimson", least_certainty=0.7).found == (True, False)
    with pytest.raises(OVSDinoError, match="least_certainty is 1"):
        segmenter.segment(image, "red", least_certainty=1)


def test_words_of_one_meaning_do_not_hide_each_other(segmenter: Segmenter) -> None:
    result = segmenter.segment(stripes(RED, BLUE), ["red", "crimson"])  # each has half of the softmax
    assert result.found == (True, False) and result.scores is not None and result.scores[0] < 0.6


def test_a_threshold_and_the_contrast_share_one_label(segmenter: Segmenter) -> None:
    gray = (90, 90, 90)
    result = segmenter.segment(stripes(RED, gray, BLUE), "red", background=0.9)
    assert middle(result.labels) == [0, 1, 1]  # gray: red and the contrast have one half each
    assert result.labels.max() == 1


def test_labels_of_255_classes_and_background_are_bytes(segmenter: Segmenter) -> None:
    result = segmenter.segment(stripes(RED, BLUE), ["red", *(f"green {i}" for i in range(254))], scores=False)
    assert result.labels.dtype == np.uint8


def test_a_class_of_several_words_is_where_any_of_them_is(segmenter: Segmenter) -> None:
    image = stripes(RED, GREEN, BLUE)
    result = segmenter.segment(image, "both=crimson|zebra")
    assert middle(result.labels) == [0, 0, 1]
    assert middle(segmenter.segment(image, "crimson|zebra, red", partition=True).labels)[1] == 0


def test_windows_and_batches_give_the_same(segmenter: Segmenter) -> None:
    image = stripes(RED, GREEN, BLUE)
    whole = segmenter.segment(image, "red, green")
    assert middle(segmenter.segment(image, "red, green", window=24, stride=12).labels) == middle(whole.labels)
    several = segmenter.segment_batch([image, image[:, ::-1]], "red, green")
    assert [middle(one.labels) for one in several] == [[0, 1, 2], [2, 1, 0]]


def test_no_contrast_is_left_over_and_every_pixel_gets_a_word(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovsdino.text_banks.rivals", lambda words: [])
    result = segmenter.segment(stripes(RED, BLUE), "red, green")
    assert result.background and result.fractions[2] == 0


def test_damaged_weights_are_said(segmenter: Segmenter) -> None:
    with torch.no_grad():
        segmenter.model.scale.fill_(float("nan"))  # type: ignore[operator, union-attr]
    with pytest.raises(OVSDinoError, match="NaN or infinite logits"):
        segmenter.segment(stripes(RED, BLUE), "red")


def test_a_class_called_background_makes_a_partition(segmenter: Segmenter) -> None:
    assert not segmenter.segment(stripes(RED, GREEN), "red, background").background
    with pytest.raises(OVSDinoError, match='a class is called "background"'):
        segmenter.segment(stripes(RED, GREEN), "red, background", partition=False)


def test_decode_gives_the_contrast_channel_on_request(segmenter: Segmenter) -> None:
    features = segmenter.encode_image(stripes(RED, BLUE))
    assert segmenter.decode(features, "red, green").shape[1] == 2
    logits = segmenter.decode(features, "red, green", partition=False)
    assert logits.shape[1] == 3
    torch.testing.assert_close(logits[:, 2], features[:, 2])  # type: ignore[index]


def test_the_shipped_model_finds_words_among_the_contrast() -> None:
    """The real path end to end: one map more, of the phrases that mean none of the words."""
    from ovsdino.pipeline import load

    nano = load("nano", "cpu", short_side=64)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    rows = nano.text_rows("road, car|automobile", partition=False)
    assert isinstance(rows, TextRows) and rows.contrast is not None and rows.maps == 3
    assert 100 < len(rows.contrast) < len(contrast_phrases())
    logits = nano.decode(nano.encode_image(image), rows)
    labels = F.interpolate(logits, (90, 120), mode="bilinear").argmax(1)[0].numpy()
    result = nano.segment(image, "road, car|automobile", partition=False, least_share=0, least_certainty=0)
    assert (result.labels == labels).mean() > 0.999
