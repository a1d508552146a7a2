"""Tile sizes by measurement: the fastest of a few configurations, kept in memory and in the user's cache folder.

Nothing is measured under the interpreter or while a CUDA graph is captured; then, and until the first call outside, a
default holds that fits every card from sm_80.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime import errors
from triton.runtime.errors import OutOfResources

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write
from ovsdino.kernels.interpreter import interpreting

log = logging.getLogger("ovsdino.kernels")

PTXASError = getattr(errors, "PTXASError", OutOfResources)  # Triton 3.1, that of torch 2.5, has none


class Config(NamedTuple):
    """Queries and keys of a tile, warps of a program, tiles in flight, and a bound on registers a thread (0: none)."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int = 0

    def constants(self, names: Sequence[str]) -> dict[str, int]:
        """Return the tile sizes, for a kernel whose arguments are `names`."""
        sizes = {"BLOCK_M": self.queries, "BLOCK_N": self.keys}
        return {name: size for name, size in sizes.items() if name in names}

    def options(self) -> dict[str, int]:
        """Return the options of the compiler."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options | ({"maxnreg": self.registers} if self.registers else {})


def cache_file() -> Path:
    """Return the file in which measured choices outlive the process."""
    return Path.home() / ".cache" / "ovsdino" / "triton_tiles.json"


class Tuner:
    """Choices by key, read from the cache file at the first question and written there after each measurement."""

    def __init__(self) -> None:
        self._chosen: dict[str, Config] | None = None
        self._lock = threading.Lock()

    def choose(self, key: str, candidates: Sequence[Config], launch: Callable[[Config], None]) -> Config:
        """Return the fastest candidate for `key`; the first one where nothing may be measured.

        Args:
            key: says what was measured on what, see `describe`.
            candidates: the first is the default.
            launch: runs the kernel; must give the same result every time.
        """
        if len(candidates) == 1:
            return candidates[0]
        if interpreting() or torch.cuda.is_current_stream_capturing():
            found = (self._chosen or {}).get(key)
            return found if found is not None and found in candidates else candidates[0]
        with self._lock:
            if self._chosen is None:
                self._chosen = read(cache_file())
            found = self._chosen.get(key)
            if found is None or found not in candidates:
                found = self._chosen[key] = fastest(candidates, launch)
                self._save()
        return found

    def _save(self) -> None:
        assert self._chosen is not None
        merged = read(cache_file()) | self._chosen
        text = json.dumps({key: list(merged[key]) for key in sorted(merged)}, indent=1)
        try:
            with atomic_write(cache_file()) as file:
                file.write(text.encode())
        except OVSDinoError as error:
            log.info("tile sizes are kept for this process only: %s", error)


def read(path: Path) -> dict[str, Config]:
    """Return the choices in a cache file; none, and a line in the log, where it cannot be understood."""
    try:
        stored = json.loads(path.read_bytes())
        return {str(key): Config(*(int(x) for x in values)) for key, values in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is ignored, tile sizes are measured again: %s", path, error)
        return {}


def fastest(candidates: Sequence[Config], launch: Callable[[Config], None]) -> Config:
    """Return the candidate with the smallest median time; those that do not fit the card are left out."""
    times: dict[Config, float] = {}
    for config in candidates:
        try:
            times[config] = triton.testing.do_bench(
                lambda config=config: launch(config), warmup=5, rep=25, return_mode="median"
            )
        except (OutOfResources, PTXASError) as error:
            log.info("%s does not fit: %s", config, error)
    return min(times, key=times.__getitem__, default=candidates[0])


def describe(name: str, device: torch.device, facts: Mapping[str, Any]) -> str:
    """Return the key of one measurement: the kernel, what it is compiled for, and the card.

    Args:
        name: the kernel.
        device: the card; its capability and its number of multiprocessors count.
        facts: everything else that changes the best choice.
    """
    card = "interpreter"
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        card = f"sm_{found.major}{found.minor}x{found.multi_processor_count}"
    return " ".join([name, card, f"triton {triton.__version__}", *(f"{k}={v}" for k, v in facts.items())])


def bucket(size: int) -> int:
    """Return the power of two at or above `size`: sizes of one bucket share a choice."""
    return 1 << (max(size, 1) - 1).bit_length()
