"""Results next to the published ones, as a Markdown table; a cell that was not measured says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovsdino.data.benchmarks import SPECS
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_json

__all__ = ["COLUMNS", "PUBLISHED", "Result", "read_results", "render"]

COLUMNS = {
    "voc21": "V21",
    "context60": "C60",
    "coco-object": "Obj",
    "voc20": "V20",
    "context59": "C59",
    "coco-stuff": "Stuff",
    "cityscapes": "City",
    "ade20k": "ADE",
}
UNMEASURED = "not measured"
UNPUBLISHED = "–"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the literature: mIoU in % in the order of `COLUMNS`, then the mean; None where none was published."""

    system: str
    sam: str
    scores: tuple[float | None, ...]
    mean: float | None


NOTHING = (None,) * 8
PUBLISHED = (
    Published(system="Talk2DINO-B", sam="no", scores=(61.5, 35.1, 41.0, 87.1, 39.8, 28.1, 36.6, 21.1), mean=43.8),
    Published(
        system="Talk2DINO-B + PAMR", sam="no", scores=(65.8, 37.7, 45.1, 88.5, 42.4, 30.2, 38.1, 22.5), mean=46.3
    ),
    Published(system="OVS-DINO (abstract)", sam="?", scores=(*NOTHING[:6], 42.9, None), mean=46.9),
    Published(system="Trident-B", sam="SAM-B", scores=(67.1, 38.6, 41.1, 84.5, 42.2, 28.3, 42.9, 21.9), mean=45.8),
    Published(system="RADSeg-B (105 M)", sam="no", scores=NOTHING, mean=48.0),
    Published(system="CorrCLIP-B", sam="SAM2-L", scores=(74.8, 44.2, 43.7, 88.8, 48.8, 31.6, 49.4, 26.9), mean=51.0),
    Published(system="SAM3", sam="SAM3", scores=(81.9, 46.1, 65.4, 88.9, 50.0, 33.3, 62.3, 31.8), mean=57.5),
)
SCORES = ("miou", "pixel_accuracy", "boundary_f1", "boundary_iou")


@dataclass(frozen=True)
class Result:
    """One result of `ovsdino eval --json`.

    Attributes:
        row: Which row of the table it belongs to.
        path: Its file.
        data: Its content.
        remarks: How it departs from the protocol of the published figures.
    """

    row: str
    path: Path
    data: Mapping[str, Any]
    remarks: tuple[str, ...] = field(default=())

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return str(self.data["dataset"])


def read_results(paths: Sequence[str]) -> list[Result]:
    """Read result files.

    Args:
        paths: Files, or LABEL=FILE to name the row; results of one row have one label, or one model and protocol.

    Raises:
        OVSDinoError: A file is missing or no result, or there are two results for one cell.
    """
    results: list[Result] = []
    for item in paths:
        label, _, name = item.rpartition("=")
        path = Path(name)
        result = _read(path, label)
        for other in results:
            if (other.row, other.dataset, other.data["split"]) == (result.row, result.dataset, result.data["split"]):
                raise OVSDinoError(
                    f"{path}: {other.path} already has {result.dataset} of {result.row!r}; leave one out, or give them "
                    "names, as in baseline=a.json trained=b.json"
                )
        results.append(result)
    return results


def render(results: Sequence[Result]) -> str:
    """Return Markdown: the table of the eight benchmarks, other scores, and notes."""
    lines = ["# Results", "", f"mIoU in %. The mean is over the eight, and {UNMEASURED} until all are there.", ""]
    head = ["system", "SAM at inference", *COLUMNS.values(), "mean"]
    body = [[p.system, p.sam, *map(_published, p.scores), _published(p.mean)] for p in PUBLISHED]
    notes: list[str] = []
    rows = list(dict.fromkeys(result.row for result in results if result.dataset in COLUMNS))
    for row in rows or ["ovsdino"]:
        body.append([f"**{row}**", "no", *_row(row, results, notes)])
    lines += _table(head, body)
    lines += [
        "",
        "Published rows are their authors' figures. Trident, and others of its family, use synonym files and other "
        "image sizes, so they do not compare row by row with the Talk2DINO protocol.",
    ]
    if notes:
        lines += ["", *(f"- [{number}] {note}" for number, note in enumerate(notes, 1))]
    if results:
        lines += ["", "## Beyond mIoU", "", *_details(results)]
    return "\n".join(lines) + "\n"


