"""One image, encoded once, and any number of vocabularies: the results of `segment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.models import survivors
from ovsdino.pipeline import Segmenter, load
from ovsdino.results import Segmentation


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load("nano", "cpu", short_side=64)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    image = np.random.default_rng(0).integers(40, 120, (90, 120, 3), dtype=np.uint8)
    image[:45] = np.linspace(150, 250, 120).astype(np.uint8)[None, :, None]
    return image


def assert_same(found: Segmentation, expected: Segmentation) -> None:
    """Windows go through the network one by one, those of `segment` together: logits differ by a rounding."""
    assert (found.labels == expected.labels).mean() > 0.999
    assert found.names == expected.names and found.scores == pytest.approx(expected.scores, abs=1e-4)
    assert found.novelty == pytest.approx(expected.novelty) and found.familiarity == expected.familiarity
    assert (found.confidence is None) == (expected.confidence is None)
    if found.confidence is not None:
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=2e-3)


@pytest.mark.parametrize("cut", [{}, {"short_side": 96}, {"window": 64, "stride": 32}], ids=["whole", "side", "window"])
def test_each_vocabulary_gives_what_segment_gives(nano: Segmenter, picture: np.ndarray, cut: dict[str, Any]) -> None:
    prepared = nano.set_image(picture, **cut)
    for words, options in (
        ("sky, road", {}),
        ("tree, car|automobile, sky", {"partition": True, "confidence": True}),
        ("sky, road", {"background": 0.6, "scores": False}),
    ):
        assert_same(prepared.segment(words, **options), nano.segment(picture, words, **cut, **options))


def test_the_network_sees_the_image_once(nano: Segmenter, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = nano.model.encode_image
    monkeypatch.setattr(nano.model, "encode_image", lambda image: (calls.append(1), encode(image))[1])
    prepared = nano.set_image(picture)
    results = [prepared.segment(words) for words in ("sky", "road, tree", "car")]
    assert len(calls) == 1 and prepared.stages_ms.keys() == {"load", "preprocess", "encode"}
    assert all(result.stages_ms.keys() == {"text", "decode", "postprocess"} for result in results)
    assert all(result.image is prepared.image for result in results)


def test_very_many_words_are_decoded_in_parts(
    nano: Segmenter, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"sky {number}" for number in range(40)]
    expected = nano.segment(picture, words, partition=True)
    monkeypatch.setattr("ovsdino.network.MOST_BYTES", 1)
    monkeypatch.setattr(survivors, "CHUNK_CLASSES", 7)
    assert_same(nano.set_image(picture).segment(words, partition=True), nano.segment(picture, words, partition=True))
    np.testing.assert_array_equal(nano.set_image(picture).segment(words, partition=True).labels, expected.labels)


def test_two_images_can_be_prepared_at_a_time(nano: Segmenter, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture[::-1]).save(tmp_path / "turned.png")
    first, second = nano.set_image(picture), nano.set_image(tmp_path / "turned.png")
    assert_same(first.segment("sky, road"), nano.segment(picture, "sky, road"))
    assert_same(second.segment("sky, road"), nano.segment(picture[::-1], "sky, road"))
    assert second.segment("sky, road").source == str(tmp_path / "turned.png")


def test_a_frame_that_is_written_over_does_not_change_a_prepared_image(nano: Segmenter) -> None:
    frame = np.full((64, 64, 3), 7, np.uint8)
    prepared = nano.set_image(frame)
    frame[:] = 200
    assert (prepared.image == 7).all()


def test_what_is_not_valid_is_refused_in_one_line(nano: Segmenter, picture: np.ndarray) -> None:
    for options, words in (
        ({"short_side": 3}, "short_side is 3"),
        ({"window": 7}, "window is 7"),
        ({"stride": 16}, "without window"),
    ):
        with pytest.raises(OVSDinoError, match=words):
            nano.set_image(picture, **options)  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="no classes given"):
        nano.set_image(picture).segment([])
