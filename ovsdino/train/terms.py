"""A loss as a list of terms, each with its name and its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ovsdino.errors import OVSDinoError


class Term(ABC):
    """One summand of a loss.

    Args:
        weight: Its factor in the sum.
    """

    name: ClassVar[str]

    def __init__(self, weight: float) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, batch: Any, outputs: Any) -> Tensor:
        """Return its value before the weight.

        Args:
            batch: A step's images and what is known of them.
            outputs: The model's answers.
        """


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
