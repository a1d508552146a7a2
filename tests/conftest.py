"""The setting of every test: a fixed seed, one thread, no ``gpu`` tests without a GPU, and the folder of data sets."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

try:
    from hypothesis import settings
except ModuleNotFoundError:  # a GPU machine that has only what scripts/gpu_check.py asks for
    from tests.support import without_hypothesis

    settings = without_hypothesis.install()

ROOT = Path(__file__).resolve().parent.parent

# Where there is no CUDA device Triton's kernels run in its interpreter, and Triton must be told before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# For tests that name no number themselves. The same examples at every run; --hypothesis-profile=long draws new ones.
settings.register_profile("quick", max_examples=20, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=2000, deadline=None)
# With --hypothesis-seed: other examples for each seed, and none kept from another run.
settings.register_profile("seeded", max_examples=20, deadline=None, database=None)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--seed`` and ``--native-isa``, with which scripts/numerics_matrix.py repeats the numeric tests."""
    parser.addoption("--seed", type=int, default=0, help="seed of every test's random numbers (default: 0)")
    parser.addoption(
        "--native-isa", default="best", help="instruction set of ovsdino._C: baseline, avx2, avx512 or best (default)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Use one thread here and in child processes, unless OMP_NUM_THREADS says otherwise.

    The tests' tensors are small, and threads that wait for a core spin: with another busy process the training tests
    took 20 minutes with two threads and 20 seconds with one.
    """
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    if config.getoption("--native-isa") != "best":
        from ovsdino import _C

        _C.set_isa(config.getoption("--native-isa"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries under test draw from the global generator)
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of the data sets: ``$OVSDINO_DATA``, else ``../shared/data``; skip the test without it."""
    named = os.environ.get("OVSDINO_DATA")
    root = Path(named) if named else ROOT.parent / "shared" / "data"
    if root.is_dir():
        return root
    if named:
        pytest.fail(f"OVSDINO_DATA={named} is not a folder")
    pytest.skip(f"no data sets: {root} is missing and OVSDINO_DATA is not set")
