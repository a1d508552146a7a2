"""The worth of each part of a model: several seeds, one frozen backbone for each, every variant trained on it alike.

The configuration (configs/ablation.yaml) names a training configuration and mappings laid over it: `pretrain` makes
the backbone of a seed, `train` is what all variants share, each entry of `variants` is what it changes, each entry of
`sets` a data set on which all of them run. A finished run leaves one JSON in the output folder and is not made again,
so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm.layers
import torch
from torch.utils.flop_counter import FlopCounterMode

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.eval.evaluate import evaluate
from ovsdino.io.files import atomic_write, lock_folder, read_json, reading
from ovsdino.models.backbone import freeze
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.zoo import build_model
from ovsdino.ops import use_backend
from ovsdino.pipeline import Segmenter
from ovsdino.settings import InputPath, Size, Within, anchored, build_config, merged, overridden, read_yaml
from ovsdino.train.config import RunConfig
from ovsdino.train.initial import changed_model
from ovsdino.train.jobs import run_tasks
from ovsdino.train.segmentation import SegmentationTrainer
from ovsdino.train.start import make_trainer, read_config, supervision, train_config
from ovsdino.train.weak import scoring
from ovsdino.train.weak.trainer import WeakTrainer

Log = Callable[[str], None]
NEEDED = ("miou", "boundary_f1", "pixel_accuracy")
SCORES = (*NEEDED, "boundary_iou", "trimap_miou", "miou_words", "threshold")  # a run has some of the latter four
COLUMNS = {
    "miou": "mIoU",
    "miou_words": "mIoU without background",
    "boundary_f1": "boundary F1",
    "trimap_miou": "mIoU within 8 px",
}
Mappings = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A study.

    Attributes:
        base: Training configuration (YAML), relative to the study's own file.
        output: Folder of the runs and their results.
        seeds: Each has one backbone and one run of each variant.
        pretrain: Laid over `base` for the backbone's run; empty takes the hub's backbone.
        train: Laid over `base` for every variant.
        variants: The changes of each variant by its name; the first is the baseline of the others. `of: NAME` trains
            nothing: another variant's weights are scored with other settings of `val`.
        sets: The changes of each data set by its name; empty stands for one without changes. In the texts of all these
            changes "{set}" is the name of the data set.
    """

    base: Annotated[str, InputPath()] = ""
    output: Annotated[str, Size(1, 4096)] = "runs/ablation"
    seeds: Annotated[tuple[Annotated[int, Within(0, 2**31 - 1)], ...], Size(1, 1000)] = (0, 1, 2)
    pretrain: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    variants: Annotated[Mappings, Size(2, 1000)] = field(default_factory=dict)
    sets: Mappings = field(default_factory=dict)

    def trained(self, variant: str) -> str:
        """Return the variant whose weights a variant has."""
        return str(self.variants[variant].get("of", variant))


@dataclass(frozen=True)
class Run:
    """One run of a study: a data set ("" where the study names none), a variant, a seed."""

    set: str
    variant: str
    seed: int

    def result(self, study: Ablation) -> Path:
        """Return the file of its scores."""
        return Path(study.output) / self.set / f"{self.variant}_{self.seed}.json"

    def folder(self, study: Ablation) -> Path:
        """Return the folder of its training."""
        return Path(study.output) / self.set / f"{study.trained(self.variant)}_{self.seed}"

    def __str__(self) -> str:
        return f"seed {self.seed}: {f'{self.set}, ' if self.set else ''}{self.variant}"


