"""One model and one server for all tests of the endpoint and the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ovsdino.pipeline import Segmenter, load
from ovsdino.serve.server import application
from ovsdino.serve.worker import Worker
from tests.support.serving import LIMITS, running


@pytest.fixture(scope="session")
def nano() -> Segmenter:
    """Return the shipped model at a small size."""
    return load("nano", "cpu", short_side=96)


@pytest.fixture(scope="session")
def worker(nano: Segmenter) -> Iterator[Worker]:
    """Yield the thread of the model."""
    for module in ("starlette", "uvicorn", "python_multipart", "pycocotools"):
        pytest.importorskip(module, reason="needs the extra serve")
    found = Worker(nano, LIMITS)
    yield found
    found.close()


@pytest.fixture(scope="session")
def server(worker: Worker) -> Iterator[str]:
    """Yield the address of the endpoint."""
    with running(application(worker, hosts=["robot.example"])) as address:
        yield address


@pytest.fixture(scope="session")
def page(worker: Worker) -> Iterator[str]:
    """Yield the address of the page."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    app: Any = application(worker, page=True)
    with running(app) as address:
        yield address
