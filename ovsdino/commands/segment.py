"""`ovsdino segment`: segment images by words, and write overlay and label pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ovsdino.console import note_escapes, print_json, progress_bar, say
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.options import SegmenterOptions
from ovsdino.parsing import Argument, OptionalValue
from ovsdino.vocabulary import DEFAULT_BACKGROUND, LEAST_CERTAINTY, LEAST_SHARE

if TYPE_CHECKING:
    from ovsdino.commands.torch_free import TorchFree
    from ovsdino.pipeline import Segmenter
    from ovsdino.results import Segmentation
    from ovsdino.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Segment(SegmenterOptions):
    """Segment images by words of your choice.

    The shipped model needs no torch: where that is not installed ONNX Runtime runs it, on the CPU, to the same labels.
    """

    images: Annotated[tuple[Path, ...], Argument("IMAGE...")]
    """Image files (JPEG, PNG, WebP, BMP, TIFF) or folders of them. A bad one does not stop the others."""
    classes: str
    """Words, separated by commas; "car|automobile" is one class of two words, "static=building|tree" names it. Or a
    file of them (.txt: one on a line; .yaml or .json: names, words, colors)."""
    average_words: bool = False
    """Average the embeddings of a class's words. Default: a class is where any of its words is."""
    output: Path = Path("segmented")
    """Folder for NAME_overlay.png (colors, borders, legend) and NAME_labels.png (class indices, palette)."""
    format: Literal["png", "jpg"] = "png"
    """Format of the overlay: jpg takes a twentieth of the time and space of a large photograph's png."""
    annotations: Literal["coco", "yolo", "labelme"] | None = None
    """Also write a file that labeling tools read: yolo NAME.txt, labelme NAME.json, coco one annotations.json."""
    background: Annotated[float | None, OptionalValue("T", DEFAULT_BACKGROUND)] = None
    """Leave pixels less certain than T (0..1, 0.5 if no number follows) unlabeled."""
    partition: bool | None = None
    """Give every pixel one of the words. Default: pixels of none of the words stay unlabeled, if the model was made
    for that, as nano is; --no-partition asks any model for it."""
    least_share: float = LEAST_SHARE
    """Share of the image below which a word is not found, and not painted; of no effect in a partition."""
    least_certainty: float = LEAST_CERTAINTY
    """Probability, against none of the words, that a word must reach somewhere to be found; of no effect in a
    partition."""
    window: int | None = None
    """Side of a sliding window in pixels of the resized image. Default: the whole image at once."""
    stride: int | None = None
    """Step of the window. Default: half of it."""
    warm_up: bool = False
    """Segment the first image of each shape once before it is timed, so that its "ms" has no allocation or compilation
    of a first call in it."""
    json: bool = False
    """Print one JSON object on stdout; "ms" is the time of reading, resizing, network and labels, without writing the
    pictures."""

    def run(self) -> int:
        from ovsdino.io.files import file_identity
        from ovsdino.vocabulary import Vocabulary

        vocabulary = Vocabulary.of(self.classes, self.average_words)
        paths, entries = self._expand()
        stems = unique_stems(paths)
        for path, stem in zip(paths, stems, strict=True):
            if stem != path.stem:
                say(f"note: {path}: another image is called {path.stem}, so this one is written as {stem}")
        if not self.json:
            encoding = sys.stdout.encoding or "utf-8"
            note_escapes([*paths, *vocabulary.names], encoding, f"in this output, which is {encoding}")
        worker = _Worker(self, vocabulary, {file_identity(path) for path in paths} - {None})
        with progress_bar(len(paths) > 1) as progress:
            task = progress.add_task("segment", total=len(paths))
            for path, stem in zip(paths, stems, strict=True):
                entries.append(worker.one(path, stem))
                progress.advance(task)
        worker.finish()
        if self.json:
            device = str(worker.segmenter.device) if worker.segmenter else self.device
            print_json({"images": entries, "model": self.model, "device": device})
        return 2 if any("error" in entry for entry in entries) else 0

    @property
    def windowed(self) -> bool:
        """Whether a sliding window was asked for."""
        return self.window is not None or self.stride is not None

    def _expand(self) -> tuple[list[Path], list[dict[str, Any]]]:
        """Return the files to segment, and an entry for each folder that gives none.

        Raises:
            OVSDinoError: Nothing was given.
        """
        from ovsdino.io.images import expand_paths

        paths: list[Path] = []
        errors: list[tuple[Path, OVSDinoError]] = []
        for path in self.images:
            try:
                paths += expand_paths([path])
            except OVSDinoError as error:
                errors.append((path, error))
        if not paths:
            raise errors[0][1] if errors else OVSDinoError("no images given: name at least one file or folder")
        return paths, [failed(path, error) for path, error in errors]


