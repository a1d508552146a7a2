"""The cases of latency.py: a model on a backend at a precision and an input size, from an image array to labels.

    python benchmarks/lib/latency_cases.py CASE.json IMAGE.npy RUNS

runs one case alone and prints {"peak_mb", "device_mb"}: the peak resident memory of a process that does nothing else,
and what it took of the CUDA device. Torch is imported by the cases that need it only.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ovsdino.benchmarks.lib.frames import nv12_of
from ovsdino.benchmarks.lib.memory import device_free_mb, peak_mb
from ovsdino.errors import OVSDinoError
from ovsdino.timing import Clock, medians

if TYPE_CHECKING:
    import torch

    from ovsdino.models.ovsdino import OVSDINO
    from ovsdino.pipeline import Segmenter

TORCH = ("torch", "torch.compile")
ONNX = ("onnxruntime", "openvino")  # which run an .onnx file on the CPU
EDGE = (*ONNX, "tensorrt", "tensorrt_rtx")
PRECISIONS = {
    "torch": ("float32", "bfloat16", "float16"),
    "torch.compile": ("float32", "bfloat16", "float16"),
    "onnxruntime": ("float32", "float16", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "tensorrt": ("float32", "float16", "int8"),
    "tensorrt_rtx": ("float32", "float16", "int8"),
}
SEED = 0

Once = Callable[[], "dict[str, float]"]


class Calls(NamedTuple):
    """The two calls of a case.

    Attributes:
        bare: Segments the image, labels alone, and gives the milliseconds of its stages.
        default: The same with the options that a caller gets who names none.
    """

    bare: Once
    default: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to time.

    Attributes:
        model: Name of the zoo model.
        backend: One of `PRECISIONS`.
        precision: Number format of the network; its inputs and outputs are float32.
        size: (H, W) that the network sees.
        classes: Words.
        engine: Exported file, for the backends that run one.
        bank: Text bank file, for the same.
        random_weights: Weights and text bank drawn at random, for timing without any download.
        device: "cpu" or "cuda", for torch.
        threads: CPU threads; None leaves them to the library.
        frame: (H, W) of a camera's frame in NV12, made of the image; None for the image as it is, in RGB.
    """

    model: str
    backend: str
    precision: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    engine: str | None = None
    bank: str | None = None
    random_weights: bool = False
    device: str = "cpu"
    threads: int | None = None
    frame: tuple[int, int] | None = None

    @property
    def input(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def pixels(self) -> str:
        """The form of the image that the call gets: "rgb", or "nv12" and the size of the frame."""
        return "rgb" if self.frame is None else f"nv12 {self.frame[0]}x{self.frame[1]}"

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """The five facts that tell cases apart in the report."""
        return self.model, self.backend, self.precision, self.input, self.pixels

    def __str__(self) -> str:
        return " ".join(self.key[: 4 if self.frame is None else 5])


def torch_model(name: str, random_weights: bool) -> OVSDINO:
    """Return a zoo model on the CPU.

    Raises:
        OVSDinoError: Unknown name, or weights out of reach.
    """
    from ovsdino.deploy.export.random_weights import random_model
    from ovsdino.models.zoo import create_model

    return random_model(name, SEED) if random_weights else create_model(name)


def random_bank(classes: int, width: int) -> torch.Tensor:
    """Return (K, D) float32, rows of length one."""
    import torch

    rows = torch.randn(classes, width, generator=torch.Generator().manual_seed(SEED))
    return torch.nn.functional.normalize(rows)


def torch_segmenter(case: Case) -> Segmenter:
    """Return the pipeline of a case: whatever the image, the network sees `case.size`.

    Raises:
        OVSDinoError: See `ovsdino.load`; or a size that the model cannot take.
    """
    import torch

    from ovsdino.pipeline import Segmenter

    class Fixed(Segmenter):
        """Sizes and words as the case has them."""

        def inference_size(self, height: int, width: int, short_side: int | None = None) -> tuple[int, int]:
            return case.size

        def encode_text(self, classes: Any) -> torch.Tensor:
            return bank if case.random_weights else super().encode_text(classes)

        def text_rows(self, classes: Any, partition: bool | None = None) -> Any:
            return bank if case.random_weights else super().text_rows(classes, partition)

    if case.threads is not None:
        torch.set_num_threads(case.threads)
    model = torch_model(case.model, case.random_weights)
    patch = model.config.patch_size
    if min(case.size) < patch or any(side % patch for side in case.size):
        raise OVSDinoError(f"size is {case.input}: {case.model} needs multiples of {patch}, at least {patch}")
    bank = random_bank(len(case.classes), model.config.embed_dim).to(case.device)
    precision: Any = case.precision
    if case.backend == "torch.compile":
        model.encode_image = torch.compile(model.encode_image)  # type: ignore[method-assign]
        model.decode = torch.compile(model.decode)  # type: ignore[method-assign]
    return Fixed(model, case.device, dtype=precision)


def torch_run(segmenter: Segmenter, case: Case, image: np.ndarray) -> Once:
    """Return a call that segments the image and gives its stages, in milliseconds."""

    def once() -> dict[str, float]:
        start = time.perf_counter()
        ms = segmenter.segment(image, case.classes, scores=False).stages_ms
        total = (time.perf_counter() - start) * 1e3
        return {stage: ms[stage] for stage in ("preprocess", "encode", "decode", "postprocess")} | {"end_to_end": total}

    return once


def edge_calls(case: Case, image: np.ndarray) -> Calls:
    """Return the same calls by the torch-free runtime; the graph is one stage, `encode`."""
    from ovsdino.edge.segmenter import EdgeSegmenter

    assert case.engine is not None and case.bank is not None
    runtime: Any = case.backend if case.backend in ONNX else "auto"
    if case.precision == "bfloat16":
        runtime = f"{case.backend}_bfloat16"
    segmenter = EdgeSegmenter(case.engine, case.bank, threads=case.threads, runtime=runtime)
    pixels, nv12 = (image, False) if case.frame is None else (nv12_of(image, *case.frame), True)

    def once() -> dict[str, float]:
        start = time.perf_counter()
        ms = segmenter.segment(pixels, nv12=nv12, scores=False).stages_ms
        total = (time.perf_counter() - start) * 1e3
        return {stage: ms[stage] for stage in ("preprocess", "encode", "postprocess")} | {"end_to_end": total}

    return Calls(once, lambda: segmenter.segment(pixels, nv12=nv12))


def prepared(case: Case, image: np.ndarray) -> Calls:
    """Return a case ready to be called.

    Raises:
        OVSDinoError: It cannot run here; the message says why.
    """
    if case.backend not in TORCH:
        return edge_calls(case, image)
    segmenter = torch_segmenter(case)
    return Calls(torch_run(segmenter, case, image), lambda: segmenter.segment(image, case.classes))


def shares(case: Case, image: np.ndarray, runs: int) -> list[dict[str, Any]]:
    """Return the parts of PyTorch's time: rows of model, precision, input, part, p50_ms and share of the whole.

    The parts are timed inside one whole run, with the device waited for at both ends of each. "ours" sums what this
    project adds to a text-aligned DINO: SAE, SMD, the refinement of the logits, and the labels.
    """
    import torch

    segmenter = torch_segmenter(case)
    model, clock = segmenter.model, Clock(torch.cuda.synchronize if case.device == "cuda" else None)

    def timed(owner: Any, method: str, part: str) -> None:
        function = getattr(owner, method)

        def call(*inputs: Any) -> Any:
            with clock(part):
                return function(*inputs)

        setattr(owner, method, call)

    timed(model.backbone, "forward", "backbone")
    timed(model, "coarse_logits", "coarse logits")
    ours = ["postprocess"]
    if model.decoder is not None:
        timed(model.decoder.sae, "forward", "SAE")
        timed(model.decoder, "refine", "refine")
        ours += ["SAE", "refine"]
        if model.decoder.smd is not None:
            timed(model.decoder.smd, "forward", "SMD")
            ours.append("SMD")
    once = torch_run(segmenter, case, image)
    once()
    rounds = []
    for _ in range(runs):
        clock.ms.clear()
        stages = once()
        parts = {name: stages[name] for name in ("preprocess", "postprocess", "end_to_end")} | clock.ms
        rounds.append(parts | {"ours": sum(parts[name] for name in ours)})
    middle = medians(rounds)
    facts = {"model": case.model, "precision": case.precision, "input": case.input}
    return [
        facts | {"part": name, "p50_ms": round(ms, 3), "share": round(ms / middle["end_to_end"], 4)}
        for name, ms in middle.items()
    ]


def case_of(data: dict[str, Any]) -> Case:
    """Return the case that `case_json` wrote."""
    frame = None if data["frame"] is None else tuple(data["frame"])
    return Case(**{**data, "size": tuple(data["size"]), "classes": tuple(data["classes"]), "frame": frame})


def case_json(case: Case) -> str:
    return json.dumps(dataclasses.asdict(case))


def main(arguments: list[str]) -> int:
    """Measure the memory of one case, as the child process of latency.py."""
    case = case_of(json.loads(Path(arguments[0]).read_text()))
    if case.backend in TORCH:
        import torch  # noqa: F401  (whose runtime tells of the device's memory)
    cuda = case.device == "cuda" or case.backend.startswith("tensorrt")
    free = device_free_mb() if cuda else None
    once = prepared(case, np.load(arguments[1])).bare
    for _ in range(int(arguments[2])):
        once()
    found: dict[str, float | None] = {"peak_mb": round(peak_mb(), 1), "device_mb": None}
    if free is not None:
        found["device_mb"] = round(free - (device_free_mb() or 0.0), 1)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
