"""The memory of the frame before against what it must beat, its controls, cuts, dropped frames, and key frames.

    python benchmarks/studies/video.py --root DATA --output benchmarks/results/video.json --page

The memory's settings were chosen on the first half of CamVid's clip, so the large table is of the second half. Nothing
of the clip was used for training; 204 training frames are of the same drive. After each section --output is written,
and a run that is begun again goes on from there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.benchmarks.lib.report import ROOT, ReportOptions, json_text, placed, save
from ovsdino.benchmarks.lib.steady import (
    EncodedClip,
    control,
    exponential,
    flow_mean,
    followed,
    steady,
    without_structure,
)
from ovsdino.console import say
from ovsdino.data.clips import clips_of
from ovsdino.data.datasets import open_dataset
from ovsdino.eval.flow import Motion, motion, warped
from ovsdino.eval.video_metrics import VideoConsistency, VideoMetrics
from ovsdino.io.video import import_cv2
from ovsdino.models.memory import KeyFrames, MemoryConfig, remembered
from ovsdino.models.weights import weights_digest
from ovsdino.ops import upsample_argmax
from ovsdino.options import data_root
from ovsdino.parsing import run_script
from ovsdino.pipeline import Segmenter, load
from ovsdino.vocabulary import Vocabulary

PAGE = ROOT / "docs" / "video.md"
EVERY = (1, 2, 3, 4)  # frames from one key frame to the next
CUTS = 20  # pictures of other places before and after frames of the clip


@dataclass(frozen=True, kw_only=True)
class VideoStudy(ReportOptions):
    """Measure the memory on CamVid's labeled clip."""

    root: Path | None = None
    """Folder of the data sets. Default: $OVSDINO_DATA."""
    page: bool = False
    """Also write the tables into docs/video.md."""
    sections: tuple[str, ...] = ("whole", "second_half", "cuts", "harm", "most", "key_frames")
    """What to measure; what --output has already, of the same weights and settings, is kept."""

    def run(self) -> int:
        torch.set_num_threads(1)
        import_cv2().setNumThreads(1)
        root = data_root(self.root)
        clip = clips_of(open_dataset("camvid", root, "val"))[0]
        segmenter = load("nano", "cpu")
        samples = list(clip)
        images, labels = [one.image for one in samples], [one.label for one in samples]
        words = Vocabulary.of(clip.dataset.names)
        motions = [motion(before, now) for before, now in pairwise(images)]
        train = open_dataset("camvid", root, "train")
        others = [train[index].image for index in np.linspace(0, len(train) - 1, CUTS).astype(int)]
        frames = encoded(segmenter, images, words, motions)
        elsewhere = encoded(segmenter, others, words, [])
        board = Board(images, labels, motions, clip.dataset.names)
        half = len(images) // 2
        facts = {
            "model": "nano",
            "weights": weights_digest(segmenter.model),
            "settings": asdict(MemoryConfig()),
            "frames": len(images),
        }
        report = self._begun(facts)
        sections: dict[str, Callable[[], Any]] = {
            "whole": lambda: board.rows(few(frames), 0),
            "second_half": lambda: board.rows(table(frames, elsewhere), half),
            "cuts": lambda: cuts(frames, elsewhere, images[0].shape[:2]),
            "harm": lambda: harm(frames, labels),
            "most": lambda: most(labels[half:], motions[half:], frames.logits.shape[2:]),
            "key_frames": lambda: key_frames(segmenter, images, labels, motions, words),
        }
        for name, section in sections.items():
            if name in self.sections and name not in report:
                report[name] = section()
                say(f"{name}: done")
                if self.output is not None:
                    save(self.output, json_text(report))
        if self.page:
            for name, table_of in TABLES.items():
                save(PAGE, placed(PAGE.read_text(encoding="utf-8"), name, table_of(report)))
        return self.publish(report, text)

    def _begun(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return what an earlier run of the same weights and settings has measured, or the facts alone."""
        if self.output is not None and self.output.is_file():
            before: dict[str, Any] = json.loads(self.output.read_text(encoding="utf-8"))
            if facts.items() <= before.items():
                return before
        return facts


def encoded(
    segmenter: Segmenter, images: Sequence[np.ndarray], words: Vocabulary, motions: Sequence[Motion]
) -> EncodedClip:
    """Return what the network gives of each image alone."""
    rows = segmenter.text_rows(words, partition=True)
    decoder = segmenter.model.decoder
    assert decoder is not None
    logits, affinities = [], []
    with torch.inference_mode():
        for image in images:
            features = segmenter.encode_image(image)
            assert features.structure is not None
            logits.append(segmenter.decode(features, rows))
            affinities.append(decoder.score_attention.embed(features.structure.guide))
    return EncodedClip(torch.cat(logits), torch.cat(affinities), motions, images)


def few(frames: EncodedClip) -> dict[str, Callable[[], Tensor]]:
    """Return the ways that are measured on the whole clip."""
    return {
        "single frames": lambda: frames.logits,
        "exponential mean 0.6": partial(exponential, frames, 0.6),
        "mean along the flow 0.8": partial(flow_mean, frames, 0.8),
        "memory": lambda: steady(frames),
        "memory without the flow": lambda: steady(frames, MemoryConfig(flow=False)),
    }


def table(frames: EncodedClip, elsewhere: EncodedClip) -> dict[str, Callable[[], Tensor]]:
    """Return the ways to make the clip steady, by their name."""
    count = len(frames.logits)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    foreign = torch.arange(count) % len(elsewhere.logits)
    uncut = MemoryConfig(cut=0.0)
    found: dict[str, Callable[[], Tensor]] = {"single frames": lambda: frames.logits}
    for share in (0.4, 0.6):
        found[f"exponential mean {share}"] = partial(exponential, frames, share)
    for share in (0.6, 0.8):
        found[f"mean along the flow {share}"] = partial(flow_mean, frames, share)
    for most in (0.8, MemoryConfig().most):
        found[f"memory {most}"] = partial(steady, frames, MemoryConfig(most=most))
    found["memory without the flow"] = partial(steady, frames, MemoryConfig(flow=False))
    return found | {
        "control: gate always open": lambda: steady(frames, MemoryConfig(tolerance=0.0)),
        "control: no structure": lambda: without_structure(frames),
        "control: memory of a random frame of the clip, no cut": lambda: control(frames, frames, shuffled, uncut),
        "control: memory of other places, no cut": lambda: control(frames, elsewhere, foreign, uncut),
        "control: memory of other places": lambda: control(frames, elsewhere, foreign),
    }


@dataclass(frozen=True)
class Board:
    """A labeled clip that logits are scored on."""

    images: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    motions: Sequence[Motion]
    names: Sequence[str]

    def rows(self, ways: dict[str, Callable[[], Tensor]], start: int) -> list[dict[str, Any]]:
        """Return the scores of each way from a frame on; the way itself starts at the first frame."""
        found = []
        for name, way in ways.items():
            metrics = VideoMetrics(self.names)
            logits = way()
            for index in range(start, len(self.images)):
                labels = upsample_argmax(logits[index : index + 1], self.labels[index].shape)[0].numpy()
                moved = self.motions[index - 1] if index > start else None
                metrics.update(self.images[index], labels, self.labels[index], moved)
            scores = asdict(metrics.scores())
            kept = ("miou", "boundary_f1", "mvc8", "mvc16", "temporal_consistency")
            row = {key: round(scores[key], 4) for key in kept}
            row |= {key: round(value, 5) for key, value in scores["flicker"].items()}
            say(f"{name}: {row}")
            found.append({"name": name.strip(), **row})
        return found


def labels_of(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return labels (H, W) of one frame's logits (1, K, h, w)."""
    found: np.ndarray = upsample_argmax(logits, size)[0].numpy()
    return found


def cuts(frames: EncodedClip, elsewhere: EncodedClip, size: tuple[int, int]) -> dict[str, Any]:
    """Return how the first frame after a cut compares with its labels alone, at `CUTS` cuts to and fro."""
    config, agreement, levels = MemoryConfig(), [], []
    places = np.linspace(0, len(frames.logits) - 1, len(elsewhere.logits)).astype(int).tolist()
    for other, index in enumerate(places):
        for (one, i), (two, j) in (
            ((frames, index), (elsewhere, other)),
            ((elsewhere, other), (frames, index)),
        ):
            before = followed(one.memory(i), one.images[i], two.images[j])
            alone = two.logits[j : j + 1]
            after, level = remembered(alone, two.affinity[j : j + 1], before, config)
            agreement.append(float((labels_of(after.logits, size) == labels_of(alone, size)).mean()))
            levels.append(float(level))
    neighbors = []
    for index in range(1, len(frames.logits)):
        before = followed(frames.memory(index - 1), *frames.images[index - 1 : index + 1])
        x, a = frames.logits[index : index + 1], frames.affinity[index : index + 1]
        neighbors.append(float(remembered(x, a, before, config)[1]))
    return {
        "cuts": len(agreement),
        "least_agreement": min(agreement),
        "mean_agreement": float(np.mean(agreement)),
        "largest_level_at_a_cut": round(max(levels), 4),
        "least_level_of_neighbors": round(min(neighbors), 4),
    }


def harm(frames: EncodedClip, labels: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Return by how much the memory makes a frame worse than its own labels, of a clip with frames left out."""
    found = []
    for step in (1, 2, 4, 8):
        part = frames.every(step)
        kept = steady(part)
        gains = []
        for alone, after, truth in zip(part.logits.split(1), kept.split(1), labels[::step], strict=True):
            known = truth != 255
            right = [(labels_of(one, truth.shape) == truth)[known].mean() for one in (after, alone)]
            gains.append(float(right[0] - right[1]))
        row = {"frames_from": step, "mean_gain": round(float(np.mean(gains)), 5), "worst": round(min(gains), 5)}
        say(f"pixel accuracy with the memory, every frame of {step}: {row}")
        found.append(row)
    return found


def most(labels: Sequence[np.ndarray], motions: Sequence[Motion], grid: tuple[int, ...]) -> dict[str, float]:
    """Return the mVC8 of labels that are right but for a small fault: how high the measure goes on this clip.

    Args:
        labels: T true ones.
        motions: T - 1, from each frame to the next.
        grid: Size of the network's logits.
    """
    classes = int(max(one[one != 255].max() for one in labels)) + 2

    def coarse(truth: np.ndarray) -> np.ndarray:
        known = torch.from_numpy(np.where(truth == 255, classes - 1, truth)).long()
        each = F.one_hot(known, classes).permute(2, 0, 1)[None].float()
        return labels_of(F.interpolate(each, grid, mode="area"), truth.shape)

    before = [warped(one, moved) for one, moved in zip(labels, motions, strict=False)]
    ways = {
        "at the grid of the logits": [coarse(one) for one in labels],
        "of the frame before, moved along the flow": [
            labels[0],
            *(np.where(moved.reliable, one, now) for one, moved, now in zip(before, motions, labels[1:], strict=True)),
        ],
    }
    ways |= {f"displaced by {shift} pixels": [np.roll(one, shift, 1) for one in labels] for shift in (1, 2, 3)}
    found = {}
    for name, predicted in ways.items():
        score = VideoConsistency(8)
        for one, truth in zip(predicted, labels, strict=True):
            score.update(one, truth)
        found[f"truth {name}"] = round(score.mean() or 0.0, 4)
        say(f"mVC8 of the truth {name}: {found[f'truth {name}']}")
    return found


def key_frames(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    motions: Sequence[Motion],
    words: Vocabulary,
) -> list[dict[str, Any]]:
    """Return speed against accuracy for rarer and rarer key frames, in one process: the clip by all, one by one, twice.

    The time is the processor's, of one thread, so that other processes do not count. Frames of several ways in turn
    would leave each a cache full of the others' data, which a stream does not meet.
    """
    options: dict[str, Any] = {"partition": True, "scores": False, "least_share": 0.0, "least_certainty": 0.0}
    names = ["single frames", *("memory" if every == 1 else f"key frames {every}" for every in EVERY)]
    metrics = {name: VideoMetrics(words.names) for name in names}
    spent: dict[str, list[float]] = {name: [] for name in names}
    encoded: dict[str, int] = dict.fromkeys(names, 0)
    for scored in (True, False):
        for name, every in zip(names, (None, *EVERY), strict=True):
            how: dict[str, Any] = {"key_frames": KeyFrames(every=every)} if every else {"memory": False}
            tracker = segmenter.tracker(words, **how, **options)
            for index, (image, truth) in enumerate(zip(images, labels, strict=True)):
                begun = time.process_time()
                found = tracker.segment(image).labels
                if index:
                    spent[name].append(time.process_time() - begun)
                if scored:
                    encoded[name] += tracker.encoded
                    metrics[name].update(image, found, truth, motions[index - 1] if index else None)
    rows = []
    base = float(np.mean(spent["memory"]))
    for name in names:
        scores = metrics[name].scores()
        row = {
            "name": name,
            "encoded": encoded[name],
            "processor_ms": round(1e3 * float(np.mean(spent[name])), 2),
            "speed": round(base / float(np.mean(spent[name])), 3),
            **{key: round(getattr(scores, key) or 0.0, 4) for key in ("miou", "boundary_f1", "mvc8")},
            "outside": round(scores.flicker.outside or 0.0, 5),
        }
        say(f"{row}")
        rows.append(row)
    return rows


def key_text(report: dict[str, Any]) -> str:
    """Return the table of key frames in Markdown."""
    lines = ["|  | encoded | ms of a core | frames a second | mIoU | boundary F1 | mVC8 | flicker outside |"]
    lines.append(f"|{'---|' * 8}")
    for row in report["key_frames"]:
        scores = " | ".join(f"{100 * row[key]:.2f}" for key in ("miou", "boundary_f1", "mvc8", "outside"))
        lines.append(
            f"| {row['name']} | {row['encoded']} | {row['processor_ms']:.0f} | {row['speed']:.2f}x | {scores} |"
        )
    return "\n".join(lines)


def text(report: dict[str, Any]) -> str:
    """Return the second half's table in Markdown."""
    titles = ("", "mIoU", "boundary F1", "mVC8", "mVC16", "flicker outside", "still", "along the flow")
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"
    keys = ("miou", "boundary_f1", "mvc8", "mvc16", "outside", "still", "along_flow")
    lines = [
        f"| {row['name']} | " + " | ".join(f"{100 * row[key]:.2f}" for key in keys) + " |"
        for row in report.get("second_half", [])
    ]
    return "\n".join([head, *lines])


TABLES = {"second half": text, "key frames": key_text}  # by the page's marks


if __name__ == "__main__":
    raise SystemExit(run_script(VideoStudy, "video.py"))
