"""Read weight files: packaged ones behind a SHA-256 manifest, other people's without running code, the hub's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import read_bytes, reading
from ovsdino.io.sealed import check_safetensors
from ovsdino.models import shipped
from ovsdino.ops.compat import unpickles_safely

# Commits to take published weights at, by hub repository; one that is not named is taken at its main branch. Empty, for
# no hub could be asked for its commits where this was written. `REVISIONS["timm/NAME"] = "COMMIT"` pins one.
REVISIONS: dict[str, str] = {}


def read_packaged(name: str) -> dict[str, Tensor]:
    """Return shipped weights, refused unless their hash is the manifest's.

    Raises:
        OVSDinoError: The file is missing or damaged.
    """
    path, data = shipped.read_bytes_of(name)
    return _parse(data, path)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        OVSDinoError: The file is missing, unreadable, or no safetensors file.
    """
    return _parse(read_bytes(path, "weight file"), path)


def _parse(data: bytes, path: str | Path) -> dict[str, Tensor]:
    check_safetensors(data, path)
    with reading(path, "safetensors file"):
        return load_bytes(data)


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """Return a state dict from `.safetensors`, or from `.pth` / `.pt` / `.bin` without unpickling code.

    A training checkpoint that holds the state dict as "state_dict", "model" or "teacher" is opened one level deep.

    Raises:
        OVSDinoError: The file is missing, no such file, or holds anything but named tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not path.is_file():
        raise OVSDinoError(f"{one_line(path)}: no such file")
    if not unpickles_safely():
        raise OVSDinoError(
            f"{path}: torch {torch.__version__} reads pickled files unsafely (2.10 and later do not); convert it to "
            ".safetensors on a machine with a newer torch"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's messages are pages on how to switch the safety off
        raise OVSDinoError(f"{path}: not a weight file that can be read safely ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = next((state[k] for k in ("state_dict", "model", "teacher") if isinstance(state.get(k), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise OVSDinoError(f"{path}: expected a dictionary of named tensors")
    return state


def below(state: dict[str, Tensor], anchor: str, message: str) -> dict[str, Tensor]:
    """Return the part of a state dict under the one prefix in front of a key, the prefix taken off.

    Official networks travel inside larger ones: `module.`, `model.`, `clip_model.`, `proj.`, `image_encoder.`.

    Args:
        state: Tensors by name.
        anchor: A key that the part has.
        message: Text of the error.

    Raises:
        OVSDinoError: No key or more than one ends in the anchor.
    """
    prefixes = [key.removesuffix(anchor) for key in state if key == anchor or key.endswith(f".{anchor}")]
    if len(prefixes) != 1:
        raise OVSDinoError(message if not prefixes else f"{message}: it is there {len(prefixes)} times")
    return {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}


def load_state(module: nn.Module, state: dict[str, Tensor], source: str, *, partial: Sequence[str] = ()) -> None:
    """Load a state dict into a module, every key, shape and value checked.

    Args:
        module: Takes the values, in its own dtypes.
        state: Tensors by name.
        source: Where they come from, for the message.
        partial: Prefixes of the module's keys that may be absent.

    Raises:
        OVSDinoError: Keys are missing or unknown, a shape is wrong, or a value is NaN or infinite.
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
    converted = {key: value.to(own[key].dtype) for key, value in state.items()}
    for key, value in converted.items():
        if not _finite(value):
            raise OVSDinoError(f"{source}: {key} holds NaN or infinite values; the file is damaged: fetch it again")
    module.load_state_dict(converted, strict=False)


def _finite(value: Tensor) -> bool:
    """Return whether all values are finite, in one pass without a temporary."""
    if not value.is_floating_point() or not value.numel():
        return True
    low, high = torch.aminmax(value)  # both are NaN where one value is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def offline() -> bool:
    """Return whether OVSDINO_OFFLINE is set to anything but 0."""
    return os.environ.get("OVSDINO_OFFLINE", "0") not in ("", "0")


def fetch(repository: str, file: str, option: str, revision: str | None = None) -> Path:
    """Return a file of a hub repository, from the cache or, unless OVSDINO_OFFLINE is set, from the network.

    Args:
        repository: Its name, "name/repository".
        file: Path of the file in it.
        option: What the user can give in its place, for the message.
        revision: Branch, tag or commit; None takes that of `REVISIONS`, else the main branch.

    Raises:
        OVSDinoError: It is not in the cache and out of reach; the message says what to fetch by hand.
    """
    from huggingface_hub import hf_hub_download

    try:
        chosen = revision or REVISIONS.get(repository)
        return Path(hf_hub_download(repository, file, revision=chosen, local_files_only=offline()))
    except Exception as error:  # the hub client raises many types; each means the same to the user
        reason = "OVSDINO_OFFLINE is set and it is not in the cache" if offline() else type(error).__name__
        raise OVSDinoError(
            f"{file} of the hub repository {repository} cannot be had here ({reason}): fetch it by hand and give it as "
            f"{option}, or use --model nano, which needs no network"
        ) from error


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's image side: every state tensor's name, dtype, shape and bytes.

    The text tower's are left out. The digest says which exported graphs and which text banks belong together. It is
    computed on the CPU, whatever the model's device.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("text_tower."):
            continue
        digest.update(f"{name} {str(value.dtype)[6:]} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
