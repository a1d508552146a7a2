"""`ovsdino train`: hands over to `ovsdino.train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ovsdino.parsing import Argument


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train from a YAML configuration; resumes where it was interrupted."""

    config: Annotated[str, Argument("CONFIG.yaml")]
    """Configuration file, for instance configs/nano.yaml."""
    overrides: Annotated[tuple[str, ...], Argument("[KEY=VALUE...]")] = ()
    """Changes to the configuration, for instance optim.steps=2000 output=runs/try."""
    steps: int | None = None
    """The same as optim.steps=N. Default: what the configuration says."""

    def run(self) -> int:
        from ovsdino.train.__main__ import main

        steps = [] if self.steps is None else [f"optim.steps={self.steps}"]
        return main([self.config, *self.overrides, *steps])
