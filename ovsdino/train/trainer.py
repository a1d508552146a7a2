"""The training loop: frozen parts in eval mode, bf16 autocast, EMA, any number of processes, exact resume.

The state of a step depends on (config, step) and the checkpoint alone: batches are functions of the position in the
run, the learning rate of the step, and the random generators are seeded by (seed, step, rank). So there is no sampler,
scheduler or generator to save beside the step, and a resumed run goes on as if it had not stopped.

What is trained is small (behind a frozen ViT nano has 2.7 M parameters, b14 3.6 M), so every process holds all of it
and its optimiser's state: sharding them (FSDP) would save some 40 MB a device and cost a collective a layer.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.eval.metrics import Confusion
from ovsdino.io.files import reading
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.text import HashedTextTower
from ovsdino.models.weights import load_state, packaged, read_packaged, read_safetensors
from ovsdino.models.zoo import PROJECTIONS, build_model, load_official
from ovsdino.ops import upsample_argmax
from ovsdino.pipeline import Segmenter
from ovsdino.train.config import RunConfig
from ovsdino.train.distributed import any_of, barrier, join, total_of
from ovsdino.train.run_folder import Board, RunFolder
from ovsdino.train.stopping import Stopped, caught_signals

Log = Callable[[str], None]
TEMPERATURES = ("log_scale", "mask_scale")  # logarithms of what cosines are multiplied by
MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound (Radford et al. 2021, section 2.5): beyond it training is unstable


def changed_model(config: RunConfig) -> OVSDINO:
    """Return the model of a configuration, with random weights.

    Raises:
        OVSDinoError: No such model, or the changes to it do not make one.
    """
    try:
        return build_model(config.model, decoder=config.decoder, changes=config.architecture)
    except OVSDinoError:
        raise
    except Exception as error:  # modules raise whatever sizes that do not fit lead to
        if not config.architecture:
            raise
        raise OVSDinoError(f"architecture: {config.architecture} makes no model: {one_line(error, 160)}") from error


def load_weights(model: OVSDINO, config: RunConfig) -> None:
    """What a run begins with: nano's text tower and perhaps backbone, or the published parts of the other models.

    Raises:
        OVSDinoError: a file is missing or does not fit, or the hub cannot be reached.
    """
    if not isinstance(model.text_tower, HashedTextTower):
        projection = config.projection or None
        published = projection is not None or model.config.name in PROJECTIONS
        load_official(
            model, config.backbone_weights or None, projection, config.clip_weights or None, with_projection=published
        )
        return
    load_text_tower(model, config.text_weights)
    if config.backbone_weights:
        load_backbone(model, config.backbone_weights)


def load_text_tower(model: OVSDINO, path: str) -> None:
    """Text weights of nano's tower from a safetensors file, or from the shipped model of the same name."""
    if path:
        load_state(model.text_tower, read_safetensors(path), path)
        return
    if packaged(model.config.name) is None:
        raise OVSDinoError(
            "no text tower: distil one (python -m ovsdino.train.pretrain.distill_text) and set text_weights"
        )
    state = read_packaged(model.config.name)
    tower = {k.removeprefix("text_tower."): v for k, v in state.items() if k.startswith("text_tower.")}
    load_state(model.text_tower, tower, model.config.name)


def load_backbone(model: OVSDINO, path: str) -> None:
    """The backbone of an earlier run's safetensors file, its temperature with it; the decoder stays as it is."""
    state = read_safetensors(path)
    kept = {k: v for k, v in state.items() if k.startswith(("backbone.", "log_scale"))}
    load_state(model, kept, path, partial=("decoder.", "text_tower."))


def parameter_groups(module: nn.Module, weight_decay: float, slow: Iterable[nn.Parameter] = ()) -> list[dict[str, Any]]:
    """Return the trained parameters in groups for an optimiser.

    Weight decay is for matrices only: not for biases, norms, scalars, position embeddings.

    Args:
        slow: Parameters that get groups of their own, behind the others.

    Returns:
        Two groups, with and without decay; four where there are slow parameters.
    """
    apart = {id(parameter) for parameter in slow}
    groups: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or "pos_embed" in name
            groups[2 * (id(parameter) in apart) + plain].append(parameter)
    decays = (weight_decay, 0.0, weight_decay, 0.0)
    count = 4 if apart else 2
    return [{"params": p, "weight_decay": d} for p, d in zip(groups[:count], decays[:count], strict=True)]


