"""The sidecar of an exported file: what it is, where it runs, and the hash that is checked before anything is read.

An engine is code: whoever can change the file can run what they like when it is deserialised. `<file>.json` beside it
carries the file's SHA-256, the TensorRT and GPU it was built for, its shapes, and the digest of the weights, which says
to which text banks it belongs. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write

__all__ = ["FORMAT", "Sidecar", "file_sha256", "sidecar_path"]

FORMAT = 1
KINDS = ("onnx", "engine")
BACKENDS = ("onnx", "tensorrt", "tensorrt_rtx")
REBUILD = "export it again on this machine, or copy file and sidecar together"


def sidecar_path(path: str | Path) -> Path:
    """`<file>.json` beside the file: nano_fp16.onnx -> nano_fp16.onnx.json."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OVSDinoError: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise OVSDinoError(f"{path}: cannot read: {error.strerror}; give an exported .onnx or .engine file") from error
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Facts about one exported file.

    Attributes:
        kind: "onnx" or "engine".
        file: name of the file, without a folder.
        sha256: of the file, hexadecimal.
        bytes: size of the file.
        model: name of the zoo model.
        precision: "float32", "float16" or "int8"; inputs and outputs are float32 in each.
        backend: "onnx", "tensorrt" or "tensorrt_rtx".
        version: TensorRT's version, "" for ONNX.
        target: "any" for ONNX; for an engine "sm86", or "sm80,sm86" for one built for several.
        input: [B, 3, H, W] of the input `image`; B is the largest batch.
        classes: [least, most] rows K of the text bank.
        embed_dim: D, columns of the text bank.
        stride: image pixels per cell of the logits; a fraction where the patch is no multiple of 4.
        mean: of the normalisation, RGB in 0..1.
        std: of the normalisation.
        short_side: inference size of the image's short side that the model asks for, in pixels.
        patch_size: patch size in pixels; H and W are multiples of it.
        weights: digest of the image side's weights (`ovsdino.hub.weights_digest`).
        verified: {"cosine", "label_agreement", "images"} of the export's own check, or None when it was not run.
        quantised: False or None, or what `quantize.py` says it did.
        format: version of this file's layout.
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
    verified: Mapping[str, Any] | None = None
    quantised: Mapping[str, Any] | bool | None = None
    format: int = FORMAT

    @classmethod
    def load(cls, path: str | Path) -> Sidecar:
        """The sidecar of an exported file; the file itself is not opened (`check_file` does that).

        Args:
            path: the exported file, not its sidecar.

        Raises:
            OVSDinoError: no sidecar, not JSON, or not of this format.
        """
        beside = sidecar_path(path)
        try:
            data = json.loads(beside.read_bytes())
        except OSError as error:
            what = "the sidecar is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            raise OVSDinoError(f"{beside}: {what}; an exported file is not opened without it: {REBUILD}") from error
        except (ValueError, RecursionError) as error:
            raise OVSDinoError(f"{beside}: not JSON; {REBUILD}") from error
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise OVSDinoError(f"{beside}: format is {found!r}, this version reads {FORMAT}; {REBUILD}")
        try:
            return cls._parsed(data)
        except (TypeError, ValueError, KeyError) as error:
            raise OVSDinoError(f"{beside}: damaged ({error}); {REBUILD}") from error

    @classmethod
    def _parsed(cls, data: dict[str, Any]) -> Sidecar:
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        odd = sorted(set(data) ^ set(fields))
        if odd:
            raise ValueError(f"field {odd[0]!r} is {'unknown' if odd[0] in data else 'missing'}")
        values = dict(data)
        for name, kind in fields.items():
            value = values[name]
            if kind == "str" and not isinstance(value, str):
                raise ValueError(f"{name} is {value!r}, expected text")
            if kind == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ValueError(f"{name} is {value!r}, expected a whole number")
        values["input"] = _numbers(data, "input", 4, int)
        values["classes"] = _numbers(data, "classes", 2, int)
        values["mean"] = _numbers(data, "mean", 3, float)
        values["std"] = _numbers(data, "std", 3, float)
        values["stride"] = float(data["stride"])
        if data["verified"] is not None and not isinstance(data["verified"], dict):
            raise ValueError(f"verified is {data['verified']!r}, expected an object or null")
        for name, allowed in (("kind", KINDS), ("backend", BACKENDS)):
            if values[name] not in allowed:
                raise ValueError(f"{name} is {values[name]!r}, expected one of {', '.join(allowed)}")
        return cls(**values)

    def save(self, path: str | Path) -> Path:
        """Writes the sidecar beside an exported file, atomically; returns its path.

        Raises:
            OVSDinoError: it cannot be written.
        """
        beside = sidecar_path(path)
        with atomic_write(beside) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False).encode() + b"\n")
        return beside

    def of_file(self, path: str | Path, **changes: Any) -> Sidecar:
        """A copy that describes `path`: its name, size and hash, and other fields given by name."""
        path = Path(path)
        return dataclasses.replace(self, file=path.name, sha256=file_sha256(path), bytes=path.stat().st_size, **changes)

    def check_file(self, path: str | Path) -> None:
        """Refuses a file that is not the one this sidecar was written for; to be called before it is deserialised.

        Raises:
            OVSDinoError: the file is missing, or its size or hash is another.
        """
        path = Path(path)
        if not path.is_file():
            raise OVSDinoError(f"{path}: no such file; its sidecar is there: {REBUILD}")
        size = path.stat().st_size
        if size != self.bytes:
            raise OVSDinoError(f"{path}: {size} bytes, its sidecar says {self.bytes}: cut off or changed; {REBUILD}")
        if file_sha256(path) != self.sha256:
            raise OVSDinoError(f"{path}: changed since it was exported (its SHA-256 is not the sidecar's); {REBUILD}")

    def check_runtime(self, backend: str, version: str = "", sm: str = "") -> None:
        """Refuses an engine that this machine's TensorRT and GPU cannot run.

        Args:
            backend: what is about to run it: "onnx", "tensorrt" or "tensorrt_rtx".
            version: that backend's version; "" for "onnx".
            sm: the device, "sm87"; "" for "onnx".

        Raises:
            OVSDinoError: another backend, another version (major.minor.patch), or another GPU architecture.
        """
        if backend != self.backend:
            raise OVSDinoError(f"{self.file}: made for {self.backend}, not for {backend}; {self._mend(backend, sm)}")
        if self.kind == "onnx":
            return
        if _release(version) != _release(self.version):
            raise OVSDinoError(
                f"{self.file}: built by {self.backend} {self.version}, this machine has {version or 'none'}; "
                f"{self._mend(backend, sm)}"
            )
        if sm not in self.target.split(","):
            raise OVSDinoError(
                f"{self.file}: built for {self.target}, this device is {sm or 'unknown'}; {self._mend(backend, sm)}"
            )

    def _mend(self, backend: str, sm: str) -> str:
        if backend == "onnx":
            return f"give the .onnx of {self.model}: python deploy/export_onnx.py --model {self.model} --output DIR"
        target = f"--target {sm}" if sm else "--target current"
        return f"build it here: python deploy/export_trt.py --model {self.model} --backend {backend} {target}"

    def check_bank(self, names: Sequence[str], shape: Sequence[int], weights: str) -> None:
        """Refuses a text bank that this graph cannot take.

        Args:
            names: names of the classes.
            shape: (K, D) of the bank.
            weights: digest of the weights that the bank was made for.

        Raises:
            OVSDinoError: names and rows differ in number, another width, K out of range, or another model's bank.
        """
        if len(shape) != 2 or len(names) != shape[0]:
            raise OVSDinoError(f"text bank: {len(names)} names for an array of shape {tuple(shape)}: expected (K, D)")
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
        if weights != self.weights:
            raise OVSDinoError(
                f"text bank: made for other weights ({weights[:12] or 'none'}) than {self.file} "
                f"({self.weights[:12]}); make it with `ovsdino text --model {self.model}` and the same checkpoint"
            )


def _numbers(data: dict[str, Any], name: str, count: int, kind: type) -> Any:
    values = data[name]
    if not isinstance(values, list) or len(values) != count or any(isinstance(x, bool) for x in values):
        raise ValueError(f"{name} is {values!r}, expected {count} numbers")
    if kind is int and not all(isinstance(x, int) and x > 0 for x in values):
        raise ValueError(f"{name} is {values!r}, expected {count} positive whole numbers")
    return tuple(kind(x) for x in values)


def _release(version: str) -> tuple[int, ...]:
    """(major, minor, patch) of "10.3.0.30"; () of what is no version, which no engine has."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
