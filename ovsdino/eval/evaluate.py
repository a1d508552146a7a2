"""Run a `Segmenter` over a labelled data set and score it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ovsdino.data.spread import spread
from ovsdino.distributed import ALONE, Ranks, add_up
from ovsdino.errors import OVSDinoError
from ovsdino.eval.confidence import CalibrationError
from ovsdino.eval.metrics import SegmentationMetrics, Summary
from ovsdino.eval.protocol import Protocol, label_image
from ovsdino.io.ahead import behind, read_ahead
from ovsdino.io.files import read_json
from ovsdino.models.prior import estimate_prior
from ovsdino.models.text import TEMPLATES
from ovsdino.models.text_rows import TextRows
from ovsdino.text_banks import TextBanks
from ovsdino.vocabulary import Vocabulary
from ovsdino.windows import check_window

if TYPE_CHECKING:
    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
    from ovsdino.pipeline import Segmenter

__all__ = [
    "Evaluation",
    "class_prior",
    "dataset_vocabulary",
    "evaluate",
    "prior_of_images",
    "protocol_text",
    "read_class_names",
]

PRIOR_IMAGES = 200  # that a prior is estimated on


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a model on a data set.

    Attributes:
        images: How many images were scored.
        ms_per_image: Mean milliseconds from the decoded image to its labels, after one warm-up image, while other
            threads read the next images and score the last.
        ece: Expected calibration error of the pixels' confidences in 0..1, over 15 bins; None under a protocol, whose
            scores are not probabilities.
    """

    images: int
    scores: Summary
    ms_per_image: float
    ece: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all scores in one dictionary, ready for JSON, rounded to five digits."""
        rounded = {k: _rounded(v) for k, v in asdict(self.scores).items()}
        ece = None if self.ece is None else round(self.ece, 5)
        return {"images": self.images, **rounded, "ece": ece, "ms_per_image": round(self.ms_per_image, 2)}


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    *,
    protocol: Protocol | None = None,
    class_names: Mapping[str, str | Sequence[str]] | None = None,
    average: bool = False,
    limit: int | None = None,
    background: float | bool | None = None,
    contrast: bool = False,
    window: int | None = None,
    stride: int | None = None,
    prior: Tensor | None = None,
    tau: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Segment every image with the data set's class names as words, and score the labels.

    Args:
        segmenter: Model, device and number format.
        dataset: Images with labels.
        protocol: How a benchmark is run; None segments as `Segmenter.segment` does.
        class_names: Text, or several texts, in place of a class's own name.
        average: Average the embeddings of a class's texts, see `Vocabulary`.
        limit: Take the first so many images only.
        background: Without a protocol, see `Segmenter.segment`; background pixels count as errors where the data set
            has a class, and as its class 0 where that is background.
        contrast: Let the contrast vocabulary compete. Its pixels are the background of a data set that has one, in
            place of a constant; of another data set they count as errors.
        window: Without a protocol, see `Segmenter.segment`.
        stride: Without a protocol, see `Segmenter.segment`.
        prior: (K,) positive, how common each word's class is (`class_prior`); None takes nothing from the logits.
        tau: Strength of the prior.
        progress: Called with (done, total) after each image.
        ranks: This process among several that share the images; the scores are those of all.

    Raises:
        OVSDinoError: The data set lacks a class name, the protocol does not fit, or an image or number is bad.
    """
    if limit is not None and limit < 1:
        raise OVSDinoError(f"limit is {limit}: expected at least 1")
    vocabulary = dataset_vocabulary(dataset.names, class_names or {}, average, has_background=dataset.has_background)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    if protocol is None:
        native: dict[str, Any] = {"background": background, "window": window, "stride": stride}
        native |= {
            "partition": not contrast,
            "least_share": 0.0,
            "least_certainty": 0.0,
        }  # the metric counts every pixel
        if prior is not None:
            native |= {"prior": prior, "tau": tau}
        run = _native(segmenter, vocabulary, dataset.has_background, native)
    else:
        weighted = None if prior is None else prior.to(segmenter.device, torch.float32) ** tau
        run = _under(segmenter, vocabulary, protocol, dataset.has_background, weighted, contrast)
    metrics = SegmentationMetrics(dataset.names, dataset.ignore_index, has_background=dataset.has_background)
    calibration = CalibrationError()
    spent = np.zeros(1)
    indices = ranks.indices(total)

    def score(labels: np.ndarray, truth: np.ndarray, confidence: np.ndarray | None) -> None:
        metrics.update(labels, truth)
        if confidence is not None:
            known = (truth != dataset.ignore_index) & (truth < len(dataset.names))
            calibration.update(confidence[known], (labels == truth)[known])

    with behind(score) as score_behind:
        for done, sample in enumerate(read_ahead(dataset.__getitem__, indices)):
            if done == 0:
                run(sample.image)
            labels, ms, confidence = run(sample.image)
            spent += ms
            score_behind(labels, sample.label, confidence)
            if progress is not None:
                progress(done + 1, len(indices))
    add_up([*metrics.sums(), spent, calibration.table])
    ms = float(spent[0]) / total
    return Evaluation(images=total, scores=metrics.summary(), ms_per_image=ms, ece=calibration.value())


