"""From labelled images to adapted words: choose the images, check them, learn, and score on images held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ovsdino.data.segmentation import IGNORE_INDEX, SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.eval.metrics import Confusion
from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.text_rows import ABSENT, TextRows
from ovsdino.models.weights import weights_digest
from ovsdino.pipeline import Segmenter
from ovsdino.train.adapt.learning import (
    LearnConfig,
    Problem,
    Tokens,
    choose_steps,
    folds,
    learn,
    token_shares,
    token_vectors,
)
from ovsdino.train.adapt.starts import Seen, known_phrases, start_of
from ovsdino.vocabulary import BACKGROUND, Vocabulary, word_key

__all__ = ["Adaptation", "Lesson", "adapt", "choose_images", "lesson_of"]

MOST = 200  # images; nano's tokens of one take 0.7 MB, and `ovsdino train` serves who has more
LEAST_PIXELS = 1e-3  # share of an image that a word must have for the image to count as one that shows it
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A data set, with its words apart from what is none of them.

    Attributes:
        data: Images and labels; label ids are the indices of its names.
        words: The names that are words.
        classes: Their label ids.
        none: Label ids of pixels that belong to none of the words: a class called "background".
        learned: Indices into `words` of those to learn.
    """

    data: SegmentationDataset
    words: tuple[str, ...]
    classes: tuple[int, ...]
    none: tuple[int, ...]
    learned: tuple[int, ...]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) uint8, and its labels (H, W) int64: a word, K for none of them, or 255.

        Raises:
            OVSDinoError: A file cannot be read, the sizes differ, or an id is not a class.
        """
        image, raw = self.data.read(index)
        entry = self.data.entries[index]
        known = {*range(len(self.data.names)), self.data.ignore_index}
        unknown = self.data.unknown_ids(raw)
        if self.data.ids is not None:
            unknown = sorted(set(np.unique(raw).tolist()) - known)
        if unknown:
            raise OVSDinoError(
                f"{self.data.source}: {entry.label} holds the id {unknown[0]}; the {len(self.data.names)} names have "
                f"the ids 0 to {len(self.data.names) - 1}, and {self.data.ignore_index} stands for no label"
            )
        table = np.full(max(256, len(self.data.names)), IGNORE_INDEX, np.int64)
        table[list(self.classes)] = range(len(self.words))
        table[list(self.none)] = len(self.words)
        return image, table[np.minimum(self.data.to_classes(raw), len(table) - 1)]


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The rows that were learned, and how well they do.

    Attributes:
        adapted: The rows, without those of an earlier file.
        images: Number of images.
        steps: Steps taken; 0 where learning did not help on the images held out, so that the words keep their rows.
        words: For each learned word its name, images, pixels, the known phrase with most weight in the row it started
            from (None: its own), IoU before and after on images held out (None where it is neither labelled nor shown),
            and the length of its residual.
        others: Mean IoU of the other words that these images show, before and after; None without any.
    """

    adapted: AdaptedWords
    images: int
    steps: int
    words: tuple[dict[str, Any], ...]
    others: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return all but the rows, ready for JSON."""
        facts = asdict(self)
        del facts["adapted"]
        return {"model": self.adapted.model, "weights": self.adapted.weights, **facts}


def lesson_of(data: SegmentationDataset, words: Sequence[str] = ()) -> Lesson:
    """Return a data set as a lesson.

    Args:
        data: Images and labels.
        words: The names to learn; none of them takes all.

    Raises:
        OVSDinoError: A word is not a name of the data set, or a name is not valid as a word.
    """
    none = tuple(i for i, name in enumerate(data.names) if word_key(name) == BACKGROUND)
    classes = tuple(i for i in range(len(data.names)) if i not in none)
    if not classes:
        raise OVSDinoError(f"{data.source}: no class but {BACKGROUND}: name the things that the labels show")
    if len(classes) >= IGNORE_INDEX:
        raise OVSDinoError(f"{data.source}: {len(classes)} classes; adapt takes at most {IGNORE_INDEX - 1}")
    names = Vocabulary.of([(data.names[i],) for i in classes]).names
    places = {word_key(name): index for index, name in enumerate(names)}
    unknown = next((word for word in words if word_key(word) not in places), None)
    if unknown is not None:
        raise OVSDinoError(f"{unknown!r} is not a class of {data.source}; it has {', '.join(names)}")
    learned = sorted({places[word_key(word)] for word in words}) if words else range(len(names))
    return Lesson(data=data, words=names, classes=classes, none=none, learned=tuple(learned))


def choose_images(
    lesson: Lesson, per_word: int | None = None, limit: int | None = None, seed: int | None = None
) -> list[int]:
    """Return the indices of the images to learn from, in the data set's order.

    Args:
        lesson: The data set.
        per_word: Take the first so many images that show each learned word; None takes all images.
        limit: Look at the first so many images only.
        seed: Look at them in a random order, so that `per_word` draws others; None looks in the data set's order.

    Raises:
        OVSDinoError: A number is below 1, an image or label is bad, or there are too few or too many images.
    """
    for name, value in (("per_word", per_word), ("limit", limit)):
        if value is not None and value < 1:
            raise OVSDinoError(f"{name} is {value}: expected at least 1")
    indices = list(range(len(lesson.data) if limit is None else min(limit, len(lesson.data))))
    if seed is not None:
        np.random.default_rng(seed).shuffle(indices)
    chosen = sorted(indices) if per_word is None else _showing(lesson, indices, per_word)
    if not 2 <= len(chosen) <= MOST:
        raise OVSDinoError(
            f"{lesson.data.source}: {len(chosen)} images; adapt takes 2 to {MOST}, 5 to 50 are meant"
            + (": choose some with --limit or --per-word, or use `ovsdino train`" if len(chosen) > MOST else "")
        )
    return chosen


def adapt(
    segmenter: Segmenter,
    lesson: Lesson,
    chosen: Sequence[int],
    config: LearnConfig | None = None,
    progress: Progress | None = None,
) -> Adaptation:
    """Learn rows for the words of a lesson.

    Args:
        segmenter: The model; rows that it was adapted with already count as the words' own.
        lesson: Images, labels and words.
        chosen: Indices of the images.
        config: Settings.
        progress: Called with the stage, and how much of it is done and how much there is.

    Raises:
        OVSDinoError: A file is bad, or a word to learn has no pixel in these images.
    """
    config = config or LearnConfig()
    tell = progress or (lambda stage, done, total: None)
    seen, pixels = _seen(segmenter, lesson, chosen, tell)
    for word in lesson.learned:
        if not pixels[:, word].any():
            raise OVSDinoError(
                f"{lesson.data.source}: no pixel of {lesson.words[word]!r} in these {len(chosen)} images; label some, "
                "or name the words to learn with --words"
            )
    with torch.inference_mode():
        text = segmenter.encode_text([(word,) for word in lesson.words]).float().cpu()
    at, digest = list(lesson.learned), weights_digest(segmenter.model)

    def words_with(rows: torch.Tensor) -> AdaptedWords:
        return AdaptedWords(
            words=tuple(lesson.words[i] for i in at),
            text=text[at].clone(),
            residual=rows[at] - text[at],
            model=segmenter.name,
            weights=digest,
        )

    problem = Problem(text=text.clone(), learned=lesson.learned, scale=float(segmenter.model.log_scale.exp()))
    phrases = _start(segmenter, lesson, problem, seen, config, tell)
    parts = _tokens(segmenter.adapted_to(words_with(problem.text)), lesson, problem, seen)
    steps, held_out = choose_steps(problem, parts, config, lambda done, total: tell("learn", done, total))
    rows = problem.rows(learn(problem, parts, steps, config))
    before, after = _held_out_iou(segmenter, lesson, chosen, [words_with(rows) for rows in held_out], config, tell)
    if not np.nanmean([*after[at], 0]) > np.nanmean([*before[at], 0]):  # a pixel may see it otherwise than a token
        steps, rows, after, phrases = 0, text, before, dict.fromkeys(at)
    adapted = words_with(rows)
    rest = [i for i in range(len(lesson.words)) if i not in at and pixels[:, i].any()]
    found = [
        {
            "word": lesson.words[i],
            "images": int((pixels[:, i] > 0).sum()),
            "pixels": int(pixels[:, i].sum()),
            "start": phrases[i],
            "iou_before": _number(before[i]),
            "iou_after": _number(after[i]),
            "moved": round(float(length), 4),
        }
        for i, length in zip(at, adapted.residual.norm(dim=1), strict=True)
    ]
    return Adaptation(
        adapted=adapted,
        images=len(chosen),
        steps=steps,
        words=tuple(found),
        others=(round(float(before[rest].mean()), 5), round(float(after[rest].mean()), 5)) if rest else None,
    )


def _showing(lesson: Lesson, indices: Iterable[int], per_word: int) -> list[int]:
    """Return the first images that show each learned word."""
    chosen: set[int] = set()
    wanted = dict.fromkeys(lesson.learned, per_word)
    for index in indices:
        counts = np.bincount(lesson.read(index)[1].ravel(), minlength=IGNORE_INDEX + 1)
        for word in [w for w in wanted if counts[w] >= LEAST_PIXELS * counts.sum()]:
            chosen.add(index)
            wanted[word] -= 1
            if not wanted[word]:
                del wanted[word]
        if not wanted:
            break
    return sorted(chosen)


def _seen(segmenter: Segmenter, lesson: Lesson, chosen: Sequence[int], tell: Progress) -> tuple[list[Seen], np.ndarray]:
    """Return the tokens of each image, and the pixels of each word in it, (images, K) int64."""
    words = len(lesson.words)
    parts, pixels = [], np.zeros((len(chosen), words), np.int64)
    for done, index in enumerate(chosen):
        image, labels = lesson.read(index)
        pixels[done] = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:words]
        features = segmenter.encode_image(image)
        with torch.inference_mode():
            full, plain = token_vectors(segmenter.model, features)
            size = (features.tokens.shape[-2], features.tokens.shape[-1])
            shares = token_shares(torch.from_numpy(labels), size, words + 1)
        found = {"vectors": full, "plain": plain, "shares": shares}
        parts.append(Seen(**{name: value.cpu().clone() for name, value in found.items()}))
        tell("encode", done + 1, len(chosen))
    return parts, pixels


def _start(
    segmenter: Segmenter, lesson: Lesson, problem: Problem, seen: Sequence[Seen], config: LearnConfig, tell: Progress
) -> dict[int, str | None]:
    """Put the rows that the learned words start from into a problem's text; return the phrases they belong to."""
    known = known_phrases(segmenter)
    shares = problem.weighted(torch.cat([part.shares for part in seen]), config.others)
    vectors, plain = (torch.cat([getattr(part, name) for part in seen]) for name in ("vectors", "plain"))
    joined = Seen(vectors=vectors, plain=plain, shares=shares)
    found: dict[int, str | None] = {}
    for done, word in enumerate(lesson.learned):
        row, found[word] = start_of(word, lesson.words, problem.text, joined, known, problem.scale)
        problem.text[word] = row
        tell("start", done + 1, len(lesson.learned))
    return found


