"""A backbone from images alone: self-distillation as in DINO (Caron et al. 2021) and iBOT (Zhou et al. 2022).

Student and teacher are one ViT; the teacher is the running mean of the student. Both see crops of an image:

    L = L_dino(mean tokens: student of every crop -> teacher of the other large crops)
      + L_ibot(student's masked tokens -> teacher's tokens of the same crop, unmasked)
      + koleo * L_koleo(student's mean tokens: spread over the sphere)

nano's ViT has no class token, so the mean of the patch tokens stands for the image. The losses and the projection head
are lightly's. What is kept is the teacher, as the backbone of an `OVSDINO`.

    python -m ovsdino.train.self_distill configs/self_distill.yaml [key=value ...]
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.transforms import v2

from ovsdino.config import IMAGENET_MEAN, IMAGENET_STD
from ovsdino.data.images import open_images
from ovsdino.errors import OVSDinoError
from ovsdino.imageio import atomic_write
from ovsdino.models.backbone import freeze
from ovsdino.models.zoo import build_model
from ovsdino.train.config import build_config, overridden, read_yaml


@dataclass(frozen=True, kw_only=True)
class CropStage:
    """A stretch of training at one crop size; sides in pixels, multiples of the patch size.

    Attributes:
        until: the stage ends at this fraction of all steps.
        batch: images a step; each gives two large and `SelfDistillConfig.small_crops` small crops.
    """

    until: float = 1.0
    large: int = 128
    small: int = 64
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class SelfDistillConfig:
    """One run.

    Attributes:
        images: folders or zips; every image in them is used, nothing else of them is read.
        split: area that divides large crops from small ones, as a fraction of the image.
        mask_ratio: a masked crop loses a fraction of its patches drawn from here; half of the large crops are masked.
        prototypes: width of the head's output.
        teacher_momentum: at the start; it rises to 1 along half a cosine.
        teacher_temperature: at the end of the warm-up; 0.04 at the start.
    """

    model: str = "nano"
    images: tuple[str, ...] = ("../shared/data/camvid_train.zip", "../shared/data/bsds500_train.zip")
    output: str = "runs/self_distill"
    seed: int = 0
    threads: int = 0
    steps: int = 6000
    small_crops: int = 4
    split: float = 0.3
    mask_ratio: tuple[float, ...] = (0.1, 0.5)
    prototypes: int = 2048
    koleo: float = 0.1
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 400
    clip: float = 3.0
    teacher_momentum: float = 0.992
    teacher_temperature: float = 0.07
    bf16: bool = True
    checkpoint_every: int = 100
    log_every: int = 20
    stages: tuple[CropStage, ...] = (CropStage(),)


class Student(nn.Module):
    """The ViT, the head that gives distributions over prototypes, and the token that stands for a masked patch."""

    def __init__(self, vit: nn.Module, width: int, prototypes: int) -> None:
        super().__init__()
        try:
            from lightly.models.modules import DINOProjectionHead
        except ImportError as error:
            raise OVSDinoError("self-distillation needs lightly: pip install 'ovsdino[train]'") from error
        self.vit: Any = vit
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.head = DINOProjectionHead(width, 512, 128, prototypes)

    def tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """images (B, 3, H, W), mask (B, h, w) bool -> tokens after the final norm (B, h*w, D)."""
        x = self.vit.patch_embed(images)  # (B, h, w, D): the ViT takes any size
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = self.vit.norm_pre(self.vit._pos_embed(x))
        for block in self.vit.blocks:
            x = block(x)
        return self.vit.norm(x)


class Crops:
    """Large and small crops of images in memory, a function of torch's generator."""

    def __init__(self, config: SelfDistillConfig) -> None:
        self.images = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in open_images(config.images)]
        self.config = config

    def draw(self, stage: CropStage) -> tuple[Tensor, Tensor]:
        """(2 B, 3, large, large) and (n B, 3, small, small), normalised; crop i of the images in turn."""
        picks = torch.randperm(len(self.images))[: stage.batch]
        large = self._pipeline(stage.large, (self.config.split, 1.0), 0.5)
        small = self._pipeline(stage.small, (0.05, self.config.split), 0.3)
        return (
            torch.stack([large(self.images[i]) for _ in range(2) for i in picks]),
            torch.stack([small(self.images[i]) for _ in range(self.config.small_crops) for i in picks]),
        )

    @staticmethod
    def _pipeline(size: int, area: tuple[float, float], blur: float) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, area, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.05)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], blur),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )


