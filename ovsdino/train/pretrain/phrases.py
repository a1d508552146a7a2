"""The phrases that nano's text tower learns, about 100 000, and what the teacher reads for each.

| group | phrases |
|---|---|
| core | words of the benchmarks, of ImageNet's classes and their hypernyms, and those of `--extra` |
| common | ImageNet-22k's names that the teacher's vocabulary has as a word; the genera in its definitions |
| named | all other names of ImageNet-22k's synsets; the first phrases of their definitions |
| vocabulary | the other whole words of the teacher's vocabulary |
| composed | adjective and noun, noun and noun, drawn |
| plural | plurals of core and common |
| part | words of these phrases that are none themselves, and the smallest words |

A plural and a spelling of its own ("diningtable", "wall-brick") are read by the teacher as the plain name: what is seen
is the same thing.
"""

from __future__ import annotations

import json
import random
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovsdino.data import names
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_text, reading
from ovsdino.models.spelling import WORDS_MAX, words_of
from ovsdino.train.pretrain.hypernyms import Hypernyms, nouns, singular

__all__ = ["GROUPS", "Phrase", "phrase_list", "read_extra"]

GROUPS = ("core", "common", "named", "vocabulary", "composed", "plural", "part")
SETS = (names.CAMVID, names.VOC20, names.CITYSCAPES, names.ADE20K, names.CONTEXT59, names.COCO_STUFF)
# Names that are not English, as mmsegmentation spells them.
SPELLED = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
    "windowpane": "window pane",
    "playingfield": "playing field",
    "waterdrops": "water drops",
    "playing field": "playing field",
    "minibike": "mini bike",
}
MODIFIERS = (  # noqa: SIM905
    "red green blue white black yellow brown grey orange pink purple golden silver dark bright pale colorful old new "
    "small large big little tiny huge tall short long wide narrow round square flat thin thick heavy wooden metal "
    "stone plastic glass concrete brick paper leather steel rusty broken wet dry dirty clean empty full open closed "
    "parked moving distant nearby painted striped young wild cute male female standing sitting running sleeping flying "
    "hot frozen fresh raw sliced cooked modern antique electric toy folded hanging stacked fallen tropical domestic"
).split()
PLACES = (  # noqa: SIM905
    "city street road traffic garden forest snow beach sea river mountain desert farm field park kitchen bathroom "
    "bedroom office school hospital airport train bus car truck house shop factory warehouse construction police fire "
    "hotel church water air sky winter summer night baby dog cat horse bird fish fruit flower tree grass wood metal "
    "stone glass plastic rubber cotton computer video phone camera music sport football baseball tennis"
).split()
SMALLEST = "a an as at by for from go in is it my no non of off on or the to up with".split()  # noqa: SIM905
COMPOSED = 34_000
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "shelf": "shelves",
    "calf": "calves", "half": "halves", "loaf": "loaves", "scarf": "scarves", "wife": "wives", "life": "lives",
}  # fmt: skip


@dataclass(frozen=True)
class Phrase:
    """A phrase to learn.

    Attributes:
        text: As a user writes it, in lower case.
        read: What the teacher reads in its place.
        group: One of `GROUPS`.
    """

    text: str
    read: str
    group: str


def phrase_list(
    vocabulary: Sequence[str], synsets: Hypernyms, definitions: Iterable[str], extra: Iterable[str], seed: int
) -> list[Phrase]:
    """Return the phrases, each once, in the order of `GROUPS`.

    Args:
        vocabulary: Whole words that the teacher knows, most frequent first.
        synsets: Names of ImageNet-22k's synsets.
        definitions: What dictionaries say of them.
        extra: Further core phrases.
        seed: Of the composed phrases.
    """
    found: dict[tuple[str, ...], Phrase] = {}

    def add(text: str, group: str, read: str | None = None) -> None:
        words = words_of(text)
        if 0 < len(words) <= WORDS_MAX:
            text = " ".join(text.lower().split())
            found.setdefault(tuple(words), Phrase(text, read or text, group))

    # Data sets first: what they call "wall-brick" is then read as a brick wall.
    for name in (name for of in SETS for name in of):
        add(name, "core", plain(name))
    classes = [synsets.names[synset][0] for synset in synsets.classes]
    above = [synsets.names[up][0] for synset in synsets.classes for up in synsets.lineage(synset)]
    for name in (*extra, *classes, *above):
        add(name, "core", plain(name.strip().lower()))

    named = {name.lower() for of in synsets.names.values() for name in of}
    common = [word for word in vocabulary if word in named]
    genera = [list(nouns(definition)) for definition in definitions]
    known = {*vocabulary, *named}
    for name in (*common, *(name for of in genera for name in of[:3] if name in named)):
        add(name, "common")
    for name in (*sorted(named), *(name for of in genera for name in of[:2])):
        if len(words := words_of(name)) <= 4 and (name in named or all(word in known for word in words)):
            add(name, "named")
    for word in vocabulary:
        stem = next((one for one in list(singular(word))[1:] if one in named), None) if word not in named else None
        add(word, "vocabulary" if stem is None else "plural", stem)
    heads = [[p.text for p in found.values() if p.group == group and " " not in p.text] for group in GROUPS[:2]]
    rng = random.Random(seed)
    for _ in range(COMPOSED):  # half of them of the core's nouns, which are fewer
        modifier = rng.choice(rng.choice((MODIFIERS, MODIFIERS, PLACES)))
        add(f"{modifier} {rng.choice(rng.choice([*filter(None, heads)]))}", "composed")
    for phrase in [phrase for phrase in found.values() if phrase.group in ("core", "common")]:
        add(plural(phrase.text), "plural", phrase.read)
    uses = dict.fromkeys(w for words, p in found.items() for w in words if p.group in GROUPS[:3] and len(words) > 1)
    for word in (*uses, *SMALLEST):
        if len(word) > 1 and not word.isdigit():
            add(word, "part")
    return sorted(found.values(), key=lambda phrase: GROUPS.index(phrase.group))


def plain(name: str) -> str:
    """Return a data set's name in plain English: "brick wall" for "wall-brick", "floor" for "floor-other"."""
    name = " ".join(name.lower().split())
    if name in SPELLED:
        return SPELLED[name]
    head, _, kind = name.partition("-")
    if name not in names.COCO_STUFF_ONLY or not kind:
        return name
    return head if kind in ("other", "stuff") else f"{kind} {head}"


def plural(name: str) -> str:
    """Return the plural of a name: that of its last word."""
    start, _, last = name.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{start} {last}".strip()


def read_extra(path: str | Path) -> Iterator[str]:
    """Yield the phrases of a file: lines of text, the words of a JSON mapping, or the captions of a zip.

    A line may name several, as those of `ovsdino/contrast.txt` do: "car: automobile, vehicle".

    Raises:
        OVSDinoError: It cannot be read.
    """
    path = Path(path)
    if path.suffix == ".zip":
        with reading(path, "zip with captions.jsonl"), zipfile.ZipFile(path) as archive:
            for line in archive.read("captions.jsonl").decode().splitlines():
                yield json.loads(line)["caption"]
        return
    text = read_text(path, "list of phrases", "see --extra")
    if path.suffix != ".json":
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                yield from (one.strip() for one in re.split("[:,]", line) if one.strip())
        return
    with reading(path, "mapping of words"):
        tree = json.loads(text)
        if not isinstance(tree, Mapping):
            raise OVSDinoError(f"{path}: expected a mapping from a class to its words")
        for name, words in tree.items():
            yield from (name, *([words] if isinstance(words, str) else words))
