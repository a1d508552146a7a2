"""The package's own graph of nano, without torch: the labels of the torch pipeline, on images of any ratio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ovsdino import pipeline
from ovsdino.deploy.export.shipped import without_weights
from ovsdino.edge import EdgeSegmenter
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.shipped_graph import graph_path, shipped_model
from ovsdino.edge.words import make_bank
from ovsdino.errors import OVSDinoError
from ovsdino.models.shipped import packaged
from ovsdino.models.zoo import create_model
from ovsdino.vocabulary import Vocabulary

WORDS = "sky|clouds, temple, tree, water"


@pytest.fixture(scope="module")
def torch_side() -> pipeline.Segmenter:
    return pipeline.load("nano", "cpu")


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    image: np.ndarray = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    return image


@pytest.mark.parametrize("partition", [None, True])
def test_labels_are_those_of_torch_on_images_of_any_ratio(
    torch_side: pipeline.Segmenter, photograph: np.ndarray, partition: bool | None
) -> None:
    bank = make_bank(Vocabulary.of(WORDS), partition)
    with EdgeSegmenter("nano", bank, threads=1) as segmenter:
        for image in (photograph, np.ascontiguousarray(photograph.transpose(1, 0, 2)), photograph[:200, :210].copy()):
            expected = torch_side.segment(image, WORDS, partition=partition)
            found = segmenter.segment(image)
            assert (found.labels == expected.labels).mean() >= 0.9999
            assert found.scores == pytest.approx(expected.scores, abs=0.03)  # a mean over few pixels near a tie


def test_a_short_side_of_ones_own_is_taken(photograph: np.ndarray) -> None:
    segmenter = EdgeSegmenter("nano", make_bank(Vocabulary.of(WORDS)), threads=1, short_side=176)
    assert segmenter.segment(photograph).labels.shape == photograph.shape[:2]
    assert segmenter._graph.sidecar.input == (1, 3, 176, 256)  # type: ignore[union-attr]


def test_the_graph_holds_no_weights_and_follows_others_of_the_same_model() -> None:
    data = graph_path("nano").read_bytes()
    known = packaged("nano")
    assert known is not None and len(data) < known.bytes / 20
    model = create_model("nano")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    weights = {
        name: value.numpy()
        for name, value in model.state_dict().items()
        if bytes([0x42, len(name)]) + name.encode() in data
    }
    image = torch.randn(1, 3, 80, 112, generator=generator)
    text = torch.nn.functional.normalize(torch.randn(3, 2, 256, generator=generator), dim=-1)
    contrast = torch.nn.functional.normalize(torch.randn(4, 256, generator=generator), dim=-1)
    with torch.no_grad():
        expected = model(image, text, contrast).numpy()
    inputs = {"image": image.numpy(), "text": text.numpy(), "contrast": contrast.numpy()}
    (found,) = open_session(data, "nano.onnx", 1, weights).run(None, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_the_graph_is_the_one_that_the_modules_give() -> None:
    if torch.__version__.split(".")[:2] != ["2", "11"]:
        pytest.skip("another release of torch may trace the same modules to other operators")
    assert without_weights(create_model("nano")) == graph_path("nano").read_bytes()


def test_a_file_comes_before_a_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_model("nano") == "nano"
    assert shipped_model(Path("nano")) is None and shipped_model("b14") is None
    (tmp_path / "nano").write_text("a file")
    monkeypatch.chdir(tmp_path)
    assert shipped_model("nano") is None


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    bank = make_bank(Vocabulary.of(WORDS))
    with pytest.raises(OVSDinoError, match="short_side is 8: expected 16"):
        EdgeSegmenter("nano", bank, short_side=8)
    with pytest.raises(OVSDinoError, match="runs in ONNX Runtime"):
        EdgeSegmenter("nano", bank, runtime="openvino")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(OVSDinoError, match="its size is fixed"):
        EdgeSegmenter(tmp_path / "a.onnx", bank, short_side=352)
