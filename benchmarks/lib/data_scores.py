"""The scores of a model on the data sets of the evidence by `ovsdino eval`, and the gain of `ovsdino adapt`."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovsdino.benchmarks.lib.report import ROOT
from ovsdino.commands.eval import Eval
from ovsdino.data.datasets import open_dataset
from ovsdino.eval.evaluate import evaluate
from ovsdino.eval.metrics import Summary
from ovsdino.options import ModelOptions
from ovsdino.pipeline import Segmenter
from ovsdino.train.adapt.session import Lesson, adapt, choose_images, lesson_of

__all__ = ["DATASETS", "TRIPLES", "adapt_all", "adapt_score", "dataset_scores"]

FACADE = "labelmefacade"
FACADE_NAMES = ROOT / "configs" / "labelmefacade_names.json"
DATASETS = ("camvid", "voc20", "voc21", FACADE)
# The classes of VOC, up to three at a time: first those of `adapt_score`, then all others in VOC's order.
TRIPLES = (
    ("bottle", "chair", "sofa"),
    ("aeroplane", "bicycle", "bird"),
    ("boat", "bus", "car"),
    ("cat", "cow", "diningtable"),
    ("dog", "horse", "motorbike"),
    ("person", "pottedplant", "sheep"),
    ("train", "tvmonitor"),
)
KEPT = ("images", "miou", "pixel_accuracy", "boundary_f1", "boundary_iou", "iou", "ece", "protocol")


def dataset_scores(
    model: ModelOptions, root: Path, names: Sequence[str] = DATASETS, limit: int | None = None
) -> dict[str, Any]:
    """Return the report of `ovsdino eval --split val` on each data set, as that command prints it by default.

    The benchmarks' protocol resizes and slides a window; so they are scored as `ovsdino segment` sees an image too,
    under the name of the data set and "native". LabelMeFacade is scored by several words for each class too, those of
    configs/labelmefacade_names.json.

    Args:
        model: The model and its weights.
        root: Folder with the data sets' zips.
        names: Of `DATASETS`.
        limit: Take the first so many images only.
    """
    found = {}
    for name in names:
        with _folder(root, name) as (dataset, place):
            options: dict[str, Any] = {
                "model": model.model,
                "checkpoint": model.checkpoint,
                "dataset": dataset,
                "root": place,
            }
            options |= {"limit": limit, "device": "cpu", "json": True}
            found[name] = _report(Eval(**options))
            if found[name]["protocol"]["name"] != "native":
                found[f"{name} native"] = _report(Eval(**options, protocol="native"))
            if name == FACADE:
                found[f"{name} several words"] = _report(Eval(**options, class_names=FACADE_NAMES))
    return found


def adapt_score(
    segmenter: Segmenter, root: Path, words: Sequence[str], per_word: int = 10, limit: int | None = None
) -> dict[str, Any]:
    """Return the change that adapting to words of VOC makes on voc21_val; the background is none of the words.

    It is done twice: with the words as they are, and with names that say nothing, as somebody's own things have.

    Args:
        segmenter: The model.
        root: Folder with voc21_train.zip and voc21_val.zip.
        words: Classes of VOC.
        per_word: Training images for each.
        limit: Take the first so many images of val only.

    Returns:
        For "words" and "own names" the words, images and steps, and for each of them IoU before and after, with the
        mean over the other words and over all classes.
    """
    train, val = (open_dataset("voc21", root, split) for split in ("train", "val"))
    plain = lesson_of(train, words)
    chosen = choose_images(plain, per_word)
    found = {}
    for kind in ("words", "own names"):
        renamed = {} if kind == "words" else _renamed(words)
        lesson = _asked(plain, renamed)
        result = adapt(segmenter, lesson, chosen)
        before, after = (
            evaluate(each, val, class_names=renamed, contrast=True, limit=limit).scores
            for each in (segmenter, segmenter.adapted_to(result.adapted))
        )
        mean = [_others(plain, words, before, each) for each in (before, after)]
        found[kind] = {
            "images": result.images,
            "val_images": len(val) if limit is None else min(limit, len(val)),
            "steps": result.steps,
            "iou": {word: [_rounded(s.iou[word]) for s in (before, after)] for word in words},
            "others": [_rounded(value) for value in mean],
            "miou": [_rounded(s.miou) for s in (before, after)],
        }
    return found


def adapt_all(
    segmenter: Segmenter,
    root: Path,
    triples: Sequence[tuple[str, ...]] = TRIPLES,
    per_word: int = 10,
    subsets: int = 3,
    limit: int | None = None,
) -> dict[str, Any]:
    """Return the change that adapting makes for every class of VOC, up to three at a time, by names that say nothing.

    Args:
        segmenter: The model.
        root: Folder with voc21_train.zip and voc21_val.zip.
        triples: The classes that are learned at a time; the others go by VOC's names.
        per_word: Training images for each.
        subsets: So many draws of these images: the first in the data set, then random ones.
        limit: Take the first so many images of val only.

    Returns:
        For each class the IoU on val by VOC's name, and by the name that says nothing before and, for each draw, after;
        and for each run the change of the mean over the words that were not learned.
    """
    train, val = (open_dataset("voc21", root, split) for split in ("train", "val"))
    named = evaluate(segmenter, val, contrast=True, limit=limit).scores
    classes: dict[str, Any] = {}
    others = []
    for words in triples:
        plain, renamed = lesson_of(train, words), _renamed(words)
        before = evaluate(segmenter, val, class_names=renamed, contrast=True, limit=limit).scores
        for word in words:
            classes[word] = {"named": _rounded(named.iou[word]), "before": _rounded(before.iou[word]), "after": []}
        for draw in range(subsets):
            chosen = choose_images(plain, per_word, seed=draw or None)
            own = segmenter.adapted_to(adapt(segmenter, _asked(plain, renamed), chosen).adapted)
            after = evaluate(own, val, class_names=renamed, contrast=True, limit=limit).scores
            for word in words:
                classes[word]["after"].append(_rounded(after.iou[word]))
            others.append(_rounded(_others(plain, words, before, after) - _others(plain, words, before, before)))
    count = len(val) if limit is None else min(limit, len(val))
    return {"val_images": count, "per_word": per_word, "subsets": subsets, "classes": classes, "others": others}


def _renamed(words: Sequence[str]) -> dict[str, str]:
    """Return names that say nothing, as somebody's own things have."""
    return {word: f"my thing {at + 1}" for at, word in enumerate(words)}


def _asked(plain: Lesson, renamed: dict[str, str]) -> Lesson:
    """Return a lesson with other names for some of its words."""
    names = tuple(renamed.get(name, name) for name in plain.words)
    return Lesson(data=plain.data, words=names, classes=plain.classes, none=plain.none, learned=plain.learned)


def _others(plain: Lesson, words: Sequence[str], before: Summary, scores: Summary) -> float:
    """Return the mean IoU of the words that are not learned, of those that have one before."""
    names = [name for name in plain.words if name not in words and before.iou[name] is not None]
    return sum(float(scores.iou[name] or 0) for name in names) / max(1, len(names))


@contextlib.contextmanager
def _folder(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield the name and root that `ovsdino eval` takes for a data set; a zip in the layout of `folder` is unpacked."""
    if name != FACADE:
        yield name, root
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(root / f"{name}_val.zip") as archive:
        archive.extractall(folder)
        yield "folder", Path(folder)


def _report(command: Eval) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        command.run()
    report = json.loads(out.getvalue())
    return {key: report[key] for key in KEPT if key in report}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)
