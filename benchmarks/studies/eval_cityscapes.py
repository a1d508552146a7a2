"""Memory and time of evaluating Cityscapes-sized images: backbone against head, merging and labels.

    python benchmarks/studies/eval_cityscapes.py --json

The talk2dino protocol on a synthetic 2048x1024 image and random text, b14 with random weights (neither the time nor the
memory depends on their values). By the protocol the image is 448x896 and 3 windows; --short-side 1024 keeps its full
size, 36 windows. Stages: encode is the backbone; decode the cosine scores, merge the upsampling and summing of windows,
postprocess the labels at image size; preprocess the resize and the normalisation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.eval.protocol import label_image, preset
from ovsdino.models.backbone import freeze
from ovsdino.models.zoo import build_model
from ovsdino.pipeline import check_device
from ovsdino.timing import Clock
from ovsdino.windows import Batches

SIZE = (1024, 2048)
HEAD = ("decode", "pamr", "merge", "postprocess")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="b14")
    parser.add_argument("--decoder", action="store_true", help="with SAE and SMD; without, the baseline")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--short-side", type=int, action="append", help="448 and 1024 by default")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--note", help="kept in the JSON, for instance what else the machine was doing")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    args = parser.parse_args()
    device = check_device(args.device)
    torch.manual_seed(0)
    model = freeze(build_model(args.model, decoder=args.decoder)).to(device)
    text = torch.nn.functional.normalize(torch.randn(args.classes, model.config.embed_dim), dim=-1).to(device)
    image = synthetic(np.random.default_rng(0))
    loaded = resident_mb()
    results = []
    for short_side in args.short_side or [448, 1024]:
        protocol = dataclasses.replace(preset("talk2dino", "cityscapes", model.config.embed_dim), short_side=short_side)
        forget_peak()
        rounds = []
        for _ in range(args.rounds):
            clock = Clock(torch.cuda.synchronize if device.type == "cuda" else None)
            batches = Batches(args.batch_size)
            dtype = getattr(torch, args.dtype)
            labels = label_image(model, image, text, protocol, batches=batches, dtype=dtype, clock=clock)
            assert labels.shape == SIZE
            rounds.append(clock.ms)
        stages = {stage: statistics.median(ms[stage] for ms in rounds) for stage in rounds[0]}
        total = sum(stages.values())
        result = {
            "model": args.model,
            "decoder": args.decoder,
            "classes": args.classes,
            "short_side": short_side,
            "windows": windows(short_side, protocol.window, protocol.stride),
            "dtype": args.dtype,
            "batch_size": args.batch_size,
            "rounds": args.rounds,
            "stages_ms": {stage: round(ms, 1) for stage, ms in stages.items()},
            "total_ms": round(total, 1),
            "head_and_merge_share": round(sum(stages.get(stage, 0.0) for stage in HEAD) / total, 4),
            "loaded_mb": round(loaded),
            "peak_mb": round(peak_mb()),
            "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6) if device.type == "cuda" else None,
        }
        results.append(result)
        print(
            f"short side {short_side}: {result['windows']} windows, {total / 1e3:.2f} s, head and merge "
            f"{result['head_and_merge_share']:.1%}, peak {result['peak_mb']} MB ({result['loaded_mb']} MB loaded)",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps({"machine": machine_facts(device.type), "note": args.note, "results": results}))
    return 0


def synthetic(rng: np.random.Generator) -> np.ndarray:
    """(1024, 2048, 3) uint8: coarse colours with noise."""
    coarse = rng.integers(0, 200, (SIZE[0] // 64, SIZE[1] // 64, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((64, 64, 1), np.uint8)) + rng.integers(0, 55, (*SIZE, 3), dtype=np.uint8)


def windows(short_side: int, window: int, stride: int) -> int:
    """How many windows an image of twice the width of its height has."""
    rows, columns = (-(-(side - window) // stride) + 1 for side in (short_side, 2 * short_side))
    return rows * columns


def resident_mb() -> float:
    """This process's resident memory now, or its peak where /proc is missing."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_mb()
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1e3


def forget_peak() -> None:
    """Starts the peak anew, where the kernel allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak is that of the whole process: /proc/self/clear_refs cannot be written", file=sys.stderr)


def peak_mb() -> float:
    """The largest resident memory since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    raise SystemExit(main())
