"""Options that the scripts share; torch and ONNX are imported only when something is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ovsdino.console import say
from ovsdino.deploy.export.defaults import AGREEMENT, CLASSES, COSINE, Backend, Precision
from ovsdino.errors import OVSDinoError
from ovsdino.options import ModelOptions

if TYPE_CHECKING:
    from ovsdino.deploy.export.compare import Verification
    from ovsdino.deploy.export.inputs import Images
    from ovsdino.deploy.export.publish import Exported
    from ovsdino.edge.bank import TextBank
    from ovsdino.models.ovsdino import OVSDINO

__all__ = [
    "SUFFIXES",
    "BuildOptions",
    "ExportOptions",
    "ModelSource",
    "VerifyOptions",
    "output_file",
    "reported",
]

SUFFIXES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class ModelSource(ModelOptions):
    """The model, and its weights."""

    random_weights: int | None = None
    """Seed of random weights in place of the model's own, for timing and tests: no file is fetched."""

    def load(self) -> OVSDINO:
        """Return the model on the CPU in eval mode.

        Raises:
            OVSDinoError: The name is unknown; weights are missing, damaged or out of reach; or files were named
                together with --random-weights.
        """
        if self.random_weights is None:
            return self.load_model()
        for name in self.weight_files:
            option = name.replace("_", "-")
            raise OVSDinoError(f"--random-weights {self.random_weights}: leave it out, or leave out --{option}")
        from ovsdino.deploy.export.random_weights import random_model

        return random_model(self.model, self.random_weights)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Images on which an export is compared with PyTorch, and the thresholds."""

    skip_verify: bool = False
    """Do not compare; the sidecar then says that nobody did."""
    images: Path | None = None
    """Folder of images to compare on, in place of the data set."""
    dataset: str = "camvid"
    """Data set to compare on, with its class names as the words."""
    root: Path | None = None
    """Folder of the data set. Default: $OVSDINO_DATA, else ../shared/data next to the checkout, else seeded noise."""
    split: str = "val"
    """Split of the data set."""
    limit: int = 20
    """Most images to compare on."""
    cosine: float = COSINE
    """Least cosine of the logits, for each image."""
    agreement: float = AGREEMENT
    """Least share of pixels with the same label, mean over the images; not asked of random weights."""

    def find(self) -> Images:
        """Return the images; see `ovsdino.deploy.export.inputs.find_images`."""
        from ovsdino.deploy.export.inputs import find_images

        return find_images(self.images, self.dataset, self.root, self.split, self.limit)

    def check(self, found: Verification, *, labels_count: bool) -> dict[str, Any]:
        """Print the figures of a comparison, refuse those below a threshold, and return the others for the sidecar.

        Args:
            found: The figures.
            labels_count: Also ask for the same labels: not of random weights, whose labels depend on a rounding.

        Raises:
            OVSDinoError: A figure is below its threshold.
        """
        say(found.tell())
        found.check(self.cosine, self.agreement if labels_count else None)
        return found.to_dict()


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelSource):
    """Options of both exports."""

    output: Path
    """Folder, or file, to write; the sidecar lies next to it."""
    height: int | None = None
    """Height of the input image in pixels, a multiple of the patch. Default: the model's own short side."""
    width: int | None = None
    """Width, likewise. Default: 4:3 for nano, square for the others."""
    batch: tuple[int, ...] = (1,)
    """Images at once; two numbers, least and most, make it dynamic."""
    classes: tuple[int, ...] = CLASSES
    """Classes of the text bank: least and most; one number fixes them."""
    contrast: bool | None = None
    """Take banks with several words a class and with contrast rows, which leave pixels of none of the words unlabeled.
    Default: as the model was trained."""
    bake: Path | None = None
    """Text bank to put inside: the graph then has one input, pixels of 0..255, and is for Triton, DeepStream and the
    like. It is also compared with the graph that it was made from."""
    labels: bool = False
    """With --bake: give labels (B, H, W) uint8, the largest logit of each pixel, in place of logits."""
    probabilities: bool = False
    """With --bake: give the softmax of the logits, which DeepStream's nvinfer takes, in place of them."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """With --bake: nchw takes (B, 3, H, W) float32, nhwc takes (B, H, W, 3) uint8."""
    verify: VerifyOptions = field(default_factory=VerifyOptions)
    json: bool = False
    """Print one JSON object on stdout."""

    def graph(self, model: OVSDINO, precision: Precision) -> Exported:
        """Return the model's graph, compared with PyTorch.

        Raises:
            OVSDinoError: A size or a range is not valid, the model cannot be exported, or its graph departs.
        """
        from ovsdino.deploy.export.compare import verify
        from ovsdino.deploy.export.trace import default_size, export_graph

        for name, value in (("batch", self.batch), ("classes", self.classes)):
            if len(value) not in (1, 2):
                raise OVSDinoError(f"{name} is {' '.join(map(str, value))}: expected one number, or least and most")
        usual = default_size(model.config)
        height = usual[0] if self.height is None else self.height
        width = usual[1] if self.width is None else self.width
        batch, classes = (self.batch[0], self.batch[-1]), (self.classes[0], self.classes[-1])
        bank = self._bank()
        started = time.perf_counter()
        sizes: dict[str, Any] = {"height": height, "width": width, "batch": batch, "classes": classes}
        exported = export_graph(model, **sizes, precision=precision, contrast=self.contrast)
        say(f"exported {model.config.name} {precision} {height}x{width} in {time.perf_counter() - started:.1f} s")
        if self.verify.skip_verify:
            return exported if bank is None else self._baked(exported, bank, None)
        images = self.verify.find()
        found = verify(model, exported, images)
        proven = exported.proven(self.verify.check(found, labels_count=self.random_weights is None))
        return proven if bank is None else self._baked(proven, bank, images)

    @property
    def suffix(self) -> str:
        """The end of a baked graph's name, behind the precision."""
        return "" if self.bake is None else f"_{self._kind}_{self.layout}"

    @property
    def _kind(self) -> Literal["logits", "probabilities", "labels"]:
        return "labels" if self.labels else "probabilities" if self.probabilities else "logits"

    def _bank(self) -> TextBank | None:
        from ovsdino.edge.bank import TextBank

        if self.bake is None:
            for name, given in (
                ("labels", self.labels),
                ("probabilities", self.probabilities),
                ("layout", self.layout != "nchw"),
            ):
                if given:
                    raise OVSDinoError(f"--{name} goes with --bake BANK: a graph with the words inside")
            return None
        if self.labels and self.probabilities:
            raise OVSDinoError("--labels and --probabilities: expected one of them")
        return TextBank.load(self.bake)

    def _baked(self, exported: Exported, bank: TextBank, images: Images | None) -> Exported:
        """Return the graph with the words inside, compared with the one before where there are images."""
        from ovsdino.deploy.export.bake import bake, baked_agreement, check_baked

        baked = bake(exported, bank, output=self._kind, layout=self.layout)
        if images is None:
            return baked
        agreement = baked_agreement(baked, exported, bank, images)
        say(f"words inside: label agreement {agreement:.6f} with the graph that takes them as an input")
        check_baked(agreement, images)
        return baked.proven({**(exported.sidecar.verified or {}), "baked_agreement": agreement})


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of an engine's build."""

    backend: Backend = "tensorrt"
    """tensorrt builds for the GPU it runs on; tensorrt_rtx for any of its targets, with no GPU."""
    target: str = "current"
    """GPU architecture: current, sm75, sm80, sm86, sm87 (Jetson Orin), sm89, sm90, sm120; with tensorrt_rtx also
    several, with commas between."""
    workspace: int = 0
    """Scratch memory a kernel may use, in MiB. Default: TensorRT's own limit, all of the device."""
    dla: int | None = None
    """Core of the deep learning accelerator that takes what it can, the GPU the rest (tensorrt on Jetson with
    JetPack 6)."""
    timing_cache: Path | None = None
    """File of kernel timings, read and written, so that the next build is fast (tensorrt)."""
    effort: int | None = None
    """Builder optimization level, 0 to 5. Default: TensorRT's own."""
    layers: Path | None = None
    """JSON file for the engine's layers, which say whether attention was fused."""


def output_file(output: Path, name: str, suffix: str) -> Path:
    """Return `output` if it names a file with the suffix, else the named file in the folder `output`."""
    return output if output.suffix == suffix else output / f"{name}{suffix}"


def reported(verified: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what --json prints of a sidecar's figures: also on how many images, which, and against what."""
    shown = ("cosine", "label_agreement", "images", "source", "reference")
    return None if verified is None else {name: verified[name] for name in shown if name in verified}
