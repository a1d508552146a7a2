"""A backbone from images alone: self-distillation as in DINO (Caron et al. 2021) and iBOT (Zhou et al. 2022).

Student and teacher are one ViT; the teacher is the running mean of the student. Each image gives large crops, and small
crops out of every large one. With q = the teacher's tokens over the prototypes, balanced by Sinkhorn-Knopp:

    L = place(student's tokens of a small crop -> teacher's tokens at the same place of its large crop)
      + ibot(student's masked tokens -> teacher's tokens of the same crop, unmasked)
      + image * dino(mean tokens: student of a large crop -> teacher of the other)
      + koleo * koleo(student's mean tokens: spread over the sphere)

The first term is ours: street scenes are alike as images and differ in their places, so a small crop must be matched
to its place in the large one (docs/decisions.md has the figures). vit6 has no class token, so the mean of the
patch tokens stands for the image. Sinkhorn-Knopp, the losses and the projection head are lightly's. The teacher is
kept, as the backbone of an `OVSDINO`.

    python -m ovsdino.train.pretrain.self_distill configs/self_distill.yaml [key=value ...]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ovsdino.console import run_command
from ovsdino.errors import OVSDinoError
from ovsdino.models.backbone import ViTBackbone, freeze
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.zoo import build_model
from ovsdino.train.config import check_multiples, stage_at
from ovsdino.train.pretrain.config import CropStage, SelfDistillConfig, load_settings
from ovsdino.train.pretrain.crops import CropBatch, Crops, random_masks, tokens_at
from ovsdino.train.session import train
from ovsdino.train.terms import Term, active, weighted
from ovsdino.train.trainer import Log, Trainer, follow


def vit_of(model: OVSDINO) -> nn.Module:
    """Return the network of a model that self-distillation can train.

    Raises:
        OVSDinoError: Its backbone has no trainable head over a ViT, as vit6 has.
    """
    backbone = model.backbone
    if not isinstance(backbone, ViTBackbone) or backbone.head is None:
        raise OVSDinoError(
            f"model: self-distillation trains the ViT of vit6, and {model.config.name} has another backbone"
        )
    vit: nn.Module = backbone.vit
    return vit


class Student(nn.Module):
    """The ViT, the head that gives distributions over prototypes, and the token that stands for a masked patch."""

    def __init__(self, vit: nn.Module, width: int, prototypes: int) -> None:
        super().__init__()
        from lightly.models.modules import DINOProjectionHead

        self.vit: Any = vit
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.head = DINOProjectionHead(width, 512, 128, prototypes)

    def tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the tokens after the final norm.

        Args:
            images: (B, 3, H, W).
            mask: (B, h, w) bool, the patches that are hidden.

        Returns:
            (B, h * w, D).
        """
        x = self.vit.patch_embed(images)  # (B, h, w, D): the ViT takes any size
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = self.vit.norm_pre(self.vit._pos_embed(x))
        for block in self.vit.blocks:
            x = block(x)
        return self.vit.norm(x)


Pair = tuple[Tensor, Tensor]  # the teacher's and the student's answers over the prototypes, (n, prototypes) both


@dataclass
class Outputs:
    """The answers that the terms compare.

    Attributes:
        place: Of small crops' tokens.
        ibot: Of masked tokens.
        image: Of large crops' mean tokens.
        mean: (L, D), the student's mean tokens.
    """

    place: Pair
    ibot: Pair
    image: Pair
    mean: Tensor


