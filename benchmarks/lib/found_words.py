"""The words that are found, each asked for alone: those that are there, and those that are not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.labeling import sure_shares
from ovsdino.pipeline import Segmenter
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, SURE_SHARE

__all__ = ["FOREIGN", "found_words"]

FOREIGN = (
    "giraffe", "elephant", "lion", "whale", "penguin", "piano", "guitar", "teapot", "helicopter", "kangaroo",
    "octopus", "tiger", "pizza", "umbrella", "snake",
)  # fmt: skip
RULES = {"share": 0.0, "share and certainty": LEAST_CERTAINTY}


def found_words(segmenter: Segmenter, data: SegmentationDataset, indices: Sequence[int]) -> dict[str, Any]:
    """Return the shares of words found by each of `RULES`, at the grid of the logits.

    Args:
        segmenter: The model.
        data: Images with labels; its names and `FOREIGN` are the words.
        indices: The images.

    Returns:
        "images"; for each rule "there": the share of (image, class) found whose labels cover at least the least share
        of the image, "classes": the same by class, and "absent": the share of (image, word) found whose word has no
        label; "counts": how many (image, class) and (image, word) these are.
    """
    names = {name: at for at, name in enumerate(data.names) if not (data.has_background and at == 0)}
    rows = {word: segmenter.text_rows([word], partition=False) for word in (*names, *FOREIGN)}
    seen: dict[str, dict[str, list[bool]]] = {rule: defaultdict(list) for rule in RULES}
    absent: dict[str, list[bool]] = {rule: [] for rule in RULES}
    for index in indices:
        sample = data[index]
        features = segmenter.encode_image(sample.image)
        for word, text in rows.items():
            share = float((sample.label == names[word]).mean()) if word in names else 0.0
            if 0 < share < LEAST_SHARE:
                continue
            with torch.inference_mode():
                logits = segmenter.decode(features, text)
                painted = sure_shares(logits, 0.0)[0]
                for rule, certainty in RULES.items():
                    found = painted >= LEAST_SHARE and sure_shares(logits, certainty)[0] >= SURE_SHARE
                    (seen[rule][word] if share else absent[rule]).append(bool(found))
    report: dict[str, Any] = {"images": len(indices)}
    for rule in RULES:
        there = [found for classes in seen[rule].values() for found in classes]
        report[rule] = {
            "there": _mean(there),
            "absent": _mean(absent[rule]),
            "classes": {name: _mean(found) for name, found in sorted(seen[rule].items())},
        }
        report["counts"] = [len(there), len(absent[rule])]
    return report


def _mean(found: Sequence[bool]) -> float | None:
    return round(sum(found) / len(found), 5) if found else None
