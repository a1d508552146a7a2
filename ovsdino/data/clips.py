"""Labeled videos: a data set whose files are consecutive frames, and DAVIS 2016 with a word for each video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from ovsdino.data.labels import table
from ovsdino.data.segmentation import Entry, Sample, SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.tree import FileTree
from ovsdino.vocabulary import BACKGROUND

__all__ = ["DAVIS_WORDS", "Clip", "clips_of", "open_davis"]

# One plain noun for the object of each video, chosen from the videos' names before anything was run. Soapbox is a
# home-made cart with two people in it.
DAVIS_WORDS = {
    "blackswan": "swan",
    "car-shadow": "car",
    "cows": "cow",
    "dog": "dog",
    "goat": "goat",
    "soapbox": "cart",
}
OBJECT = 255  # a DAVIS mask's value of the object


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of a data set.

    Attributes:
        name: What the frames' names begin with.
        dataset: Where they are read from.
        indices: Their places in it, in order of time.
        word: What is looked for in this clip alone; None where the data set's classes are.
    """

    name: str
    dataset: SegmentationDataset
    indices: tuple[int, ...]
    word: str | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Sample]:
        return (self.dataset[index] for index in self.indices)


def clips_of(dataset: SegmentationDataset) -> list[Clip]:
    """Return a data set's frames in clips: names that are alike but for a last number, which grows by an even step.

    The step is the commonest one between frames of a name. A clip ends where the number jumps by another one.

    Args:
        dataset: Its stems, sorted, are in order of time: seq_0001, seq_0002, or seq/0001, seq/0002.

    Raises:
        OVSDinoError: A name has no number, or no two frames follow each other.
    """
    named: dict[str, list[tuple[int, int]]] = {}
    for index, stem in enumerate(dataset.stems):
        match = re.fullmatch(r"(.*?)(\d+)", stem)
        if match is None:
            raise OVSDinoError(f"{dataset.source}: {stem!r} ends in no number; frames of a video are numbered")
        named.setdefault(match[1], []).append((int(match[2]), index))
    clips: list[Clip] = []
    for prefix, frames in named.items():
        frames.sort()
        steps = Counter(after - before for (before, _), (after, _) in pairwise(frames))
        usual = steps.most_common(1)[0][0] if steps else 0
        run = [frames[0]]
        for frame in [*frames[1:], None]:
            if frame is not None and frame[0] - run[-1][0] == usual:
                run.append(frame)
                continue
            if len(run) > 1:
                clips.append(Clip(f"{prefix}{run[0][0]}".replace("/", "_"), dataset, tuple(i for _, i in run)))
            run = [] if frame is None else [frame]
    if not clips:
        raise OVSDinoError(f"{dataset.source}: no two frames follow each other: this is not a video")
    return clips


def open_davis(root: str | Path, split: str = "val") -> list[Clip]:
    """Open videos of DAVIS 2016 (Perazzi et al., CVPR 2016): one object each, its mask in every frame.

    Labels are 0 for the background and 1 for the object.

    Args:
        root: Folder that holds `davis2016_<split>.zip`, or `davis2016_<split>/`; in it VIDEO/images/*.jpg and
            VIDEO/masks/*.png (0 and 255).
        split: Part of the data set.

    Raises:
        OVSDinoError: Nothing is found, a mask is missing, or a video has no word in `DAVIS_WORDS`.
    """
    places = [Path(root) / f"davis2016_{split}{suffix}" for suffix in (".zip", "")]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise OVSDinoError(f"{root}: neither {places[0].name} nor {places[1].name}/ found there")
    names = FileTree(source).names()
    entries: dict[str, list[Entry]] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.parent.name == "images":
            video, mask = path.parent.parent.name, path.parent.parent / "masks" / f"{path.stem}.png"
            if mask.as_posix() not in set(names):
                raise OVSDinoError(f"{source}: {mask} is missing, the mask of {name}")
            entries.setdefault(video, []).append(Entry(f"{video}/{path.stem}", name, mask.as_posix()))
    if not entries:
        raise OVSDinoError(f"{source}: no VIDEO/images found in it")
    if unknown := sorted(entries.keys() - DAVIS_WORDS.keys()):
        raise OVSDinoError(f"{source}: no word is known for the video {unknown[0]!r}; known: {', '.join(DAVIS_WORDS)}")
    flat = [entry for video in sorted(entries) for entry in entries[video]]
    ids = table({0: 0, OBJECT: 1})
    dataset = SegmentationDataset(source, (BACKGROUND, "object"), flat, table=ids, has_background=True)
    found: list[Clip] = []
    start = 0
    for video in sorted(entries):
        stop = start + len(entries[video])
        found.append(Clip(video, dataset, tuple(range(start, stop)), DAVIS_WORDS[video]))
        start = stop
    return found