Run = Callable[[np.ndarray], "tuple[np.ndarray, float, np.ndarray | None]"]


def class_prior(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    vocabulary: Vocabulary,
    limit: int = PRIOR_IMAGES,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return how common each class is in a data set's images by the model's own account; their labels are not used.

    Args:
        segmenter: Model, device and number format.
        dataset: The images.
        vocabulary: Of `dataset_vocabulary`.
        limit: So many images, evenly spaced.
        progress: Called with (done, total) after each image.

    Returns:
        (K,) float32, see `estimate_prior`.
    """
    text = segmenter.text_rows(vocabulary, partition=True)
    chosen = spread(len(dataset), limit)

    def images() -> Iterator[ImageFeatures]:
        for done, sample in enumerate(read_ahead(dataset.__getitem__, chosen)):
            yield segmenter.encode_image(sample.image)
            if progress is not None:
                progress(done + 1, len(chosen))

    return prior_of_images(segmenter.model, images(), text)


def prior_of_images(
    model: OVSDINO, images: Iterable[ImageFeatures], text: Tensor | TextRows, least: float = 1e-3
) -> Tensor:
    """Return how common each class is in images by the model's own account; nothing else is known of them.

    Args:
        model: Answers the texts before its upsampling.
        images: Features of each, batches of one.
        text: As `OVSDINO.decode` takes it.
        least: Of `estimate_prior`.

    Returns:
        (K,) float32 on the CPU, see `estimate_prior`.
    """
    with torch.no_grad():
        return estimate_prior([model.coarse_logits(features, text)[0].cpu() for features in images], least)


def _under(
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    protocol: Protocol,
    has_background: bool,
    prior: Tensor | None,
    contrast: bool,
) -> Run:
    """Return the function from an image to its labels and milliseconds under a protocol."""
    check_window(protocol.window, segmenter.model.stride_multiple, segmenter.name)
    if contrast and not has_background:
        raise OVSDinoError(
            "this data set has no background class, so the contrast vocabulary has no place in a protocol"
        )
    if has_background != (protocol.background is not None or contrast):
        wants = (
            "needs a constant background" if has_background else "has no background class, so background must be off"
        )
        raise OVSDinoError(f"background is {protocol.background}: this data set {wants}")
    if contrast:
        protocol = replace(protocol, background=None)
    text = protocol_text(segmenter, vocabulary, protocol, partition=not contrast)

    def run(image: np.ndarray) -> tuple[np.ndarray, float, None]:
        clock = segmenter.clock()
        options: dict[str, Any] = {"batches": segmenter.batches, "dtype": segmenter.dtype, "clock": clock}
        if prior is not None:
            options["prior"] = prior
        return label_image(segmenter.model, image, text, protocol, **options), sum(clock.ms.values()), None

    return run


def protocol_text(
    segmenter: Segmenter, vocabulary: Vocabulary, protocol: Protocol, *, partition: bool = True
) -> Tensor | TextRows:
    """Return the rows of a vocabulary in the templates of a protocol, float32 on the device; see `text_rows`."""
    if protocol.templates == TEMPLATES:
        return segmenter.text_rows(vocabulary, partition)
    banks = TextBanks(segmenter.model, segmenter.device, protocol.templates, segmenter.adapted)
    return banks.rows(vocabulary, partition)


def _native(segmenter: Segmenter, vocabulary: Vocabulary, has_background: bool, options: dict[str, Any]) -> Run:
    """Return the function from an image to labels, milliseconds and confidences as `Segmenter.segment` gives them."""

    def run(image: np.ndarray) -> tuple[np.ndarray, float, np.ndarray | None]:
        result = segmenter.segment(image, vocabulary, scores=False, confidence=True, **options)
        labels = result.labels
        if has_background:  # the words are classes 1.., and the label below the threshold is class 0
            labels = np.where(labels == len(vocabulary), 0, labels.astype(np.int64) + 1)
        return labels, result.ms - result.stages_ms.get("confidence", 0.0), result.confidence

    return run


def dataset_vocabulary(
    names: Sequence[str],
    replaced: Mapping[str, str | Sequence[str]],
    average: bool = False,
    *,
    has_background: bool = False,
) -> Vocabulary:
    """Return the data set's classes with the texts given in place of some of their names; background is never a word.

    Raises:
        OVSDinoError: A key is not a class, or a text is not valid.
    """
    words = names[1:] if has_background else names
    unknown = sorted(set(replaced) - set(words))
    if unknown:
        raise OVSDinoError(f"class names: {unknown[0]!r} is not a class of this data set; it has {', '.join(words)}")
    return Vocabulary.of({name: replaced.get(name, name) for name in words}, average)


def read_class_names(path: str | Path) -> dict[str, str | list[str]]:
    """Read a JSON object from class name to text or list of texts.

    Raises:
        OVSDinoError: The file is missing, unreadable, not JSON, or no such object.
    """
    data = read_json(path, "JSON object of class names")
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
