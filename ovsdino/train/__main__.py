"""`ovsdino train CONFIG.yaml [key=value ...]`; `torchrun --nproc-per-node N -m ovsdino.train CONFIG.yaml` for many."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ovsdino.console import run_command
from ovsdino.io.files import lock_folder
from ovsdino.train.config import RunConfig, load_config

USAGE = """usage: ovsdino train CONFIG.yaml [--steps N] [key=value ...]   e.g. optim.steps=2000 output=runs/try
       python -m ovsdino.train CONFIG.yaml ...                        the same
       torchrun --nproc-per-node N -m ovsdino.train CONFIG.yaml ...   several processes, on one machine or many"""


def _overrides(args: Sequence[str]) -> list[str]:
    """`key=value` arguments; `--steps N` stands for optim.steps=N, `--key value` for key=value."""
    result, rest = [], list(args)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and "=" not in word and rest and "=" not in rest[0]:
            word = f"{word}={rest.pop(0)}"
        key, sep, value = word.removeprefix("--").partition("=")
        result.append(f"{'optim.steps' if key == 'steps' else key}{sep}{value}")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on when the output folder holds a checkpoint.

    Returns:
        0 at the last step, 2 for bad input, 128 + n when signal n stopped the run after a checkpoint.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if args else sys.stderr)
        return 0 if args else 2
    return run_command(args, lambda: train(load_config(args[0], _overrides(args[1:]))))


def train(config: RunConfig) -> int:
    """Train in the configuration's folder, which no other training may hold meanwhile; return the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    console = Console(stderr=True, quiet=not first)
    with lock_folder(config.output, "training") if first else contextlib.nullcontext():
        from ovsdino.train.distributed import leave
        from ovsdino.train.start import make_trainer
        from ovsdino.train.stopping import Stopped

        trainer = make_trainer(config, log=console.print)
        if trainer.resume():
            console.print(f"resuming {config.output} at step {trainer.step}")
        trainer.record("config", **asdict(config))
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("train", total=config.optim.steps, completed=trainer.step, loss=float("nan"))
            try:
                result = trainer.run(lambda step, _, v: progress.update(task, completed=step, loss=v["loss"]))
            except Stopped as stopped:
                console.print(f"{stopped} at step {trainer.step}, all saved; the same command goes on from here")
                return 128 + stopped.signal
        leave()
        if first:
            print(
                json.dumps({"output": config.output, "step": trainer.step, "best_miou": trainer.best, "last": result})
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
