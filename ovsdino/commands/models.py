"""`ovsdino models`: list the zoo."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ovsdino.console import print_json


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models."""

    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.models.catalog import list_models

        rows = list_models()
        if self.json:
            print_json({"models": [asdict(row) for row in rows]})
            return 0
        table = [("name", "weights", "M params", "patch", "width", "backbone")]
        for row in rows:
            size = "" if row.params_million is None else f"{row.params_million:.2f}"
            table.append((row.name, row.weights, size, str(row.patch_size), str(row.embed_dim), row.backbone))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
        for note in dict.fromkeys(row.note for row in rows):
            print(f"{', '.join(row.name for row in rows if row.note == note)}: {note}")
        return 0