def normalised(model: OVSDINO, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as the model takes them, in the memory layout that its convolutions like."""
    mean = torch.tensor(model.config.mean, device=images.device)[:, None, None]
    std = torch.tensor(model.config.std, device=images.device)[:, None, None]
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def encode(model: OVSDINO, images: Tensor, bf16: bool) -> ImageFeatures:
    """Features of images in [0, 1]: computed in bf16, handed on in float32, in which all losses are."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        features = model.encode_image(normalised(model, images))
    return features.float()


class Trainer(ABC):
    """What a run on labels and a run on captions share; a subclass says what a batch is and what is lost on it.

    A subclass ends its constructor with `prepare`. Everything trained lies in the module given to it: the model, as its
    attribute `model`, and what the losses alone need.
    """

    slow_rate = 1.0  # of the parameters of `slow`, in shares of the learning rate
    objective: Any  # a module, wrapped for many processes and compiled as the configuration says

    def __init__(self, config: RunConfig, log: Log) -> None:
        self.config, self.log = config, log
        self.ranks = join()
        self.device = choose_device(config.device, self.ranks.local)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        # The explicit form trains twice as fast as fused SDPA on a CPU: 31 against 61 ms at (8, 3, 432, 64), bf16.
        timm.layers.set_fused_attn(self.device.type == "cuda")
        self.model = changed_model(config)
        load_weights(self.model, config)
        self.step, self.best, self.seconds = 0, -1.0, 0.0
        self.folder = RunFolder(config.output)

    # -- what a subclass gives -----------------------------------------------------------------------------------

    @abstractmethod
    def batches(self, start: int, steps: int) -> Iterator[Any]:
        """This process's batches of the steps [start, steps)."""

    @abstractmethod
    def part(self, batch: Any, index: int, parts: int) -> Any:
        """One of `parts` equal parts of a batch."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The weighted terms of a batch, whose sum is minimised."""

    @abstractmethod
    def measured(self) -> dict[str, tuple[SegmentationDataset, Tensor]]:
        """What is measured along the way: images with labels and the text of their classes (K, D).

        Returns:
            "val", which chooses nothing, and "selection", whose best result is kept as `best.safetensors`; either may
            be missing.
        """

    def slow(self) -> Iterable[nn.Parameter]:
        """Parameters that are trained at `slow_rate` of the learning rate."""
        return ()

    # -- one step ------------------------------------------------------------------------------------------------

    def prepare(self, module: nn.Module) -> None:
        """Puts the module in place and makes the optimiser of its trainable parameters."""
        self.module = module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = {k: p for k, p in self.module.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(parameter_groups(self.module, self.config.optim.weight_decay, self.slow()))
        self.temperatures = [p for k, p in self.trained.items() if k.rpartition(".")[2] in TEMPERATURES]
        self.ema = {k: p.detach().clone() for k, p in self.trained.items()}
        self.objective = torch.compile(self.module) if self.config.compile else self.module
        if self.ranks.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.objective = DistributedDataParallel(self.objective, devices, find_unused_parameters=True)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, constant, then half a cosine to 1 % of the rate."""
        c = self.config.optim
        if step < c.warmup:
            return c.lr * (step + 1) / c.warmup
        progress = max(0.0, (step - (1 - c.decay) * c.steps) / max(1.0, c.decay * c.steps))
        return c.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def train_step(self, batch: Any) -> dict[str, float]:
        """One step of the optimiser; returns the loss, its terms and the gradient's norm."""
        c = self.config.optim
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 1_009 + self.ranks.rank)
        for index, group in enumerate(self.optimiser.param_groups):
            group["lr"] = self.learning_rate(self.step) * (self.slow_rate if index >= 2 else 1.0)
        self.optimiser.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        for index in range(c.accumulate):
            last = index == c.accumulate - 1
            wait = contextlib.nullcontext() if last or self.ranks.size == 1 else self.objective.no_sync()
            with wait:
                terms = self.losses(self.part(batch, index, c.accumulate) if c.accumulate > 1 else batch)
                loss = torch.stack(list(terms.values())).sum()
                (loss / c.accumulate).backward()
            for name, value in {"loss": loss, **terms}.items():
                values[name] = values.get(name, 0.0) + value.item() / c.accumulate
        norm = nn.utils.clip_grad_norm_(self.trained.values(), c.clip).item()
        if not math.isfinite(norm):
            raise OVSDinoError(f"step {self.step}: the gradient is not finite; lower optim.lr or set optim.bf16=false")
        self.optimiser.step()
        for parameter in self.temperatures:
            parameter.data.clamp_(max=MAX_LOG_SCALE)
        decay = min(c.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.trained.values()], 1.0 - decay)
        return {**values, "grad_norm": norm}

    # -- evaluation and state ------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, dataset: SegmentationDataset, text: Tensor) -> dict[str, Any]:
        """Return the mIoU of the EMA weights as `ovsdino eval` measures it: whole images at the model's default size.

        Each process takes every n-th image, so none waits for another longer than for an image.

        Args:
            dataset: Images with labels.
            text: (K, D), of its classes.
        """
        segmenter, confusion = Segmenter(self.model), Confusion(len(dataset.names), dataset.ignore_index)
        live = {k: p.detach().clone() for k, p in self.trained.items()}
        self.use_average()
        try:
            for index in range(self.ranks.rank, len(dataset), self.ranks.size):
                sample = dataset[index]
                logits = segmenter.decode(segmenter.encode_image(sample.image), text)
                confusion.update(upsample_argmax(logits, sample.label.shape)[0].cpu().numpy(), sample.label)
        finally:
            self._load_parameters(live)
        confusion.counts = total_of(torch.from_numpy(confusion.counts)).numpy()
        iou = dict(zip(dataset.names, confusion.iou().tolist(), strict=True))
        return {
            "miou": confusion.miou() or 0.0,
            "iou": {name: None if math.isnan(value) else round(value, 4) for name, value in iou.items()},
        }

    def _train_mode(self) -> None:
        """Training mode for the parts that are trained, eval mode for the frozen ones."""
        self.module.train()
        for part in self.module.modules():
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()

    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.data.copy_(values[name])

    def use_average(self) -> None:
        """Puts the averaged weights into the model, for good: the last thing done with a trainer."""
        self._load_parameters(self.ema)

    def save(self) -> None:
        """Write the checkpoint to go on from: what is trained, not what is frozen. The first process writes."""
        if not self.ranks.first:
            return
        state = {
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "trained": {k: p.detach() for k, p in self.trained.items()},
            "ema": self.ema,
            "optimiser": self.optimiser.state_dict(),
            "config": asdict(self.config),
        }
        self.folder.save(state)

    def resume(self) -> bool:
        """Take up the folder's checkpoint; return whether there is one. What the log has beyond it is taken out.

        Raises:
            OVSDinoError: It is damaged, or of a run that trained other things.
        """
        barrier()
        state = self.folder.load()
        if state is not None:
            with reading(self.folder.checkpoint, "checkpoint", self.folder.remedy):
                self._take_up(state)
        if self.ranks.first:
            self.folder.forget_after(self.step)
        return state is not None

    def _take_up(self, state: dict[str, Any]) -> None:
        """Load a checkpoint's state.

        Raises:
            OVSDinoError: Its run trained other parameters, or in other groups.
        """
        own = {k: tuple(p.shape) for k, p in self.trained.items()}
        groups = [len(group["params"]) for group in self.optimiser.param_groups]
        same = all({k: tuple(v.shape) for k, v in state[part].items()} == own for part in ("trained", "ema"))
        if not same or [len(group["params"]) for group in state["optimiser"]["param_groups"]] != groups:
            raise OVSDinoError(
                f"{self.folder.checkpoint}: its run trained other parameters than this one; {self.folder.remedy}"
            )
        self._load_parameters(state["trained"])
        for name, value in state["ema"].items():
            self.ema[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.seconds = state["step"], float(state["best"]), float(state["seconds"])

    def save_weights(self, name: str) -> None:
        """Write the EMA weights in float16: the file that a model loads. An official backbone stays where it came from.

        The first process writes.
        """
        if not self.ranks.first:
            return
        weights = self.model.state_dict()
        weights.update({k.removeprefix("model."): v for k, v in self.ema.items() if k.startswith("model.")})
        if not isinstance(self.model.text_tower, HashedTextTower):
            weights = {k: v for k, v in weights.items() if not k.startswith("backbone.")}
        self.folder.save_weights(name, weights)

    def record(self, kind: str, **values: Any) -> None:
        """Write one line in `log.jsonl`; the first process does."""
        if self.ranks.first:
            self.folder.append({"kind": kind, "step": self.step, "seconds": round(self.seconds, 1), **values})

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, on_step: Callable[[int, int, dict[str, float]], None] | None = None) -> dict[str, Any]:
        """Train from the current step to the last; return the last validation result.

        Raises:
            Stopped: After SIGTERM or SIGINT, once the step is finished and the checkpoint saved.
        """
        board = Board(self.folder.path, self.step) if self.ranks.first else None
        try:
            result = self._loop(board, on_step)
        finally:
            if board is not None:
                board.close()
        self.save_weights("last.safetensors")
        barrier()
        return result

    def _loop(
        self, board: Board | None, on_step: Callable[[int, int, dict[str, float]], None] | None
    ) -> dict[str, Any]:
        c, steps = self.config, self.config.optim.steps
        self._train_mode()
        result: dict[str, Any] = {}
        started = time.monotonic()
        with caught_signals() as received:
            for batch in self.batches(self.step, steps):
                values = self.train_step(batch)
                self.step += 1
                now = time.monotonic()
                self.seconds, started = self.seconds + now - started, now
                if on_step:
                    on_step(self.step, steps, values)
                if self.step % c.log_every == 0:
                    self.record("train", lr=self.learning_rate(self.step), **values)
                    if board is not None:
                        board.add("train", values, self.step)
                if c.eval_every and (self.step % c.eval_every == 0 or self.step == steps):
                    result = self._validate(board)
                    started = time.monotonic()  # evaluation is not training time
                stop = any_of(bool(received))
                if stop or self.step % c.checkpoint_every == 0 or self.step == steps:
                    self.save()
                if stop:
                    raise Stopped(received[0] if received else int(signal.SIGTERM))
        return result

    def _validate(self, board: Board | None) -> dict[str, Any]:
        """Measure the averaged weights, each process its part of the images; choose the best by the selection images.

        Returns:
            The result on the validation images.
        """
        self.module.eval()
        found = {kind: self.evaluate(*images) for kind, images in self.measured().items()}
        self._train_mode()
        for kind, result in found.items():
            self.record(kind, **result)
            if self.ranks.first:
                self.log(f"step {self.step}: {kind} mIoU {result['miou']:.4f}")
            if board is not None:
                board.add(kind, {"miou": result["miou"]}, self.step)
        chosen = found.get("selection")
        if chosen and chosen["miou"] > self.best:
            self.best = chosen["miou"]
            self.save_weights("best.safetensors")
        return found.get("val", {})


def choose_device(name: str, local: int = 0) -> torch.device:
    """Return the device that a setting names, and make it the current one.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        local: Number of the CUDA device where the name has none.

    Raises:
        OVSDinoError: No such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OVSDinoError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise OVSDinoError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if max(local, device.index or 0) >= torch.cuda.device_count():
            raise OVSDinoError(
                f"device: {name!r} was asked for, and torch sees {torch.cuda.device_count()} CUDA devices; take cpu"
            )
        device = torch.device("cuda", local if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device
