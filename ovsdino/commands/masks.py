"""`ovsdino masks`: pseudo-masks of a folder of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.console import note_escapes, print_json, progress_bar, say
from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    from ovsdino.data.masks import MaskStore
    from ovsdino.io.tree import ImageSource
    from ovsdino.train.masks.generators import MaskGenerator

Progress = Callable[[int, int], None]
MAX_POINTS = 256  # 65 536 points in an image


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Make the pseudo-masks that training takes as supervision; a run that was stopped continues where it was."""

    output: Path
    """Folder for manifest.json, the shards, statistics.json and samples.jpg."""
    images: Path | None = None
    """Folder or zip of images; where it has a folder `images`, only what lies in that is taken."""
    generator: Literal["sam", "felzenszwalb"] | None = None
    """sam (the default): segment-anything's automatic masks. felzenszwalb: regions of even color, a stand-in without
    weights."""
    checkpoint: Path | None = None
    """Official sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth, for --generator sam."""
    device: str | None = None
    """cpu, cuda or cuda:N, for --generator sam. Default: CUDA if there is one."""
    embeddings: bool = False
    """With --generator sam: keep SAM's embeddings too (2 MB for each image), the targets of training's loss.sam."""
    points_per_side: int = 32
    """SAM's grid of points; fewer is faster and misses small things."""
    shard: str | None = None
    """i/n: make every n-th shard, from i. Default: torchrun's rank and world size, else all."""
    from_: Path | None = None
    """Folder of finished masks to corrupt, for experiments; with --images the samples are drawn too."""
    corrupt: float | None = None
    """Share of the masks of --from to merge with a neighbor, dilate, shift or drop."""
    seed: int | None = None
    """Seed of --corrupt; the same seed spoils the same masks alike. Default: 0."""
    json: bool = False
    """Print one JSON object on stdout: the folder, how many images are done, and the statistics once all are."""

    def run(self) -> int:
        from ovsdino.io.files import atomic_write, lock_folder
        from ovsdino.io.tree import ImageSource
        from ovsdino.train.masks.make import contact_sheet, parse_part, statistics

        part = parse_part(self.shard)
        source = None if self.images is None else ImageSource(self.images)
        self._refuse_inputs(source)
        write = self._writer(source, part)
        with lock_folder(self.output, "run of `ovsdino masks`", part):
            with progress_bar() as progress:
                task = progress.add_task("masks", total=None)
                store = write(lambda done, total: progress.update(task, completed=done, total=total))
            missing = store.missing()
            found = None if missing else statistics(store)
            if found is not None:
                with atomic_write(self.output / "statistics.json") as file:
                    file.write((json.dumps(found, indent=1) + "\n").encode())
            if found is not None and source is not None:
                with atomic_write(self.output / "samples.jpg") as file:
                    contact_sheet(store, source).save(file, "JPEG", quality=90)
        self._report(store, missing, found, source is not None)
        return 0

    def _report(self, store: MaskStore, missing: list[int], statistics: dict[str, Any] | None, samples: bool) -> None:
        """Print what is there."""
        if self.json:
            print_json(
                {
                    "output": str(self.output),
                    "generator": store.manifest.generator,
                    "shards": store.shards,
                    "shards_missing": len(missing),
                    "statistics": statistics,
                }
            )
        elif statistics is None:
            print(f"{self.output}: {len(missing)} of {store.shards} shards still to be made by the other processes")
        else:
            print(
                f"{self.output}: {statistics['masks']} masks of {statistics['images']} images "
                f"({statistics['masks_per_image']} an image)"
                + (f"; look at {self.output / 'samples.jpg'}" if samples else "")
            )

    def _refuse_inputs(self, source: ImageSource | None) -> None:
        """Refuse an output that is an input, or whose samples.jpg the next run would take for one of the images."""
        from ovsdino.io.files import refuse_inputs

        refuse_inputs([self.output], [path for path in (self.images, self.from_) if path is not None])
        if source is None or not source.source.is_dir():
            return
        try:
            sample = self.output.resolve().relative_to(source.source.resolve()) / "samples.jpg"
        except ValueError:
            return
        if "images" in sample.parts[:-1] or not all("images" in PurePath(name).parts[:-1] for name in source.names):
            raise OVSDinoError(
                f"--output {self.output}: lies in --images {self.images}, and its samples.jpg would be taken for an "
                "image; choose a folder outside"
            )

    def _writer(self, source: ImageSource | None, part: tuple[int, int]) -> Callable[[Progress], MaskStore]:
        """Return what writes the store, once all options are known to fit together."""
        from ovsdino.data.masks import MaskStore, names_digest
        from ovsdino.train.masks.corrupt import check_corruption, corrupt_store
        from ovsdino.train.masks.embeddings import write_embeddings
        from ovsdino.train.masks.generators import SegmentAnything
        from ovsdino.train.masks.make import make_masks

        if self.from_ is None:
            for option, value in (("--corrupt", self.corrupt), ("--seed", self.seed)):
                if value is not None:
                    raise OVSDinoError(f"{option} {value} is given without --from MASKS, the masks to corrupt")
            if source is None:
                raise OVSDinoError(
                    "masks are made of --images FOLDER, or corrupted from --from MASKS: give one of them"
                )
            generator = self._generator()
            note_escapes(source.names, "utf-8", "in the shards: it is not UTF-8")

            def make(progress: Progress) -> MaskStore:
                store = make_masks(source, self.output, generator, part, progress, say)
                if isinstance(generator, SegmentAnything) and self.embeddings:
                    write_embeddings(source, store, generator.embed, part, progress, say)
                return store

            return make
        if self.embeddings:
            raise OVSDinoError("--embeddings are made with --images and --generator sam, not --from masks")
        if self.corrupt is None:
            raise OVSDinoError("--from MASKS needs --corrupt SHARE, the share of its masks to spoil, for instance 0.3")
        makers = {"--generator": self.generator, "--checkpoint": self.checkpoint, "--device": self.device}
        for option, given in makers.items():
            if given is not None:
                raise OVSDinoError(
                    f"{option} {given} makes masks, --from takes them as they are: leave out one of them"
                )
        masks, share, seed = MaskStore.open(self.from_), self.corrupt, self.seed or 0
        if source is not None and names_digest(source.names) != masks.manifest.names_sha256:
            raise OVSDinoError(f"--images {self.images}: not the images that the masks of {self.from_} were made of")
        check_corruption(masks, share)
        return lambda progress: corrupt_store(masks, self.output, share, seed, part, progress)

    def _generator(self) -> MaskGenerator:
        from ovsdino.train.masks.generators import Felzenszwalb, SegmentAnything

        if not 1 <= self.points_per_side <= MAX_POINTS:
            raise OVSDinoError(f"--points-per-side {self.points_per_side}: expected 1 to {MAX_POINTS}")
        if self.generator == "felzenszwalb":
            if self.checkpoint is not None:
                raise OVSDinoError("--checkpoint is given, but felzenszwalb has no weights: use --generator sam")
            if self.embeddings:
                raise OVSDinoError("--embeddings are SAM's, felzenszwalb has none: use --generator sam")
            return Felzenszwalb()
        if self.checkpoint is None:
            raise OVSDinoError(
                "--generator sam needs --checkpoint FILE, SAM's official .pth (for instance sam_vit_h_4b8939.pth from "
                "the segment-anything project); without weights: --generator felzenszwalb"
            )
        from ovsdino.pipeline import check_device

        return SegmentAnything(self.checkpoint, str(check_device(self.device)), self.points_per_side)
