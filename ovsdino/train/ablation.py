"""The worth of each part of a model: several seeds, one frozen backbone for each, every variant trained on it alike.

The configuration (configs/ablation.yaml) names a training configuration and mappings laid over it: `pretrain` makes
the backbone of a seed, `train` is what all variants share, each entry of `variants` is what it changes. A finished run
leaves one JSON in the output folder and is not made again, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from ovsdino.train.segmentation import SegmentationTrainer
from ovsdino.train.start import make_trainer, read_config, supervision, train_config

Log = Callable[[str], None]
SCORES = ("miou", "boundary_f1", "boundary_iou", "pixel_accuracy")


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A study.

    Attributes:
        base: Training configuration (YAML), relative to the study's own file.
        output: Folder of the runs and their results.
        seeds: Each has one backbone and one run of each variant.
        pretrain: Laid over `base` for the backbone's run; empty takes the hub's backbone.
        train: Laid over `base` for every variant.
        variants: The changes of each variant by its name; the first is the baseline of the others.
    """

    base: Annotated[str, InputPath()] = ""
    output: Annotated[str, Size(1, 4096)] = "runs/ablation"
    seeds: Annotated[tuple[Annotated[int, Within(0, 2**31 - 1)], ...], Size(1, 1000)] = (0, 1, 2)
    pretrain: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    variants: Annotated[dict[str, dict[str, Any]], Size(2, 1000)] = field(default_factory=dict)


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
    if isinstance(tree.get("variants"), dict):
        tree["variants"] = {name: anchored(kind, changes, folder) for name, changes in tree["variants"].items()}
    study: Ablation = build_config(Ablation, overridden(tree, overrides), "")
    for name in study.variants:  # a mistake in the last variant must not wait for the runs of the first
        if name != Path(name).name or name.startswith("."):
            raise OVSDinoError(f"{path}: variants: {name!r} cannot be the name of a folder")
        changed_model(_config(study, base, name, study.seeds[0]))
    return study, base


def run_ablation(study: Ablation, base: dict[str, Any], log: Log) -> dict[str, Any]:
    """Train what is missing, measure the variants, and return the table as `summary` describes it.

    Raises:
        OVSDinoError: The output folder holds runs made with other settings, or another study writes to it.
    """
    with lock_folder(study.output, "study"):
        return _run_ablation(study, base, log)


def _run_ablation(study: Ablation, base: dict[str, Any], log: Log) -> dict[str, Any]:
    folder = Path(study.output)
    for seed in study.seeds:  # another study's leftovers must not wait for the runs before them
        configs = [_config(study, base, name, seed) for name in study.variants]
        for config in [_pretrain_config(study, base, seed), *configs] if study.pretrain else configs:
            _check_settings(config)
    for seed in study.seeds:
        if study.pretrain and not _backbone(study, seed).is_file():
            log(f"seed {seed}: backbone")
            _train(_pretrain_config(study, base, seed), log)
        for name in study.variants:
            result = folder / f"{name}_{seed}.json"
            if not result.is_file():
                log(f"seed {seed}: {name}")
                config = _config(study, base, name, seed)
                scores = _score(_train(config, log))
                with atomic_write(result) as file:
                    file.write((json.dumps(scores) + "\n").encode())
    costs = measure_costs({name: _config(study, base, name, study.seeds[0]) for name in study.variants})
    runs = {name: [_scores(folder / f"{name}_{seed}.json") for seed in study.seeds] for name in study.variants}
    return summary(study, runs, costs)


def _scores(path: Path) -> dict[str, float]:
    """Return the scores of a run."""
    remedy = "remove it to measure the run again"
    tree = read_json(path, "result of a run", remedy)
    with reading(path, "result of a run", remedy):
        return {score: float(tree[score]) for score in SCORES}


def summary(
    study: Ablation, runs: dict[str, list[dict[str, float]]], costs: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of each variant, and its gain over the baseline seed by seed.

    Returns:
        {"seeds", "rows": [{"variant", "miou", "miou_std", "miou_gain", "miou_gain_std", ..., "gflops", "ms"}]}.
    """

    def spread(values: list[float]) -> float:
        return statistics.stdev(values) if len(values) > 1 else 0.0

    baseline = runs[next(iter(study.variants))]
    rows = []
    for name, results in runs.items():
        row: dict[str, Any] = {"variant": name}
        for score in SCORES:
            values = [result[score] for result in results]
            gains = [a[score] - b[score] for a, b in zip(results, baseline, strict=True)]
            row[score], row[f"{score}_std"] = round(statistics.mean(values), 4), round(spread(values), 4)
            row[f"{score}_gain"], row[f"{score}_gain_std"] = round(statistics.mean(gains), 4), round(spread(gains), 4)
        rows.append({**row, **costs[name]})
    return {"seeds": list(study.seeds), "rows": rows}


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table: points of 100, mean ± standard deviation over the seeds."""
    lines = [
        "| variant | mIoU | gain | boundary F1 | gain | GFLOPs | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        cells = [row["variant"]]
        for score in ("miou", "boundary_f1"):
            cells.append(f"{100 * row[score]:.1f} ± {100 * row[f'{score}_std']:.1f}")
            cells.append(f"{100 * row[f'{score}_gain']:+.1f} ± {100 * row[f'{score}_gain_std']:.1f}")
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
        # The references are made of operators that the counter knows.
        with torch.inference_mode(), FlopCounterMode(display=False) as counter, use_backend("reference"):
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


def _config(study: Ablation, base: dict[str, Any], name: str, seed: int) -> RunConfig:
    own: dict[str, Any] = {"seed": seed, "output": str(Path(study.output) / f"{name}_{seed}")}
    if study.pretrain:
        own["backbone_weights"] = str(_backbone(study, seed))
    return train_config(merged(merged(merged(base, study.train), study.variants[name]), own))


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


def _score(trainer: SegmentationTrainer) -> dict[str, float]:
    found = trainer.measured().get("val")
    if found is None:
        raise OVSDinoError("the study's configuration names no validation images (val.root)")
    freeze(trainer.model)
    scores = evaluate(Segmenter(trainer.model), found[0]).to_dict()
    return {score: scores[score] for score in SCORES}
