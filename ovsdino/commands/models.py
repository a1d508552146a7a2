"""`ovsdino models`: what the zoo holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ovsdino.commands.common import print_json


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models."""

    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.models.zoo import list_models

        rows = list_models()
        if self.json:
            print_json({"models": [asdict(row) for row in rows]})
            return 0
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for header in ("name", "weights", "M params", "patch", "width", "backbone"):
            table.add_column(header, no_wrap=True)
        for row in rows:
            size = "" if row.params_million is None else f"{row.params_million:.2f}"
            table.add_row(row.name, row.weights, size, str(row.patch_size), str(row.embed_dim), row.backbone)
        console = Console(soft_wrap=True, highlight=False)
        console.print(table)
        for note in dict.fromkeys(row.note for row in rows):
            console.print(f"{', '.join(row.name for row in rows if row.note == note)}: {escape(note)}")
        return 0
