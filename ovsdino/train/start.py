"""The trainer that a configuration asks for."""

from __future__ import annotations

from ovsdino.train.config import RunConfig, TrainConfig, WeakConfig
from ovsdino.train.trainer import Log, Trainer


def make_trainer(config: RunConfig, log: Log) -> Trainer:
    """A trainer at step 0.

    Raises:
        OVSDinoError: data, weights or words that the configuration names are missing or do not fit.
    """
    if isinstance(config, TrainConfig):
        from ovsdino.train.dense import DenseTrainer

        return DenseTrainer(config, log)
    assert isinstance(config, WeakConfig)
    from ovsdino.train.weak import WeakTrainer

    return WeakTrainer(config, log)
