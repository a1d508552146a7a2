"""Fixtures of the tests of the ROS 2 package."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovsdino.deploy.export.publish import publish
from ovsdino.deploy.export.trace import export_graph
from ovsdino.edge.sidecar import Sidecar
from ovsdino.models.zoo import create_model
from ovsdino.stream.words import WordReader


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano for images of 4:3, with groups of words and contrast."""
    path = tmp_path_factory.mktemp("ros") / "nano.onnx"
    publish(path, export_graph(create_model("nano"), height=352, width=464))
    return path


@pytest.fixture(scope="session")
def reader(engine: Path) -> WordReader:
    return WordReader(Sidecar.load(engine))
