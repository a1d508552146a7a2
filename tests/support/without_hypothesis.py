"""A stand-in for hypothesis where it is not installed: tests that draw from it are skipped, their files still load."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


class Anything:
    """Answers every attribute and call with itself: a strategy, or a decorator's settings that change nothing."""

    def __getattr__(self, name: str) -> Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        function = next((x for x in arguments if inspect.isfunction(x)), None)
        return function or self


def given(**drawn: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a test that is skipped, with the parameters that hypothesis would not have filled."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def skipped(**arguments: Any) -> None:
            pytest.skip("hypothesis is not installed")

        signature = inspect.signature(function)
        kept = [parameter for name, parameter in signature.parameters.items() if name not in drawn]
        skipped.__name__ = function.__name__
        skipped.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        skipped.__dict__.update(function.__dict__)
        return skipped

    return decorate


def install() -> Anything:
    """Put the stand-in into ``sys.modules``; its `settings`."""
    module, strategies = ModuleType("hypothesis"), ModuleType("hypothesis.strategies")
    anything = Anything()
    strategies.__getattr__ = anything.__getattr__  # type: ignore[method-assign]
    module.given, module.settings, module.strategies = given, anything, strategies  # type: ignore[attr-defined]
    sys.modules["hypothesis"], sys.modules["hypothesis.strategies"] = module, strategies
    return anything
