"""A loss as a list of terms, each with its name and its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from ovsdino.errors import OVSDinoError


@dataclass(frozen=True)
class Term:
    """One summand of a loss.

    Attributes:
        name: In the log.
        weight: Its factor in the sum; 0 leaves it out.
        value: Returns it before the weight, given a step's batch and the model's outputs.
    """

    name: str
    weight: float
    value: Callable[[Any, Any], Tensor]

    def __call__(self, batch: Any, outputs: Any) -> Tensor:
        return self.value(batch, outputs)


AnyTerm = TypeVar("AnyTerm", bound=Term)


def active(terms: Iterable[AnyTerm]) -> list[AnyTerm]:
    """Return the terms with a weight.

    Raises:
        OVSDinoError: There is none.
    """
    kept = [term for term in terms if term.weight]
    if not kept:
        raise OVSDinoError("loss: no term with a weight is left, so nothing would be learned; set one above 0")
    return kept


def weighted(terms: Sequence[Term], batch: Any, outputs: Any) -> dict[str, Tensor]:
    """Return the terms by name, each with its weight."""
    return {term.name: term.weight * term(batch, outputs) for term in terms}
