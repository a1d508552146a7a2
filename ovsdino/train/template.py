"""Shipped configurations by name, and a template for a folder of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write

__all__ = ["config_path", "shipped_configs", "write_template"]

# In a wheel next to the package's modules (setup.py puts them there), in a checkout next to the package.
FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
LAYOUT = ("train/images", "train/labels", "val/images", "val/labels")
TEMPLATE = """\
# Train the shipped model on this folder: ovsdino train {path}
#   train/images/NAME.jpg   photographs          val/images, val/labels   the same, to score on
#   train/labels/NAME.png   one number a pixel, the class's place in classes.json; 255: no label
# Check it first: ovsdino data check folder --root {folder}
# Paths are relative to this file. A run that was stopped goes on by the same command.
model: nano
initial: shipped  # begin with the weights of the package
train_backbone: false  # true also trains the network behind it: slower, for thousands of images
output: {output}
data:
  dataset: folder
  root: .
  mix: 0.0
stages:
  - {{height: 320, width: 320, batch: 4, area: 0.3}}
optim: {{steps: 500, lr: 3.0e-4, warmup: 50}}
eval_every: 100  # steps between scores on val; the result is last.safetensors, whatever they say
# Other words for a class, so that it is found by them as well:
# text: {{names: {{car: [car, van, taxi]}}}}
"""


def shipped_configs() -> dict[str, Path]:
    """Return the training configurations that come with ovsdino, by name."""
    folder = next((one for one in FOLDERS if one.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def config_path(given: str) -> str:
    """Return the file of a configuration: the one given, else the shipped one of that name.

    Args:
        given: A path, or a name such as "nano".

    Raises:
        OVSDinoError: There is no such file, and no shipped configuration of the name.
    """
    if Path(given).exists() or Path(given).suffix or "/" in given:
        return given
    found = shipped_configs()
    if given not in found:
        raise OVSDinoError(f"{given}: no such file, and no shipped configuration: {', '.join(found) or 'none'}")
    return str(found[given])


def write_template(folder: Path, classes: Sequence[str]) -> list[Path]:
    """Lay out a folder for one's own images and labels, and write a configuration that trains on them.

    Args:
        folder: Made if it is missing; images that are in it stay.
        classes: Names of the classes in label order; empty keeps the folder's classes.json.

    Returns:
        The files that were written.

    Raises:
        OVSDinoError: There is a config.yaml or, with `classes`, a classes.json already; or nothing names the classes.
    """
    config, names = folder / "config.yaml", folder / "classes.json"
    for path in (config, *([names] if classes else [])):
        if path.exists():
            raise OVSDinoError(f"{path}: it is there already; delete it to begin anew")
    if not classes and not names.is_file():
        raise OVSDinoError(f"{names}: missing: name the classes in label order, --classes 'road, car, sky'")
    for part in LAYOUT:
        (folder / part).mkdir(parents=True, exist_ok=True)
    written = []
    if classes:
        with atomic_write(names) as file:
            file.write(json.dumps(list(classes), ensure_ascii=False).encode() + b"\n")
        written.append(names)
    with atomic_write(config) as file:
        shown = {"path": config, "folder": folder, "output": json.dumps(str(folder / "run"))}
        file.write(TEMPLATE.format(**shown).encode())
    return [*written, config]
