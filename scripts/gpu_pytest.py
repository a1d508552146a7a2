"""pytest for the GPU check: imports the staged package, and writes a row for each test as it starts and ends.

    python scripts/gpu_pytest.py ROWS.jsonl [pytest's arguments]

`python -m pytest` would import ovsdino from the working folder, where the mapped packages are missing: that comes last.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != ROOT / "scripts"] + [str(ROOT)]

os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed; some take longer to import than a file's tests

import pytest  # noqa: E402


class Rows:
    """Write the tests to a file of JSON lines, where they are whenever the process ends.

    Args:
        path: The file, begun anew.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", buffering=1)

    def write(self, **row: Any) -> None:
        self.file.write(json.dumps(row) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        files = Counter(str(item.path) for item in session.items).most_common()
        self.write(collected=len(session.items), files=[file for file, _ in files])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3))


if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[2:], plugins=[Rows(Path(sys.argv[1]))]))
