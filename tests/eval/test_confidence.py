"""Calibration error and temperature, against values worked out by hand."""

import numpy as np
import pytest
import torch

from ovsdino.data.datasets import open_dataset
from ovsdino.eval.confidence import CalibrationError, fit_temperature, sampled_error, sampled_logits
from ovsdino.eval.evaluate import dataset_vocabulary, evaluate
from ovsdino.pipeline import Segmenter
from tests.eval.test_calibrate import write_voc
from tests.support.small import small_model


def test_the_error_is_the_gap_of_each_bin_weighted_by_its_pixels():
    error = CalibrationError(bins=10)
    error.update(np.array([0.95, 0.95, 0.95, 0.95]), np.array([True, True, True, False]))
    error.update(np.array([0.15, 0.15]), np.array([False, True]))
    # 4 of 6 pixels: |0.75 - 0.95|, 2 of 6: |0.5 - 0.15|
    assert error.value() == pytest.approx((4 * 0.2 + 2 * 0.35) / 6)


def test_a_confidence_of_one_is_in_the_last_bin_and_no_pixels_have_no_error():
    error = CalibrationError()
    assert error.value() is None
    error.update(np.ones(3, np.float16), np.ones(3, bool))
    assert error.value() == 0


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_that_logits_were_divided_by_is_found(temperature):
    """Labels drawn from softmax(z) are best explained by z, so by z / T times T."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert sampled_error(logits * temperature / found, labels) < 0.02


def test_without_pixels_there_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no labelled pixels"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("contrast", [False, True])
def test_pixels_of_the_background_count_where_the_contrast_can_be_right(contrast, tmp_path):
    write_voc(tmp_path / "voc21_train.zip", 3)
    dataset = open_dataset("voc21", tmp_path, "train")
    segmenter = Segmenter(small_model(contrast=contrast), short_side=48)
    vocabulary = dataset_vocabulary(dataset.names, {}, has_background=True)
    logits, labels, pooled = sampled_logits(segmenter, dataset, vocabulary)
    assert logits.shape == (len(labels), 20 + contrast) and pooled.shape == (3, 32)
    assert (labels == 20).any() == contrast and labels.min() >= 0
    again = sampled_logits(segmenter, dataset, vocabulary, limit=2)
    assert torch.equal(again[1], labels[: len(again[1])]) and len(again[2]) == 2


def test_eval_reports_the_error_of_native_confidences(tmp_path):
    write_voc(tmp_path / "voc20_val.zip", 2)
    dataset = open_dataset("voc20", tmp_path, "val")
    segmenter = Segmenter(small_model(), short_side=48)
    report = evaluate(segmenter, dataset).to_dict()
    error = CalibrationError()
    for sample in (dataset[index] for index in range(2)):
        result = segmenter.segment(sample.image, dataset.names, confidence=True)
        known = sample.label != 255
        error.update(result.confidence[known], (result.labels == sample.label)[known])
    assert report["ece"] == pytest.approx(error.value(), abs=1e-4)
