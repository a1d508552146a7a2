"""`ovsdino doctor`: what is built, found and missing."""

from __future__ import annotations

from dataclasses import dataclass

from ovsdino.console import print_json


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Tell what is built, found and missing; the exit code is 2 if something must be fixed."""

    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        from ovsdino.doctor import examine, print_report

        report = examine()
        if self.json:
            print_json(report)
        else:
            print_report(report)
        return 2 if report["problems"] else 0