def _row(row: str, results: Sequence[Result], notes: list[str]) -> list[str]:
    cells, values = [], []
    for dataset in COLUMNS:
        found = next((r for r in results if r.row == row and r.dataset == dataset), None)
        if found is None or found.data["miou"] is None:
            cells.append(UNMEASURED)
            continue
        marks = ""
        for remark in found.remarks:
            if remark not in notes:
                notes.append(remark)
            marks += f" [{notes.index(remark) + 1}]"
        values.append(100 * found.data["miou"])
        cells.append(f"{values[-1]:.1f}{marks}")
    cells.append(f"{sum(values) / len(values):.1f}" if len(values) == len(COLUMNS) else UNMEASURED)
    return cells


def _details(results: Sequence[Result]) -> list[str]:
    head = ["system", "data set", "images", "mIoU", "pixel accuracy", "boundary F1", "Boundary IoU"]
    head += ["recall small", "recall thin", "recall large", "ms per image"]
    body = []
    for result in results:
        data = result.data
        sizes = data.get("sizes") or {}
        body.append(
            [
                result.row,
                f"{result.dataset} {data['split']}",
                str(data["images"]),
                *(_share(data.get(key)) for key in SCORES),
                *(_share((sizes.get(name) or {}).get("recall")) for name in ("small", "thin", "large")),
                f"{data['ms_per_image']:.0f}",
            ]
        )
    return _table(head, body)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _published(value: float | None) -> str:
    return UNPUBLISHED if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return UNMEASURED if value is None else f"{100 * value:.1f}"


def _read(path: Path, label: str) -> Result:
    data = read_json(path, "JSON result of `ovsdino eval`")
    hint = "expected what `ovsdino eval --json` prints"
    if not isinstance(data, dict) or not isinstance(data.get("dataset"), str) or "miou" not in data:
        raise OVSDinoError(f"{path}: no result; {hint}")
    for key, kind in (("split", str), ("model", str), ("images", int), ("ms_per_image", (int, float))):
        if not isinstance(data.get(key), kind) or isinstance(data.get(key), bool):
            raise OVSDinoError(f"{path}: {key} is {data.get(key)!r}; {hint}")
    for key in SCORES:
        value = data.get(key)
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise OVSDinoError(f"{path}: {key} is {value!r}: expected 0..1; {hint}")
    protocol = data.get("protocol")
    sizes = data.get("sizes")
    if not isinstance(protocol, (dict, type(None))) or not isinstance(sizes, (dict, type(None))):
        raise OVSDinoError(f"{path}: protocol or sizes is not an object; {hint}")
    for name, group in (sizes or {}).items():
        recall = group.get("recall") if isinstance(group, dict) else "nothing"
        if recall is not None and not (isinstance(recall, (int, float)) and 0 <= recall <= 1):
            raise OVSDinoError(f"{path}: sizes.{name}.recall is {recall!r}: expected 0..1; {hint}")
    return Result(label or _row_name(data, protocol or {}), path, data, tuple(_remarks(data, protocol or {})))


def _row_name(data: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    name = f"ovsdino {data['model']}"
    if protocol.get("pamr_iterations"):
        name += " + PAMR"
    if protocol.get("name") not in (None, "talk2dino"):
        name += f" ({protocol['name']})"
    return name


def _remarks(data: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    """Return how a result of a benchmark departs from the published protocol."""
    spec = SPECS.get(str(data["dataset"]))
    if spec is None:
        return []
    remarks = []
    expected = spec.expected["val"]
    if data["split"] != "val":
        remarks.append(f"split {data['split']}, not val")
    elif data["images"] != expected:
        remarks.append(f"{data['images']} of {expected} images")
    if protocol.get("name") != "talk2dino":
        remarks.append(f"protocol {protocol.get('name', 'unknown')}, not talk2dino")
        return remarks
    from ovsdino.eval.protocol import preset

    wide = 1024 if str(data["model"]).startswith("l") else 768
    for key, value in vars(preset("talk2dino", str(data["dataset"]), wide)).items():
        own = protocol.get(key, value)
        own = tuple(own) if isinstance(own, list) else own
        if key != "pamr_iterations" and own != value:
            remarks.append(f"{key} {own!r} in place of {value!r}" if key != "templates" else "other templates")
        if key == "pamr_iterations" and own not in (0, 10):
            remarks.append(f"{own} iterations of PAMR in place of 10")
    return remarks
