"""Training on several kinds of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovsdino.contrast import contrast_phrases, rivals
from ovsdino.data.datasets import open_dataset
from ovsdino.data.segmentation import IGNORE_INDEX, SegmentationDataset
from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import freeze
from ovsdino.models.grounding import grounded_phrases
from ovsdino.train.config import check_multiples
from ovsdino.train.dense.batches import BatchSource, open_training
from ovsdino.train.dense.config import StageConfig
from ovsdino.train.dense.losses import class_weights
from ovsdino.train.dense.text import TextBank
from ovsdino.train.mixed.config import LabelSet, MixedConfig
from ovsdino.train.mixed.kept import Kept, train_words_alone
from ovsdino.train.mixed.objective import LabeledPart, MixedBatch, MixedObjective
from ovsdino.train.mixed.sources import EdgeSource, Pair, PictureSource, Steps, batches
from ovsdino.train.mixed.teacher import Teacher
from ovsdino.train.segmentation import SegmentationTrainer
from ovsdino.train.trainer import Log

ALIKE = 0.8  # cosine from which two words do not compete


class LabeledData:
    """One data set: its crops, its words, its weights, what it asks for in a step.

    Args:
        trainer: The run.
        name: Of the set, for messages.
        config: The set.
    """

    def __init__(self, trainer: MixedTrainer, name: str, config: LabelSet) -> None:
        self.config, self.number = config, list(trainer.config.labels).index(name)
        multiple = trainer.model.stride_multiple
        check_multiples({f"labels.{name}.height": config.height, f"labels.{name}.width": config.width}, multiple)
        self.dataset, _ = open_training(config)
        stage = StageConfig(height=config.height, width=config.width, batch=config.batch, area=config.area)
        seed = trainer.config.seed * 101 + self.number
        self.source = BatchSource(self.dataset, config, (stage,), seed, trainer.config.workers)
        self.background = int(self.dataset.has_background)
        self.names = self.dataset.names[self.background :]
        self.rivals = torch.zeros(len(self.names), len(contrast_phrases()), dtype=torch.bool)
        for own, name in zip(self.rivals, self.names, strict=True):
            own[rivals((name,))] = True  # the contrast phrases that compete with it
        held = (*config.text.exclude, *trainer.config.exclude)
        self.text = TextBank(trainer.model, self.names, replace(config.text, exclude=held), config.dataset)
        counts = self.source.class_counts(len(self.dataset.names))
        loss = trainer.config.loss
        weights = class_weights(counts, loss.class_power, loss.class_weight_max)
        none = weights[0] if self.background else weights.new_ones(())
        self.weights = torch.cat([weights[self.background :], none[None]]).to(trainer.device)

    def part(self, pair: Pair, generator: torch.Generator, contrast: Tensor, trainer: MixedTrainer) -> LabeledPart:
        """Return crops with the words that a step asks for."""
        c, device = trainer.config.contrast, trainer.device
        images, labels = (x.to(device, non_blocking=True) for x in pair)
        labels = labels.long()
        count = len(self.names)
        rows = self.text.draw(generator, self.config.neighbours)[:count]
        kept = torch.ones(count, dtype=torch.bool)
        if torch.rand((), generator=generator) < c.drop:
            kept = torch.rand(count, generator=generator) >= c.drop
            kept[int(torch.randint(count, (), generator=generator))] = True
        place = torch.full((256,), IGNORE_INDEX)
        place[self.background : self.background + count] = torch.where(kept, kept.cumsum(0) - 1, int(kept.sum()))
        place[: self.background] = int(kept.sum())
        far = (contrast @ rows[kept].T).amax(1) < c.max_cosine
        far &= self.rivals[kept].all(0)
        others = torch.cat([contrast[far], rows[~kept]])
        return LabeledPart(
            images=unpacked(images),
            labels=place.to(device)[labels],
            rows=rows[kept].to(device),
            contrast=others.to(device),
            weights=torch.cat([self.weights[:-1][kept.to(device)], self.weights[-1:]]),
            edges=self.config.edges,
            weight=self.config.weight,
        )


def unpacked(images: Tensor) -> Tensor:
    """Return images of uint8 in [0, 1]."""
    return images.float().div_(255)


class MixedTrainer(SegmentationTrainer):
    """Runs a `MixedConfig`.

    Raises:
        OVSDinoError: There is nothing to learn from, or something that the configuration names is missing.
    """

    config: MixedConfig

    def __init__(self, config: MixedConfig, log: Log) -> None:
        super().__init__(config, log)
        if not config.labels:
            raise OVSDinoError("labels: name at least one data set with pixel labels")
        self.fused = self.device.type == "cuda"
        freeze(self.model.text_tower)
        if config.only_words:
            train_words_alone(self.model)
        self.sets = {name: LabeledData(self, name, own) for name, own in config.labels.items()}
        encode = self.model.encode_text
        self.contrast = encode(contrast_phrases())
        self.pictures = PictureSource(config.pictures, config.seed, config.workers) if config.pictures.root else None
        self.edges = EdgeSource(config.edges, config.seed, config.workers) if config.edges.root else None
        words = encode(self.pictures.words) if self.pictures else self.contrast
        same = (words @ words.T >= ALIKE) & ~torch.eye(len(words), dtype=torch.bool)
        teacher, names, vocabulary = None, self.contrast, self.contrast
        if config.teacher.weights:
            more = [*contrast_phrases(), *(w for own in self.sets.values() for w in own.names)]
            more += self.pictures.words if self.pictures else []
            teacher = Teacher(config.teacher, self._allowed(more), Path(config.output) / "teacher_rows.safetensors")
            names, vocabulary = encode(teacher.names), encode(teacher.vocabulary)
        kept = Kept(self.model, encode(self._untaught())) if config.only_words else None
        objective = MixedObjective(self.model, config, words, same, teacher, names, vocabulary, kept)
        self.prepare(objective)

    def _allowed(self, words: list[str]) -> list[str]:
        """Return the words that are not held out, each once."""
        held = self.config.exclude
        return [word for word in dict.fromkeys(words) if not (held and word.startswith(held))]

    def _untaught(self) -> list[str]:
        """Return the phrases that earlier trainings showed, without the names of labels here."""
        named = {phrase for own in self.config.labels.values() for group in own.text.names.values() for phrase in group}
        return [phrase for phrase in grounded_phrases() if phrase not in named]

    def own_rates(self) -> dict[nn.Parameter, float]:
        """Return also the rate of the backbone, but for its head."""
        backbone = self.model.backbone.named_parameters()
        return super().own_rates() | {
            p: self.config.backbone_rate for name, p in backbone if p.requires_grad and not name.startswith("head.")
        }

    def batches(self, start: int, steps: int) -> Iterator[dict[str, Pair]]:
        others = {"pictures": self.pictures, "edges": self.edges}
        labels = {f"labels.{name}": own.source for name, own in self.sets.items()}
        data = Steps(labels, {name: source for name, source in others.items() if source}, steps)
        return batches(data, start, self.config.workers, pinned=self.device.type == "cuda")

    def losses(self, batch: dict[str, Pair]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        labeled = [own.part(batch[f"labels.{name}"], generator, self.contrast, self) for name, own in self.sets.items()]
        others = {}
        for key in ("pictures", "edges"):
            if key in batch:
                images, answers = (x.to(self.device, non_blocking=True) for x in batch[key])
                others[key] = unpacked(images), answers.long()
        terms: dict[str, Tensor] = self.objective(
            MixedBatch(labeled=labeled, pictures=others.get("pictures"), regions=others.get("edges"))
        )
        return terms

    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        found: dict[str, Any] = {}
        for own in self.sets.values():
            c = own.config
            name = "voc20" if c.dataset == "voc21" else c.dataset
            images = open_dataset(name, c.root, c.val_split, byte_labels=True)
            found["val" if not found else f"val_{name}"] = (images, own.text.classes)
        return found
