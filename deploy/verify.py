"""Compares an exported file with PyTorch in float32 on the same images, or an engine with the graph it was built from.

    python deploy/verify.py --model nano --file nano_fp16.onnx
    python deploy/verify.py --model nano --file nano_fp16.onnx --per-layer

Cosine of the logits, and how many pixels get the same label once the logits are brought to the image's size. ONNX
Runtime computes float16 graphs on a CPU in float32 and drops the roundings between its ops, which would prove nothing;
here every tensor of such a graph is really rounded to float16, overflow included (`Rounded`).
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from ovsdino.deploy.export.start import start

    sys.exit(start("verify", "Verify"))

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ovsdino.console import print_json, say
from ovsdino.deploy.export.script import ModelSource
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import reading

if TYPE_CHECKING:
    from torch import Tensor

    from ovsdino.models.ovsdino import OVSDINO

__all__ = ["Departure", "Images", "Verification", "VerifyOptions", "per_layer", "verify"]

log = logging.getLogger("ovsdino.deploy")

COSINE = 0.999
AGREEMENT = 0.995
CHECKOUT_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
SYNTHETIC = 4  # images, where there are no real ones
RANDOM_CLASSES = 19  # rows of the bank of a model that has no words


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How close a graph is to its reference.

    Attributes:
        cosine: of the logits, mean over the images.
        worst_cosine: the lowest of one image.
        label_agreement: share of pixels with the same label at image size, mean over the images.
        images: how many.
        source: what they are.
        reference: what it was compared with.
    """

    cosine: float
    worst_cosine: float
    label_agreement: float
    images: int
    source: str
    reference: str = "PyTorch"

    @classmethod
    def of(cls, cosines: Sequence[float], agreements: Sequence[float], source: str, reference: str) -> Verification:
        """Return the means and the worst of figures image by image."""
        return cls(
            cosine=float(np.mean(cosines)),
            worst_cosine=float(np.min(cosines)),
            label_agreement=float(np.mean(agreements)),
            images=len(cosines),
            source=source,
            reference=reference,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "cosine": self.cosine,
            "label_agreement": self.label_agreement,
            "images": self.images,
            "worst_cosine": self.worst_cosine,
            "source": self.source,
            "reference": self.reference,
        }

    def check(self, cosine: float = COSINE, agreement: float | None = AGREEMENT) -> None:
        """Refuses below a threshold; `agreement=None` asks for the cosine only.

        Raises:
            OVSDinoError: below it, or not a number.
        """
        found = (
            f"cosine {self.cosine:.6f} (worst {self.worst_cosine:.6f}), label agreement {self.label_agreement:.5f} on "
            f"{self.images} {self.source}"
        )
        good = self.worst_cosine >= cosine and (agreement is None or self.label_agreement >= agreement)
        if not good:  # also for NaN
            asked = f"cosine {cosine}" + ("" if agreement is None else f" and label agreement {agreement}")
            what, mend = (
                "graph",
                "Export float32, or find the first layer that departs with `python deploy/verify.py --per-layer`",
            )
            if self.reference != "PyTorch":
                what, mend = "engine", "Use a newer release of TensorRT, --precision float32, or the .onnx itself"
            raise OVSDinoError(f"the {what} departs from {self.reference}: {found}; expected at least {asked}. {mend}")

    def tell(self) -> str:
        """One line for people: on what, against what, and the figures."""
        return (
            f"verified on {self.images} {self.source} against {self.reference}: cosine {self.cosine:.6f} (worst "
            f"{self.worst_cosine:.6f}), label agreement {self.label_agreement:.5f}"
        )


