"""`ovsdino train`: hands over to `ovsdino.train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train from a YAML configuration; resumes where it was interrupted."""

    config: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="CONFIG.yaml")]]
    """Configuration file, for instance configs/nano.yaml."""
    overrides: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KEY=VALUE...]")]] = ()
    """Changes to the configuration, for instance optim.steps=2000 output=runs/try."""

    def run(self) -> int:
        from ovsdino.train.__main__ import main

        return main([self.config, *self.overrides])
