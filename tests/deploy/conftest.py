"""Fixtures of the tests of exports."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ovsdino.deploy.export.publish import publish
from tests.support import cpp
from tests.support.graphs import exported


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


@pytest.fixture(scope="session")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trt") / "small.onnx"
    publish(path, exported(batch=(1, 2), classes=(1, 40), precision="float16"))
    return path


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs in C++, without a runtime."""
    return cpp.build(tmp_path_factory.mktemp("cpp"))
