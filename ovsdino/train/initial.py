"""The model that a run begins with: its architecture, and its weights from files or the hub."""

from __future__ import annotations

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.models.backbone import CNNBackbone
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.shipped import packaged
from ovsdino.models.weights import load_state, read_packaged, read_safetensors
from ovsdino.models.zoo import PROJECTIONS, TOWER, build_model, load_official, read_tower
from ovsdino.train.config import SHIPPED, RunConfig


def changed_model(config: RunConfig) -> OVSDINO:
    """Return the model of a configuration, with random weights.

    Raises:
        OVSDinoError: No such model, or the changes to it do not make one.
    """
    try:
        return build_model(config.model, decoder=config.decoder, changes=config.architecture)
    except OVSDinoError:
        raise
    except Exception as error:  # modules raise whatever sizes that do not fit lead to
        if not config.architecture:
            raise
        raise OVSDinoError(f"architecture: {config.architecture} makes no model: {one_line(error, 160)}") from error


def load_weights(model: OVSDINO, config: RunConfig) -> None:
    """Load nano's text tower and perhaps a backbone, or the published parts of the other models; then a whole model.

    Raises:
        OVSDinoError: A file is missing or does not fit, or the hub cannot be reached.
    """
    if not model.config.text.stored:
        projection = config.projection or None
        published = projection is not None or model.config.name in PROJECTIONS
        load_official(
            model,
            backbone_weights=config.backbone_weights or None,
            projection=projection,
            clip_weights=config.clip_weights or None,
            sentence_weights=config.sentence_weights or None,
            with_projection=published,
        )
    if config.initial:
        load_initial(model, config.initial)
    elif model.config.text.stored:
        load_own(model, config)


def load_initial(model: OVSDINO, source: str) -> None:
    """Load what an earlier run learned, or the shipped model.

    Args:
        model: A frozen backbone that an earlier run did not keep stays as it is.
        source: Safetensors file of a run or a package, or "shipped".

    Raises:
        OVSDinoError: The file is missing or does not fit, or none is shipped.
    """
    name = model.config.name
    if source == SHIPPED and packaged(name) is None:
        raise OVSDinoError(f"initial: no weights are shipped for {name}; give a file")
    state = read_packaged(name) if source == SHIPPED else read_safetensors(source)
    load_state(model, state, source, partial=("backbone.vit.", "backbone.cnn."))


def load_own(model: OVSDINO, config: RunConfig) -> None:
    """Load nano's text tower, and a backbone if the configuration names one.

    Raises:
        OVSDinoError: A file is missing or does not fit, or no text tower is shipped.
    """
    load_text_tower(model, config.text_weights)
    if config.backbone_weights and isinstance(model.backbone, CNNBackbone):
        model.backbone.load(config.backbone_weights)
    elif config.backbone_weights:
        load_backbone(model, config.backbone_weights)


def load_text_tower(model: OVSDINO, path: str) -> None:
    """Load nano's text tower from a safetensors file; the shipped one where `path` is empty.

    Raises:
        OVSDinoError: The file is missing or does not fit, or none is shipped.
    """
    if path:
        load_state(model.text_tower, read_safetensors(path), path)
        return
    if packaged(TOWER) is None:
        raise OVSDinoError(
            "no text tower: distil one (python -m ovsdino.train.pretrain.distill_text) and set text_weights"
        )
    load_state(model.text_tower, read_tower(), TOWER)


def load_backbone(model: OVSDINO, path: str) -> None:
    """Load the backbone and its temperature from an earlier run's safetensors file; the decoder stays as it is.

    Raises:
        OVSDinoError: The file is missing or does not fit.
    """
    state = read_safetensors(path)
    kept = {k: v for k, v in state.items() if k.startswith(("backbone.", "log_scale"))}
    load_state(model, kept, path, partial=("decoder.", "text_tower."))