def load_ablation(path: str | Path, overrides: tuple[str, ...] = ()) -> tuple[Ablation, dict[str, Any]]:
    """Return a study's file with `key.sub=value` overrides, and the base training configuration as a mapping.

    Raises:
        OVSDinoError: A file is missing or not YAML, a key is unknown, a setting is wrong, or nothing is compared.
    """
    folder = Path(path).parent
    tree = {"variants": {}, **anchored(Ablation, read_yaml(path), folder)}
    first: Ablation = build_config(Ablation, overridden(tree, overrides), "")
    if not first.base:
        raise OVSDinoError(f"{path}: base is missing: name the training configuration, e.g. base: nano.yaml")
    base = read_config(first.base)
    kind = supervision(base)
    for key in ("pretrain", "train"):  # of the file alone: an override's paths are relative to the working folder
        tree[key] = anchored(kind, tree.get(key, {}), folder)
    for key in ("variants", "sets"):
        if isinstance(tree.get(key), dict):
            tree[key] = {name: anchored(kind, changes, folder) for name, changes in tree[key].items()}
    study: Ablation = build_config(Ablation, overridden(tree, overrides), "")
    _check_names(study, path)
    for run in _runs(study):  # a mistake in the last variant must not wait for the runs of the first
        if run.seed == study.seeds[0]:
            changed_model(_config(study, base, run))
    return study, base


def _check_names(study: Ablation, path: str | Path) -> None:
    """Refuse names that cannot be folders, and variants of variants that are not trained."""
    for key, names in (("variants", study.variants), ("sets", study.sets)):
        for name in names:
            if name != Path(name).name or name.startswith("."):
                raise OVSDinoError(f"{path}: {key}: {name!r} cannot be the name of a folder")
    for name, changes in study.variants.items():
        if "of" not in changes:
            continue
        of = changes["of"]
        if not isinstance(of, str) or "of" in study.variants.get(of, {"of": ""}):
            raise OVSDinoError(f"{path}: variants.{name}.of: expected a variant that is trained, got {of!r:.60}")
        if other := sorted(changes.keys() - {"of", "val"}):
            raise OVSDinoError(f"{path}: variants.{name}: is not trained by itself, so {other[0]} cannot change")


def _runs(study: Ablation) -> Iterator[Run]:
    """Yield the runs: seed by seed, so that a study that is cut off has whole seeds; trained variants first."""
    names = sorted(study.variants, key=lambda name: "of" in study.variants[name])
    for seed in study.seeds:
        for own in study.sets or {"": {}}:
            yield from (Run(own, name, seed) for name in names)


def run_ablation(study: Ablation, base: dict[str, Any], log: Log, jobs: int = 1) -> dict[str, Any]:
    """Train what is missing, measure the variants, and return the table as `summary` describes it.

    Args:
        study: Of `load_ablation`.
        base: Of `load_ablation`.
        log: Takes a line for each run.
        jobs: Processes that share the runs.

    Raises:
        OVSDinoError: The output folder holds runs made with other settings, or another study writes to it.
        Stopped: A signal came.
    """
    with lock_folder(study.output, "study"):
        return _run_ablation(study, base, log, jobs)


def _run_ablation(study: Ablation, base: dict[str, Any], log: Log, jobs: int) -> dict[str, Any]:
    runs = [*_runs(study)]
    seeds = study.seeds if study.pretrain else ()
    for seed in seeds:  # another study's leftovers must not wait for the runs before them
        _check_settings(_pretrain_config(study, base, seed))
    for run in runs:
        if study.trained(run.variant) == run.variant:
            _check_settings(_config(study, base, run))
    backbones = [seed for seed in seeds if not _backbone(study, seed).is_file()]
    missing = [run for run in runs if not run.result(study).is_file()]
    if jobs > 1:  # those whose weights another variant trains come last
        apart = [[r for r in missing if (study.trained(r.variant) == r.variant) is own] for own in (True, False)]
        phases: list[list[Run | int]] = [[*backbones], [*apart[0]], [*apart[1]]]
    else:
        phases = [
            [*(s for s in backbones if s == seed), *(r for r in missing if r.seed == seed)] for seed in study.seeds
        ]
    for tasks in phases:
        run_tasks(partial(_do, study, base), tasks, jobs, log)
    first = next(iter(study.sets), "")
    costs = measure_costs({name: _config(study, base, Run(first, name, study.seeds[0])) for name in study.variants})
    rows = []
    for own in study.sets or {"": {}}:
        scores = {n: [_scores(Run(own, n, seed).result(study)) for seed in study.seeds] for n in study.variants}
        rows += [{**({"set": own} if own else {}), **row} for row in summary(study, scores, costs)["rows"]]
    return {"seeds": list(study.seeds), "rows": rows}


