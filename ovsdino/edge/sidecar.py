"""The sidecar of an exported file: its facts, where it runs, and the hash that is checked before anything is read.

An engine is code: whoever can change the file can run what they like when it is deserialized. So `<file>.json` next to
it carries the file's SHA-256, the TensorRT and GPU that it was built for, its shapes, and the digest of the weights,
which says to which text banks it belongs. `ovsdino.deploy.export.publish` writes file and sidecar as one.
"""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.edge.fields import checked_fields
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, read_bytes, reading, sha256_of

__all__ = ["FORMAT", "GRAPH_KEY", "Sidecar", "pending_path", "release_of", "sidecar_path"]

FORMAT = 1
MAX_BYTES = 16 << 20  # a sidecar has a few hundred bytes; that of an int8 graph lists its layers
OPTIONAL = ("words", "contrast")  # fields of a graph that takes groups of rows
GRAPH_KEY = "ovsdino"  # of an ONNX file's own metadata
GRAPH_FACTS = (
    *(
        "model",
        "precision",
        "classes",
        "words",
        "contrast",
        "embed_dim",
        "stride",
        "mean",
        "std",
        "short_side",
        "patch_size",
        "weights",
        "baked",
    ),
)


def sidecar_path(path: str | Path) -> Path:
    """Return `<file>.json` next to a file: nano_fp16.onnx -> nano_fp16.onnx.json."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def pending_path(path: str | Path) -> Path:
    """Return where a new sidecar waits until its file is in place (`ovsdino.deploy.export.publish`)."""
    path = Path(path)
    return path.with_name(f".{path.name}.json.pending")


def release_of(version: str) -> tuple[int, ...]:
    """Return (major, minor, patch) of "10.3.0.30", or () of text without a number, which no engine has."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def rebuild_command(path: str | Path, model: object = None) -> str:
    """Return how to replace an exported file that cannot be trusted, with the command that makes it again."""
    name = model if isinstance(model, str) and re.fullmatch(r"[\w./-]{1,100}", model) else "MODEL"
    script = "export_trt.py" if Path(path).suffix == ".engine" else "export_onnx.py"
    return (
        f"export it again: python deploy/{script} --model {name} --output DIR; or copy file and sidecar together from "
        "where they were made"
    )


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Facts about one exported file.

    Attributes:
        kind: "onnx" or "engine".
        file: Name of the file, without a folder.
        sha256: SHA-256 of the file, hexadecimal.
        bytes: Size of the file.
        model: Name of the zoo model.
        precision: "float32", "float16", "bfloat16" or "int8"; inputs and outputs are float32 in each.
        backend: "onnx", "tensorrt" or "tensorrt_rtx".
        version: Version of TensorRT; "" for ONNX.
        target: "any" for ONNX; for an engine "sm86", or "sm80,sm86" for one built for several.
        input: [B, 3, H, W] of the input `image`; B is the largest batch.
        classes: [least, most] rows K of the text bank.
        embed_dim: D, columns of the text bank.
        stride: Image pixels per cell of the logits; a fraction where the patch is not a multiple of 4.
        mean: Mean of the normalization, RGB in 0..1.
        std: Standard deviation of the normalization.
        short_side: Inference size of the image's short side that the model asks for, in pixels.
        patch_size: Patch size in pixels; H and W are multiples of it.
        weights: Digest of the image side's weights (`ovsdino.models.weights.weights_digest`).
        words: [least, most] words W of a class in the input `text`, (K, W, D); None for a graph that takes one row a
            class, (K, D), and no contrast. Rows of zeros are absent.
        contrast: [least, most] rows C of the input `contrast`, (C, D); the logits then have K + 1 maps, its own last.
        baked: None, or of a graph with the words inside (`ovsdino.deploy.export.bake`): "names" of the words, "none"
            (whether one more map or label is of none of them), "layout" of the pixels and kind of "output". It has no
            fields `words` and `contrast`.
        verified: {"cosine", "label_agreement", "images"} of the export's own check, or None when it was not run.
        quantised: False or None, or the record of `quantize.py`; spelled as format 1 has it.
        memory: Channels C of the inputs and outputs by which a graph remembers the frame before, see
            `ovsdino.deploy.export.steady`; None for a graph without a memory.
        format: Version of this file's layout.
    """

    kind: str
    file: str
    sha256: str
    bytes: int
    model: str
    precision: str
    backend: str
    version: str
    target: str
    input: tuple[int, int, int, int]
    classes: tuple[int, int]
    embed_dim: int
    stride: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short_side: int
    patch_size: int
    weights: str
    words: tuple[int, int] | None = None
    contrast: tuple[int, int] | None = None
    baked: Mapping[str, Any] | None = None
    verified: Mapping[str, Any] | None = None
    quantised: Mapping[str, Any] | bool | None = None
    memory: int | None = None
    format: int = FORMAT

    @classmethod
    def load(cls, path: str | Path) -> Sidecar:
        """Read the sidecar of an exported file; the file itself is not opened (`read` does that).

        Args:
            path: The exported file, not its sidecar.

        Raises:
            OVSDinoError: There is no sidecar, or it is not JSON, or not of this format.
        """
        _finish_replacement(path)
        place = sidecar_path(path)
        if not place.exists():
            raise OVSDinoError(
                f"{place}: the sidecar is missing; an exported file is not opened without it: {rebuild_command(path)}"
            )
        if not place.is_file() or place.stat().st_size > MAX_BYTES:
            raise OVSDinoError(f"{place}: not a sidecar (a folder, a pipe, or too large); {rebuild_command(path)}")
        try:
            data = json.loads(place.read_bytes())
        except OSError as error:
            raise OVSDinoError(f"{place}: {error.strerror}; {rebuild_command(path)}") from error
        except (ValueError, RecursionError) as error:
            raise OVSDinoError(f"{place}: not JSON; {rebuild_command(path)}") from error
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT or isinstance(found, bool):
            raise OVSDinoError(
                f"{place}: format is {one_line(repr(found), 60)}, this version reads {FORMAT}; {rebuild_command(path)}"
            )
        try:
            names = {field.name for field in dataclasses.fields(cls)}
            sidecar = cls(**checked_fields(data, names, OPTIONAL))
        except (TypeError, ValueError, KeyError) as error:
            raise OVSDinoError(
                f"{place}: damaged ({one_line(error, 200)}); {rebuild_command(path, data.get('model'))}"
            ) from error
        return dataclasses.replace(sidecar, file=Path(path).name)  # file and sidecar may have been renamed together

    def save(self, path: str | Path) -> Path:
        """Write the sidecar of an exported file atomically and return its path.

        Args:
            path: The exported file.

        Raises:
            OVSDinoError: The sidecar cannot be written.
        """
        place = sidecar_path(path)
        with atomic_write(place) as file:
            file.write(dataclasses.replace(self, file=Path(path).name).to_bytes())
        return place

    def to_bytes(self) -> builtins.bytes:
        """Return the sidecar as JSON."""
        data = dataclasses.asdict(self)
        for name in (*OPTIONAL, "baked", "memory"):  # a graph of single rows is as earlier versions wrote it
            if data[name] is None:
                del data[name]
        return json.dumps(data, indent=2, allow_nan=False).encode() + b"\n"

    def describing(self, data: builtins.bytes, **changes: Any) -> Sidecar:
        """Return a copy that describes other data: its size and hash, and other fields given by name."""
        return dataclasses.replace(self, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), **changes)

    @property
    def grouped(self) -> bool:
        """Whether the graph takes several words a class, and contrast rows."""
        return self.words is not None and self.contrast is not None

    def facts(self) -> dict[str, Any]:
        """Return the fields that a graph carries in its own metadata, so that its hash covers them."""
        facts = {name: getattr(self, name) for name in GRAPH_FACTS}
        return facts if self.baked is not None else {name: value for name, value in facts.items() if name != "baked"}

    def check_graph(self, metadata: Mapping[str, str]) -> None:
        """Refuse a sidecar that differs from the facts inside the graph itself.

        Args:
            metadata: Metadata of the ONNX file; without our entry it was exported by an earlier version and passes.

        Raises:
            OVSDinoError: A field differs; the message names it.
        """
        if GRAPH_KEY not in metadata:
            return
        with reading(self.file, "graph of deploy/export_onnx.py", self.rebuild()):
            told = dict(json.loads(metadata[GRAPH_KEY]))
        mine = json.loads(json.dumps(self.facts()))
        for name in sorted(set(told) & set(mine)):
            if told[name] != mine[name]:
                raise OVSDinoError(
                    f"{self.file}: its sidecar says {name} is {one_line(mine[name], 60)}, the graph itself "
                    f"{one_line(told[name], 60)}; {self.rebuild()}"
                )

    def rebuild(self) -> str:
        """Return how to replace the file when it cannot be trusted: see `rebuild_command`."""
        return rebuild_command(self.file, self.model)

    def read(self, path: str | Path) -> builtins.bytes:
        """Return the content of an exported file, if it is the one that this sidecar was written for.

        The returned bytes are those that were hashed: a file that changes after the check is not read again.

        Args:
            path: The exported file.

        Raises:
            OVSDinoError: The file is missing, or its size or hash is another.
        """
        path = Path(path)
        if not path.is_file():
            raise OVSDinoError(f"{path}: no such file; its sidecar is there: {self.rebuild()}")
        size = path.stat().st_size
        if size != self.bytes:
            raise OVSDinoError(
                f"{path}: {size} bytes, its sidecar says {self.bytes}: cut off or changed; {self.rebuild()}"
            )
        data = read_bytes(path, "exported file", self.rebuild())
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise OVSDinoError(
                f"{path}: changed since it was exported (its SHA-256 is not the sidecar's); {self.rebuild()}"
            )
        return data

    def check_runtime(self, backend: str, version: str = "", sm: str = "") -> None:
        """Refuse an engine that this machine's TensorRT and GPU cannot run.

        Args:
            backend: The backend that is about to run it: "onnx", "tensorrt" or "tensorrt_rtx".
            version: That backend's version; "" for "onnx".
            sm: Architecture of the device, "sm87"; "" for "onnx".

        Raises:
            OVSDinoError: Another backend, another version (major.minor.patch), or another GPU architecture.
        """
        if backend != self.backend:
            raise OVSDinoError(f"{self.file}: made for {self.backend}, not for {backend}; {self._remedy(backend, sm)}")
        if self.kind == "onnx":
            return
        if release_of(version) != release_of(self.version):
            raise OVSDinoError(
                f"{self.file}: built by {self.backend} {self.version}, this machine has {version or 'none'}; "
                f"{self._remedy(backend, sm)}"
            )
        if sm not in self.target.split(","):
            raise OVSDinoError(
                f"{self.file}: built for {self.target}, this device is {sm or 'unknown'}; {self._remedy(backend, sm)}"
            )

    def _remedy(self, backend: str, sm: str) -> str:
        if backend == "onnx":
            return f"give the .onnx of {self.model}: python deploy/export_onnx.py --model {self.model} --output DIR"
        target = f"--target {sm}" if sm else "--target current"
        return f"build it here: python deploy/export_trt.py --model {self.model} --backend {backend} {target}"

    def check_bank(
        self,
        names: Sequence[str],
        shape: Sequence[int],
        weights: str,
        model: str | None = None,
        *,
        words: int = 1,
        contrast: int = 0,
    ) -> None:
        """Refuse a text bank that this graph cannot take.

        Args:
            names: Names of the classes.
            shape: (K, D) of the bank.
            weights: Digest of the weights that the bank was made for.
            model: Name of the model that it was made for; None does not ask.
            words: The most words of a class.
            contrast: Number of contrast rows.

        Raises:
            OVSDinoError: Names and rows differ in number, another width, K out of range, another model's bank, or
                groups of rows that the graph does not take.
        """
        if len(shape) != 2 or len(names) != shape[0]:
            raise OVSDinoError(f"text bank: {len(names)} names for an array of shape {tuple(shape)}: expected (K, D)")
        if self.baked is not None:
            raise OVSDinoError(
                f"{self.file}: its words are inside (--bake), so it takes no text bank: run it with ONNX Runtime, "
                "Triton or DeepStream, or export it without --bake"
            )
        least, most = self.classes
        if shape[1] != self.embed_dim:
            raise OVSDinoError(
                f"text bank: {shape[1]} columns, {self.file} ({self.model}) takes {self.embed_dim}; make it with "
                f"`ovsdino text --model {self.model}`"
            )
        if not least <= shape[0] <= most:
            raise OVSDinoError(
                f"text bank: {shape[0]} classes, {self.file} takes {least}..{most}; export it again with --classes"
            )
        if not self.grouped and (words > 1 or contrast):
            raise OVSDinoError(
                f"text bank: {words} words a class and {contrast} contrast rows, {self.file} takes one row a class; "
                "export it again with --contrast, or make the bank with `ovsdino text --partition --average-words`"
            )
        for count, limits, what in ((words, self.words, "words a class"), (contrast, self.contrast, "contrast rows")):
            if limits is not None and count > limits[1]:
                raise OVSDinoError(f"text bank: {count} {what}, {self.file} takes at most {limits[1]}")
        if model is not None and model != self.model:
            raise OVSDinoError(
                f"text bank: made for {one_line(model, 60)}, the sidecar of {self.file} says {self.model}; make it "
                f"with `ovsdino text --model {self.model}`, or {self.rebuild()}"
            )
        if weights != self.weights:
            raise OVSDinoError(
                f"text bank: made for other weights ({weights[:12] or 'none'}) than {self.file} "
                f"({self.weights[:12]}); make it with `ovsdino text --model {self.model}` and the same checkpoint"
            )


def _finish_replacement(path: str | Path) -> None:
    """Put a waiting sidecar in place if its file is: the writer was killed between the two renames."""
    pending = pending_path(path)
    if not pending.is_file():
        return
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # then it is not this file's sidecar
        if json.loads(pending.read_bytes())["sha256"] == sha256_of(path):
            os.replace(pending, sidecar_path(path))
