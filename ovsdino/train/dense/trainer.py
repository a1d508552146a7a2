"""Training on pixel labels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ovsdino.data.datasets import open_dataset
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.ahead import read_ahead
from ovsdino.models.backbone import freeze
from ovsdino.train.config import check_multiples, stage_at
from ovsdino.train.dense.batches import BatchSource, open_training
from ovsdino.train.dense.config import DenseConfig
from ovsdino.train.dense.losses import class_weights
from ovsdino.train.dense.objective import DenseBatch, DenseObjective
from ovsdino.train.dense.text import TextBank
from ovsdino.train.segmentation import SegmentationTrainer
from ovsdino.train.trainer import Log

Crops = tuple[Tensor, Tensor]


class DenseTrainer(SegmentationTrainer):
    """Runs a `DenseConfig`."""

    config: DenseConfig

    def __init__(self, config: DenseConfig, log: Log) -> None:
        super().__init__(config, log)
        _check(config, self.model.stride_multiple)
        self.train_set, self.selection_set = open_training(config.data)
        self.val_set = open_dataset(config.data.dataset, config.data.root, config.data.val_split, byte_labels=True)
        freeze(self.model.text_tower)
        if not config.train_backbone:
            freeze(self.model.backbone)
        self.text = TextBank(self.model, self.train_set.names, config.text, config.data.dataset)
        self.source = BatchSource(self.train_set, config.data, config.stages, config.seed)
        counts = self.source.class_counts(len(self.train_set.names))
        weights = class_weights(counts, config.loss.class_power, config.loss.class_weight_max)
        self.prepare(DenseObjective(self.model, config, weights))

    def batches(self, start: int, steps: int) -> Iterator[Crops]:
        return read_ahead(lambda step: self.source.batch(step, steps), range(start, steps))

    def losses(self, batch: Crops) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        stage = stage_at(self.config.stages, self.step, self.optim.steps)
        text = self.text.draw(generator, stage.neighbours)
        images, labels, text = (part.to(self.device) for part in (*batch, text))
        terms: dict[str, Tensor] = self.objective(DenseBatch(images, labels.long(), text))
        return terms

    def part(self, batch: Crops, index: int, parts: int) -> Crops:
        images, labels = (x.chunk(parts)[index] for x in batch)
        return images, labels

    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        found = {"val": (self.val_set, self.text.classes)}
        if self.selection_set is not None:
            found["selection"] = (self.selection_set, self.text.classes)
        return found


def _check(config: DenseConfig, multiple: int) -> None:
    """Refuse stages whose crops or batches do not divide."""
    for index, stage in enumerate(config.stages):
        where = f"stages[{index}]"
        check_multiples({f"{where}.height": stage.height, f"{where}.width": stage.width}, multiple)
        if stage.batch % config.optim.accumulate:
            raise OVSDinoError(
                f"{where}.batch: {stage.batch} does not divide into the {config.optim.accumulate} parts of "
                "optim.accumulate"
            )
