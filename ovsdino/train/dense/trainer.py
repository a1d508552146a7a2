"""Training on pixel labels: class-weighted cross-entropy, Dice and boundaries, words drawn anew each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.data.segmentation import IGNORE_INDEX, SegmentationDataset, open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_text
from ovsdino.models.backbone import freeze
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.train.config import DataConfig, TrainConfig
from ovsdino.train.dense.batches import BatchSource, prefetch
from ovsdino.train.dense.losses import boundary_loss, class_weights, coarse_labels, dice_loss, soft_cross_entropy
from ovsdino.train.trainer import Log, Trainer, encode

Batch = tuple[Tensor, Tensor]


class TextBank:
    """The words of training: phrases of each class, and distractor words that name nothing in the images."""

    def __init__(self, model: OVSDINO, names: tuple[str, ...], config: TrainConfig) -> None:
        text = config.text
        unknown = sorted(set(text.names) - set(names))
        if unknown:
            raise OVSDinoError(
                f"text.names: {unknown[0]!r} is not a class of {config.data.dataset}: {', '.join(names)}"
            )
        phrases = [text.names.get(name, (name,)) for name in names]
        leaked = sorted(set(text.exclude) & {p for group in phrases for p in group})
        if leaked:
            raise OVSDinoError(f"text.exclude: {leaked[0]!r} is also a training phrase")
        self.phrases = [model.encode_text(group) for group in phrases]
        self.classes = torch.stack([group[0] for group in self.phrases])
        self.distractors = self.classes[:0]
        self.neighbours = [self.classes[:0] for _ in names]
        if text.vocabulary:
            bank = model.encode_text(read_vocabulary(text.vocabulary, text.exclude))
            near = torch.stack([(bank @ group.T).max(1).values for group in self.phrases], 1)
            best = near.topk(min(2, len(names)), 1)
            self.distractors = bank[best.values[:, 0] < text.distractor_max_cosine]
            clear = best.values[:, 0] >= text.neighbour_min_cosine
            clear &= best.values[:, 0] - best.values[:, -1] >= text.neighbour_margin
            self.neighbours = [bank[clear & (best.indices[:, 0] == i)] for i in range(len(names))]
        self.num_distractors = text.num_distractors

    def draw(self, generator: torch.Generator, neighbours: float = 0.0) -> Tensor:
        """Text rows of a step, (K + n, D): one phrase a class (its first, half of the time), then distractors.

        Args:
            neighbours: probability that a class is called by one of its vocabulary neighbours instead.
        """

        def pick(rows: Tensor) -> Tensor:
            return rows[int(torch.randint(len(rows), (), generator=generator))]

        rows = []
        for group, near in zip(self.phrases, self.neighbours, strict=True):
            if neighbours and len(near) and torch.rand((), generator=generator) < neighbours:
                rows.append(pick(near))
            else:
                rows.append(group[0] if torch.rand((), generator=generator) < 0.5 else pick(group))
        count = min(self.num_distractors, len(self.distractors))
        if count:
            picks = torch.randint(len(self.distractors), (count,), generator=generator)
            rows.extend(self.distractors[picks])
        return torch.stack(rows)


def read_vocabulary(path: str, exclude: tuple[str, ...]) -> list[str]:
    """Words of a file, one a line, without those that begin with an excluded one."""
    words = read_text(path, "list of words", "see text.vocabulary").split("\n")
    return [word for word in words if word and not (exclude and word.startswith(exclude))]


class DenseObjective(nn.Module):
    """The weighted terms of the dense loss.

    Args:
        weights: (K,) of the classes.
    """

    weights: Tensor

    def __init__(self, model: OVSDINO, config: TrainConfig, weights: Tensor) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, images: Tensor, labels: Tensor, text: Tensor) -> dict[str, Tensor]:
        """images (B, 3, H, W) in [0, 1], labels (B, H, W) int64, text (K + n, D) -> terms by name."""
        c, num_classes = self.config.loss, len(self.weights)
        features = encode(self.model, images, self.config.optim.bf16)
        logits = self.model.decode(features, text)
        # Half the crop's resolution: a pole of three pixels keeps its label, at a quarter of the cost.
        size = (labels.shape[1] // 2, labels.shape[2] // 2)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        small = labels[:, ::2, ::2]
        weights = F.pad(self.weights, (0, len(text) - num_classes))
        terms = {
            "cross_entropy": c.cross_entropy * F.cross_entropy(logits, small, weights, ignore_index=IGNORE_INDEX),
            "dice": c.dice * dice_loss(logits.softmax(1), small, num_classes),
        }
        if features.structure is not None:
            coarse = self.model.coarse_logits(features, text)
            share = coarse_labels(labels, (coarse.shape[2], coarse.shape[3]), num_classes)
            terms["coarse"] = c.coarse * soft_cross_entropy(coarse, share, self.weights)
            terms["boundary"] = c.boundary * boundary_loss(features.structure.boundary, labels)
        return terms


class DenseTrainer(Trainer):
    """Runs a `TrainConfig`."""

    config: TrainConfig

    def __init__(self, config: TrainConfig, log: Log) -> None:
        super().__init__(config, log)
        _check(config, self.model.stride_multiple)
        self.train_set, self.selection_set = open_training(config.data)
        self.val_set = open_dataset(config.data.dataset, config.data.root, config.data.val_split, byte_labels=True)
        freeze(self.model.text_tower)
        if not config.train_backbone:
            freeze(self.model.backbone)
        self.text = TextBank(self.model, self.train_set.names, config)
        self.source = BatchSource(self.train_set, config.data, config.stages, config.seed)
        counts = self.source.class_counts(len(self.train_set.names))
        weights = class_weights(counts, config.loss.class_power, config.loss.class_weight_max)
        self.prepare(DenseObjective(self.model, config, weights))

    def batches(self, start: int, steps: int) -> Iterator[Batch]:
        yield from prefetch(self.source, start, steps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        neighbours = self.source.stage(self.step, self.config.optim.steps).neighbours
        text = self.text.draw(generator, neighbours)
        terms: dict[str, Tensor] = self.objective(*(part.to(self.device) for part in (*batch, text)))
        return terms

    def part(self, batch: Batch, index: int, parts: int) -> Batch:
        images, labels = (x.chunk(parts)[index] for x in batch)
        return images, labels

    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        found = {"val": (self.val_set, self.text.classes)}
        if self.selection_set is not None:
            found["selection"] = (self.selection_set, self.text.classes)
        return found


def open_training(config: DataConfig) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """Return the images to train on, and those kept out of training to choose by: the last ones by name.

    Raises:
        OVSDinoError: See `open_dataset`; too few images for `config.selection`.
    """

    def part(rows: slice) -> SegmentationDataset:
        dataset = open_dataset(config.dataset, config.root, config.train_split, byte_labels=True)
        dataset.entries = tuple(sorted(dataset.entries, key=lambda entry: entry.image))[rows]
        dataset.stems = tuple(entry.stem for entry in dataset.entries)
        return dataset

    if not Path(config.root).is_dir():
        raise OVSDinoError(
            f"data.root: {config.root}: no such folder; it holds the data set (README says how to get one)"
        )
    if not config.selection:
        return open_dataset(config.dataset, config.root, config.train_split, byte_labels=True), None
    total = len(part(slice(None)))
    count = round(config.selection * total)
    if not 0 < count < total:
        raise OVSDinoError(
            f"data.selection {config.selection}: is {count} of {total} training images; take a share "
            "that leaves some on either side"
        )
    return part(slice(total - count)), part(slice(total - count, None))


def _check(config: TrainConfig, multiple: int) -> None:
    """Refuse stages whose crops or batches do not divide."""
    for index, stage in enumerate(config.stages):
        for side in ("height", "width"):
            if getattr(stage, side) % multiple:
                raise OVSDinoError(
                    f"stages[{index}].{side}: expected a multiple of {multiple}, the patch size, got "
                    f"{getattr(stage, side)}"
                )
        if stage.batch % config.optim.accumulate:
            raise OVSDinoError(
                f"stages[{index}].batch: {stage.batch} does not divide into the {config.optim.accumulate} parts of "
                "optim.accumulate"
            )
