"""`ovsdino masks`: pseudo-masks of a folder of images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.commands.common import print_json, progress_bar, say
from ovsdino.errors import OVSDinoError

if TYPE_CHECKING:
    from ovsdino.train.pseudo_masks import MaskGenerator


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Make the pseudo-masks that training takes as supervision; a run that was stopped goes on where it was."""

    images: Path
    """Folder or zip of images; where it has a folder `images`, only what lies in that is taken."""
    output: Path
    """Folder for manifest.json, the shards, statistics.json and samples.jpg."""
    generator: Literal["sam", "felzenszwalb"] = "sam"
    """sam: segment-anything's automatic masks. felzenszwalb: regions of even colour, a stand-in without weights."""
    checkpoint: Path | None = None
    """Official sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth, for --generator sam."""
    device: str | None = None
    """cpu, cuda or cuda:N, for --generator sam. Default: CUDA if there is one."""
    points_per_side: int = 32
    """SAM's grid of points; fewer is faster and misses small things."""
    shard: str | None = None
    """i/n: make every n-th shard, from i. Default: torchrun's rank and world size, else all."""
    json: bool = False
    """Print one JSON object on stdout: the folder, how many images are done, and the statistics once all are."""

    def run(self) -> int:
        from ovsdino.data.images import ImageSource
        from ovsdino.imageio import atomic_write
        from ovsdino.train.pseudo_masks import contact_sheet, make_masks, parse_part, statistics

        part = parse_part(self.shard)
        source = ImageSource(self.images)
        generator = self._generator()
        with progress_bar() as progress:
            task = progress.add_task("masks", total=None)
            store = make_masks(
                source,
                self.output,
                generator,
                part,
                lambda done, total: progress.update(task, completed=done, total=total),
                say,
            )
        missing = store.missing()
        report: dict[str, Any] = {
            "output": str(self.output),
            "generator": generator.name,
            "shards": store.shards,
            "shards_missing": len(missing),
            "statistics": None,
        }
        if not missing:
            report["statistics"] = statistics(store)
            with atomic_write(self.output / "statistics.json") as file:
                file.write((json.dumps(report["statistics"], indent=1) + "\n").encode())
            with atomic_write(self.output / "samples.jpg") as file:
                contact_sheet(store, source).save(file, "JPEG", quality=90)
        if self.json:
            print_json(report)
        elif missing:
            print(f"{self.output}: {len(missing)} of {store.shards} shards still to be made by the other processes")
        else:
            found = report["statistics"]
            print(
                f"{self.output}: {found['masks']} masks of {found['images']} images ({found['masks_per_image']} an "
                f"image); look at {self.output / 'samples.jpg'}"
            )
        return 0

    def _generator(self) -> MaskGenerator:
        from ovsdino.train.pseudo_masks import Felzenszwalb, SegmentAnything

        if self.generator == "felzenszwalb":
            if self.checkpoint is not None:
                raise OVSDinoError("--checkpoint is given, but felzenszwalb has no weights: use --generator sam")
            return Felzenszwalb()
        if self.checkpoint is None:
            raise OVSDinoError(
                "--generator sam needs --checkpoint FILE, SAM's official .pth (for instance sam_vit_h_4b8939.pth from "
                "the segment-anything project); without weights: --generator felzenszwalb"
            )
        from ovsdino.pipeline import check_device

        return SegmentAnything(self.checkpoint, str(check_device(self.device)), self.points_per_side)