class SelfDistiller(Trainer):
    """Runs a `SelfDistillConfig`."""

    config: SelfDistillConfig
    optim_key = ""
    undecayed = ()  # positions decay here, and checkpoints hold the optimizer's groups

    def __init__(self, config: SelfDistillConfig, log: Log = lambda line: None) -> None:
        try:
            from lightly.loss import DINOLoss, KoLeoLoss, SwaVLoss
        except ImportError as error:
            raise OVSDinoError("self-distillation needs lightly: pip install 'ovsdino[train]'") from error
        super().__init__(config, config.optim, log)
        self.model = build_model(config.model, decoder=False)  # holds the teacher
        width = self.model.config.backbone.vit_dim
        self.student, self.teacher = (
            Student(vit_of(model), width, config.prototypes)
            for model in (build_model(config.model, decoder=False), self.model)
        )
        self.teacher.load_state_dict(self.student.state_dict())
        freeze(self.teacher)
        assert self.model.backbone.head is not None
        # No text has been seen, so the map into its space comes later; this one keeps lengths and angles.
        nn.init.orthogonal_(self.model.backbone.head.weight)
        nn.init.zeros_(self.model.backbone.head.bias)
        for part in (self.student, self.teacher):
            part.to(self.device)
        self.dino = DINOLoss(config.prototypes).to(self.device)
        self.swav, self.koleo = SwaVLoss(), KoLeoLoss()
        self.terms = active(
            [
                Term("place", 1.0, lambda _, o: self._tokens(*o.place)),
                Term("ibot", 1.0, lambda _, o: self._tokens(*o.ibot)),
                Term("image", config.image, lambda _, o: self.dino(*(list(side.chunk(2)) for side in o.image), 0.04)),
                Term("koleo", config.koleo, lambda _, o: torch.stack([*map(self.koleo, o.mean.chunk(2))]).mean()),
            ]
        )
        self.prepare(self.student, dict(self.student.named_parameters()))
        self.crops = Crops(config)
        for index, stage in enumerate(config.stages):
            where = f"stages[{index}]"
            check_multiples({f"{where}.large": stage.large, f"{where}.small": stage.small}, self.model.stride_multiple)

    def step_seed(self) -> int:
        return self.config.seed * 1_000_003 + self.step

    def progress(self, step: int) -> float:
        """Return how far the run is at a step, along half a cosine from 0 to 1."""
        return 0.5 * (1 - math.cos(math.pi * step / self.config.steps))

    def learning_rate(self, step: int) -> float:
        """Return the lesser of a linear warm-up and half a cosine to 1 % of the rate."""
        c = self.config
        return c.lr * min((step + 1) / c.warmup, 1.0 - 0.99 * self.progress(step))

    def batches(self, start: int, steps: int) -> Iterator[CropStage]:
        """Yield each step's stage: its crops are drawn in the step, by its own seed."""
        yield from (stage_at(self.config.stages, step, steps) for step in range(start, steps))

    def losses(self, batch: CropStage) -> dict[str, Tensor]:
        crops = self.crops.draw(batch)
        side = crops.large.shape[-1] // self.model.stride_multiple
        masks = random_masks(len(crops.large), side, self.config.mask_ratio).to(self.device)
        crops = crops.to(self.device)
        return weighted(self.terms, crops, self.outputs(crops, masks))

    def outputs(self, crops: CropBatch, masks: Tensor) -> Outputs:
        """Return the answers of teacher and student to crops; masks (L, h, w) bool."""
        side, small_side = masks.shape[-1], crops.small.shape[-1] // self.model.stride_multiple
        hidden = masks.flatten(1)

        def pair(target: Tensor, guess: Tensor) -> Pair:
            return self.teacher.head(target).float(), self.student.head(guess).float()

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            with torch.no_grad():
                target = self.teacher.tokens(crops.large)
                places = tokens_at(target.unflatten(1, (side, side)), crops.places, crops.mirrored, small_side)
            seen, small = self.student.tokens(crops.large, masks), self.student.tokens(crops.small)
            mean = seen.mean(1)
            return Outputs(
                image=pair(target.mean(1), mean),
                place=pair(places.flatten(0, 2), small.flatten(0, 1)),
                ibot=pair(target[hidden], seen[hidden]),
                mean=mean.float(),
            )

    def _tokens(self, target: Tensor, guess: Tensor) -> Tensor:
        """Return the cross-entropy of tokens over the prototypes against the teacher's, balanced."""
        from lightly.loss.swav_loss import sinkhorn

        if not len(guess):  # a ratio so small that no patch was masked
            return guess.sum()
        loss: Tensor = self.swav.subloss(guess, sinkhorn(target, epsilon=self.config.temperature))
        return loss

    def before_update(self) -> None:
        if self.step < self.config.warmup:  # DINO holds the prototypes still at first
            self.student.head.cancel_last_layer_gradients(0)

    def after_update(self) -> None:
        momentum = 1.0 - (1.0 - self.config.teacher_momentum) * (1.0 - self.progress(self.step))
        follow(self.teacher.parameters(), self.student.parameters(), momentum)

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def take_up(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, nn.Module]:
        return {"student": self.student, "teacher": self.teacher, "dino": self.dino}

    def save(self) -> None:
        """Write the checkpoint to continue from, and the teacher as it is so far."""
        super().save()
        self.save_weights("last.safetensors")

    def save_weights(self, name: str) -> None:
        """Write the teacher in float16: what `load_backbone` reads."""
        kept = {k: v for k, v in self.model.state_dict().items() if k.startswith(("backbone.", "log_scale"))}
        self.folder.save_weights(name, kept)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m ovsdino.train.pretrain.self_distill CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    return run_command(arguments, lambda: train(load_settings(arguments[0], arguments[1:]), SelfDistiller)[0])


if __name__ == "__main__":
    raise SystemExit(main())
