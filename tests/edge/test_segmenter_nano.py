"""EdgeSegmenter with the exported nano against the torch pipeline, on real images."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino import pipeline
from ovsdino.deploy.export.publish import publish
from ovsdino.deploy.export.trace import export_graph
from ovsdino.edge.bank import TextBank
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.models.weights import weights_digest
from ovsdino.vocabulary import Vocabulary

STREET = "sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist"


@pytest.fixture(scope="module")
def torch_side() -> pipeline.Segmenter:
    return pipeline.load("nano", "cpu")


@pytest.fixture(scope="module")
def model(torch_side: pipeline.Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano for images of 4:3, of CamVid's size."""
    path = tmp_path_factory.mktemp("nano") / "nano.onnx"
    height, width = torch_side.inference_size(360, 480)
    publish(path, export_graph(torch_side.model, height=height, width=width))
    return path


def bank(torch_side: pipeline.Segmenter, classes: str) -> TextBank:
    vocabulary = Vocabulary.of(classes)
    text = torch_side.encode_text(vocabulary).numpy()
    return TextBank(names=vocabulary.names, text=text, model="nano", weights=weights_digest(torch_side.model))


def test_labels_are_those_of_the_torch_pipeline(model: Path, torch_side: pipeline.Segmenter, data_root: Path) -> None:
    segmenter = EdgeSegmenter(model, bank(torch_side, STREET), threads=1, runtime="onnxruntime")
    with zipfile.ZipFile(data_root / "camvid_val.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("images/"))[::25]
        images = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    assert len(images) == 5
    for image in images:
        expected = torch_side.segment(image, STREET, partition=True)
        assert (segmenter.segment(image).labels == expected.labels).mean() >= 0.995


def test_photograph_and_another_vocabulary(model: Path, torch_side: pipeline.Segmenter) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    image = datasets.load_sample_image("china.jpg")[:, :569]  # 4:3, for which the graph was exported
    assert torch_side.inference_size(*image.shape[:2]) == torch_side.inference_size(360, 480)
    segmenter = EdgeSegmenter(model, bank(torch_side, STREET), threads=1, background=0.4, runtime="onnxruntime")
    for classes in (STREET, "sky, building, tree, water"):
        segmenter.set_bank(bank(torch_side, classes))
        result, expected = segmenter.segment(image), torch_side.segment(image, classes, background=0.4, partition=True)
        assert (result.labels == expected.labels).mean() >= 0.995
        assert result.names == expected.names and result.background
        assert (result.labels == len(result.names)).any()
        assert result.scores is not None and expected.scores is not None
        assert result.scores[:2] == pytest.approx(expected.scores[:2], abs=2e-3)


def test_a_photograph_of_another_ratio_is_resized_to_the_graph(model: Path, torch_side: pipeline.Segmenter) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    image = datasets.load_sample_image("china.jpg")
    assert torch_side.inference_size(*image.shape[:2]) != torch_side.inference_size(360, 480)
    classes = "sky, building, tree, water"
    result = EdgeSegmenter(model, bank(torch_side, classes), threads=1, runtime="onnxruntime").segment(image)
    assert result.labels.shape == image.shape[:2]
    squeezed = np.array(Image.fromarray(image).resize((569, 427), Image.Resampling.BILINEAR))
    expected = torch_side.segment(squeezed, classes, partition=True).labels
    again = np.array(Image.fromarray(expected).resize((640, 427), 0))
    assert (result.labels == again).mean() > 0.97
