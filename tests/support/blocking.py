"""Python code that makes named modules impossible to import, for child processes."""

from __future__ import annotations

__all__ = ["BLOCK"]

# Filled with ``BLOCK.format(blocked={"torch", ...})``.
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r} or name in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""
