"""The trainer that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from ovsdino.io.files import refuse_inputs
from ovsdino.train.config import RunConfig, TrainConfig, WeakConfig
from ovsdino.train.trainer import Log, Trainer

WRITTEN = ("checkpoint.pt", "last.safetensors", "best.safetensors")  # in the folder of a run
WEIGHTS = ("backbone_weights", "text_weights", "projection", "clip_weights", "sam_checkpoint")


def make_trainer(config: RunConfig, log: Log) -> Trainer:
    """A trainer at step 0.

    Raises:
        OVSDinoError: data, weights or words that the configuration names are missing or do not fit, or weights that
            the run would replace.
    """
    weights = [getattr(config, name, "") for name in WEIGHTS]
    refuse_inputs((Path(config.output) / name for name in WRITTEN), weights)
    if isinstance(config, TrainConfig):
        from ovsdino.train.dense.trainer import DenseTrainer

        return DenseTrainer(config, log)
    assert isinstance(config, WeakConfig)
    from ovsdino.train.weak.trainer import WeakTrainer

    return WeakTrainer(config, log)
