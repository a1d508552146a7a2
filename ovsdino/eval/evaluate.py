"""Run a `Segmenter` over a labelled data set and score it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.eval.metrics import SegmentationMetrics, Summary
from ovsdino.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.pipeline import Segmenter

__all__ = ["Evaluation", "evaluate", "read_class_names"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a model on a data set.

    Attributes:
        images: how many images were scored.
        ms_per_image: mean milliseconds from the decoded image to its labels, after one warm-up image.
    """

    images: int
    scores: Summary
    ms_per_image: float

    def to_dict(self) -> dict[str, Any]:
        """Flat, ready for JSON: images, miou, iou, pixel_accuracy, boundary_f1, boundary_iou, ms_per_image."""
        rounded = {k: _rounded(v) for k, v in asdict(self.scores).items()}
        return {"images": self.images, **rounded, "ms_per_image": round(self.ms_per_image, 2)}


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    *,
    class_names: Mapping[str, str | Sequence[str]] | None = None,
    limit: int | None = None,
    background: float | bool | None = None,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Segments every image with the data set's class names as words, and scores the labels.

    Args:
        class_names: text, or texts to average, in place of a class's own name.
        limit: take the first so many images only.
        background: see `Segmenter.segment`; background pixels count as errors where the data set has a class.
        window: see `Segmenter.segment`.
        stride: see `Segmenter.segment`.
        progress: called with (done, total) after each image.

    Raises:
        OVSDinoError: a class name that the data set does not have, or a bad image or number.
    """
    if limit is not None and limit < 1:
        raise OVSDinoError(f"limit is {limit}: expected at least 1")
    vocabulary = dataset_vocabulary(dataset.names, class_names or {})
    total = len(dataset) if limit is None else min(limit, len(dataset))
    metrics = SegmentationMetrics(dataset.names, dataset.ignore_index)
    spent = 0.0
    for index in range(total):
        sample = dataset[index]

        def run(image: Any = sample.image) -> Any:
            return segmenter.segment(
                image, vocabulary, background=background, window=window, stride=stride, scores=False
            )

        if index == 0:
            run()
        result = run()
        spent += result.ms
        metrics.update(result.labels, sample.label)
        if progress is not None:
            progress(index + 1, total)
    return Evaluation(images=total, scores=metrics.summary(), ms_per_image=spent / total)


def dataset_vocabulary(names: Sequence[str], replaced: Mapping[str, str | Sequence[str]]) -> Vocabulary:
    """The data set's classes with the texts given in place of some of their names.

    Raises:
        OVSDinoError: a key that is no class, or a text that is not valid.
    """
    unknown = sorted(set(replaced) - set(names))
    if unknown:
        raise OVSDinoError(f"class names: {unknown[0]!r} is not a class of this data set; it has {', '.join(names)}")
    return Vocabulary.of({name: replaced.get(name, name) for name in names})


def read_class_names(path: str | Path) -> dict[str, str | list[str]]:
    """Reads a JSON object from class name to text or list of texts.

    Raises:
        OVSDinoError: missing, unreadable, not JSON, or not such an object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OVSDinoError(f"{path}: cannot read the class names: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OVSDinoError(f"{path}: not JSON: {one_line(error, 100)}") from error
    if not isinstance(data, dict):
        raise OVSDinoError(f'{path}: expected an object such as {{"car": ["automobile", "vehicle"]}}')
    for name, texts in data.items():
        entries = [texts] if isinstance(texts, str) else texts
        if not isinstance(entries, list) or not entries or not all(isinstance(t, str) and t.strip() for t in entries):
            raise OVSDinoError(f"{path}: {name!r} must map to a text or a non-empty list of texts")
    return data


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return round(value, 5) if isinstance(value, float) else value
