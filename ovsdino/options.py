"""What the subcommands share: model options, JSON on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress

    from ovsdino.pipeline import Segmenter

DType = Literal["float32", "bfloat16", "float16", "auto"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs, where, and how."""

    model: str = "nano"
    """Model name (see `ovsdino models`), folder of a shared model, or hub repository NAME/REPOSITORY[@REVISION]."""
    device: str | None = None
    """cpu, cuda or cuda:N. Default: CUDA if there is one."""
    dtype: DType = "float32"
    """Number format of the network; auto is bfloat16 on CUDA."""
    short_side: int | None = None
    """Inference size of the image's short side in pixels. Default: the model's own."""
    checkpoint: Path | None = None
    """Weights written by `ovsdino train`, in place of the shipped ones."""
    backbone_weights: Path | None = None
    """Local file of the backbone's official weights (timm's or Meta's own .pth), in place of the hub."""
    projection: Path | None = None
    """Local file of Talk2DINO's text projection, or of a whole Talk2DINO model, in place of the hub."""
    clip_weights: Path | None = None
    """Local file of CLIP ViT-B-16's openai weights (open_clip's, or OpenAI's own .pt), in place of the hub."""

    def load(self) -> Segmenter:
        """The segmenter these options ask for.

        Raises:
            OVSDinoError: see `ovsdino.load`.
        """
        from ovsdino.pipeline import load

        files = {
            "checkpoint": self.checkpoint,
            "backbone_weights": self.backbone_weights,
            "projection": self.projection,
            "clip_weights": self.clip_weights,
        }
        given = {name: path for name, path in files.items() if path is not None}
        return load(self.model, self.device, dtype=self.dtype, short_side=self.short_side, **given)


def print_json(data: dict[str, Any]) -> None:
    """Print the one JSON object of a command, on one line of stdout.

    What stdout's encoding lacks is written as JSON's own escapes.

    Raises:
        ValueError: A number is NaN or infinite, which JSON has no form for.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(data, allow_nan=False)
    print(text, flush=True)


def say(message: object) -> None:
    """Print one line on stderr; where that cannot be written, the exit code must do."""
    with suppress(OSError):
        print(one_line(message, 2000), file=sys.stderr, flush=True)


def note_escapes(texts: Iterable[object], encoding: str, where: str) -> None:
    """Say once that a name is more than an encoding can hold, and so is written with escapes."""
    for text in map(str, texts):
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            say(f"note: {ascii(text)[1:-1]}: written with escapes {where}")
            return


def progress_bar(shown: bool = True) -> Progress:
    """Return a progress bar on stderr; silent where stderr is no terminal that can move its cursor."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    able = console.is_terminal and not console.is_dumb_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not shown or not able)
