"""Run a `Segmenter` over labeled videos and score how right and how steady its labels are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ovsdino.data.clips import Clip
from ovsdino.errors import OVSDinoError
from ovsdino.eval.davis import contour_f, region_j
from ovsdino.eval.evaluate import dataset_vocabulary
from ovsdino.eval.video_metrics import VideoMetrics, VideoScores
from ovsdino.io.ahead import read_ahead
from ovsdino.models.memory import KeyFrames, MemoryConfig
from ovsdino.pipeline import Segmenter
from ovsdino.vocabulary import Vocabulary

__all__ = ["ObjectScores", "VideoEvaluation", "evaluate_video"]


@dataclass(frozen=True, kw_only=True)
class ObjectScores:
    """DAVIS's scores of one video, means over all of its frames, and its steadiness.

    Attributes:
        word: What was looked for.
        j: Region similarity in 0..1.
        f: Contour accuracy in 0..1.
        along_flow: See `ovsdino.eval.video_metrics.Flicker`.
        mvc8: See `ovsdino.eval.video_metrics.VideoConsistency`; None for a short video.
    """

    word: str
    j: float
    f: float
    along_flow: float | None
    mvc8: float | None


@dataclass(frozen=True, kw_only=True)
class VideoEvaluation:
    """Scores of a model on labeled videos.

    Attributes:
        scores: Of all clips.
        clips: Frames of each clip, by its name.
        objects: Scores of each clip that has a word of its own.
        ms_per_frame: Mean milliseconds from the decoded frame to its labels, without the first frame.
    """

    scores: VideoScores
    clips: dict[str, int]
    objects: dict[str, ObjectScores] = field(default_factory=dict)
    ms_per_frame: float

    def to_dict(self) -> dict[str, Any]:
        """Return all scores in one dictionary, ready for JSON, rounded to five digits."""
        objects = {name: asdict(one) for name, one in self.objects.items()}
        found = {**asdict(self.scores), "clips": self.clips, "ms_per_frame": round(self.ms_per_frame, 2)}
        if objects:
            found |= {key: float(np.mean([one[key] for one in objects.values()])) for key in ("j", "f")}
            found["objects"] = objects
        rounded: dict[str, Any] = _rounded(found)
        return rounded


def evaluate_video(
    segmenter: Segmenter,
    clips: Sequence[Clip],
    *,
    memory: MemoryConfig | bool = True,
    key_frames: KeyFrames | bool = False,
    class_names: Mapping[str, str | Sequence[str]] | None = None,
    average: bool = False,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VideoEvaluation:
    """Segment the frames of each clip in order and score the labels.

    A clip with a word of its own is segmented with that word against none of the words; others with the data set's
    classes, each pixel being one of them.

    Args:
        segmenter: Model, device and number format.
        clips: Of one data set.
        memory: See `Segmenter.tracker`.
        key_frames: See `Segmenter.tracker`.
        class_names: Text, or several texts, in place of a class's own name, or of a clip's word.
        average: Average the embeddings of a class's texts.
        limit: Take the first so many frames of each clip.
        progress: Called with (done, total) after each frame.

    Raises:
        OVSDinoError: No clip is given, a number is out of range, a key is not a class, or a frame cannot be segmented.
    """
    if not clips:
        raise OVSDinoError("no clips: give at least one")
    if limit is not None and limit < 1:
        raise OVSDinoError(f"limit is {limit}: expected at least 1")
    dataset, replaced = clips[0].dataset, class_names or {}
    total = sum(len(clip.indices[:limit]) for clip in clips)
    everything = VideoMetrics(dataset.names, dataset.ignore_index, has_background=dataset.has_background)
    objects: dict[str, ObjectScores] = {}
    done, times = 0, []
    for clip in clips:
        if clip.word is None:
            vocabulary = dataset_vocabulary(dataset.names, replaced, average, has_background=dataset.has_background)
        else:
            vocabulary = Vocabulary.of({clip.word: replaced.get(clip.word, clip.word)}, average)
        settings = {"partition": clip.word is None, "scores": False, "least_share": 0.0, "least_certainty": 0.0}
        tracker = segmenter.tracker(vocabulary, memory=memory, key_frames=key_frames, **settings)
        own = VideoMetrics(dataset.names, dataset.ignore_index, has_background=dataset.has_background)
        everything.start()
        measured: list[tuple[float, float]] = []
        for sample in read_ahead(dataset.__getitem__, clip.indices[:limit]):
            result = tracker.segment(sample.image)
            labels = result.labels
            if dataset.has_background:  # the words are classes 1.., and the label after them is class 0
                labels = np.where(labels == len(vocabulary), 0, labels.astype(np.int64) + 1)
            moved = everything.update(sample.image, labels, sample.label)
            if clip.word is not None:
                own.update(sample.image, labels, sample.label, moved)
                found, truth = labels == 1, sample.label == 1
                measured.append((region_j(found, truth), contour_f(found, truth)))
            times.append(result.ms)
            done += 1
            if progress is not None:
                progress(done, total)
        if clip.word is not None:
            j, f = np.mean(measured, axis=0).tolist()
            steady = own.scores()
            objects[clip.name] = ObjectScores(
                word=clip.word, j=j, f=f, along_flow=steady.flicker.along_flow, mvc8=steady.mvc8
            )
    return VideoEvaluation(
        scores=everything.scores(),
        clips={clip.name: len(clip.indices[:limit]) for clip in clips},
        objects=objects,
        ms_per_frame=float(np.mean(times[1:] or times)),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 5) if isinstance(value, float) else value
