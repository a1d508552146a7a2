"""`ovsdino report`: table results next to the published ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ovsdino.console import print_json
from ovsdino.parsing import Argument


@dataclass(frozen=True, kw_only=True)
class Report:
    """Turn results of `ovsdino eval --json` into a Markdown table next to the published rows."""

    results: Annotated[tuple[str, ...], Argument("[LABEL=]RESULT.json...")] = ()
    """Files that `ovsdino eval --json` wrote; LABEL names the table's row."""
    output: Path | None = None
    """Markdown file to write. Default: stdout."""
    json: bool = False
    """Print one JSON object on stdout, with the Markdown as "markdown"."""

    def run(self) -> int:
        from ovsdino.eval.report import read_results, render
        from ovsdino.io.files import atomic_write, refuse_inputs

        if self.output is not None:
            refuse_inputs([self.output], [item.rpartition("=")[2] for item in self.results])
        results = read_results(self.results)
        text = render(results)
        if self.output is not None:
            with atomic_write(self.output) as file:
                file.write(text.encode("utf-8", "backslashreplace"))  # a label may be a name that is not UTF-8
        if self.json:
            output = None if self.output is None else str(self.output)
            print_json({"results": len(results), "output": output, "markdown": text})
        elif self.output is not None:
            print(f"{self.output}: {len(results)} results")
        else:
            print(text, end="")
        return 0
