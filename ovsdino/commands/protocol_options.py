"""Options of the commands that run a model under a protocol: the data set, and each setting of the protocol."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.options import SegmenterOptions

if TYPE_CHECKING:
    from ovsdino.eval.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions(SegmenterOptions):
    """The data set, and the settings of its protocol that replace the preset's."""

    dataset: str
    """camvid, folder (images/, labels/ with index PNGs, classes.json), voc21, voc20, context60, context59, coco-object,
    coco-stuff, cityscapes or ade20k."""
    root: Path | None = None
    """Folder with DATASET_SPLIT.zip or the data set's own folders. Default: $OVSDINO_DATA."""
    class_names: Path | None = None
    """JSON file: class name to the text, or list of texts, that is used in its place."""
    average_words: bool = False
    """Average the embeddings of a class's texts. Default: a class is where any of its texts is."""
    limit: int | None = None
    """Take the first N images only."""
    window: int | None = None
    """Side of a sliding window in pixels of the resized image. Default: the protocol's; native: the whole image."""
    stride: int | None = None
    """Step of the window. Default: the protocol's; native: half of the window."""
    max_long_side: int | None = None
    """Protocols: largest long side after the resize."""
    score: Literal["sigmoid", "cosine"] | None = None
    """Protocols: sigmoid of the cosine, or the cosine."""
    templates: tuple[str, ...] = ()
    """Protocols: prompts with {} for the class name. Default: Talk2DINO's seven."""
    cleaning: Literal["off", "protocol", "released"] | None = None
    """Protocols: background cleaning as Talk2DINO's released code computes it (the default of voc21 and coco-object),
    or in another reading of its description."""
    cleaning_weight: float | None = None
    """Protocols: share of the cleaning map."""
    pamr: bool = False
    """Protocols: refine each window's scores by PAMR, 10 iterations (the published "+ PAMR" rows)."""
    pamr_iterations: int | None = None
    """Protocols: PAMR with another number of iterations."""
    pamr_dilations: tuple[int, ...] = ()
    """Protocols: distances of PAMR's neighbors. Default: 1 2 4 8 12 24."""
    window_align_corners: Literal["on", "off"] | None = None
    """Protocols: align_corners of the upsampling to the window. Default: on."""
    final_align_corners: Literal["on", "off"] | None = None
    """Protocols: align_corners of the resize to the image. Default: off."""
    batch_size: int | None = None
    """Windows in one forward. Default: 8, halved when memory runs out."""

    def protocol_changes(self) -> dict[str, Any]:
        """Return the settings of these options that native does not have."""
        changes = self.given("max_long_side score templates cleaning cleaning_weight pamr_iterations pamr_dilations")
        for name, value in self.given("window_align_corners final_align_corners").items():
            changes[name] = value == "on"
        if self.pamr:
            changes.setdefault("pamr_iterations", 10)
        return changes

    def changed_preset(self, kind: str, embed_dim: int, background: float | None = None) -> Protocol:
        """Return a preset with the changes of this line.

        Args:
            kind: Name of the preset.
            embed_dim: Width of the backbone.
            background: The background's score in place of the preset's.

        Raises:
            OVSDinoError: A value is out of range.
        """
        from ovsdino.eval.protocol import preset

        base = preset(kind, self.dataset, embed_dim)
        changes = self.protocol_changes() | self.given("short_side window stride")
        if background is not None:
            changes["background"] = background
        if "window" in changes:
            changes.setdefault("stride", max(1, changes["window"] // 2))
        if "short_side" in changes:
            changes.setdefault("max_long_side", max(base.max_long_side, changes["short_side"]))
        return dataclasses.replace(base, **changes)

    def given(self, names: str) -> dict[str, Any]:
        """Return the values of the named options that were given."""
        return {name: value for name in names.split() if (value := getattr(self, name)) not in (None, ())}