@dataclass(frozen=True)
class Images:
    """Images to compare on.

    Attributes:
        pixels: each (H, W, 3) uint8.
        names: class names that go with them, or () for random text.
        source: what they are, for people.
    """

    pixels: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """On what an export is compared with PyTorch, and what is asked of it."""

    skip_verify: bool = False
    """Do not compare; the sidecar then says that nobody did."""
    images: Path | None = None
    """Folder of images to compare on, in place of the data set."""
    dataset: str = "camvid"
    """Data set to compare on, with its class names as the words."""
    root: Path | None = None
    """Folder of the data set. Default: $OVSDINO_DATA, else ../shared/data beside the checkout, else seeded noise."""
    split: str = "val"
    """Part of the data set."""
    limit: int = 20
    """Number of images."""
    cosine: float = COSINE
    """Least cosine of the logits, of the worst image."""
    agreement: float = AGREEMENT
    """Least share of pixels with the same label, mean over the images; not asked of random weights."""

    def find(self) -> Images:
        """The images; noise is used, and said, where none are named and no data set is there.

        Raises:
            OVSDinoError: what was named is not there.
        """
        if self.limit < 1:
            raise OVSDinoError(f"limit is {self.limit}: expected at least 1 image (--skip-verify compares none)")
        if self.images is not None:
            from ovsdino.io.images import expand_paths, load_image

            paths = expand_paths([self.images])[: self.limit]
            return Images(tuple(load_image(path) for path in paths), (), f"images of {self.images}")
        root = self.root or Path(os.environ.get("OVSDINO_DATA") or CHECKOUT_DATA)
        named = self.root is not None or bool(os.environ.get("OVSDINO_DATA"))
        if not named and not (root / f"{self.dataset}_{self.split}.zip").is_file():
            say(
                f"no {self.dataset} {self.split} in {root}: comparing on {SYNTHETIC} seeded synthetic images; name "
                "real ones with --images DIR, or --dataset and --root"
            )
            return synthetic(min(self.limit, SYNTHETIC))
        from ovsdino.data.segmentation import open_dataset

        data = open_dataset(self.dataset, root, self.split)
        count = min(self.limit, len(data))
        names = data.names[1:] if data.has_background else data.names
        pixels = tuple(data[index].image for index in range(count))
        return Images(pixels, tuple(names), f"images of {self.dataset} {self.split}")

    def prove(self, model: OVSDINO, path: Path, *, labels_count: bool) -> Verification:
        """Compares, prints and checks.

        Args:
            labels_count: False for random weights, whose labels hang on a hair.

        Raises:
            OVSDinoError: below a threshold; see `Verification.check`.
        """
        images = self.find()
        found = verify(model, path, images)
        say(found.tell())
        found.check(self.cosine, self.agreement if labels_count else None)
        return found


def synthetic(count: int) -> Images:
    """Seeded images with flat patches, ramps and noise: not what a camera sees, and better than nothing."""
    random = np.random.default_rng(0)
    pixels = []
    for _ in range(count):
        coarse = random.integers(0, 256, (9, 12, 3)).astype(np.float32)
        image = np.kron(coarse, np.ones((40, 40, 1), np.float32))
        image += np.linspace(-40, 40, image.shape[1])[None, :, None] + random.normal(0, 12, image.shape)
        pixels.append(image.clip(0, 255).astype(np.uint8))
    return Images(tuple(pixels), (), "seeded synthetic images")


def text_bank(model: OVSDINO, names: Sequence[str], classes: tuple[int, int]) -> np.ndarray:
    """A bank (K, D) that the graph takes: the names if the model has words for them, filled up or replaced by noise."""
    if names:
        try:
            return _fitted(model.encode_text(list(names)).float().cpu().numpy(), classes)
        except OVSDinoError as error:
            log.warning("comparing on random text, there are no words: %s", one_line(error, 200))
    return random_bank(model.config.embed_dim, classes)


def random_bank(columns: int, classes: tuple[int, int]) -> np.ndarray:
    """A seeded random bank (K, D) float32 that the graph takes, rows of length one."""
    rows = np.random.default_rng(0).standard_normal((RANDOM_CLASSES, columns)).astype(np.float32)
    return _fitted(rows, classes)


