"""One run from a command: its folder locked, resumed where it stopped, progress shown, signals as exit codes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ovsdino.distributed import leave
from ovsdino.io.files import lock_folder
from ovsdino.train.config import CommonConfig
from ovsdino.train.stopping import Stopped
from ovsdino.train.trainer import Log, Trainer

Config = TypeVar("Config", bound=CommonConfig)
AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def first_process() -> bool:
    """Return whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def train(config: Config, make: Callable[[Config, Log], AnyTrainer]) -> tuple[int, AnyTrainer, dict[str, Any]]:
    """Train in the configuration's folder, which no other training may hold meanwhile.

    Returns:
        The exit code, 128 + n when signal n stopped the run after a checkpoint; the trainer; and the result of its
        last validation.
    """
    console = Console(stderr=True, quiet=not first_process())
    with lock_folder(config.output, "training") if first_process() else contextlib.nullcontext():
        trainer = make(config, console.print)
        if trainer.resume():
            console.print(f"resuming {config.output} at step {trainer.step}")
        trainer.record("config", **asdict(config))
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("train", total=trainer.optim.steps, completed=trainer.step, loss=float("nan"))
            try:
                last = trainer.run(lambda step, _, v: progress.update(task, completed=step, loss=v["loss"]))
            except Stopped as stopped:
                console.print(f"{stopped} at step {trainer.step}, all saved; the same command goes on from here")
                return 128 + stopped.signal, trainer, {}
        leave()
    return 0, trainer, last
