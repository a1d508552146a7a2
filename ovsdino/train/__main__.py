"""`ovsdino train CONFIG.yaml [key=value ...]`, also `python -m ovsdino.train`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ovsdino.errors import OVSDinoError
from ovsdino.train.config import load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or resumes when the output folder holds a checkpoint; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    console = Console(stderr=True)
    if not args or args[0] in ("-h", "--help"):
        console.print("usage: ovsdino train CONFIG.yaml [key=value ...]   e.g. optim.steps=2000 output=runs/try")
        return 0 if args else 2
    try:
        config = load_config(args[0], args[1:])
        from ovsdino.train.trainer import Trainer

        trainer = Trainer(config, log=console.print)
        if trainer.resume():
            console.print(f"resuming {config.output} at step {trainer.step}")
        trainer.record("config", **asdict(config))
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("train", total=config.optim.steps, completed=trainer.step, loss=float("nan"))
            result = trainer.run(lambda step, _, v: progress.update(task, completed=step, loss=v["loss"]))
    except OVSDinoError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    print(json.dumps({"output": config.output, "step": trainer.step, "best_miou": trainer.best, "last": result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
