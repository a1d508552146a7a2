"""Memory and time of evaluating Cityscapes-sized images: backbone against head, merging and labels.

    python benchmarks/studies/eval_cityscapes.py --json

The talk2dino protocol on a synthetic 2048x1024 image and random text, b14 with random weights (neither the time nor the
memory depends on their values). By the protocol the image is 448x896 and 3 windows; --short-side 1024 keeps its full
size, 36 windows. Stages: encode is the backbone; decode the cosine scores, merge the upsampling and summing of windows,
postprocess the labels at image size; preprocess the resize and the normalization.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ovsdino.benchmarks.lib.machine import machine_facts
from ovsdino.benchmarks.lib.memory import forget_peak, peak_mb, resident_mb
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.console import say
from ovsdino.eval.protocol import label_image, preset
from ovsdino.models.backbone import freeze
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.zoo import build_model
from ovsdino.parsing import run_script
from ovsdino.pipeline import check_device
from ovsdino.timing import Clock, medians
from ovsdino.windows import Batches

SIZE = (1024, 2048)
HEAD = ("decode", "pamr", "merge", "postprocess")


@dataclass(frozen=True, kw_only=True)
class EvalCityscapes(ReportOptions):
    """Measure memory and time of evaluating a Cityscapes-sized image by stage."""

    model: str = "b14"
    """Model of the zoo, with random weights."""
    decoder: bool = False
    """With SAE and SMD; without them it is the baseline."""
    classes: int = 19
    """Rows of the text bank."""
    short_side: tuple[int, ...] = (448, 1024)
    """Short sides of the image for the network."""
    batch_size: int = 8
    """Windows in one forward pass."""
    rounds: int = 3
    """Evaluations of each size."""
    device: str | None = None
    """cpu, cuda or cuda:N. Default: CUDA if there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the network."""
    note: str | None = None
    """Kept in the JSON, for instance the other load of the machine."""

    def run(self) -> int:
        device = check_device(self.device)
        torch.manual_seed(0)
        model = freeze(build_model(self.model, decoder=self.decoder)).to(device)
        text = torch.nn.functional.normalize(torch.randn(self.classes, model.config.embed_dim), dim=-1).to(device)
        image, loaded = synthetic(np.random.default_rng(0)), resident_mb()
        results = [self._measured(model, text, image, side, loaded) for side in self.short_side]
        return self.publish({"machine": machine_facts(device.type), "note": self.note, "results": results}, lines)

    def _measured(
        self, model: OVSDINO, text: torch.Tensor, image: np.ndarray, short_side: int, loaded: float
    ) -> dict[str, Any]:
        protocol = dataclasses.replace(preset("talk2dino", "cityscapes", model.config.embed_dim), short_side=short_side)
        if text.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        if not forget_peak():
            say("note: the peak is that of the whole process: /proc/self/clear_refs cannot be written")
        rounds = []
        for _ in range(self.rounds):
            clock = Clock(torch.cuda.synchronize if text.is_cuda else None)
            batches, dtype = Batches(self.batch_size), getattr(torch, self.dtype)
            labels = label_image(model, image, text, protocol, batches=batches, dtype=dtype, clock=clock)
            assert labels.shape == SIZE
            rounds.append(clock.ms)
        stages = medians(rounds)
        total = sum(stages.values())
        settings = ("model", "decoder", "classes", "dtype", "batch_size", "rounds")
        return {
            **{name: getattr(self, name) for name in settings},
            "short_side": short_side,
            "windows": windows(short_side, protocol.window, protocol.stride),
            "stages_ms": {stage: round(ms, 1) for stage, ms in stages.items()},
            "total_ms": round(total, 1),
            "head_and_merge_share": round(sum(stages.get(stage, 0.0) for stage in HEAD) / total, 4),
            "loaded_mb": round(loaded),
            "peak_mb": round(peak_mb()),
            "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6) if text.is_cuda else None,
        }


def synthetic(rng: np.random.Generator) -> np.ndarray:
    """Return (1024, 2048, 3) uint8: coarse colors with noise."""
    coarse = rng.integers(0, 200, (SIZE[0] // 64, SIZE[1] // 64, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((64, 64, 1), np.uint8)) + rng.integers(0, 55, (*SIZE, 3), dtype=np.uint8)


def windows(short_side: int, window: int, stride: int) -> int:
    """Return the number of windows of an image twice as wide as high."""
    rows, columns = (-(-(side - window) // stride) + 1 for side in (short_side, 2 * short_side))
    return rows * columns


def lines(report: dict[str, Any]) -> str:
    """Return the report as a line for each size."""
    return "\n".join(
        f"short side {row['short_side']}: {row['windows']} windows, {row['total_ms'] / 1e3:.2f} s, head and merge "
        f"{row['head_and_merge_share']:.1%}, peak {row['peak_mb']} MB ({row['loaded_mb']} MB loaded)"
        for row in report["results"]
    )


if __name__ == "__main__":
    raise SystemExit(run_script(EvalCityscapes, "eval_cityscapes.py"))
