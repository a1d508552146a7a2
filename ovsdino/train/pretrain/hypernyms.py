"""The names of ImageNet's classes and of all that they are kinds of: `python -m ovsdino.train.pretrain.hypernyms`.

ImageNet's synset ids are offsets in WordNet 3.0, so its noun file has the true hypernyms. The command copies the part
that the 1 000 classes need into a small table, with WordNet's licence, which allows it and asks to travel along.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write, read_bytes, read_json, read_text, reading
from ovsdino.parsing import run_script

CLASSES = 1000
# Above these everything is a kind of everything: as words they tell no picture from another.
GENERAL = frozenset(
    """abstraction artifact attribute causal_agent chordate entity instrumentality living_thing matter measure object
    organism physical_entity placental relation substance thing unit vertebrate whole""".split()  # noqa: SIM905
)
CLOTHING, PERSON = "n03051540", "n00007846"
PEOPLE = ("people", "man")  # said of a person as often as the names that WordNet has


@dataclass(frozen=True)
class Hypernyms:
    """Classes, and the synsets that they lie under.

    Attributes:
        classes: Synsets of ImageNet's 1 000 classes in their order.
        names: Names of each synset, the usual one first.
        above: Synsets of which each is a kind.
    """

    classes: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    above: dict[str, tuple[str, ...]]

    def lineage(self, synset: str) -> list[str]:
        """Return a synset and all above it, nearest first, each once."""
        found, level = [synset], [synset]
        while level:
            level = list(dict.fromkeys(up for one in level for up in self.above[one] if up not in found))
            found += level
        return found

    def words(self, synset: str) -> list[str]:
        """Return all names that a picture of a synset can be called by, in lower case.

        Whoever wears it is in the picture of a piece of clothing: it has the names of a person too.
        """
        lineage = self.lineage(synset)
        named = [one for one in lineage if self.names[one][0].replace(" ", "_").lower() not in GENERAL]
        found = [name.lower() for one in named for name in self.names[one]]
        if CLOTHING in lineage:
            found += [*(name.lower() for name in self.names[PERSON]), *PEOPLE]
        return list(dict.fromkeys(found))

    def membership(self, words: Sequence[str]) -> np.ndarray:
        """Return which class can be called by which word, (1000, n) bool."""
        place = {word: i for i, word in enumerate(words)}
        table = np.zeros((len(self.classes), len(words)), bool)
        for row, synset in enumerate(self.classes):
            table[row, [place[word] for word in self.words(synset) if word in place]] = True
        return table

    def of_word(self, word: str) -> str | None:
        """Return the synset that a word names: the one it is the usual name of, else any; plurals in s as well."""
        for spelled in (word.lower(), word.lower().removesuffix("s")):
            for first in (True, False):
                for synset, names in self.names.items():
                    if spelled in [name.lower() for name in (names[:1] if first else names)]:
                        return synset
        return None


def read_hypernyms(path: str | Path) -> Hypernyms:
    """Return the table of a file that this module wrote.

    Raises:
        OVSDinoError: The file is missing or damaged.
    """
    kind = "table of hypernyms"
    tree = read_json(path, kind)
    with reading(path, kind):
        synsets = {
            str(k): (tuple(map(str, v["names"])), tuple(map(str, v["above"]))) for k, v in tree["synsets"].items()
        }
        table = Hypernyms(
            classes=tuple(map(str, tree["classes"])),
            names={k: names for k, (names, _) in synsets.items()},
            above={k: above for k, (_, above) in synsets.items()},
        )
        if len(table.classes) != CLASSES or not all(table.names.values()):
            raise ValueError(f"{len(table.classes)} classes, expected {CLASSES}, each with a name")
        for synset in (*table.classes, PERSON):
            table.lineage(synset)
    return table


def read_nouns(lines: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield (synset, names, synsets above it) for the lines of WordNet's data.noun (its manual page wndb(5WN))."""
    for line in lines:
        if not line or line.startswith(" "):  # the licence
            continue
        fields = line.partition("|")[0].split()
        count = int(fields[3], 16)
        names = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
        pointers = fields[5 + 2 * count :]
        above = tuple(
            f"n{pointers[i + 1]}" for i in range(0, 4 * int(fields[4 + 2 * count]), 4) if pointers[i] in ("@", "@i")
        )
        yield f"n{fields[0]}", names, above


@dataclass(frozen=True, kw_only=True)
class MakeTable:
    """Write the names and hypernyms of ImageNet's 1 000 classes."""

    wordnet: Path
    """Folder of WordNet 3.0's database, with data.noun in it."""
    licence: Path
    """File of WordNet's licence, copied into the table."""
    output: Path = Path("configs/imagenet_hypernyms.json")
    """File to write."""

    def run(self) -> int:
        """Write the table; return the exit code.

        Raises:
            OVSDinoError: A file is missing, or it is another version of WordNet.
        """
        from timm.data import ImageNetInfo

        data = read_bytes(self.wordnet / "data.noun", "noun file of WordNet").decode("latin-1")
        nouns = {synset: (names, above) for synset, names, above in read_nouns(data.split("\n"))}
        info = ImageNetInfo("imagenet-1k")
        classes = [info.index_to_label_name(i) for i in range(CLASSES)]
        if any(synset not in nouns for synset in (*classes, CLOTHING, PERSON)):
            raise OVSDinoError(f"{self.wordnet}: not WordNet 3.0, whose offsets are ImageNet's synset ids")
        whole = Hypernyms(tuple(classes), {k: v[0] for k, v in nouns.items()}, {k: v[1] for k, v in nouns.items()})
        kept = sorted({one for synset in (*classes, PERSON) for one in whole.lineage(synset)})
        tree = {
            "licence": " ".join(read_text(self.licence, "licence").split()),
            "classes": classes,
            "synsets": {one: {"names": whole.names[one], "above": whole.above[one]} for one in kept},
        }
        with atomic_write(self.output) as file:
            file.write(json.dumps(tree, separators=(",", ":")).replace('},"n', '},\n"n').encode() + b"\n")
        print(f"{self.output}: {len(classes)} classes, {len(kept)} synsets")
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_script(MakeTable, "python -m ovsdino.train.pretrain.hypernyms", argv)


if __name__ == "__main__":
    raise SystemExit(main())
