"""From a YAML file to the trainer that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import refuse_inputs
from ovsdino.settings import anchored, build_config, overridden, read_yaml
from ovsdino.train.config import RunConfig
from ovsdino.train.dense.config import DenseConfig
from ovsdino.train.mixed.config import MixedConfig
from ovsdino.train.weak.config import WeakConfig

if TYPE_CHECKING:
    from ovsdino.train.segmentation import SegmentationTrainer
    from ovsdino.train.trainer import Log

WRITTEN = ("checkpoint.pt", "last.safetensors", "best.safetensors")  # in the folder of a run


KINDS: dict[str, type[RunConfig]] = {"labels": DenseConfig, "captions": WeakConfig, "mixed": MixedConfig}


def supervision(tree: dict[str, Any]) -> type[RunConfig]:
    """Return the class of the configuration that a tree is of, by its key `supervision`.

    Raises:
        OVSDinoError: It has a value that names none.
    """
    kind = tree.get("supervision", "labels")
    if not isinstance(kind, str) or kind not in KINDS:
        raise OVSDinoError(f"supervision: expected {', '.join(KINDS)}, got {kind!r:.60}")
    return KINDS[kind]


def train_config(tree: dict[str, Any]) -> RunConfig:
    """Return the configuration of a run from nested mappings.

    Raises:
        OVSDinoError: A key is unknown, a value has the wrong type or is out of range.
    """
    config: RunConfig = build_config(supervision(tree), tree, "")
    return config


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the tree of a training configuration, the relative paths that it reads taken from its own folder.

    Raises:
        OVSDinoError: See `read_yaml`; see `supervision`.
    """
    tree = read_yaml(path)
    result: dict[str, Any] = anchored(supervision(tree), tree, Path(path).parent)
    return result


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` overrides.

    Raises:
        OVSDinoError: The file is missing or not YAML, a key is unknown, a value has the wrong type or is out of range.
    """
    return train_config(overridden(read_config(path), overrides))


def make_trainer(config: RunConfig, log: Log) -> SegmentationTrainer:
    """Return the trainer of a configuration, at step 0.

    torch is imported here, so that a setting that is wrong is refused at once.

    Raises:
        OVSDinoError: Data, weights or words that the configuration names are missing or do not fit, or the run would
            replace weights that it reads.
    """
    refuse_inputs((Path(config.output) / name for name in WRITTEN), config.weights_read)
    if isinstance(config, DenseConfig):
        from ovsdino.train.dense.trainer import DenseTrainer

        return DenseTrainer(config, log)
    if isinstance(config, MixedConfig):
        from ovsdino.train.mixed.trainer import MixedTrainer

        return MixedTrainer(config, log)
    assert isinstance(config, WeakConfig)
    from ovsdino.train.weak.trainer import WeakTrainer

    return WeakTrainer(config, log)
