"""Share trained models: write a folder that others load by its name, and upload it to the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write
from ovsdino.model_card import RUN_FILE, Run, model_card, shipped_card
from ovsdino.models.backbone import num_parameters
from ovsdino.models.calibration import Measured, metadata
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.shipped import packaged
from ovsdino.models.weights import offline, weights_digest
from ovsdino.models.zoo import OWN_KEYS, SHARED_WEIGHTS, create_model, get_config

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]


def save_pretrained(
    model: OVSDINO,
    folder: str | Path,
    *,
    repository: str = "NAME/REPOSITORY",
    run: str | Path | None = None,
    license: str | None = None,
    terms: str | None = None,
) -> None:
    """Write config.json, model.safetensors and a model card, for `from_pretrained` and `push_to_hub`.

    nano's weights are written whole. Of the other models the decoder and the map between image and text are; backbone
    and text encoder stay where their authors publish them.

    Args:
        model: A model of the zoo with a trained decoder.
        folder: Where to write; made if it is missing.
        repository: Where it will lie, for the commands in the card.
        run: Folder of the training that made it: its figures, data and settings go into the card, and the settings into
            run.yaml.
        license: Identifier of a license as the hub knows it ("apache-2.0", "other"), for the card.
        terms: A sentence on the terms of the data.

    Raises:
        OVSDinoError: The model has no trained decoder, is not the zoo's, the run has no log, or the folder cannot be
            written.
    """
    folder, name = Path(folder), model.config.name
    if not model.decoder_trained:
        raise OVSDinoError(f"{name}: no decoder weights to save; train one, or load one as checkpoint")
    training = None if run is None else Run(run)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if not model.config.text.stored:
        state = {k: v for k, v in state.items() if k.startswith(OWN_KEYS)}
    data = save(state, metadata(Measured(backgrounds=model.backgrounds, known=model.known)))
    weights = {"file": SHARED_WEIGHTS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    config = {"library": "ovsdino", "model": name, "config": get_config(name).to_dict(), "weights": weights}
    if model.config.to_dict() != config["config"]:
        raise OVSDinoError(f"{name}: its configuration is not the zoo's, so it could not be loaded by name")
    card = model_card(
        name,
        repository,
        {"parameters": num_parameters(model), **weights},
        run=training,
        license=license,
        terms=terms,
        about=shipped_card(name) if training is None and _is_shipped(model) else None,
    )
    files = {SHARED_WEIGHTS: data, "config.json": json.dumps(config, indent=2).encode(), "README.md": card.encode()}
    if training is not None:
        files[RUN_FILE] = training.to_yaml().encode()
    for file, content in files.items():
        with atomic_write(folder / file) as target:
            target.write(content)


def _is_shipped(model: OVSDINO) -> bool:
    """Return whether a model has the image side of the shipped weights of its name."""
    name = model.config.name
    if packaged(name) is None:
        return False
    return weights_digest(model) == weights_digest(create_model(name))


def from_pretrained(
    source: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None, **files: Any
) -> OVSDINO:
    """Return a model that `save_pretrained` or `push_to_hub` wrote.

    Args:
        source: A folder, or a hub repository, "name/repository" or "name/repository@revision".
        device: Where to put it.
        revision: Branch, tag or commit of the repository, in place of what follows the @.
        **files: Local files, as `create_model` takes them (backbone_weights, projection,
            clip_weights, sentence_weights).

    Raises:
        OVSDinoError: It is not found, out of reach, damaged, or no model of this version of ovsdino.
    """
    if revision is not None:
        source = f"{str(source).partition('@')[0]}@{revision}"
    return create_model(source, device=device, **files)


def push_to_hub(
    model: OVSDINO,
    repository: str,
    *,
    private: bool = False,
    message: str = "Upload model",
    run: str | Path | None = None,
    license: str | None = None,
    terms: str | None = None,
) -> str:
    """Upload the files of `save_pretrained`; return the address of the commit.

    Args:
        model: See `save_pretrained`.
        repository: "NAME/REPOSITORY", made if it is missing.
        private: Whether a repository that is made is private.
        message: Of the commit.
        run: See `save_pretrained`.
        license: See `save_pretrained`.
        terms: See `save_pretrained`.

    Raises:
        OVSDinoError: See `save_pretrained`; or offline, not logged in, or the hub is out of reach.
    """
    from huggingface_hub import HfApi

    if offline():
        raise OVSDinoError(f"{repository}: cannot upload while OVSDINO_OFFLINE is set")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, repository=repository, run=run, license=license, terms=terms)
        try:
            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
        except Exception as error:  # the hub client raises many types; each means the same to the user
            raise OVSDinoError(
                f"{repository}: cannot upload ({type(error).__name__}: {one_line(error, 200)}); log in with "
                "`hf auth login` and try again"
            ) from error
