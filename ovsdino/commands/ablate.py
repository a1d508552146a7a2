"""`ovsdino ablate`: the worth of each part, over several seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ovsdino.console import print_json, say
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import Argument

MOST = 64  # processes


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Train and score variants of a model over several seeds; goes on where it was interrupted."""

    config: Annotated[str, Argument("CONFIG.yaml")]
    """The study, for instance configs/ablation.yaml."""
    overrides: Annotated[tuple[str, ...], Argument("[KEY=VALUE...]")] = ()
    """Changes to it, for instance output=runs/try train.optim.steps=50."""
    output: Path | None = None
    """Also write the result here as JSON, and the table under the same name with .md."""
    table: Path | None = None
    """A Markdown page: the table goes between its lines `<!-- NAME -->` and `<!-- end -->`, NAME that of --output."""
    jobs: int = 1
    """Processes that share the runs."""
    json: bool = False
    """Print one JSON object on stdout: seeds and rows, one for each variant, scores in 0..1."""

    def run(self) -> int:
        from ovsdino.io.files import atomic_write, refuse_inputs
        from ovsdino.train.ablation import load_ablation, markdown, run_ablation
        from ovsdino.train.stopping import Stopped

        if not 1 <= self.jobs <= MOST:
            raise OVSDinoError(f"--jobs {self.jobs}: expected 1 to {MOST}")
        if self.output is not None:
            refuse_inputs([self.output, self.output.with_suffix(".md")], [self.config])
        if self.table is not None:
            self._place(self.table)  # a page that cannot take the table must not wait for the runs
        study, base = load_ablation(self.config, self.overrides)
        try:
            report = run_ablation(study, base, say, self.jobs)
        except Stopped as stopped:
            say(f"{stopped}, all saved; the same command goes on from here")
            return 128 + stopped.signal
        if self.output is not None:
            texts = {self.output: json.dumps(report, indent=1) + "\n", self.output.with_suffix(".md"): markdown(report)}
            for path, text in texts.items():
                with atomic_write(path) as file:
                    file.write(text.encode())
        if self.table is not None:
            before, after = self._place(self.table)
            with atomic_write(self.table) as file:
                file.write((before + markdown(report) + after).encode())
        if self.json:
            print_json(report)
        else:
            print(markdown(report), end="")
        return 0

    def _place(self, page: Path) -> tuple[str, str]:
        """Return the page before and after the table."""
        if self.output is None:
            raise OVSDinoError("--table needs --output: its name says where in the page the table goes")
        begin, end = f"<!-- {self.output.name} -->\n", "<!-- end -->"
        try:
            text = page.read_text(encoding="utf-8")
        except OSError as error:
            raise OVSDinoError(f"{page}: cannot read the page ({error.strerror}; --table)") from error
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise OVSDinoError(f"{page}: has no lines {begin.strip()} and {end} to put the table between")
        return head + begin, end + tail