def _fitted(rows: np.ndarray, classes: tuple[int, int]) -> np.ndarray:
    """As many rows as a graph takes, (least, most), each of length one."""
    least, most = classes
    rows = np.concatenate([rows, np.roll(rows, 1, axis=1)])[: max(least, len(rows))][:most]
    if len(rows) < least:
        rows = np.resize(rows, (least, rows.shape[1]))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def verify(model: OVSDINO, path: str | Path, images: Images) -> Verification:
    """Runs images through `model` in float32 and through an exported file.

    Args:
        model: the model that was exported, on the CPU.
        path: an .onnx file, or an engine where its device is present; its sidecar lies beside it.

    Raises:
        OVSDinoError: the file is not this model's, was changed, or cannot be run here.
    """
    import torch

    from ovsdino.ops import preprocess, upsample_argmax

    sidecar = checked_sidecar(model, path)
    batch, _, height, width = sidecar.input
    text = text_bank(model, images.names, sidecar.classes)
    run = runner(Path(path), sidecar, text)
    mean, std = sidecar.mean, sidecar.std
    cosines, agreements = [], []
    for start in range(0, len(images.pixels), batch):
        part = images.pixels[start : start + batch]
        with torch.inference_mode():
            pixels = [torch.from_numpy(image.copy()) for image in part]  # a data set's arrays are not writable
            inputs = torch.cat([preprocess(image, (height, width), mean, std) for image in pixels])
            filled = inputs[torch.arange(batch) % len(part)]
            expected = model(inputs, torch.from_numpy(text))
            found = torch.from_numpy(run(filled.numpy()))[: len(part)]
            if found.shape != expected.shape:
                shapes = f"{tuple(found.shape)}, PyTorch {tuple(expected.shape)}"
                raise OVSDinoError(f"{path}: the graph's logits are {shapes}; export it again")
            for image, ours, theirs in zip(part, expected, found, strict=True):
                cosines.append(cosine(ours.numpy(), theirs.numpy()))
                size = image.shape[:2]
                labels = [upsample_argmax(logits[None], size)[0] for logits in (ours, theirs)]
                agreements.append(float((labels[0] == labels[1]).double().mean()))
    return Verification.of(cosines, agreements, images.source, "PyTorch")


def checked_sidecar(model: OVSDINO, path: str | Path) -> Sidecar:
    """The sidecar of a file that is `model`'s, the file unchanged.

    Raises:
        OVSDinoError: it is not.
    """
    from ovsdino.models.weights import weights_digest

    sidecar = Sidecar.load(path)
    sidecar.check_file(path)
    if sidecar.weights != weights_digest(model):
        raise OVSDinoError(f"{path}: exported from other weights than those of {model.config.name} given here")
    return sidecar


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two arrays, in float64; NaN where either holds one, or infinity."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else float(np.array_equal(x, y))


def runner(path: Path, sidecar: Sidecar, text: np.ndarray) -> Any:
    """image (B, 3, H, W) -> logits, by the file's own runtime; a float16 graph with its roundings."""
    if sidecar.kind == "onnx":
        graph = Rounded(path, sidecar.precision != "float32")
        return lambda image: graph.run(image, text)["logits"]
    from ovsdino.edge.segmenter import open_graph

    engine = open_graph(sidecar.read(path), sidecar, threads=1, device=0)
    engine.set_text(text)
    return engine.infer


class Rounded:
    """An ONNX graph in ONNX Runtime, as written: every float16 tensor is rounded to float16.

    Without float16 kernels, as on a CPU, ONNX Runtime wraps each op in Casts to float32 and back, and then drops the
    pairs between ops, so nothing is rounded and nothing overflows: see `with_roundings`.

    Args:
        path: the .onnx file.
        rounded: False runs the graph as a user would, optimised.
        outputs: names of tensors to return beside the logits; in their order.
    """

    def __init__(self, path: Path, rounded: bool, outputs: Sequence[str] = ()) -> None:
        import onnx
        import onnxruntime

        with reading(path, "ONNX graph", "export it again"):
            model = onnx.load(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if rounded:
            with_roundings(model)
        for name in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
        try:
            self.session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common type
            raise OVSDinoError(f"{path}: ONNX Runtime cannot read it ({one_line(error, 200)})") from error
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, image: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.names, self.session.run(None, {"image": image, "text": text}), strict=True))


