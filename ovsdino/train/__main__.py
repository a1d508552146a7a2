"""`ovsdino train CONFIG.yaml [key=value ...]`; `torchrun --nproc-per-node N -m ovsdino.train CONFIG.yaml` for many."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ovsdino.console import run_command
from ovsdino.train.config import RunConfig
from ovsdino.train.start import load_config, make_trainer
from ovsdino.train.template import config_path

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
    return run_command(args, lambda: _train(load_config(config_path(args[0]), _overrides(args[1:]))))


def _train(config: RunConfig) -> int:
    from ovsdino.train.session import first_process, train

    code, trainer, last = train(config, make_trainer)
    if not code and first_process():
        print(json.dumps({"output": config.output, "step": trainer.step, "best_miou": trainer.best, "last": last}))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