def _tokens(segmenter: Segmenter, lesson: Lesson, problem: Problem, seen: Sequence[Seen]) -> list[Tokens]:
    """Return the tokens of each image with the largest logit of the contrast phrases that compete with all words."""
    rows = segmenter.text_rows([(word,) for word in lesson.words], partition=False)
    assert isinstance(rows, TextRows) and rows.contrast is not None
    contrast = rows.contrast[rows.contrast.square().sum(1) > 0].cpu()

    def rival(part: Seen) -> torch.Tensor:
        none = torch.full((len(part.plain),), ABSENT)
        return (problem.scale * part.plain @ contrast.T).amax(1) if len(contrast) else none

    return [Tokens(vectors=part.vectors, contrast=rival(part), shares=part.shares) for part in seen]


def _held_out_iou(
    segmenter: Segmenter,
    lesson: Lesson,
    chosen: Sequence[int],
    each: Sequence[AdaptedWords],
    config: LearnConfig,
    tell: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU of each word before and after, (K,) both; an image is labelled by rows learned without it."""
    vocabulary = Vocabulary.of([(word,) for word in lesson.words])
    partition = None if not lesson.none else False
    count = len(lesson.words)
    scores = [Confusion(count + 1, IGNORE_INDEX) for _ in range(2)]
    parts = folds(len(chosen), config)
    for done, (part, adapted) in enumerate(zip(parts, each, strict=True)):
        for segment, score in zip((segmenter, segmenter.adapted_to(adapted)), scores, strict=True):
            for place in part:
                image, labels = lesson.read(chosen[place])
                found = segment.segment(image, vocabulary, partition=partition, scores=False).labels
                score.update(found.astype(np.int64), labels)
        tell("score", done + 1, len(parts))
    before, after = (score.iou()[:count] for score in scores)
    return before, after


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)
