"""Images a second and peak memory of weakly supervised training: native ops against the plain-PyTorch references.

    python benchmarks/studies/training.py --model nano --json

Both sides run the same steps (forward, backward, AdamW) on the same random images and masks, in turn. The peak is that
of a process of its own that runs one side alone; "extra" is what it lies above the process before its first step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import timm.layers
import torch

from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.timing import clock_time, medians, resident
from ovsdino.models.backbone import freeze
from ovsdino.models.zoo import build_model
from ovsdino.ops import use_backend
from ovsdino.train.config import OptimConfig
from ovsdino.train.weak.config import WeakConfig, WeakDataConfig
from ovsdino.train.weak.objective import Inputs, WeakObjective

BACKENDS = {"native": "auto", "plain": "reference"}


class Step:
    """A training step on random images; the ViT frozen, everything behind it trained."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        timm.layers.set_fused_attn(args.device == "cuda")
        model = build_model(args.model)
        freeze(model.backbone)
        data = WeakDataConfig(masks="random")
        config = WeakConfig(model=args.model, data=data, optim=OptimConfig(bf16=not args.float32))
        self.objective = WeakObjective(model, config).to(args.device)
        self.optimiser = torch.optim.AdamW([p for p in self.objective.parameters() if p.requires_grad])
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
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()


def blobs(batch: int, count: int, side: int) -> torch.Tensor:
    """(batch, count, side, side) bool ellipses of 0.3 to 8 % of the area, as pseudo-masks are: small and compact."""
    centre = torch.rand(batch, count, 2, 1, 1) * side
    radius = (0.03 + 0.13 * torch.rand(batch, count, 2, 1, 1)) * side
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    return (((grid - centre) / radius) ** 2).sum(2) < 1


def peak_mb(args: argparse.Namespace, side: str) -> dict[str, float]:
    """Peak resident megabytes of a process that runs one side alone, and what of it the steps added."""
    command = [sys.executable, __file__, "--only", side, "--model", args.model, "--batch", str(args.batch)]
    command += ["--size", str(args.size), "--masks", str(args.masks), "--device", args.device]
    done = subprocess.run(command + ["--float32"] * args.float32, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def alone(args: argparse.Namespace) -> dict[str, float]:
    """What `peak_mb` asks of its child."""
    step = Step(args)
    before = resident("VmRSS")
    with use_backend(BACKENDS[args.only]):
        for _ in range(2):
            step()
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident("VmHWM")
    return {"peak_mb": round(peak / 1e6, 1), "extra_mb": round((peak - before) / 1e6, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=352, help="side of the images in pixels")
    parser.add_argument("--masks", type=int, default=16, help="pseudo-masks an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--float32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    parser.add_argument("--only", choices=tuple(BACKENDS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(alone(args)))
        return 0
    memory = {side: peak_mb(args, side) for side in BACKENDS}
    step = Step(args)
    calls = []
    for backend in BACKENDS.values():

        def call(backend: str = backend) -> None:
            with use_backend(backend):
                step()

        calls.append(call)
    times = dict(zip(BACKENDS, medians(calls, clock_time, args.rounds, 3, 60.0), strict=True))
    case = {"model": args.model, "batch": args.batch, "size": args.size, "masks": args.masks, "device": args.device}
    case["precision"] = "float32" if args.float32 else "bf16"
    results: list[dict[str, Any]] = [
        {**case, "ops": side, "images_per_s": round(1e3 * args.batch / ms, 3), "step_ms": round(ms, 1), **memory[side]}
        for side, ms in times.items()
    ]
    if args.json:
        print(json.dumps({"machine": machine_facts(args.device), "results": results}))
    else:
        for row in results:
            print(f"{row['ops']:7} {row['images_per_s']:8.2f} images/s, peak {row['peak_mb']:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
