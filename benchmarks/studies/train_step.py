"""Seconds of a training step, with and without the structure modules, by stage of a configuration, interleaved.

    python benchmarks/studies/train_step.py configs/nano.yaml --json

The ratio, weighted by the stages' shares of the steps, says how many steps the plain head gets in equal time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.timing import interleaved
from ovsdino.train.dense.trainer import DenseTrainer
from ovsdino.train.start import load_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. data.root=DIR threads=1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainers = []
        for decoder in ("true", "false"):
            changes = [*args.overrides, f"decoder={decoder}", f"output={folder}"]
            trainers.append(DenseTrainer(load_config(args.config, changes), log=print))
        steps, begin, results = trainers[0].config.optim.steps, 0.0, []
        full_total = plain_total = 0.0
        for stage in trainers[0].config.stages:
            batch = trainers[0].source.batch(
                int(begin * steps) + 1, steps
            )  # one past the border, whatever its rounding
            timed = [lambda t=t, b=batch: t.train_step(b) for t in trainers]
            full, plain = (ms / 1e3 for ms in interleaved(timed, "cpu", rounds=args.rounds))
            share = stage.until - begin
            full_total, plain_total, begin = full_total + share * full, plain_total + share * plain, stage.until
            size = f"{stage.batch}x{stage.height}x{stage.width}"
            results.append({"stage": size, "share": round(share, 4), "full_s": full, "plain_s": plain})
            print(f"{size}: full {full:.3f} s, plain {plain:.3f} s, ratio {full / plain:.2f}", file=sys.stderr)
    report = {
        "machine": machine_facts(),
        "results": results,
        "full_s": full_total,
        "plain_s": plain_total,
        "ratio": full_total / plain_total,
    }
    print(json.dumps(report) if args.json else f"weighted by the stages: {report['ratio']:.2f} plain steps a full step")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
