"""Images a second and peak memory of weakly supervised training: native ops against the plain-PyTorch references.

    python benchmarks/studies/training.py --model nano --json

Both sides run the same steps (forward, backward, AdamW) on the same random images and masks, in turn. The peak is that
of a process of its own that runs one side alone; "extra" is what it lies above the process before its first step.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal

import timm.layers
import torch

from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.memory import peak_mb, resident_mb
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.benchmarks.lib.timing import call_times, clock_time
from ovsdino.console import print_json
from ovsdino.models.backbone import freeze
from ovsdino.models.zoo import build_model
from ovsdino.ops import use_backend
from ovsdino.parsing import run_script
from ovsdino.train.config import OptimConfig
from ovsdino.train.weak.config import WeakConfig, WeakDataConfig
from ovsdino.train.weak.objective import Inputs, WeakObjective

BACKENDS = {"native": "auto", "plain": "reference"}


@dataclass(frozen=True, kw_only=True)
class Training(ReportOptions):
    """Time steps of weakly supervised training, and measure their memory."""

    model: str = "nano"
    """Model of the zoo, with random weights."""
    batch: int = 8
    """Images of a step."""
    size: int = 352
    """Side of the images in pixels."""
    masks: int = 16
    """Pseudo-masks of an image."""
    rounds: int = 5
    """Steps of each side."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the steps."""
    float32: bool = False
    """Train without autocast to bfloat16."""
    only: Literal["native", "plain"] | None = None
    """Measure the memory of this side alone, in this process."""

    def run(self) -> int:
        if self.only is not None:
            print_json(self._alone(self.only))
            return 0
        memory = {side: self._memory_of(side) for side in BACKENDS}
        step = Step(self)
        calls = [functools.partial(step.on, backend) for backend in BACKENDS.values()]
        samples = call_times(calls, clock_time, self.rounds, 3, 60.0)
        times = dict(zip(BACKENDS, map(statistics.median, samples), strict=True))
        case = {name: getattr(self, name) for name in ("model", "batch", "size", "masks", "device")}
        case["precision"] = "float32" if self.float32 else "bf16"
        results = [
            {**case, "ops": side, "images_per_s": round(1e3 * self.batch / ms, 3), "step_ms": round(ms, 1)}
            | memory[side]
            for side, ms in times.items()
        ]
        return self.publish({"machine": machine_facts(self.device), "results": results}, text)

    def _memory_of(self, side: str) -> dict[str, float]:
        """Return the peak resident memory of a process that runs one side alone, and the share of the steps in it."""
        names = ("model", "batch", "size", "masks", "device")
        command = [sys.executable, __file__, f"--only={side}", *(f"--{name}={getattr(self, name)}" for name in names)]
        done = subprocess.run(command + ["--float32"] * self.float32, capture_output=True, text=True, check=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    def _alone(self, side: str) -> dict[str, float]:
        """Run two steps of one side, and return the memory that `_memory_of` asks of this process."""
        step = Step(self)
        before = resident_mb()
        for _ in range(2):
            step.on(BACKENDS[side])
        peak = torch.cuda.max_memory_allocated() / 1e6 if self.device == "cuda" else peak_mb()
        return {"peak_mb": round(peak, 1), "extra_mb": round(peak - before, 1)}


class Step:
    """A training step on random images; the ViT frozen, everything behind it trained."""

    def __init__(self, args: Training) -> None:
        torch.manual_seed(0)
        timm.layers.set_fused_attn(args.device == "cuda")
        model = build_model(args.model)
        freeze(model.backbone)
        data = WeakDataConfig(masks="random")
        config = WeakConfig(model=args.model, data=data, optim=OptimConfig(bf16=not args.float32))
        self.objective = WeakObjective(model, config).to(args.device)
        self.optimizer = torch.optim.AdamW([p for p in self.objective.parameters() if p.requires_grad])
        p = model.config.patch_size
        side, texts = args.size // p, 16
        self.images = torch.rand(args.batch, 3, side * p, side * p, device=args.device)
        width = model.text_tower.read(["road"]).shape[1] if args.model == "nano" else 512
        self.text = torch.randn(texts, width, device=args.device)
        self.regions = torch.tensor([0.0, 0.0, 1.0, 1.0], device=args.device).expand(args.batch, 1, 4)
        self.positives = torch.rand(args.batch, 1, texts, device=args.device) < 0.3
        self.masks = blobs(args.batch, args.masks, 4 * side).to(args.device)
        self.quality = torch.rand(args.batch, args.masks, device=args.device)

    def __call__(self) -> None:
        inputs = Inputs(self.images, self.regions, self.text, self.positives, self.masks, self.quality)
        values: dict[str, torch.Tensor] = self.objective(inputs)
        loss = torch.stack([value.mean() for value in values.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def on(self, backend: str) -> None:
        """Run a step with the ops of a backend, to its end on the device."""
        with use_backend(backend):
            self()
        if self.images.is_cuda:
            torch.cuda.synchronize()


def blobs(batch: int, count: int, side: int) -> torch.Tensor:
    """Return (batch, count, side, side) bool ellipses of 0.3 to 8 % of the area, as pseudo-masks are."""
    center = torch.rand(batch, count, 2, 1, 1) * side
    radius = (0.03 + 0.13 * torch.rand(batch, count, 2, 1, 1)) * side
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    return (((grid - center) / radius) ** 2).sum(2) < 1


def text(report: dict[str, Any]) -> str:
    """Return the report as lines."""
    return "\n".join(
        f"{row['ops']:7} {row['images_per_s']:8.2f} images/s, peak {row['peak_mb']:.0f} MB" for row in report["results"]
    )


if __name__ == "__main__":
    raise SystemExit(run_script(Training, "training.py"))
