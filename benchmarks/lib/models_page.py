"""The table of docs/models.md, made from the report of `studies/words.py`; it needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["MARKER", "RUN", "UNTAUGHT", "lines", "table"]

MARKER = "words_nano.json"
GAIN = 0.05  # of IoU, which adapting should give
UNTAUGHT = "adapt_lite2.json"  # of a model that no pixel label taught
RUN = "python benchmarks/studies/words.py --root data --sections"
TITLES = {
    "camvid": "CamVid val, mIoU",
    "voc20": "VOC20 val, mIoU, published protocol",
    "voc20 native": "VOC20 val, mIoU, as `ovsdino segment` sees an image",
    "voc21": "VOC21 val, mIoU, published protocol",
    "voc21 native": "VOC21 val, mIoU, as `ovsdino segment` sees an image",
    "labelmefacade": "LabelMeFacade val, mIoU; none of it in training",
    "labelmefacade several words": "LabelMeFacade val by several words for each class, mIoU",
}

Row = tuple[str, str, str]  # question, figure, section


def table(report: dict[str, Any]) -> str:
    """Return the report as a table of questions, figures and commands."""
    head = ["| question | figure | command |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {what} | {figure} | `{RUN} {part}` |" for what, figure, part in rows(report))])


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    return [f"{what}: {figure}" for what, figure, _ in rows(report)]


def rows(report: dict[str, Any]) -> list[Row]:
    """Return the question, figure and section of each row, for the sections that were measured."""
    parts: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
        "street": _street,
        "found": _found,
        "nonsense": _nonsense,
        "synonyms": _synonyms,
        "datasets": _datasets,
        "adapt": _adapt,
        "adapt_all": _adapt_all,
        "novelty": _novelty,
        "sheet": _sheet,
        "time": _time,
    }
    return [(*row, name) for name, part in parts.items() if name in report for row in part(report[name])]


def _street(found: dict[str, Any]) -> list[tuple[str, str]]:
    few, (alone, iou) = found["few"], next(iter(found["alone"].items()))
    where = f"{found['images']} images of CamVid val"
    return [
        (f"`{','.join(few)}` and nothing else, {where}: IoU", ", ".join(f"{k} {v:.3f}" for k, v in few.items())),
        (f"`{alone}` alone, {where}: IoU", f"{iou:.3f}"),
        (f"`{found['absent']}`, {where}: not found on", f"{found['not_found']:.0%}"),
    ]


def _found(found: dict[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for name, scores in found.items():
        there, absent = scores["counts"]
        what = f"each word alone, {scores['images']} images of {name}: found of {there} that are there, of {absent} not"
        rules = (scores["share"], scores["share and certainty"])
        old, new = (f"{rule['there']:.1%}, {rule['absent']:.1%}" for rule in rules)
        shown.append((what, f"{new}; by its share alone {old}"))
    for word, name in (("pole", "camvid val"), ("bottle", "voc21 val")):
        share = found.get(name, {}).get("share and certainty", {}).get("classes", {}).get(word)
        if share is not None:
            shown.append((f"`{word}` alone, where it covers 0.1 % or more, {name}: found", f"{share:.0%}"))
    return shown


def _novelty(found: dict[str, Any]) -> list[tuple[str, str]]:
    def told(kinds: dict[str, Any]) -> str:
        return ", ".join(f"{name} {kind['warned']:.0%}" for name, kind in kinds.items())

    if "unlike" not in found:
        return [("images unlike the known ones: warned of", "not told, the weights were not calibrated")]
    return [
        ("images unlike photographs: warned of", told(found["unlike"])),
        ("photographs that were not trained on: warned of", told(found["photographs"])),
    ]


def _nonsense(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    warned = [entry for entry in found if entry["warned"]]
    return [("words that mean nothing: warned of", f"{len(warned)} of {len(found)}")]


def _synonyms(found: dict[str, Any]) -> list[tuple[str, str]]:
    fallen = found["fallen"]
    listed = f": {', '.join(fallen)}" if fallen else ""
    what = f"{found['words']} synonyms of CamVid's names: IoU more than {found['beyond']:.2f} below the name's own"
    return [(what, f"{len(fallen)}{listed}")]


def _datasets(found: dict[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for name, scores in found.items():
        shown.append((TITLES[name], f"{scores['miou']:.3f}"))
        if scores.get("ece") is not None:
            shown.append((f"{TITLES[name].split(',')[0]}, calibration error (ECE)", f"{scores['ece']:.3f}"))
    return shown


def _adapt(found: dict[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for kind, scores in found.items():
        own = ", ".join(f"{word} {_arrow(pair)}" for word, pair in scores["iou"].items())
        named = "" if kind == "words" else ", under names that say nothing"
        what = f"`ovsdino adapt` by {scores['images']} images{named}: IoU on {scores['val_images']} images of VOC21 val"
        shown.append((what, f"{own}; mean of the others {_arrow(scores['others'])}"))
    return shown


def _adapt_all(found: dict[str, Any]) -> list[tuple[str, str]]:
    classes, draws = found["classes"], range(found["subsets"])
    seen = {word: one for word, one in classes.items() if one["named"] is not None}
    before = sum(one["before"] for one in seen.values()) / len(seen)
    after = [sum(one["after"][draw] for one in seen.values()) / len(seen) for draw in draws]
    least = sum(min(one["after"]) - one["before"] >= GAIN for one in seen.values())
    named = sum(one["named"] for one in seen.values()) / len(seen)
    what = (
        f"`ovsdino adapt` by {found['per_word']} images a class, under names that say nothing: IoU on "
        f"{found['val_images']} images of VOC21 val"
    )
    each = ", ".join(f"{word} {_arrow([one['before'], _mean(one['after'])])}" for word, one in seen.items())
    return [
        (
            f"{what}, mean of {len(seen)} classes, {len(draws)} draws of the images",
            f"{before:.3f} → {' or '.join(f'{value:.3f}' for value in after)}; {named:.3f} by VOC's own names",
        ),
        (f"the same: classes up by {100 * GAIN:.0f} points or more in every draw", f"{least} of {len(seen)}"),
        (
            "the same: largest fall of the mean of the other words",
            f"{100 * max(0.0, -min(found['others'])):.1f} points",
        ),
        ("the same, by class, the mean of the draws", each),
    ]


def _sheet(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [("photographs that nobody chose", f"{found['photographs']}, in [{found['file']}]({found['file']})")]


def _time(found: dict[str, Any]) -> list[tuple[str, str]]:
    height, width = found["size"]
    what = (
        f"a photograph of {width} × {height} end to end, {found['threads']} threads; the earlier nano in turn with it"
    )
    return [(what, f"{found['ms']:.0f} ms; {found['older_ms']:.0f} ms")]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _arrow(pair: list[float | None]) -> str:
    return " → ".join("-" if value is None else f"{value:.3f}" for value in pair)
