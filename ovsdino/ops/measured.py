"""The table of measured choices: the fastest backend of an op on a card, by dtype, direction and size.

``make gpu-check`` writes `FILE` from its benchmarks, and "auto" (`ovsdino.ops.dispatch`) reads it. The size of a
structure_attention or a mask_pool is its number of tokens. A card without rows gets each op's first backend that can
run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write

FILE = Path(__file__).with_name("measured.json")
FORMAT = 1

Backends = Mapping[str, Iterable[str]]  # the names of each op's backends


@dataclass(frozen=True, kw_only=True, order=True)
class Row:
    """One choice: sizes from `at_least` to `below` - 1 (None: and all above) of an op take `backend`."""

    device: str  # torch.cuda.get_device_name()
    op: str
    dtype: str
    gradient: bool  # whether a backward pass follows
    at_least: int
    below: int | None
    backend: str

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """The fields that rows of disjoint sizes share."""
        return self.device, self.op, self.dtype, self.gradient


def read(path: Path, backends: Backends) -> tuple[Row, ...]:
    """Return the rows of a table.

    Raises:
        OVSDinoError: the file is damaged, or a row is not one of these ops and backends; the message names it.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise OVSDinoError(f"{path}: format {document['format']}, expected {FORMAT}; run make gpu-check again")
        found = document["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OVSDinoError(f"{path}: no table of measured backends ({error}); run make gpu-check again") from None
    return checked(found, backends, str(path))


def checked(found: Sequence[Any], backends: Backends, source: str) -> tuple[Row, ...]:
    """Return rows, sorted.

    Args:
        found: JSON objects with the fields of `Row`.
        backends: the ops and their backends.
        source: what the message calls the rows' origin.

    Raises:
        OVSDinoError: a row has other fields or types, a name that is unknown, or sizes that another row has too.
    """
    rows = sorted(
        (_row(item, backends, f"{source}, row {place}") for place, item in enumerate(found)),
        key=lambda row: (*row.key, row.at_least),
    )
    for one, other in pairwise(rows):
        if one.key == other.key and (one.below is None or other.at_least < one.below):
            raise OVSDinoError(f"{source}: two rows for {other.op} of size {other.at_least} on {other.device}")
    return tuple(rows)


def _row(item: Any, backends: Backends, source: str) -> Row:
    types: dict[str, tuple[type, ...]] = {"gradient": (bool,), "at_least": (int,), "below": (int, type(None))}
    names = [field.name for field in fields(Row)]
    if not isinstance(item, dict) or sorted(item) != sorted(names):
        raise OVSDinoError(f"{source}: expected the fields {', '.join(names)}, got {item!r}")
    for name in names:
        if type(item[name]) not in types.get(name, (str,)):
            raise OVSDinoError(f"{source}: {name} cannot be {item[name]!r}")
    row = Row(**item)
    if row.op not in backends or row.backend not in backends[row.op]:
        raise OVSDinoError(f"{source}: there is no backend {row.backend!r} of {row.op!r}")
    if row.dtype not in ("float32", "float16", "bfloat16") or not row.device:
        raise OVSDinoError(f"{source}: unknown dtype {row.dtype!r} or device {row.device!r}")
    if row.at_least < 0 or (row.below is not None and row.below <= row.at_least):
        raise OVSDinoError(f"{source}: no size is from {row.at_least} to below {row.below}")
    return row


def rows_from(results: Iterable[Mapping[str, Any]], device: str, backends: Backends) -> tuple[Row, ...]:
    """Return the fastest backends by the results of ``benchmarks/ops.py``.

    Between two measured sizes with different winners the bound is their geometric mean; the first and the last winner
    hold for all sizes beyond.

    Args:
        results: rows of the benchmark's JSON; those without ``rival``, the backend that the baseline is, do not count.
        device: the card's name.
        backends: the ops and their backends.

    Raises:
        OVSDinoError: a result names an op or a backend that is not in `backends`.
    """
    times: dict[tuple[str, str, bool], dict[int, dict[str, float]]] = {}
    for result in results:
        if not result.get("rival"):
            continue
        key = (result["op"], result["dtype"], result["gradient"])
        at = times.setdefault(key, {}).setdefault(result["size"], {})
        for backend, took in ((result["backend"], result["ours_ms"]), (result["rival"], result["baseline_ms"])):
            at[backend] = min(took, at.get(backend, took))
    found: list[dict[str, Any]] = []
    for (op, dtype, gradient), by_size in times.items():
        winners = [(size, min(by_size[size], key=by_size[size].__getitem__)) for size in sorted(by_size)]
        at_least = 0
        for place, (size, backend) in enumerate(winners):
            following = winners[place + 1] if place + 1 < len(winners) else None
            if following is not None and following[1] == backend:
                continue
            below = None if following is None else isqrt(size * following[0])
            shared = {"device": device, "op": op, "dtype": dtype, "gradient": gradient}
            found.append({**shared, "at_least": at_least, "below": below, "backend": backend})
            at_least = below or 0
    return checked(found, backends, "the benchmarks' results")


def merge(path: Path, rows: Sequence[Row], backends: Backends) -> None:
    """Write rows into a table in place of those that it has for their devices, ops, dtypes and directions.

    All others stay.

    Raises:
        OVSDinoError: the table that is there is damaged or cannot be written.
    """
    kept = read(path, backends) if path.exists() else ()
    keys = {row.key for row in rows}
    merged = checked([asdict(x) for x in (*(row for row in kept if row.key not in keys), *rows)], backends, str(path))
    lines = ",\n  ".join(json.dumps(asdict(row)) for row in merged)
    with atomic_write(path) as file:
        file.write(f'{{"format": {FORMAT}, "rows": [\n  {lines}\n]}}\n'.encode())


def choose(choices: Sequence[tuple[int, int | None, str]], size: int) -> str:
    """Return the backend for a size among the (at_least, below, backend) of one key; "" where none has it.

    `size` may be symbolic (`torch.compile` with dynamic shapes): each comparison then guards the compiled code.
    """
    for at_least, below, backend in choices:
        if size >= at_least and (below is None or size < below):
            return backend
    return ""
