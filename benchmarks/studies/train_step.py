"""Seconds of a training step, with and without the structure modules, by stage of a configuration, interleaved.

    python benchmarks/studies/train_step.py configs/nano.yaml --json

The ratio, weighted by the stages' shares of the steps, says how many steps the plain head gets in equal time.
"""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from typing import Annotated, Any

from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.benchmarks.lib.timing import interleaved
from ovsdino.console import say
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import Argument, run_script
from ovsdino.train.dense.config import DenseConfig
from ovsdino.train.dense.trainer import DenseTrainer
from ovsdino.train.start import load_config


@dataclass(frozen=True, kw_only=True)
class TrainStep(ReportOptions):
    """Time training steps of the full model and of the plain head."""

    config: Annotated[str, Argument("CONFIG.yaml")]
    """Configuration of a dense training."""
    overrides: Annotated[tuple[str, ...], Argument("[KEY=VALUE...]")] = ()
    """Changes to it, for instance data.root=DIR threads=1."""
    rounds: int = 5
    """Steps of each side."""

    def run(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            trainers = []
            for decoder in ("true", "false"):
                config = load_config(self.config, [*self.overrides, f"decoder={decoder}", f"output={folder}"])
                if not isinstance(config, DenseConfig):
                    raise OVSDinoError(f"{self.config}: expected a training on pixel labels")
                trainers.append(DenseTrainer(config, log=say))
            return self.publish(self._measured(trainers), text)

    def _measured(self, trainers: list[DenseTrainer]) -> dict[str, Any]:
        steps, begin, results = trainers[0].config.optim.steps, 0.0, []
        totals = [0.0, 0.0]
        for stage in trainers[0].config.stages:
            first = int(begin * steps) + 1  # one past the border, whatever its rounding
            batch = trainers[0].source.batch(first, steps)
            timed = [functools.partial(trainer.train_step, batch) for trainer in trainers]
            full, plain = (ms / 1e3 for ms in interleaved(timed, "cpu", rounds=self.rounds))
            share, begin = stage.until - begin, stage.until
            totals = [total + share * seconds for total, seconds in zip(totals, (full, plain), strict=True)]
            size = f"{stage.batch}x{stage.height}x{stage.width}"
            results.append({"stage": size, "share": round(share, 4), "full_s": full, "plain_s": plain})
            say(f"{size}: full {full:.3f} s, plain {plain:.3f} s, ratio {full / plain:.2f}")
        full, plain = totals
        machine = machine_facts()
        return {"machine": machine, "results": results, "full_s": full, "plain_s": plain, "ratio": full / plain}


def text(report: dict[str, Any]) -> str:
    """Return the report as one line."""
    return f"weighted by the stages: {report['ratio']:.2f} plain steps in the time of a full step"


if __name__ == "__main__":
    raise SystemExit(run_script(TrainStep, "train_step.py"))