def random_masks(count: int, side: int, ratio: Sequence[float]) -> Tensor:
    """(count, side, side) bool: blobs of patches, in every second mask a share drawn from `ratio`, none in the others.

    The patches where smooth noise is largest: neighbours are lost together, as iBOT's block masks have it.
    """
    coarse = max(2, side // 3)
    noise = F.interpolate(torch.rand(count, 1, coarse, coarse), (side, side), mode="bilinear")[:, 0]
    order = (noise + 0.3 * torch.rand(count, side, side)).flatten(1).argsort(1, descending=True).argsort(1)
    share = torch.empty(count).uniform_(ratio[0], ratio[-1])
    share[torch.arange(count) % 2 == 1] = 0.0
    return (order < (share * side * side).round()[:, None]).view(count, side, side)


class SelfDistiller:
    """Runs a `SelfDistillConfig`; the state of a step depends on (config, step) and the checkpoint alone."""

    def __init__(self, config: SelfDistillConfig) -> None:
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss

        self.config, self.step, self.seconds = config, 0, 0.0
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        timm.layers.set_fused_attn(torch.cuda.is_available())  # see Trainer
        self.model = build_model(config.model, decoder=False)  # holds the teacher
        width = self.model.config.embed_dim
        self.student = Student(build_model(config.model, decoder=False).backbone.vit, width, config.prototypes)
        self.teacher = Student(self.model.backbone.vit, width, config.prototypes)
        self.teacher.load_state_dict(self.student.state_dict())
        freeze(self.teacher)
        self.dino = DINOLoss(config.prototypes)
        self.ibot = IBOTPatchLoss(config.prototypes)
        self.koleo = KoLeoLoss()
        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)
        self.crops = Crops(config)
        self.output = Path(config.output)

    def losses(self, large: Tensor, small: Tensor, stage: CropStage) -> dict[str, Tensor]:
        """The three weighted terms of crops as `Crops.draw` gives them."""
        c, p = self.config, self.model.stride_multiple
        warm = min(1.0, self.step / max(1, c.warmup))
        temperature = 0.04 + (c.teacher_temperature - 0.04) * warm
        masks = random_masks(len(large), large.shape[-1] // p, c.mask_ratio)
        with torch.autocast("cpu", torch.bfloat16, enabled=c.bf16):
            with torch.no_grad():
                target = self.teacher.tokens(large)
                target_image = self.teacher.head(target.mean(1)).float()
                target_patch = self.teacher.head(target[masks.flatten(1)]).float()
            seen = self.student.tokens(large, masks)
            mean = seen.mean(1)
            guess_image = self.student.head(mean).float()
            guess_small = self.student.head(self.student.tokens(small).mean(1)).float()
            guess_patch = self.student.head(seen[masks.flatten(1)]).float()
        return {
            "dino": self.dino(
                list(target_image.chunk(2)), [*guess_image.chunk(2), *guess_small.chunk(c.small_crops)], temperature
            ),
            "ibot": self.ibot(target_patch, guess_patch, masks, temperature),
            "koleo": c.koleo * torch.stack([self.koleo(part) for part in mean.float().chunk(2)]).mean(),
        }

    def train_step(self) -> dict[str, float]:
        """One step; returns the loss and its terms."""
        c = self.config
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        stage = next((s for s in c.stages if self.step < s.until * c.steps), c.stages[-1])
        progress = 0.5 * (1 - math.cos(math.pi * self.step / c.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * min((self.step + 1) / c.warmup, 1.0 - 0.99 * progress)
        terms = self.losses(*self.crops.draw(stage), stage)
        loss = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), c.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the gradient is not finite; lower lr or set bf16=false")
        if self.step < c.warmup:  # DINO holds the prototypes still at first
            self.student.head.cancel_last_layer_gradients(0)
        self.optimiser.step()
        momentum = 1.0 - (1.0 - c.teacher_momentum) * (1.0 - progress)
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for old, new in pairs:
            old.lerp_(new.detach(), 1.0 - momentum)
        return {"loss": loss.item(), "grad_norm": norm.item(), **{k: v.item() for k, v in terms.items()}}

    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {
            "student": self.student,
            "teacher": self.teacher,
            "dino": self.dino,
            "ibot": self.ibot,
            "optimiser": self.optimiser,
        }

    def save(self) -> None:
        """The checkpoint to go on from, and the teacher as `last.safetensors`."""
        parts = {name: part.state_dict() for name, part in self.state().items()}
        with atomic_write(self.output / "checkpoint.pt") as file:
            torch.save({"step": self.step, "seconds": self.seconds, "config": asdict(self.config), **parts}, file)
        assert self.model.backbone.head is not None
        nn.init.eye_(self.model.backbone.head.weight)  # no text has been seen: the map into its space comes later
        nn.init.zeros_(self.model.backbone.head.bias)
        kept = {k: v for k, v in self.model.state_dict().items() if k.startswith(("backbone.", "log_scale"))}
        with atomic_write(self.output / "last.safetensors") as file:
            file.write(save({k: v.contiguous() for k, v in kept.items()}))

    def resume(self) -> bool:
        """Takes up `output/checkpoint.pt` when there is one; True when it did."""
        path = self.output / "checkpoint.pt"
        if not path.is_file():
            return False
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in self.state().items():
            part.load_state_dict(state[name])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def run(self) -> None:
        """Trains to the last step, with a line in `log.jsonl` every `log_every`."""
        c = self.config
        self.output.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        while self.step < c.steps:
            values = self.train_step()
            self.step += 1
            now = time.monotonic()
            self.seconds, started = self.seconds + now - started, now
            if self.step % c.log_every == 0:
                line = {"step": self.step, "seconds": round(self.seconds, 1), **values}
                with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            if self.step % c.checkpoint_every == 0 or self.step == c.steps:
                self.save()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m ovsdino.train.self_distill CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    try:
        config = build_config(SelfDistillConfig, overridden(read_yaml(arguments[0]), arguments[1:]), "")
        trainer = SelfDistiller(config)
    except OVSDinoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if trainer.resume():
        print(f"going on from step {trainer.step}", file=sys.stderr)
    trainer.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
