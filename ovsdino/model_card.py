"""The page of a shared model: what it is, its figures, its data and terms, and the commands that made and use it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import read_bytes, reading
from ovsdino.models.shipped import WEIGHTS

__all__ = ["RUN_FILE", "Run", "model_card", "shipped_card"]

RUN_FILE = "run.yaml"  # the configuration of the run, next to the weights
LOGGED = ("kind", "step", "seconds")  # of every line of a run's log
MEASURED = {"selection": "selection images", "val": "validation images"}


class Run:
    """A training, read from its folder.

    Args:
        folder: Of the run: what `ovsdino train` calls `output`.

    Attributes:
        config: Its settings.
        results: The last line of each kind of images that it was measured on: "step", "miou", "iou".

    Raises:
        OVSDinoError: The folder has no readable log.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "log.jsonl"
        self.config: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}
        data = read_bytes(path, "log of a run")
        with reading(path, "log of a run"):
            for line in data.decode("utf-8").splitlines():
                row = json.loads(line)
                if row["kind"] == "config":
                    self.config = {key: value for key, value in row.items() if key not in LOGGED}
                elif row["kind"] in MEASURED and "miou" in row:
                    self.results[row["kind"]] = row
        if not self.config:
            raise OVSDinoError(f"{one_line(path)}: no line of a configuration; give the folder of an `ovsdino train`")

    @property
    def datasets(self) -> list[str]:
        """The names of the data sets that the settings name, in their order."""
        return list(dict.fromkeys(_datasets(self.config)))

    def to_yaml(self) -> str:
        """Return the settings as `ovsdino train` reads them."""
        import yaml

        text: str = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        return text


def _datasets(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("dataset"), str):
            yield tree["dataset"]
        tree = tree.values()
    if not isinstance(tree, str) and hasattr(tree, "__iter__"):
        for part in tree:
            yield from _datasets(part)


def shipped_card(name: str) -> str | None:
    """Return what the package says of a model that it ships, links to its own pages as plain text; None for none."""
    path = WEIGHTS / f"{name}.md"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8").partition("\n")[2]
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text).strip()


def model_card(
    name: str,
    repository: str,
    facts: dict[str, Any],
    *,
    run: Run | None = None,
    license: str | None = None,
    terms: str | None = None,
    about: str | None = None,
) -> str:
    """Return the README.md of a shared model, with the front matter that the hub reads.

    Args:
        name: Of the model in the zoo.
        repository: "NAME/REPOSITORY", for the commands.
        facts: "parameters", and "bytes" and "sha256" of the weights.
        run: The training, for figures, data and command.
        license: Identifier of a license, for the front matter.
        terms: A sentence on the terms of the data, and so of the weights.
        about: What else is known of the weights.
    """
    sections = [f"# {repository.rpartition('/')[2]}", _use(name, repository, facts)]
    if run is not None:
        sections += [_results(run), _data(run, terms), _command(run)]
    elif terms:
        sections.append(f"## Data and terms\n\n{terms}")
    if about:
        sections.append(f"## About the weights\n\n{about}")
    return f"---\n{_front(name, run, license)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _front(name: str, run: Run | None, license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for kind, row in run.results.items() if run else ():
        data = ", ".join(run.datasets) if run else ""
        results.append(
            EvalResult(
                task_type="image-segmentation",
                dataset_type="-".join(run.datasets) or "own" if run else "own",
                dataset_name=f"{data or 'own data'} ({MEASURED[kind]})",
                metric_type="mean_iou",
                metric_name="mIoU",
                metric_value=round(float(row["miou"]), 4),
            )
        )
    card = ModelCardData(
        library_name="ovsdino",
        pipeline_tag="image-segmentation",
        license=license,
        tags=["ovsdino", "open-vocabulary-segmentation", name],
        model_name=f"ovsdino {name}" if results else None,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _use(name: str, repository: str, facts: dict[str, Any]) -> str:
    size = f"{facts['parameters'] / 1e6:.2f} M parameters, {facts['bytes'] / 1e6:.1f} MB of weights"
    return f"""An open-vocabulary segmentation model: an image and words in, a mask for each word out.

It is ovsdino's `{name}`: {size} (SHA-256 `{facts["sha256"]}`).

## Use it

```python
import ovsdino

segmenter = ovsdino.load("{repository}")
result = segmenter("street.jpg", "road, car, sky")
```

```bash
ovsdino segment street.jpg --model {repository} --classes "road, car, sky"
```"""


def _results(run: Run) -> str:
    lines = ["## Results", ""]
    if not run.results:
        return "\n".join([*lines, "The run measured nothing."])
    lines += ["| images | step | mIoU |", "|---|---|---|"]
    lines += [f"| {MEASURED[kind]} | {row['step']} | {row['miou']:.4f} |" for kind, row in run.results.items()]
    row = run.results.get("val") or next(iter(run.results.values()))
    each = {key: value for key, value in row.get("iou", {}).items() if value is not None}
    if each:
        lines += ["", "| class | IoU |", "|---|---|", *(f"| {key} | {value:.4f} |" for key, value in each.items())]
    return "\n".join(lines)


def _data(run: Run, terms: str | None) -> str:
    named = ", ".join(f"`{name}`" for name in run.datasets) or "a folder of the author's own"
    said = terms or "Not stated. Ask who owns the data before you build on these weights."
    return f"## Data and terms\n\nTrained on {named}. Terms: {said}"


def _command(run: Run) -> str:
    return f"""## The command that made it

`{RUN_FILE}` holds all settings of the run; its paths are those of the machine that it ran on.

```bash
ovsdino train {RUN_FILE}
```"""
