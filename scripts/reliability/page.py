"""The tables of docs/reliability.md."""

from __future__ import annotations

from typing import Any

from ovsdino.benchmarks.lib.report import placed
from scripts.reliability.mutants import Count


def page(text: str, found: dict[str, Any]) -> str:
    """Return a page with its tables made anew from the results."""
    counts = {name: Count(**count) for name, count in found["mutants"].items()}
    text = placed(text, "mutants", mutants_table(counts))
    text = placed(text, "kills", tried_table(found["kills"], "killed at random times"))
    return placed(text, "cases", tried_table(found["cases"], "kind"))


def tried_table(outcomes: dict[str, Any], what: str) -> str:
    """Return the outcomes of kills or cases as a Markdown table."""
    rows = [f"| {what} | tried | not as promised |", "|---|---:|---:|"]
    rows += [f"| {name} | {one['tried']} | {len(one['broken'])} |" for name, one in outcomes.items()]
    return "\n".join(rows)


def mutants_table(counts: dict[str, Count]) -> str:
    """Return the counts as a Markdown table."""
    heads = ("mutants", "refused", "read", "foreign", "crashes", "hangs", "slowest_s")
    titles = ("mutants", "refused in one line", "read", "foreign exceptions", "crashes", "hangs", "slowest, s")
    rows = [f"| format | {' | '.join(titles)} |", f"|---|{'---:|' * len(heads)}"]
    total = Count()
    for name, count in counts.items():
        rows.append(f"| {name} | {' | '.join(f'{getattr(count, head):,}' for head in heads)} |")
        for head in heads[:-1]:
            setattr(total, head, getattr(total, head) + getattr(count, head))
        total.slowest_s = max(total.slowest_s, count.slowest_s)
    rows.append(f"| all | {' | '.join(f'{getattr(total, head):,}' for head in heads)} |")
    return "\n".join(rows)
