"""The evidence for the words of the shipped model, one section of the report each.

    python benchmarks/studies/words.py --root data --json --output benchmarks/results/words_nano.json

- street: `road,car,sky` with nothing else named, "car" alone, and "zebra", on every tenth image of CamVid val.
- found: how often a word that is there is found, and one that is not, on images of CamVid and VOC21, train and val.
- nonsense: ten words that mean nothing; each must be warned of.
- synonyms: fifty words of `configs/street_synonyms.json`, each in the place of its class's name, on the same images.
- datasets: `ovsdino eval` on CamVid, VOC20, VOC21 and LabelMeFacade val; the last has no image in any training.
- adapt: `ovsdino adapt` to three classes of VOC by ten training images each, scored on voc21_val.
- adapt_all: the same for every class of VOC under names that say nothing, by three draws of ten images.
- novelty: how often photographs, and images unlike them, are warned of.
- sheet: forty photographs that nobody chose, written to --sheet.
- time: a photograph of 480 x 360 end to end, in turn with the nano of an earlier checkout (--against PATH).

A report that --output already holds keeps its other sections, if they were measured with the same weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ovsdino.benchmarks.lib.board import cpu_name
from ovsdino.benchmarks.lib.contact_sheet import PARTS, contact_sheet
from ovsdino.benchmarks.lib.data_scores import DATASETS, adapt_all, adapt_score, dataset_scores
from ovsdino.benchmarks.lib.found_words import found_words
from ovsdino.benchmarks.lib.models_page import MARKER, UNTAUGHT, lines, table
from ovsdino.benchmarks.lib.older import time_against
from ovsdino.benchmarks.lib.report import RESULTS, ROOT, ReportOptions, json_text, placed, save
from ovsdino.benchmarks.lib.street_words import few_words, nonsense_words, read_synonyms, synonym_words
from ovsdino.benchmarks.lib.unlike_images import warnings_of
from ovsdino.data.datasets import open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.models.weights import weights_digest
from ovsdino.options import ModelOptions, data_root
from ovsdino.parsing import run_script
from ovsdino.pipeline import Segmenter
from ovsdino.vocabulary import Vocabulary

PAGE = ROOT / "docs" / "models.md"
SECTIONS = ("street", "found", "nonsense", "synonyms", "datasets", "adapt", "adapt_all", "novelty", "sheet", "time")
STREET = "sky,building,pole,road,sidewalk,tree,sign,fence,car,pedestrian,bicyclist"


@dataclass(frozen=True, kw_only=True)
class Words(ModelOptions, ReportOptions):
    """Measure what the shipped model knows beyond its training names, and what it says when it does not know."""

    root: Path | None = None
    """Folder with the data sets' zips. Default: $OVSDINO_DATA."""
    sections: tuple[str, ...] = ()
    """street, found, nonsense, synonyms, datasets, adapt, adapt_all, novelty, sheet, time. Default: all; time needs
    --against."""
    every: int = 10
    """street and synonyms take each so many-th image of CamVid val."""
    limit: int | None = None
    """datasets, adapt and adapt_all take the first N images of a data set only."""
    adapt_words: str = "bottle,chair,sofa"
    """adapt learns these classes of VOC."""
    sheet: Path = ROOT / "docs" / "photographs.jpg"
    """The sheet of photographs to write."""
    against: Path | None = None
    """Checkout of an earlier version, built, whose nano time is measured against."""

    page: bool = False
    """Measure nothing: write the tables of docs/models.md from the results words_nano.json and adapt_lite2.json."""

    def run(self) -> int:
        if self.page:
            save(PAGE, filled(PAGE.read_text(encoding="utf-8")))
            return 0
        wanted = self.sections or tuple(name for name in SECTIONS if name != "time" or self.against)
        unknown = next((name for name in wanted if name not in SECTIONS), None)
        if unknown is not None:
            raise OVSDinoError(f"no such section: {unknown}; known: {', '.join(SECTIONS)}")
        if self.every < 1:
            raise OVSDinoError(f"--every is {self.every}: expected 1 or more")
        segmenter = Segmenter(self.load_model(), "cpu")
        facts = {"model": segmenter.name, "weights": weights_digest(segmenter.model)}
        report = facts | self._earlier(facts)
        for name in wanted:
            report[name] = MEASURES[name](self, segmenter)
            report = {key: report[key] for key in (*facts, *SECTIONS) if key in report}
            if self.output is not None:  # a run that is stopped keeps what it has
                save(self.output, json_text(report))
        return self.publish(report, text)

    @property
    def place(self) -> Path:
        """The folder of the data sets."""
        return data_root(self.root)

    def _earlier(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the sections that --output holds of the same weights."""
        if self.output is None or not self.output.is_file():
            return {}
        earlier = json.loads(self.output.read_text(encoding="utf-8"))
        same = all(earlier.get(name) == value for name, value in facts.items())
        return {name: earlier[name] for name in SECTIONS if name in earlier} if same else {}


def street(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of few words."""
    data = open_dataset("camvid", options.place)
    return few_words(segmenter, data, range(0, len(data), options.every))


def found(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of words that are there or not: twelve images or so of each data set and split."""
    report = {}
    for name in ("camvid", "voc21"):
        for split in ("train", "val"):
            data = open_dataset(name, options.place, split)
            report[f"{name} {split}"] = found_words(segmenter, data, range(0, len(data), max(1, len(data) // 12)))
    return report


def unlike(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of images unlike the known ones."""
    return warnings_of(segmenter, options.place)


def nonsense(options: Words, segmenter: Segmenter) -> list[dict[str, Any]]:
    """Return the section of words that mean nothing, asked of the first image of CamVid val."""
    return nonsense_words(segmenter, open_dataset("camvid", options.place)[0].image)


def synonyms(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of synonyms."""
    data = open_dataset("camvid", options.place)
    words = read_synonyms(ROOT / "configs" / "street_synonyms.json")
    return synonym_words(segmenter, data, range(0, len(data), options.every), words)


def datasets(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of `ovsdino eval`."""
    return dataset_scores(options, options.place, DATASETS, options.limit)


def own(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of `ovsdino adapt`."""
    words = Vocabulary.of(options.adapt_words).names
    return adapt_score(segmenter, options.place, words, limit=options.limit)


def every_class(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of `ovsdino adapt` for all classes of VOC."""
    return adapt_all(segmenter, options.place, limit=options.limit)


def sheet(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Write the sheet of photographs, and return its section."""
    count = contact_sheet(segmenter, options.place, options.sheet)
    return {"file": options.sheet.name, "photographs": count, "parts": [asdict(part) for part in PARTS]}


def against(options: Words, segmenter: Segmenter) -> dict[str, Any]:
    """Return the section of times."""
    if options.against is None:
        raise OVSDinoError("time needs --against PATH, a checkout of an earlier version")
    image = open_dataset("camvid", options.place)[0].image

    def ours() -> object:
        return segmenter.segment(image, STREET, scores=False)

    with tempfile.TemporaryDirectory() as folder:
        found = time_against(ours, options.against, image, STREET, Path(folder))
    return {"size": list(image.shape[:2]), "threads": torch.get_num_threads(), "cpu": cpu_name(), **found}


MEASURES: dict[str, Callable[[Words, Segmenter], Any]] = {
    "street": street,
    "found": found,
    "nonsense": nonsense,
    "synonyms": synonyms,
    "datasets": datasets,
    "adapt": own,
    "adapt_all": every_class,
    "novelty": unlike,
    "sheet": sheet,
    "time": against,
}


def text(report: dict[str, Any]) -> str:
    """Return the report as lines."""
    return "\n".join([f"{report['model']} {report['weights'][:12]}", *lines(report)])


def filled(page: str, results: Path = RESULTS) -> str:
    """Return docs/models.md with its tables made anew; without a file it says so."""
    for name in (MARKER, UNTAUGHT):
        path = results / name
        page = placed(page, name, table(json.loads(path.read_text())) if path.is_file() else "Not measured.")
    return page


if __name__ == "__main__":
    raise SystemExit(run_script(Words, "words.py"))
