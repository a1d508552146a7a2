"""Weight files: packaged ones behind a SHA-256 manifest, foreign ones read without running code, the hub's by timm."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = WEIGHTS / "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """An entry of the manifest."""

    file: str
    sha256: str
    bytes: int
    parameters: int


def offline() -> bool:
    """True when OVSDINO_OFFLINE is set to anything but 0."""
    return os.environ.get("OVSDINO_OFFLINE", "0") not in ("", "0")


@functools.lru_cache(maxsize=1)
def manifest() -> dict[str, Packaged]:
    """The packaged weights, by model name."""
    if not MANIFEST.is_file():
        return {}
    entries = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {name: Packaged(**entry) for name, entry in entries.items()}


def packaged(name: str) -> Packaged | None:
    """The manifest's entry of a model, None when no weights are shipped for it."""
    return manifest().get(name)


def read_packaged(name: str) -> dict[str, Tensor]:
    """Shipped weights, refused unless their hash is the manifest's.

    safetensors does not notice flipped payload bits; the hash does.
    """
    entry = manifest()[name]
    path = WEIGHTS / entry.file
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise OVSDinoError(f"{path}: damaged (its SHA-256 is not the manifest's); reinstall ovsdino")
    return _parse(data, path)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Weights from a safetensors file.

    Raises:
        OVSDinoError: missing, unreadable, or not a safetensors file.
    """
    return _parse(_read(Path(path)), Path(path))


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from `.pth` / `.pt` without unpickling code.

    Raises:
        OVSDinoError: missing, not such a file, or holding anything but named tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise OVSDinoError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a hostile or broken file; each means the same here
        raise OVSDinoError(f"{path}: not a weight file that can be read safely ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise OVSDinoError(f"{path}: expected a dictionary of named tensors")
    return state


def load_state(module: nn.Module, state: dict[str, Tensor], source: str, *, partial: Sequence[str] = ()) -> None:
    """Loads `state`, every key and shape checked; keys of the module under a `partial` prefix may be absent.

    Raises:
        OVSDinoError: missing or unknown keys, wrong shapes.
    """
    own = module.state_dict()
    unknown = sorted(set(state) - set(own))
    missing = sorted(k for k in set(own) - set(state) if not k.startswith(tuple(partial)))
    if unknown or missing:
        raise OVSDinoError(
            f"{source}: not this model's weights ({len(missing)} keys missing, {len(unknown)} unknown, "
            f"e.g. {(missing or unknown)[0]!r})"
        )
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise OVSDinoError(f"{source}: {key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}")
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)


def load_backbone(vit: nn.Module, timm_name: str, path: str | Path | None) -> None:
    """Official weights of a timm backbone, from a local file or from the hub.

    Args:
        path: safetensors or .pth in timm's or the authors' naming; None asks the hub.

    Raises:
        OVSDinoError: offline, out of reach, or not this backbone's weights.
    """
    import timm

    config = dict(vit.pretrained_cfg)  # type: ignore[arg-type]
    if path is None:
        if offline():
            raise OVSDinoError(_by_hand(timm_name, config, "OVSDINO_OFFLINE is set"))
        overlay: dict[str, str] = {}
    else:
        if not Path(path).is_file():
            raise OVSDinoError(f"{path}: no such file (backbone weights of {timm_name})")
        read_foreign(path)
        overlay = {"file": str(path)}
    try:
        loaded = timm.create_model(
            timm_name, pretrained=True, num_classes=0, dynamic_img_size=True, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # the hub client raises many types; each means the same to the user
        reason = f"{type(error).__name__}"
        raise OVSDinoError(
            f"{path}: not the weights of {timm_name} ({reason})" if path else _by_hand(timm_name, config, reason)
        ) from error
    vit.load_state_dict(loaded.state_dict())


def _by_hand(timm_name: str, config: dict[str, object], reason: str) -> str:
    where = config.get("hf_hub_id") or f"timm/{timm_name}"
    return (
        f"{timm_name}: its weights must be fetched and cannot be here ({reason}); fetch model.safetensors of the hub "
        f"repository {where} by hand and give it as backbone_weights (--backbone-weights FILE), or use --model nano, "
        "which needs no network"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OVSDinoError(f"{path}: cannot read the weights ({error.strerror})") from error


def _parse(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise OVSDinoError(f"{path}: not a safetensors file ({error})") from error
