"""`ovsdino train`: hands over to `ovsdino.train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ovsdino.errors import OVSDinoError
from ovsdino.parsing import Argument


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train from a YAML configuration; resumes where it was interrupted.

    --init FOLDER begins one for a folder of your own images and labels, from the shipped weights.
    """

    config: Annotated[str, Argument("[CONFIG.yaml]")] = ""
    """Configuration file, or the name of a shipped one, for instance nano (see configs/)."""
    overrides: Annotated[tuple[str, ...], Argument("[KEY=VALUE...]")] = ()
    """Changes to the configuration, for instance optim.steps=2000 output=runs/try."""
    steps: int | None = None
    """The same as optim.steps=N. Default: what the configuration says."""
    init: Path | None = None
    """Write a configuration and the layout of images and labels into this folder, and do not train."""
    classes: str = ""
    """With --init: the names of the classes in label order, separated by commas. Default: the folder's classes.json."""

    def run(self) -> int:
        if self.init is not None:
            return self._begin(self.init)
        if self.classes:
            raise OVSDinoError("--classes goes with --init FOLDER")
        if not self.config:
            raise OVSDinoError("missing: CONFIG.yaml; see ovsdino train --help")
        from ovsdino.train.__main__ import main

        steps = [] if self.steps is None else [f"optim.steps={self.steps}"]
        return main([self.config, *self.overrides, *steps])

    def _begin(self, folder: Path) -> int:
        from ovsdino.train.template import write_template

        if self.config or self.overrides or self.steps is not None:
            raise OVSDinoError("--init writes a configuration; train with it afterwards: leave out the others")
        names = [name.strip() for name in self.classes.split(",") if name.strip()]
        for path in write_template(folder, names):
            print(f"wrote {path}")
        print(
            f"put images and label PNGs into {folder}/train and {folder}/val, then: ovsdino train {folder}/config.yaml"
        )
        return 0
