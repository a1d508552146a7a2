"""A backbone from images alone: self-distillation as in DINO (Caron et al. 2021) and iBOT (Zhou et al. 2022).

Student and teacher are one ViT; the teacher is the running mean of the student. Each image gives large crops, and small
crops out of every large one. With q = the teacher's tokens over the prototypes, balanced by Sinkhorn-Knopp:

    L = L_place(student's tokens of a small crop -> teacher's tokens at the same place of its large crop)
      + L_ibot(student's masked tokens -> teacher's tokens of the same crop, unmasked)
      + image * L_dino(mean tokens: student of a large crop -> teacher of the other)
      + koleo * L_koleo(student's mean tokens: spread over the sphere)

The first term is ours: street scenes are alike as images and differ in their places, so what a small crop shows must
be told from what the large one has there (docs/decisions.md has the figures). nano's ViT has no class token, so the
mean of the patch tokens stands for the image. Sinkhorn-Knopp, the losses and the projection head are lightly's. What
is kept is the teacher, as the backbone of an `OVSDINO`.

    python -m ovsdino.train.pretrain.self_distill configs/self_distill.yaml [key=value ...]
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.transforms import v2

from ovsdino.console import run_command
from ovsdino.data.images import ImageSource
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import lock_folder, reading
from ovsdino.models.backbone import freeze
from ovsdino.models.config import IMAGENET_MEAN, IMAGENET_STD
from ovsdino.models.zoo import build_model
from ovsdino.settings import (
    InputPath,
    Positive,
    Probability,
    Share,
    Size,
    Weight,
    Within,
    anchored,
    build_config,
    overridden,
    read_yaml,
)
from ovsdino.train.image_cache import ImageCache, share_of_machine
from ovsdino.train.run_folder import RunFolder
from ovsdino.train.stopping import Stopped, caught_signals
from ovsdino.train.trainer import choose_device


@dataclass(frozen=True, kw_only=True)
class CropStage:
    """A stretch of training at one crop size; sides in pixels, multiples of the patch size.

    Attributes:
        until: the stage ends at this fraction of all steps.
        batch: images a step; each gives two large crops, and each of those `SelfDistillConfig.small_crops` small ones.
    """

    until: Share = 1.0
    large: Annotated[int, Within(1, 16384)] = 128
    small: Annotated[int, Within(1, 16384)] = 64
    batch: Annotated[int, Within(2, 1_000_000)] = 32


@dataclass(frozen=True, kw_only=True)
class SelfDistillConfig:
    """One run.

    Attributes:
        images: folders or zips; every image in them is used, nothing else of them is read. Relative to the YAML file.
        device: "auto" takes CUDA if there is one.
        cache_mb: megabytes of decoded images that are kept; what has not been used longest makes room.
        large_area, small_area: of a large crop in its image, of a small crop in its large one.
        mask_ratio: a masked crop loses a fraction of its patches drawn from here; half of the large crops are masked.
        prototypes: width of the head's output.
        teacher_momentum: at the start; it rises to 1 along half a cosine.
        temperature: of the teacher's distributions, which Sinkhorn-Knopp balances over the batch.
    """

    model: str = "nano"
    images: Annotated[tuple[str, ...], Size(1, 1000), InputPath()] = ()
    output: Annotated[str, Size(1, 4096)] = "runs/self_distill"
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0
    threads: Annotated[int, Within(0, 4096)] = 0
    device: str = "auto"
    steps: Positive = 2400
    small_crops: Annotated[int, Within(1, 100)] = 2
    large_area: Annotated[tuple[float, ...], Within(0, 1, above=True), Size(2, 2)] = (0.3, 1.0)
    small_area: Annotated[tuple[float, ...], Within(0, 1, above=True), Size(2, 2)] = (0.1, 0.4)
    mask_ratio: Annotated[tuple[float, ...], Within(0, 1), Size(2, 2)] = (0.1, 0.5)
    prototypes: Annotated[int, Within(2, 1_000_000)] = 512
    image: Weight = 0.3
    koleo: Weight = 0.1
    lr: Annotated[float, Within(0, 10, above=True)] = 1.5e-3
    weight_decay: Annotated[float, Within(0, 10)] = 0.05
    warmup: Positive = 60
    clip: Annotated[float, Within(0, 1e6, above=True)] = 3.0
    teacher_momentum: Probability = 0.99
    temperature: Annotated[float, Within(0, 10, above=True)] = 0.05
    bf16: bool = True
    cache_mb: Annotated[int, Within(1, 1_000_000)] = 2048
    checkpoint_every: Positive = 100
    log_every: Positive = 20
    stages: Annotated[tuple[CropStage, ...], Size(1, 100)] = (CropStage(),)

    def __post_init__(self) -> None:
        for name in ("large_area", "small_area", "mask_ratio"):
            least, most = getattr(self, name)
            if least > most:
                raise OVSDinoError(f"{name}: expected the least first, got [{least}, {most}]")


class Student(nn.Module):
    """The ViT, the head that gives distributions over prototypes, and the token that stands for a masked patch."""

    def __init__(self, vit: nn.Module, width: int, prototypes: int) -> None:
        super().__init__()
        from lightly.models.modules import DINOProjectionHead

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


@dataclass
class CropBatch:
    """What a step sees: B images, L = 2 B large crops, n small crops of each.

    Attributes:
        large: (L, 3, H, W) normalised; crops i and B + i are of one image.
        small: (n L, 3, h, w) normalised; crop k is of large crop k % L.
        places: (n L, 4) float32, left, top, right, bottom of each small crop in its large one, 0..1.
        mirrored: (n L,) bool, small crops whose columns run against those of their large crop.
    """

    large: Tensor
    small: Tensor
    places: Tensor
    mirrored: Tensor

    def to(self, device: torch.device) -> CropBatch:
        """Return it on a device."""
        return CropBatch(*(part.to(device) for part in (self.large, self.small, self.places, self.mirrored)))


class Crops:
    """Large and small crops of images in memory, a function of torch's generator."""

    def __init__(self, config: SelfDistillConfig) -> None:
        sources = [ImageSource(source) for source in config.images]
        self.places = [(source, name) for source in sources for name in source.names]
        if len(self.places) < 2:
            raise OVSDinoError(f"images: {len(self.places)} image in {', '.join(config.images)}; expected two or more")
        self.config = config
        self._cache: ImageCache[Tensor] = ImageCache(share_of_machine(config.cache_mb, 0), lambda image: image.nbytes)
        self.colours = {blur: self._colours(blur) for blur in (0.3, 0.1)}

    def image(self, index: int) -> Tensor:
        """Return an image, (3, H, W) uint8."""
        source, name = self.places[index]
        return self._cache.get(index, lambda: torch.from_numpy(source.read(name).copy()).permute(2, 0, 1))

    def draw(self, stage: CropStage) -> CropBatch:
        """Return the crops of a step."""
        c, count = self.config, min(stage.batch, len(self.places))
        picks = torch.randperm(len(self.places))[:count].tolist() * 2
        large, boxes = zip(*(self._large(self.image(i), stage.large) for i in picks), strict=True)
        small = [
            self._small(self.image(i), box, stage.small)
            for _ in range(c.small_crops)
            for i, box in zip(picks, boxes, strict=True)
        ]
        crops, places, mirrored = zip(*small, strict=True)
        return CropBatch(torch.stack(large), torch.stack(crops), torch.tensor(places), torch.tensor(mirrored))

    def _large(self, image: Tensor, size: int) -> tuple[Tensor, tuple[int, int, int, int, bool]]:
        top, left, height, width = v2.RandomResizedCrop.get_params(image, list(self.config.large_area), [3 / 4, 4 / 3])
        mirror = bool(torch.rand(()) < 0.5)
        return self._view(image, (top, left, height, width), size, mirror, 0.3), (top, left, height, width, mirror)

    def _small(
        self, image: Tensor, within: tuple[int, int, int, int, bool], size: int
    ) -> tuple[Tensor, tuple[float, float, float, float], bool]:
        top, left, height, width, mirrored = within
        side = float(torch.empty(()).uniform_(*self.config.small_area)) ** 0.5
        h, w = max(1, round(side * height)), max(1, round(side * width))
        y = int(torch.randint(height - h + 1, ()))
        x = int(torch.randint(width - w + 1, ()))
        mirror = bool(torch.rand(()) < 0.5)
        crop = self._view(image, (top + y, left + x, h, w), size, mirror, 0.1)
        begin, end = x / width, (x + w) / width
        if mirrored:
            begin, end = 1 - end, 1 - begin
        return crop, (begin, y / height, end, (y + h) / height), mirror != mirrored

    def _view(self, image: Tensor, box: tuple[int, int, int, int], size: int, mirror: bool, blur: float) -> Tensor:
        view = v2.functional.resized_crop(image, *box, [size, size], antialias=True)
        return self.colours[blur](v2.functional.horizontal_flip(view) if mirror else view)

    @staticmethod
    def _colours(blur: float) -> v2.Compose:
        return v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.2)], 0.8),  # hue and colour tell sky from tree: kept
                v2.RandomGrayscale(0.05),
                v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], blur),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )


