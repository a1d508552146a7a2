"""The one training loop: learning rates, gradient, AdamW, log, signals, checkpoints, exact resume.

Every run of this package is a `Trainer`. A subclass names its batches and its losses, and adds what its checkpoint
holds. The state of a step depends on (configuration, step) and the checkpoint alone: batches are functions of the
position in the run, the learning rate is a function of the step, and the random generators are seeded by
(seed, step, rank). No sampler, scheduler or generator is saved, and a resumed run continues as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

from ovsdino.distributed import ALONE, Ranks, any_of, barrier
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading
from ovsdino.train.config import CommonConfig, OptimConfig
from ovsdino.train.run_folder import Board, RunFolder
from ovsdino.train.stopping import Stopped, caught_signals

Log = Callable[[str], None]
# Ends of the names of vectors that are a number for each head, or a gate's one bias.
SCALARS = (".log_lambda", ".gate.bias")
OnStep = Callable[[int, int, dict[str, float]], None]


class Trainer(ABC):
    """One run, from its first step or its checkpoint to its last step.

    A subclass ends its constructor with `prepare`.

    Args:
        config: The run's folder, seed, device and intervals.
        optim: Steps, learning rate and gradient clipping.
        log: Receives one line at a time, for people.
        ranks: This process among those of the run.
    """

    betas = (0.9, 0.999)
    undecayed: tuple[str, ...] = ("pos_embed",)  # parts of names of parameters without weight decay
    optim_key = "optim."  # in front of the optimizer's settings, in messages
    fused = False  # one kernel for AdamW: 1 ms in place of 6 for the 106 parameters of nano's decoder (one core)
    objective: Any  # what `losses` calls; wrapped for many processes by the subclass that runs in many

    def __init__(self, config: CommonConfig, optim: OptimConfig, log: Log, ranks: Ranks = ALONE) -> None:
        self.config: Any = config
        self.optim, self.log, self.ranks = optim, log, ranks
        self.device = choose_device(config.device, ranks.local)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        # The explicit form trains twice as fast as fused SDPA on a CPU: 31 against 61 ms at (8, 3, 432, 64), bf16.
        timm.layers.set_fused_attn(self.device.type == "cuda")
        self.step, self.seconds = 0, 0.0
        self.folder = RunFolder(config.output)

    # -- for subclasses ------------------------------------------------------------------------------------------
    # ruff: noqa: B027 (a hook that does nothing is meant so)

    @abstractmethod
    def batches(self, start: int, steps: int) -> Iterator[Any]:
        """Yield this process's batches of the steps [start, steps)."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the weighted terms of a batch by name; their sum is minimized."""

    def part(self, batch: Any, index: int, parts: int) -> Any:
        """Return one of `parts` equal parts of a batch."""
        raise NotImplementedError

    def own_rates(self) -> dict[nn.Parameter, float]:
        """Return the parameters that have a learning rate of their own, in shares of `optim.lr`."""
        return {}

    def figures(self) -> dict[str, float]:
        """Return what else a line of the log tells of the last step."""
        return {}

    def before_update(self) -> None:
        """Change gradients; called after they are clipped."""

    def after_update(self) -> None:
        """Follow the new parameters."""

    def after_step(self, board: Board | None) -> dict[str, Any] | None:
        """Measure, if it is time; return the result. The run's clock does not count this."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beyond the step, the configuration and the optimizer's state."""
        return {}

    def take_up(self, state: dict[str, Any]) -> None:
        """Load what `state` returned.

        Raises:
            OVSDinoError: It is of a run that trained other parameters.
        """

    def save_weights(self, name: str) -> None:
        """Write the weights that a model loads."""

    # -- one step ------------------------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, parameters: dict[str, nn.Parameter] | None = None) -> None:
        """Take the module that is trained and make its optimizer.

        Args:
            module: Everything that is trained lies in it.
            parameters: What the optimizer holds, by name; the module's parameters that require a gradient by default.
        """
        self.module = self.objective = module
        self.trained = parameters or {k: p for k, p in module.named_parameters() if p.requires_grad}
        rates = {id(parameter): rate for parameter, rate in self.own_rates().items()}
        groups, self.rates = parameter_groups(self.trained, self.optim, self.undecayed, rates)
        self.optimizer = torch.optim.AdamW(groups, betas=self.betas, fused=self.fused or None)

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, constant, then half a cosine to 1 % of the rate."""
        c = self.optim
        if step < c.warmup:
            return c.lr * (step + 1) / c.warmup
        progress = max(0.0, (step - (1 - c.decay) * c.steps) / max(1.0, c.decay * c.steps))
        return c.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def step_seed(self) -> int:
        """Return the seed of the random generators in this step."""
        return (self.config.seed * 1_000_003 + self.step) * 1_009 + self.ranks.rank

    def train_step(self, batch: Any) -> dict[str, float]:
        """Take one step; return the loss, its terms and the norm of the gradient.

        Raises:
            OVSDinoError: The gradient is not finite.
        """
        c = self.optim
        torch.manual_seed(self.step_seed())
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = self.learning_rate(self.step) * rate
        self.optimizer.zero_grad(set_to_none=True)
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
            remedy = f"lower {self.optim_key}lr or set {self.optim_key}bf16=false"
            raise OVSDinoError(f"step {self.step}: the gradient is not finite; {remedy}")
        self.before_update()
        self.optimizer.step()
        self.after_update()
        return {**values, "grad_norm": norm}

    # -- state ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint to continue from: what is trained, not what is frozen. The first process writes."""
        if self.ranks.first:
            own = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
            self.folder.save({**own, "optimiser": self.optimizer.state_dict(), **self.state()})

    def resume(self) -> bool:
        """Take up the folder's checkpoint; return whether there is one. Log lines beyond it are removed.

        Raises:
            OVSDinoError: It is damaged, or of a run that trained other parameters.
        """
        barrier()
        state = self.folder.load()
        if state is not None:
            with reading(self.folder.checkpoint, "checkpoint", self.folder.remedy):
                groups = [len(group["params"]) for group in self.optimizer.param_groups]
                if [len(group["params"]) for group in state["optimiser"]["param_groups"]] != groups:
                    raise self.foreign()
                self.take_up(state)
                self.optimizer.load_state_dict(state["optimiser"])
                self.step, self.seconds = state["step"], float(state["seconds"])
        if self.ranks.first:
            self.folder.forget_after(self.step)
        return state is not None

    def foreign(self) -> OVSDinoError:
        """Return the error on a checkpoint of a run that trained other parameters."""
        return OVSDinoError(
            f"{self.folder.checkpoint}: its run trained other parameters than this one; {self.folder.remedy}"
        )

    def record(self, kind: str, **values: Any) -> None:
        """Write one line of `log.jsonl`; the first process does."""
        if self.ranks.first:
            self.folder.append({"kind": kind, "step": self.step, "seconds": round(self.seconds, 1), **values})

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self, on_step: OnStep | None = None) -> dict[str, Any]:
        """Train from the current step to the last; return the last result of `after_step`.

        Args:
            on_step: Called with the steps done, all steps, and the values of `train_step`.

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

    def _loop(self, board: Board | None, on_step: OnStep | None) -> dict[str, Any]:
        c, steps = self.config, self.optim.steps
        result: dict[str, Any] = {}
        self.train_mode()
        started = time.monotonic()
        with caught_signals() as received:
            for batch in self.batches(self.step, steps):
                values = self.train_step(batch)
                self.step += 1
                self.seconds += time.monotonic() - started
                if on_step:
                    on_step(self.step, steps, values)
                if self.step % c.log_every == 0:
                    values |= self.figures()
                    self.record("train", lr=self.learning_rate(self.step), **values)
                    if board is not None:
                        board.add("train", values, self.step)
                result = self.after_step(board) or result
                started = time.monotonic()
                stop = any_of(bool(received))
                if stop or self.step % c.checkpoint_every == 0 or self.step == steps:
                    self.save()
                if stop:
                    raise Stopped(received[0] if received else int(signal.SIGTERM))
        return result

    def train_mode(self) -> None:
        """Set training mode for the parts that are trained, eval mode for the frozen ones."""
        self.module.train()
        for part in self.module.modules():
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()


def parameter_groups(
    parameters: dict[str, nn.Parameter],
    optim: OptimConfig,
    undecayed: Sequence[str] = (),
    rates: Mapping[int, float] | None = None,
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return parameters in groups for AdamW, and the share of the learning rate that each group is trained at.

    Weight decay is for matrices only, not for biases, norms and scalars. Matrices with a part of `undecayed` in their
    names have none either. There are groups of matrices, of vectors and, where there are any, of scalars, at
    `optim.scalar_rate`.
    A scalar is a number for itself, or one of each head (`SCALARS`): AdamW moves a number by no more than the sum of
    all rates, which is far for a weight among thousands and near for a temperature.

    Args:
        parameters: By name.
        optim: Weight decay, and the rate of scalars.
        undecayed: Parts of names.
        rates: Of parameters that have one of their own, by their id; each rate gets two more groups, of matrices and
            vectors, behind the others.
    """
    rates = rates or {}
    kinds = [(1.0, False), (1.0, True), (optim.scalar_rate, True)]
    groups: list[list[nn.Parameter]] = [[], [], []]
    for rate in dict.fromkeys(rates.values()):
        kinds += [(rate, False), (rate, True)]
        groups += [[], []]
    for name, parameter in parameters.items():
        plain = parameter.ndim <= 1 or any(part in name for part in undecayed)
        own = rates.get(id(parameter))
        if own is not None:
            groups[kinds.index((own, plain), 3)].append(parameter)
        elif parameter.ndim == 0 or name.endswith(SCALARS):
            groups[2].append(parameter)
        else:
            groups[int(plain)].append(parameter)
    if not groups[2]:
        del groups[2], kinds[2]
    made = [
        {"params": group, "weight_decay": 0.0 if plain else optim.weight_decay}
        for group, (_, plain) in zip(groups, kinds, strict=True)
    ]
    return made, [rate for rate, _ in kinds]


def follow(average: Iterable[Tensor], live: Iterable[Tensor], decay: float) -> None:
    """Move a running mean of parameters: average <- decay average + (1 - decay) live, in place."""
    torch._foreach_lerp_([*average], [p.detach() for p in live], 1.0 - decay)


def choose_device(name: str, local: int = 0) -> torch.device:
    """Return the device that a setting names, and make it the current one.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:N".
        local: Number of the CUDA device where the name has none.

    Raises:
        OVSDinoError: There is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise OVSDinoError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda":
        if max(local, device.index or 0) >= torch.cuda.device_count():
            raise OVSDinoError(
                f"device: {name!r} was asked for, and torch sees {torch.cuda.device_count()} CUDA devices; take cpu"
            )
        device = torch.device("cuda", local if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device