def with_roundings(model: Any) -> None:
    """Rewrites a float16 graph in float32, in place, with a Cast to float16 and back after every op that was float16.

    The tensors keep their names. ONNX Runtime keeps such pairs where the graph itself has them.
    """
    from onnx import TensorProto, helper, numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    narrow = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = f"{name}_exact"
                if node.op_type == "Cast":  # which rounds by itself
                    node.output[index] = f"{name}_rounded"
                else:
                    nodes.append(
                        helper.make_node("Cast", [node.output[index]], [f"{name}_rounded"], to=TensorProto.FLOAT16)
                    )
                nodes.append(helper.make_node("Cast", [f"{name}_rounded"], [name], to=TensorProto.FLOAT))
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One module of the model and its tensor in the graph.

    Attributes:
        module: path of the torch module.
        cosine: of its output in PyTorch float32 and in the graph.
        largest: largest magnitude in PyTorch; float16 ends at 65504.
    """

    module: str
    cosine: float
    largest: float


def per_layer(model: OVSDINO, path: str | Path, images: Images) -> list[Departure]:
    """Compares the output of every module that the graph's node names tell, in the order the graph computes them.

    Args:
        images: the first is used.

    Raises:
        OVSDinoError: see `verify`; or an engine, whose inner tensors cannot be read.
    """
    import onnx
    import torch

    from ovsdino.ops import preprocess

    sidecar = checked_sidecar(model, path)
    if sidecar.kind != "onnx":
        raise OVSDinoError(f"{path}: --per-layer reads the .onnx it was built from; an engine's tensors are fused away")
    last: dict[str, str] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        parts = node.name.rpartition("/")[0].split(".")
        for length in range(1, len(parts) + 1) if node.op_type != "Cast" else ():
            module = ".".join(parts[:length])  # an inner module's last tensor is the outer one's until it makes another
            last.pop(module, None)
            last[module] = node.output[0]
    batch, _, height, width = sidecar.input
    text = text_bank(model, images.names, sidecar.classes)
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name, module in model.named_modules()
        if name in last
    ]
    try:
        with torch.inference_mode():
            image = preprocess(torch.from_numpy(images.pixels[0].copy()), (height, width), sidecar.mean, sidecar.std)
            inputs = image.expand(batch, -1, -1, -1).contiguous()
            model(inputs, torch.from_numpy(text))
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [tensor for tensor in dict.fromkeys(last.values()) if tensor != "logits"]
    found = Rounded(Path(path), sidecar.precision != "float32", wanted).run(inputs.numpy(), text)
    rows = []
    for module, tensor in last.items():
        ours = seen.get(module)
        # A module that returns several tensors, or one in another layout than the graph's, is told by its parts.
        if isinstance(ours, torch.Tensor) and ours.numel() and found[tensor].shape == tuple(ours.shape):
            largest = float(ours.abs().max())
            rows.append(Departure(module=module, cosine=cosine(ours.numpy(), found[tensor]), largest=largest))
    return rows


@dataclass(frozen=True, kw_only=True)
class Verify(ModelSource, VerifyOptions):
    """Compare an exported file with PyTorch in float32: cosine of logits, agreement of labels."""

    file: Path
    """The .onnx file, or an engine on the device it was built for; its sidecar lies beside it."""
    per_layer: bool = False
    """Also compare each module's output, and name the first that departs."""
    json: bool = False
    """Print one JSON object on stdout."""

    def run(self) -> int:
        model = self.load()
        images = self.find()
        found = verify(model, self.file, images)
        data: dict[str, Any] = {"file": str(self.file), "verified": found.to_dict()}
        if self.per_layer:
            rows = per_layer(model, self.file, images)
            departed = next((row for row in rows if not row.cosine >= self.cosine), None)
            data["first_departure"] = departed and departed.module
            data["layers"] = [
                {"module": row.module, "cosine": row.cosine if row.cosine == row.cosine else None, "max": row.largest}
                for row in rows
            ]
            if not self.json:
                for row in rows:
                    print(f"{row.cosine:9.6f}  {row.largest:9.3g}  {row.module}")
            say(f"first layer below {self.cosine}: {departed.module if departed else 'none'}")
        if self.json:
            print_json(data)
        else:
            print(", ".join(f"{name} {value}" for name, value in found.to_dict().items()))
        try:
            found.check(self.cosine, None if self.random_weights is not None else self.agreement)
        except OVSDinoError as error:  # stdout has its one JSON object already
            say(f"error: {error}")
            return 2
        return 0