def tokens_at(tokens: Tensor, places: Tensor, mirrored: Tensor, side: int) -> Tensor:
    """Tokens of large crops where the small crops lie.

    Args:
        tokens: (L, H, W, D).
        places, mirrored: see `CropBatch`.
        side: of the small crops' grid.

    Returns:
        (n L, side, side, D), bilinear, in the order of the small crops' own tokens.
    """
    count, height, width, _ = tokens.shape
    scale = torch.tensor([width, height, width, height], device=tokens.device)
    index = torch.arange(len(places), device=tokens.device) % count
    boxes = torch.cat([index[:, None].float(), places * scale], 1)
    found = roi_align(tokens.permute(0, 3, 1, 2).float(), boxes, side, sampling_ratio=2, aligned=True)
    return torch.where(mirrored[:, None, None, None], found.flip(-1), found).permute(0, 2, 3, 1)


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
        try:
            from lightly.loss import DINOLoss, KoLeoLoss, SwaVLoss
        except ImportError as error:
            raise OVSDinoError("self-distillation needs lightly: pip install 'ovsdino[train]'") from error
        self.config, self.step, self.seconds = config, 0, 0.0
        self.device = choose_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        timm.layers.set_fused_attn(self.device.type == "cuda")  # see Trainer
        self.model = build_model(config.model, decoder=False)  # holds the teacher
        width = self.model.config.embed_dim
        self.student = Student(build_model(config.model, decoder=False).backbone.vit, width, config.prototypes)
        self.teacher = Student(self.model.backbone.vit, width, config.prototypes)
        self.teacher.load_state_dict(self.student.state_dict())
        freeze(self.teacher)
        for part in (self.student, self.teacher):
            part.to(self.device)
        self.dino = DINOLoss(config.prototypes).to(self.device)
        self.swav = SwaVLoss()
        self.koleo = KoLeoLoss()
        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.lr)
        self.crops = Crops(config)
        self.folder = RunFolder(config.output)
        multiple = self.model.stride_multiple
        for index, stage in enumerate(config.stages):
            for name in ("large", "small"):
                if getattr(stage, name) % multiple:
                    raise OVSDinoError(
                        f"stages[{index}].{name}: expected a multiple of {multiple}, the patch size, got "
                        f"{getattr(stage, name)}"
                    )

    def losses(self, crops: CropBatch) -> dict[str, Tensor]:
        """The weighted terms of crops."""
        c, p = self.config, self.model.stride_multiple
        side, small_side = crops.large.shape[-1] // p, crops.small.shape[-1] // p
        masks = random_masks(len(crops.large), side, c.mask_ratio).to(self.device)
        crops = crops.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=c.bf16):
            with torch.no_grad():
                target = self.teacher.tokens(crops.large)
                places = tokens_at(target.unflatten(1, (side, side)), crops.places, crops.mirrored, small_side)
                target_image = self.teacher.head(target.mean(1)).float()
                target_place = self.teacher.head(places.flatten(0, 2)).float()
                target_patch = self.teacher.head(target[masks.flatten(1)]).float()
            seen = self.student.tokens(crops.large, masks)
            mean = seen.mean(1)
            guess_image = self.student.head(mean).float()
            guess_place = self.student.head(self.student.tokens(crops.small).flatten(0, 1)).float()
            guess_patch = self.student.head(seen[masks.flatten(1)]).float()
        return {
            "place": self._patches(target_place, guess_place),
            "ibot": self._patches(target_patch, guess_patch),
            "image": c.image * self.dino(list(target_image.chunk(2)), list(guess_image.chunk(2)), 0.04),
            "koleo": c.koleo * torch.stack([self.koleo(part) for part in mean.float().chunk(2)]).mean(),
        }

    def _patches(self, target: Tensor, guess: Tensor) -> Tensor:
        """Cross-entropy of tokens over the prototypes against the teacher's, balanced: (n, prototypes) both."""
        from lightly.loss.swav_loss import sinkhorn

        if not len(guess):  # a ratio so small that no patch was masked
            return guess.sum()
        loss: Tensor = self.swav.subloss(guess, sinkhorn(target, epsilon=self.config.temperature))
        return loss

    def train_step(self) -> dict[str, float]:
        """One step; returns the loss and its terms."""
        c = self.config
        torch.manual_seed(c.seed * 1_000_003 + self.step)
        stage = next((s for s in c.stages if self.step < s.until * c.steps), c.stages[-1])
        progress = 0.5 * (1 - math.cos(math.pi * self.step / c.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = c.lr * min((self.step + 1) / c.warmup, 1.0 - 0.99 * progress)
        terms = self.losses(self.crops.draw(stage))
        loss = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), c.clip)
        if not torch.isfinite(norm):
            raise OVSDinoError(f"step {self.step}: the gradient is not finite; lower lr or set bf16=false")
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
            "optimiser": self.optimiser,
        }

    def save(self) -> None:
        """Write the checkpoint to go on from, and the teacher as `last.safetensors`, in float16."""
        parts = {name: part.state_dict() for name, part in self.state().items()}
        self.folder.save({"step": self.step, "seconds": self.seconds, "config": asdict(self.config), **parts})
        assert self.model.backbone.head is not None
        nn.init.eye_(self.model.backbone.head.weight)  # no text has been seen: the map into its space comes later
        nn.init.zeros_(self.model.backbone.head.bias)
        kept = {k: v for k, v in self.model.state_dict().items() if k.startswith(("backbone.", "log_scale"))}
        self.folder.save_weights("last.safetensors", kept)

    def resume(self) -> bool:
        """Take up the folder's checkpoint; return whether there is one. What the log has beyond it is taken out.

        Raises:
            OVSDinoError: It is damaged, or of a run of another shape.
        """
        state = self.folder.load()
        if state is not None:
            with reading(self.folder.checkpoint, "checkpoint of this run", self.folder.remedy):
                for name, part in self.state().items():
                    part.load_state_dict(state[name])
                self.step, self.seconds = state["step"], float(state["seconds"])
        self.folder.forget_after(self.step)
        return state is not None

    def run(self) -> None:
        """Train to the last step, with a line in `log.jsonl` every `log_every`.

        Raises:
            Stopped: After SIGTERM or SIGINT, once the step is finished and the checkpoint saved.
        """
        c = self.config
        started = time.monotonic()
        with caught_signals() as received:
            while self.step < c.steps:
                values = self.train_step()
                self.step += 1
                now = time.monotonic()
                self.seconds, started = self.seconds + now - started, now
                if self.step % c.log_every == 0:
                    self.folder.append({"step": self.step, "seconds": round(self.seconds, 1), **values})
                if received or self.step % c.checkpoint_every == 0 or self.step == c.steps:
                    self.save()
                if received:
                    raise Stopped(received[0])


def load_settings(path: str | Path, overrides: Sequence[str] = ()) -> SelfDistillConfig:
    """Read a YAML file and apply `key=value` overrides; see `ovsdino.train.config.load_config`."""
    tree = anchored(SelfDistillConfig, read_yaml(path), Path(path).parent)
    config: SelfDistillConfig = build_config(SelfDistillConfig, overridden(tree, overrides), "")
    if not config.images:
        raise OVSDinoError("images: expected a list of folders or zips of images, got none")
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m ovsdino.train.pretrain.self_distill CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    return run_command(arguments, lambda: _distil(load_settings(arguments[0], arguments[1:])))


def _distil(config: SelfDistillConfig) -> int:
    with lock_folder(config.output, "training"):
        trainer = SelfDistiller(config)
        if trainer.resume():
            print(f"going on from step {trainer.step}", file=sys.stderr)
        try:
            trainer.run()
        except Stopped as stopped:
            print(f"{stopped} at step {trainer.step}, all saved; the same command goes on from here", file=sys.stderr)
            return 128 + stopped.signal
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
