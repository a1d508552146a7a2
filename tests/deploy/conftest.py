"""Fixtures of the tests of exports."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each array that is hashed in one call, as the content of an exported file is."""
    sizes: list[int] = []
    real = hashlib.sha256

    def counted(data: bytes = b"", **options: Any) -> Any:
        sizes.append(len(data))
        return real(data, **options)

    monkeypatch.setattr(hashlib, "sha256", counted)
    return sizes