def _do(study: Ablation, base: dict[str, Any], task: Run | int, log: Log) -> None:
    """Make a seed's backbone, or a run's scores."""
    if isinstance(task, int):
        log(f"seed {task}: backbone")
        _train(_pretrain_config(study, base, task), log)
        return
    log(str(task))
    config = _config(study, base, task)
    own = study.trained(task.variant) == task.variant
    trainer = _train(config, log) if own else _trained(config, log)
    with atomic_write(task.result(study)) as file:
        file.write((json.dumps(_score(trainer)) + "\n").encode())


def _scores(path: Path) -> dict[str, float]:
    """Return the scores of a run."""
    remedy = "remove it to measure the run again"
    tree = read_json(path, "result of a run", remedy)
    with reading(path, "result of a run", remedy):
        return {score: float(tree[score]) for score in SCORES if score in NEEDED or score in tree}


def summary(
    study: Ablation, runs: dict[str, list[dict[str, float]]], costs: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of each variant, and its gain over the baseline seed by seed.

    Returns:
        {"seeds", "rows": [{"variant", "miou", "miou_std", "miou_gain", "miou_gain_std", ..., "gflops", "ms"}]}, with
        the scores that all runs have; in a study of several data sets a row also has "set".
    """

    def spread(values: list[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    baseline = runs[next(iter(study.variants))]
    rows = []
    for name, results in runs.items():
        row: dict[str, Any] = {"variant": name}
        for score in SCORES:
            if not all(score in result for own in runs.values() for result in own):
                continue
            values = [result[score] for result in results]
            gains = [a[score] - b[score] for a, b in zip(results, baseline, strict=True)]
            row[score], row[f"{score}_std"] = round(statistics.mean(values), 4), round(spread(values), 4)
            row[f"{score}_gain"], row[f"{score}_gain_std"] = round(statistics.mean(gains), 4), round(spread(gains), 4)
        rows.append({**row, **costs[name]})
    return {"seeds": list(study.seeds), "rows": rows}


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown, a table for each data set.

    Scores are points of 100, mean ± standard deviation over the seeds, where there are several.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault(row.get("set", ""), []).append(row)
    several = len(report["seeds"]) > 1
    return "\n".join(_table(name, rows, several) for name, rows in groups.items())


def _table(name: str, rows: list[dict[str, Any]], several: bool) -> str:
    columns = [score for score in COLUMNS if score in rows[0]]
    heads = ["variant", *(head for score in columns for head in (COLUMNS[score], "gain")), "GFLOPs", "ms"]
    lines = [f"**{name}**", ""] if name else []
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["variant"]]
        for score in columns:
            for key, sign in ((score, ""), (f"{score}_gain", "+")):
                deviation = f" ± {100 * row[f'{key}_std']:.1f}" if several else ""
                cells.append(f"{100 * row[key]:{sign}.1f}{deviation}")
        lines.append("| " + " | ".join([*cells, f"{row['gflops']:.2f}", f"{row['ms']:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def measure_costs(configs: dict[str, RunConfig], runs: int = 15) -> dict[str, dict[str, float]]:
    """Return GFLOPs (a multiply-add counts two) and median ms of each variant's forward pass, interleaved.

    The image is one of the model's default size with the aspect of 4:3, the bank eleven classes.
    """
    models: dict[str, OVSDINO] = {}
    flops: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in configs}
    timm.layers.set_fused_attn(True)  # training on a CPU turns it off
    for name, config in configs.items():
        model = build_model(config.model, decoder=config.decoder, changes=config.architecture)
        freeze(model)
        models[name] = model
        side, p = model.config.short_side, model.stride_multiple
        image = torch.randn(1, 3, side // p * p, round(side * 4 / 3 / p) * p)
        bank = torch.randn(11, model.config.embed_dim)
        # The counter knows the operators of the references, and none of the fused ones of inference mode.
        with torch.no_grad(), FlopCounterMode(display=False) as counter, use_backend("reference"):
            model(image, bank)
        flops[name] = counter.get_total_flops() / 1e9
    with torch.inference_mode():
        for turn in range(runs + 2):
            for name, model in models.items():
                started = time.perf_counter()
                model(image, bank)
                if turn >= 2:
                    times[name].append(1e3 * (time.perf_counter() - started))
    return {name: {"gflops": round(flops[name], 3), "ms": round(statistics.median(times[name]), 1)} for name in configs}


def _backbone(study: Ablation, seed: int) -> Path:
    return Path(study.output) / f"backbone_{seed}" / "last.safetensors"


def _pretrain_config(study: Ablation, base: dict[str, Any], seed: int) -> RunConfig:
    own = {"seed": seed, "output": str(_backbone(study, seed).parent)}
    return train_config(merged(merged(base, study.pretrain), own))


def _config(study: Ablation, base: dict[str, Any], run: Run) -> RunConfig:
    own: dict[str, Any] = {"seed": run.seed, "output": str(run.folder(study))}
    if study.pretrain:
        own["backbone_weights"] = str(_backbone(study, run.seed))
    tree = merged(merged(base, study.train), study.sets.get(run.set, {}))
    for changes in (study.variants[study.trained(run.variant)], study.variants[run.variant]):
        tree = merged(tree, {key: value for key, value in changes.items() if key != "of"})
    named: dict[str, Any] = _named(tree, run.set) if run.set else tree
    return train_config(merged(named, own))


def _named(tree: Any, name: str) -> Any:
    """Return a tree with the name of a data set in place of "{set}" in its texts."""
    if isinstance(tree, dict):
        return {key: _named(value, name) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_named(value, name) for value in tree]
    return tree.replace("{set}", name) if isinstance(tree, str) else tree


def _check_settings(config: RunConfig) -> None:
    """Refuse a run that was begun with other settings."""
    folder = Path(config.output)
    if not folder.exists():
        return
    path = folder / "settings.json"
    remedy = f"choose another output, or remove {folder} and {folder}.json"
    try:
        began, now = dict(json.loads(path.read_text(encoding="utf-8"))), _settings(config)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OVSDinoError(
            f"{folder}: no record of the settings it was made with ({one_line(error)}); {remedy}"
        ) from error
    for key in sorted({*began, *now}):
        if began.get(key) != now.get(key):
            raise OVSDinoError(f"{folder}: made with {key} {began.get(key)}, the study says {now.get(key)}; {remedy}")


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON has it, paths from the root, without those that a study sets."""
    tree = anchored(type(config), json.loads(json.dumps(asdict(config))), Path.cwd())
    return {key: value for key, value in tree.items() if key not in ("output", "backbone_weights")}


def _train(config: RunConfig, log: Log) -> SegmentationTrainer:
    """Train to the end; return the trainer with the averaged weights in its model."""
    with atomic_write(Path(config.output) / "settings.json") as file:
        file.write((json.dumps(_settings(config), indent=1) + "\n").encode())
    with lock_folder(config.output, "training"):
        trainer = make_trainer(config, log)
        trainer.resume()
        trainer.record("config", output=config.output)
        trainer.run()
    trainer.use_average()
    return trainer


def _trained(config: RunConfig, log: Log) -> SegmentationTrainer:
    """Return the trainer of a finished run, with the averaged weights in its model."""
    trainer = make_trainer(config, log)
    if not trainer.resume() or trainer.step < config.optim.steps:
        raise OVSDinoError(f"{config.output}: not a finished run; the same command makes it")
    trainer.use_average()
    return trainer


def _score(trainer: SegmentationTrainer) -> dict[str, float]:
    freeze(trainer.model)
    if isinstance(trainer, WeakTrainer):
        return scoring.score(trainer)
    found = trainer.measured().get("val")
    if found is None:
        raise OVSDinoError("the study's configuration names no validation images (val.root)")
    scores = evaluate(Segmenter(trainer.model), found[0]).to_dict()
    return {name: scores[name] for name in SCORES if name in scores}
