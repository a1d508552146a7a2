"""Weight files: packaged ones behind a SHA-256 manifest, foreign ones read without running code, the hub's."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, reading, sha256_of
from ovsdino.io.sealed import check_safetensors

if TYPE_CHECKING:
    from ovsdino.models.ovsdino import OVSDINO

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = WEIGHTS / "manifest.json"
WEIGHTS_FILE = "model.safetensors"
# Commits to take published weights at, by hub repository; one that is not named is taken at its main branch. Empty, for
# no hub could be asked for its commits where this was written. `REVISIONS["timm/NAME"] = "COMMIT"` pins one.
REVISIONS: dict[str, str] = {}
BOTH_FILES = f"a folder that holds config.json and {WEIGHTS_FILE} (--model FOLDER)"


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
    """The packaged weights, by model name.

    Raises:
        OVSDinoError: the manifest is damaged.
    """
    if not MANIFEST.is_file():
        return {}
    with reading(MANIFEST, "manifest of weights", "reinstall ovsdino"):
        return {name: _entry(name, entry) for name, entry in json.loads(MANIFEST.read_bytes()).items()}


def _entry(name: str, entry: dict[str, Any]) -> Packaged:
    known = Packaged(**entry)
    if not (isinstance(known.file, str) and known.file == Path(known.file).name and known.file):
        raise ValueError(f"{name}: file is {known.file!r}, expected a name without a folder")
    if not isinstance(known.sha256, str):
        raise ValueError(f"{name}: sha256 is {known.sha256!r}, expected text")
    if not (isinstance(known.bytes, int) and isinstance(known.parameters, int)):
        raise ValueError(f"{name}: bytes and parameters are {known.bytes!r}, {known.parameters!r}, expected numbers")
    return known


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
    """A state dict from `.safetensors`, or from `.pth` / `.pt` / `.bin` without unpickling code.

    A training checkpoint that holds the state dict as "state_dict", "model" or "teacher" is opened one level deep.

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
    except Exception as error:  # torch's messages are pages on how to switch the safety off
        raise OVSDinoError(f"{path}: not a weight file that can be read safely ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = next((state[k] for k in ("state_dict", "model", "teacher") if isinstance(state.get(k), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise OVSDinoError(f"{path}: expected a dictionary of named tensors")
    return state


def below(state: dict[str, Tensor], anchor: str, message: str) -> dict[str, Tensor]:
    """The part of a state dict that lies under the one prefix in front of `anchor`, the prefix taken off.

    Official networks travel inside larger ones: `module.`, `model.`, `clip_model.`, `proj.`, `image_encoder.`.

    Raises:
        OVSDinoError: `message`, when no key or more than one ends in the anchor.
    """
    prefixes = [key.removesuffix(anchor) for key in state if key == anchor or key.endswith(f".{anchor}")]
    if len(prefixes) != 1:
        raise OVSDinoError(message if not prefixes else f"{message}: it is there {len(prefixes)} times")
    return {key.removeprefix(prefixes[0]): value for key, value in state.items() if key.startswith(prefixes[0])}


def load_state(module: nn.Module, state: dict[str, Tensor], source: str, *, partial: Sequence[str] = ()) -> None:
    """Loads `state`, every key, shape and value checked; keys of the module under a `partial` prefix may be absent.

    Raises:
        OVSDinoError: missing or unknown keys, wrong shapes, or a value that is NaN or infinite.
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


def fetch(repository: str, file: str, option: str, revision: str | None = None) -> Path:
    """A file of a hub repository: from the cache or, unless OVSDINO_OFFLINE is set, from the network.

    Args:
        option: what the user can give instead, for the message.
        revision: branch, tag or commit. Default: that of `REVISIONS`, else the main branch.

    Raises:
        OVSDinoError: not in the cache and out of reach; it says what to fetch by hand.
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


def sha256(path: Path) -> str:
    """SHA-256 of a weight file, in hexadecimal.

    Raises:
        OVSDinoError: the file is missing or cannot be read.
    """
    with reading(path, "weight file"):
        return sha256_of(path)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's image side: name, dtype, shape and bytes of every state tensor but the text tower's.

    It says which exported graphs and which text banks belong together. Read on the CPU, whatever the model's device.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith("text_tower."):
            continue
        digest.update(f"{name} {str(value.dtype)[6:]} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_pretrained(model: OVSDINO, folder: str | Path) -> None:
    """Writes config.json, model.safetensors and a model card: what `from_pretrained` reads and `push_to_hub` uploads.

    nano's weights are written whole. Of the other models the decoder and the text projection are; backbone and CLIP
    stay where their authors publish them.

    Raises:
        OVSDinoError: the model has no trained decoder, is not the zoo's, or the folder cannot be written.
    """
    from safetensors.torch import save

    folder, name = Path(folder), model.config.name
    if not model.decoder_trained:
        raise OVSDinoError(f"{name}: no decoder weights to save; train one, or load one as checkpoint")
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if model.config.text.kind == "clip":
        state = {k: v for k, v in state.items() if k.startswith(("decoder.", "text_tower.", "log_"))}
    data = save(state)
    config = {
        "library": "ovsdino",
        "model": name,
        "config": _zoo_config(name),
        "weights": {"file": WEIGHTS_FILE, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
    }
    if json.loads(json.dumps(model.config.to_dict())) != config["config"]:
        raise OVSDinoError(f"{name}: its configuration is not the zoo's, so nobody could load it by name")
    files = {WEIGHTS_FILE: data, "config.json": json.dumps(config, indent=2).encode(), "README.md": _card(name)}
    for file, content in files.items():
        with atomic_write(folder / file) as target:
            target.write(content)


def from_pretrained(
    source: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None, **files: Any
) -> OVSDINO:
    """A model that `save_pretrained` or `push_to_hub` wrote.

    Args:
        source: a folder, or a hub repository, "name/repository" or "name/repository@revision".
        revision: branch, tag or commit of the repository, in place of what follows the @.
        **files: local files, as `zoo.create_model` takes them (backbone_weights, clip_weights, projection).

    Raises:
        OVSDinoError: not found, out of reach, damaged, or not a model of this version of ovsdino.
    """
    from ovsdino.models import zoo  # the zoo reads its weights through this module

    if Path(source).is_dir():
        config_path = Path(source) / "config.json"
    elif named := re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?", str(source)):
        source, revision = named[1], revision or named[2]
        config_path = fetch(source, "config.json", BOTH_FILES, revision)
    else:
        raise OVSDinoError(f"{source}: neither a folder nor the name of a hub repository (name/repository)")
    with reading(config_path, "config.json of an ovsdino model"):
        config = json.loads(_read(config_path))
        name, weights = config["model"], config["weights"]
        digest, same = weights["sha256"], config["config"] == _zoo_config(name)
    if not same:
        raise OVSDinoError(f"{config_path}: made for another version of {name}; train it again or install that version")
    path = config_path.with_name(WEIGHTS_FILE)
    if not Path(source).is_dir():
        path = fetch(str(source), WEIGHTS_FILE, BOTH_FILES, revision)
    if sha256(path) != digest:
        raise OVSDinoError(f"{path}: damaged (its SHA-256 is not that of config.json); fetch it again")
    return zoo.create_model(name, device=device, checkpoint=path, **files)


def push_to_hub(model: OVSDINO, repository: str, *, private: bool = False, message: str = "Upload model") -> str:
    """Uploads what `save_pretrained` writes; returns the address of the commit.

    Raises:
        OVSDinoError: see `save_pretrained`; offline, not logged in, or out of reach.
    """
    from huggingface_hub import HfApi

    if offline():
        raise OVSDinoError(f"{repository}: cannot upload while OVSDINO_OFFLINE is set")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
        except Exception as error:  # as in fetch
            raise OVSDinoError(
                f"{repository}: cannot upload ({type(error).__name__}: {one_line(error, 200)}); log in with "
                "`hf auth login` and try again"
            ) from error


def _zoo_config(name: str) -> Any:
    from ovsdino.models import zoo

    return json.loads(json.dumps(zoo.get_config(name).to_dict()))


def _card(name: str) -> bytes:
    return (
        "---\nlibrary_name: ovsdino\npipeline_tag: image-segmentation\n---\n\n"
        f'# ovsdino {name}\n\nOpen-vocabulary segmentation. Load it with `ovsdino.load("NAME/REPOSITORY")` or '
        '`ovsdino segment IMAGE --model NAME/REPOSITORY --classes "road, sky"`.\n'
    ).encode()


def _read(path: Path) -> bytes:
    with reading(path, "weight file"):
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OVSDinoError(f"{one_line(path)}: not a regular file; give a weight file")
        return path.read_bytes()


def _parse(data: bytes, path: Path) -> dict[str, Tensor]:
    check_safetensors(data, path)
    with reading(path, "safetensors file"):
        return load_bytes(data)
