"""A graph that takes groups of rows: several words a class, and contrast rows that share one map."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.deploy.export import graph
from ovsdino.deploy.export.compare import verify
from ovsdino.deploy.export.defaults import CONTRAST, WORDS
from ovsdino.deploy.export.engine import _shapes
from ovsdino.deploy.export.inputs import synthetic
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.rounded import Rounded
from ovsdino.edge import EdgeSegmenter, TextBank
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.models.weights import weights_digest
from ovsdino.pipeline import Segmenter
from tests.support import graphs
from tests.support.small import SIZE, small_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grouped") / "small.onnx"
    publish(path, graphs.exported(grouped=True, classes=(1, 40)))
    return path


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize(
    ("classes", "words", "contrast"), [(1, 1, 1), (1, 1, 150), (4, 1, 20), (5, 3, 1), (2, 16, 256)]
)
def test_any_vocabulary_runs_through_one_export(exported: Path, classes: int, words: int, contrast: int) -> None:
    torch.manual_seed(0)
    image, text, others = torch.randn(1, 3, *SIZE.values()), unit(classes, words, 32), unit(contrast, 32)
    text[0, 1:] = 0  # the first class has one word
    with torch.no_grad():
        expected = small_model()(image, text, others)
    found = Rounded(*Exported.read(str(exported))).run(image.numpy(), text.numpy(), others.numpy())["logits"]
    assert found.shape == (1, classes + 1, 12, 20)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-3)


def test_float16_stays_close(exported: Path) -> None:
    torch.manual_seed(0)
    model = onnx.load(exported)
    graph.to_16_bits(model, "float16")
    half = Exported.of(model.SerializeToString(), Sidecar.load(exported), precision="float16")
    image, text, others = (np.asarray(x) for x in (torch.randn(1, 3, *SIZE.values()), unit(5, 2, 32), unit(9, 32)))
    text[1, 1] = 0
    exact = Rounded(*Exported.read(str(exported))).run(image, text, others)["logits"]
    found = Rounded(*half).run(image, text, others)["logits"]
    assert np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


def test_the_form_is_in_the_sidecar_and_follows_the_model_unless_told(exported: Path) -> None:
    sidecar = Sidecar.load(exported)
    assert (sidecar.words, sidecar.contrast, sidecar.grouped) == (WORDS, CONTRAST, True)
    plain = graphs.exported(grouped=True, classes=(1, 40), contrast=False).sidecar
    assert not plain.grouped and b"words" not in plain.to_bytes()


def test_an_export_is_compared_with_contrast_rows(exported: Path) -> None:
    figures = verify(small_model(contrast=True), Exported.read(str(exported)), synthetic(2))
    assert figures.worst_cosine > 0.9999 and figures.label_agreement > 0.99


def test_an_engine_is_built_for_any_vocabulary_and_best_for_a_street(exported: Path) -> None:
    shapes = _shapes(onnx.load(exported), Sidecar.load(exported), 1)
    assert shapes["text"] == ((1, 1, 32), (19, 1, 32), (40, 16, 32))
    assert shapes["contrast"] == ((1, 32), (180, 32), (256, 32))


@functools.cache
def torch_side() -> Segmenter:
    """One for all: the text tower's weights are drawn anew for each model."""
    return Segmenter(small_model(contrast=True), short_side=48)


def bank(names: str, partition: bool = False) -> tuple[Segmenter, TextBank]:
    """The torch side, and the bank that `ovsdino text` makes of it."""
    segmenter = torch_side()
    rows = segmenter.text_rows(names, partition)
    facts = {"model": "small", "weights": weights_digest(segmenter.model)}
    plain = tuple(name.split("=")[0].split("|")[0] for name in names.split(","))
    if isinstance(rows, Tensor):
        return segmenter, TextBank(names=plain, text=rows.numpy(), **facts)
    counts = rows.words.any(-1)
    contrast = None if rows.contrast is None else rows.contrast.numpy()
    words = tuple(counts.sum(1).tolist())
    return segmenter, TextBank(names=plain, text=rows.words[counts].numpy(), words=words, contrast=contrast, **facts)


@pytest.mark.parametrize("names", ["road", "road,car", "static=building|tree|wall,car"])
def test_the_runtime_gives_the_labels_of_the_torch_model(exported: Path, names: str) -> None:
    segmenter, words = bank(names)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    with EdgeSegmenter(exported, words, threads=1, least_share=0, least_certainty=0) as edge:
        found = edge.segment(pixels)
        assert edge.infer(np.zeros((1, 3, *SIZE.values()), np.float32)).shape[1] == len(words) + 1
    expected = segmenter.segment(pixels, names, least_share=0, least_certainty=0)
    assert (found.labels == expected.labels).mean() > 0.995
    assert found.background and found.all_names == (*words.names, "background")
    assert found.labels.dtype == np.uint8 and found.labels.max() <= len(words)


def test_a_partition_and_a_threshold_in_the_runtime(exported: Path) -> None:
    segmenter, words = bank("road,car")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    with EdgeSegmenter(exported, words, threads=1, partition=True) as edge:
        assert edge.infer(np.zeros((1, 3, *SIZE.values()), np.float32)).shape[1] == 2
        result = edge.segment(pixels)
        assert not result.background and result.labels.max() <= 1
        assert (result.labels == segmenter.segment(pixels, "road,car", partition=True).labels).mean() > 0.995
        edge.set_bank(bank("road,car", partition=True)[1])
        assert np.array_equal(edge.segment(pixels).labels, result.labels)
    with EdgeSegmenter(exported, bank("road")[1], threads=1, background=0.999) as edge:
        assert (edge.segment(pixels).labels == 1).all()


def test_words_on_too_few_pixels_are_not_found_in_the_runtime(exported: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    with EdgeSegmenter(exported, bank("road,car")[1], threads=1, least_share=0.999) as edge:
        result = edge.segment(pixels)
    assert result.found == (False, False) and result.scores == (0.0, 0.0)


@pytest.mark.parametrize("certainty", [0.5, 0.7, 0.9, 0.99, 0.9999])
def test_the_runtime_finds_the_words_of_the_torch_model(
    exported: Path, certainty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovsdino.text_banks.rivals", lambda words: [0, 1])  # of two hundred one always wins
    names = ",".join(f"word {number}" for number in range(30))
    segmenter, words = bank(names)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    with EdgeSegmenter(exported, words, threads=1, least_certainty=certainty) as edge:
        found = edge.segment(pixels, scores=False).found
    assert found == segmenter.segment(pixels, names, least_certainty=certainty).found
    assert certainty > 0.5 or any(found)


def test_a_certainty_out_of_range_is_refused(exported: Path) -> None:
    with pytest.raises(OVSDinoError, match="least_certainty is 1: expected"):
        EdgeSegmenter(exported, bank("road")[1], threads=1, least_certainty=1)


def test_banks_that_do_not_fit_are_refused(exported: Path, tmp_path: Path) -> None:
    _, words = bank("road")
    _, plain = bank("road,car", partition=True)
    with pytest.raises(OVSDinoError, match="no contrast rows; make it with `ovsdino text --no-partition`"):
        EdgeSegmenter(exported, plain, threads=1, partition=False)
    single = tmp_path / "single.onnx"
    publish(single, graphs.exported(grouped=True, classes=(1, 40), contrast=False))
    with pytest.raises(OVSDinoError, match="takes one row a class; export it again with --contrast"):
        EdgeSegmenter(single, words, threads=1)
    with EdgeSegmenter(single, words, threads=1, partition=True) as edge:  # without its contrast it fits
        assert edge.names == ("road",)
