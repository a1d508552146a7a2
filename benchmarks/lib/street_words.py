"""Words on a street: some of the names, one alone, one that is not there, nonsense, and synonyms in a name's place."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.eval.metrics import Confusion
from ovsdino.models.ovsdino import ImageFeatures
from ovsdino.ops import upsample_argmax
from ovsdino.pipeline import Segmenter
from ovsdino.vocabulary import Classes

__all__ = ["FEW", "NONSENSE", "few_words", "nonsense_words", "synonym_words"]

FEW = ("road", "car", "sky")
ALONE, ABSENT = "car", "zebra"
NONSENSE = (
    "qwertyuiop", "blorft", "zxcvbnm", "fnurgle", "wibbletron", "xqzzk", "grimplox", "aaaaaaa", "snorvelth", "kjhgfd",
)  # fmt: skip
FALL = 0.05  # of IoU, beyond which a synonym counts as fallen


def few_words(segmenter: Segmenter, data: SegmentationDataset, indices: Sequence[int]) -> dict[str, Any]:
    """Return the IoU of words that are asked for with few others or none, and how often a word is not found.

    Pixels that belong to none of the words stay without one (`partition=False`).

    Args:
        segmenter: The model.
        data: CamVid, or another data set with road, car and sky.
        indices: The images.

    Returns:
        "few": IoU by word of `FEW` together; "alone": that of `ALONE` alone; "not_found": the share of the images on
        which `ABSENT`, asked for alone, has no pixel.
    """
    counts = {name: np.zeros(2) for name in (*FEW, "alone")}
    absent = 0
    for index in indices:
        sample = data[index]
        truth, known = sample.label, sample.label != data.ignore_index
        together = segmenter.segment(sample.image, FEW, partition=False, scores=False).labels
        alone = segmenter.segment(sample.image, [ALONE], partition=False, scores=False).labels
        shown = {name: together == place for place, name in enumerate(FEW)} | {"alone": alone == 0}
        for name, mask in shown.items():
            there = truth == data.names.index(ALONE if name == "alone" else name)
            counts[name] += [(mask & there).sum(), ((mask | there) & known).sum()]
        absent += not (segmenter.segment(sample.image, [ABSENT], partition=False, scores=False).labels == 0).any()
    iou = {name: round(float(hits / max(1, union)), 5) for name, (hits, union) in counts.items()}
    return {
        "images": len(indices),
        "few": {name: iou[name] for name in FEW},
        "alone": {ALONE: iou["alone"]},
        "absent": ABSENT,
        "not_found": round(absent / len(indices), 5),
    }


def nonsense_words(segmenter: Segmenter, image: np.ndarray, words: Sequence[str] = NONSENSE) -> list[dict[str, Any]]:
    """Return for each word how well the text tower knows it, and whether segmenting by it warns of it.

    Args:
        segmenter: The model.
        image: (H, W, 3) uint8.
        words: The words.
    """
    found = []
    for word in words:
        with _Warnings() as heard:
            segmenter.segment(image, [word], partition=False, scores=False)
        known = float(segmenter.model.text_tower.familiarity([word])[0])
        warned = any(repr(word) in line for line in heard.lines)
        found.append({"word": word, "familiarity": round(known, 3), "warned": warned})
    return found


def synonym_words(
    segmenter: Segmenter, data: SegmentationDataset, indices: Sequence[int], synonyms: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the IoU of each class by its own name, and by each synonym in its place; all other names stay.

    Every pixel gets one of the words, as the data set's protocol has it.

    Args:
        segmenter: The model.
        data: The data set.
        indices: The images.
        synonyms: Words for some of the classes.
    """
    images = [data[index] for index in indices]
    features = [segmenter.encode_image(sample.image) for sample in images]
    labels = [sample.label for sample in images]
    own = _iou(segmenter, data, features, labels, data.names)
    classes, fallen, count = {}, [], 0
    for name, words in synonyms.items():
        place = data.names.index(name)
        by_word = {}
        for word in words:
            asked = [*data.names[:place], word, *data.names[place + 1 :]]
            by_word[word] = round(_iou(segmenter, data, features, labels, [(w,) for w in asked])[place], 5)
        classes[name] = {"iou": round(own[place], 5), "synonyms": by_word}
        fallen += [word for word, iou in by_word.items() if iou < own[place] - FALL]
        count += len(words)
    return {"images": len(images), "words": count, "fallen": fallen, "beyond": FALL, "classes": classes}


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Return the words of each class in a JSON file."""
    found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _iou(
    segmenter: Segmenter,
    data: SegmentationDataset,
    features: Sequence[ImageFeatures],
    labels: Sequence[np.ndarray],
    classes: Classes,
) -> list[float]:
    rows = segmenter.text_rows(classes, partition=True)
    score = Confusion(len(data.names), data.ignore_index)
    for each, label in zip(features, labels, strict=True):
        with torch.inference_mode():
            found = upsample_argmax(segmenter.decode(each, rows), (label.shape[0], label.shape[1]))
        score.update(found[0].cpu().numpy(), label)
    return [float(value) for value in score.iou()]


class _Warnings(logging.Handler):
    """The warnings of the package while it is entered; they are heard here alone."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> _Warnings:
        log = logging.getLogger("ovsdino")
        self._before, log.propagate = log.propagate, False
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        log = logging.getLogger("ovsdino")
        log.removeHandler(self)
        log.propagate = self._before
