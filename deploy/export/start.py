"""Starts a script of this folder before what it imports: torch and ONNX take seconds, in which a user may interrupt."""

from __future__ import annotations

import importlib
import sys

from ovsdino.console import run_command

__all__ = ["start"]


def start(name: str, command: str) -> int:
    """Import a script as a module, run its command on the process's arguments, and return the exit code.

    Args:
        name: The script without its suffix: "quantize".
        command: Its dataclass of options.
    """

    def body() -> int:
        from ovsdino.parsing import run_script

        return run_script(getattr(importlib.import_module(f"ovsdino.deploy.{name}"), command), f"{name}.py")

    return run_command(sys.argv[1:], body)