class _Worker:
    """Segment one file after another; the model is loaded when the first readable image is there."""

    def __init__(self, options: Segment, vocabulary: Vocabulary, inputs: set[Any]) -> None:
        self.options = options
        self.vocabulary = vocabulary
        self.inputs = inputs
        self.segmenter: Segmenter | TorchFree | None = None
        self.warm: set[tuple[int, ...]] = set()
        self.coco: dict[str, Any] = {"images": [], "annotations": []}

    def one(self, path: Path, stem: str) -> dict[str, Any]:
        """Read, segment and write one image, and return its JSON entry."""
        from ovsdino.io.files import refuse_inputs
        from ovsdino.io.images import load_image
        from ovsdino.timing import Clock

        clock = Clock()
        try:
            with clock("load"):
                pixels = load_image(path)
            ends = [f"_overlay.{self.options.format}", "_labels.png"]
            ends += [{"yolo": ".txt", "labelme": ".json"}.get(self.options.annotations or "", "_labels.png")]
            refuse_inputs((self.options.output / f"{stem}{end}" for end in ends), self.inputs)
        except OVSDinoError as error:
            return failed(path, error)
        if self.segmenter is None:
            self.segmenter = self._load()
        options: dict[str, Any] = {
            "background": self.options.background,
            "partition": self.options.partition,
            "least_share": self.options.least_share,
            "least_certainty": self.options.least_certainty,
        }
        if self.options.windowed:
            options |= {"window": self.options.window, "stride": self.options.stride}
        if self.options.warm_up and pixels.shape not in self.warm:
            self.segmenter.segment(pixels, self.vocabulary, **options)
            self.warm.add(pixels.shape)
        try:
            result = self.segmenter.segment(pixels, self.vocabulary, **options)
            written = result.save(self.options.output, stem, format=self.options.format)
            self._annotate(replace(result, source=str(path)), stem)
        except OVSDinoError as error:
            return failed(path, error)
        result.stages_ms["load"] += clock.ms["load"]
        found = result.to_dict()
        if not self.options.json:
            shares = sorted(found["classes"], key=lambda entry: -entry["fraction"])
            listed = ", ".join(f"{entry['name']} {entry['fraction']:.1%}" for entry in shares if entry["fraction"] > 0)
            missing = ", ".join(entry["name"] for entry in found["classes"] if entry["found"] is False)
            listed += f"; not found: {missing}" if missing else ""
            print(f"{one_line(path)} -> {one_line(written['overlay'])}: {listed}", flush=True)
        return {"path": str(path), "output": str(written["overlay"]), "labels": str(written["labels"]), **found}

    def _load(self) -> Segmenter | TorchFree:
        """Return the segmenter: PyTorch's, or ONNX Runtime's where torch is not installed and nothing needs it."""
        from ovsdino.commands.torch_free import TorchFree, torch_free

        if torch_free(self.options) and not self.options.windowed:
            return TorchFree(self.options)
        return self.options.load()

    def _annotate(self, result: Segmentation, stem: str) -> None:
        """Write the file of a labeling tool, or keep what goes into the one of all images."""
        from ovsdino.io.files import atomic_write

        kind, folder = self.options.annotations, self.options.output
        if kind == "yolo":
            with atomic_write(folder / f"{stem}.txt") as file:
                file.write(result.to_yolo().encode())
        elif kind == "labelme":
            assert result.source is not None
            found = {**result.to_labelme(), "imagePath": os.path.relpath(result.source, folder)}
            with atomic_write(folder / f"{stem}.json") as file:
                file.write(json.dumps(found).encode())
        elif kind == "coco":
            found = result.to_coco(image_id=len(self.coco["images"]) + 1)
            self.coco["categories"] = found["categories"]
            for key in ("images", "annotations"):
                self.coco[key] += found[key]

    def finish(self) -> None:
        """Write the one file of all images."""
        from ovsdino.io.files import atomic_write, refuse_inputs

        if self.coco["images"]:
            path = self.options.output / "annotations.json"
            refuse_inputs([path], self.inputs)
            with atomic_write(path) as file:
                file.write(json.dumps(self.coco).encode())


def failed(path: Path, error: OVSDinoError) -> dict[str, Any]:
    """Say what is wrong with a path, and return its JSON entry."""
    say(f"error: {error}")
    return {"path": str(path), "error": one_line(error)}


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Return a name for the outputs of each path: its stem, its stem and suffix, or its stem and a number.

    A later form is taken where the earlier ones belong to other paths. Case does not count, for file systems that
    ignore it. The same file given twice keeps its name.
    """
    owners: dict[str, str] = {}
    stems = []
    for path in paths:
        candidates = [path.stem, f"{path.stem}_{path.suffix[1:].lower()}"] if path.suffix else [path.stem]
        candidates += [f"{path.stem}_{number}" for number in range(2, len(paths) + 2)]
        identity = os.path.realpath(path)
        stem = next(name for name in candidates if owners.setdefault(name.casefold(), identity) == identity)
        stems.append(stem)
    return stems
