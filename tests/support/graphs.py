"""The small model of `tests.support.small` as a graph."""

from __future__ import annotations

from functools import cache
from typing import Any

from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.trace import export_graph
from tests.support.small import SIZE, small_model


@cache
def exported(*, decoder: bool = True, grouped: bool = False, **options: Any) -> Exported:
    """Return the exported model, made once for all the tests of a process: it takes 5 to 10 s.

    Args:
        decoder: As `small_model`.
        grouped: Of a model that was trained to leave pixels to a contrast, whose words come in groups of rows.
        options: Of `export_graph`.
    """
    changes = {"contrast": True} if grouped else {}
    return export_graph(small_model(decoder=decoder, **changes), **SIZE, **options)
