"""Give the command line hostile paths, settings and environments, a full disk, a second writer, and Ctrl-C."""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.reliability import data_formats as data
from scripts.reliability.kills import Outcome, forked, line, sha256
from scripts.reliability.model_formats import training_folder

HANGS = 180  # seconds after which a case hangs
REFUSED, DONE, INTERRUPTED = 2, 0, 130
WARM = ("torch", "torchvision", "cv2", "ovsdino.pipeline", "ovsdino.models.zoo", "ovsdino.stream.loop",
        "ovsdino.train.dense.trainer", "ovsdino.train.start", "ovsdino.train.masks.generators",
        "ovsdino.train.masks.embeddings", "ovsdino.train.masks.corrupt", "ovsdino.eval.evaluate", "ovsdino.eval.report",
        "skimage.segmentation",
        "torch.utils.tensorboard", "ovsdino.commands.eval", "ovsdino.commands.segment", "ovsdino.commands.stream",
        "ovsdino.commands.masks", "ovsdino.commands.report", "ovsdino.commands.text")  # fmt: skip


@dataclass
class Case:
    """A trial of the command line.

    Attributes:
        run: In a fork.
        code: The exit code that is promised; with 2 stderr must hold one line that begins with "error: ".
        after: Returns the faults found afterwards, one line for each.
    """

    run: Callable[[], int]
    code: int = REFUSED
    after: Callable[[], list[str]] = list


def limited(work: Callable[[], int], size: int) -> Callable[[], int]:
    """Run where no file may grow beyond some bytes: what a full disk does, without filling one."""

    def run() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return run


def traced(work: Callable[[], int], folder: Path) -> Callable[[], int]:
    """Run in an empty folder, say where it hangs, if it does, and limit its memory."""

    def run() -> int:
        os.chdir(folder)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (6 << 30), hard))
        return work()

    return run


def with_environment(work: Callable[[], int], **changes: str) -> Callable[[], int]:
    def run() -> int:
        os.environ.update(changes)
        return work()

    return run


def try_cases(show: bool = False) -> dict[str, Outcome]:
    """Try all cases, by kind; with `show` say of each how it ended."""
    for name in WARM:  # once, and not in each fork
        importlib.import_module(name)
    found: dict[str, Outcome] = {}
    with (
        tempfile.TemporaryDirectory(prefix="reliability-") as scratch,
        tempfile.TemporaryDirectory(prefix="reliability-") as nowhere,
    ):
        for kind, make in CASES.items():
            folder = Path(scratch, kind.replace(" ", "-"))
            folder.mkdir()
            broken, tried = [], 0
            for name, case in make(folder):
                tried += 1
                ended = forked(traced(case.run, Path(nowhere)))
                said = ended.said.strip()
                errors = sum(row.startswith("error: ") for row in said.splitlines())
                if ended.code != case.code or "Traceback" in said or errors != (case.code != DONE):
                    broken.append(
                        f"{name}: exit code {ended.code}, expected {case.code}: {' '.join(said.split())[-200:]}"
                    )
                broken += [f"{name}: {wrong}" for wrong in case.after()]
                if show:
                    print(
                        f"{ended.seconds:6.1f} s, exit code {ended.code}: {name}: {said[:160]}",
                        file=sys.stderr,
                        flush=True,
                    )
            found[kind] = {"tried": tried, "broken": broken}
    return found


def hostile_paths(folder: Path) -> Iterator[tuple[str, Case]]:
    """Try inputs that are not files, or whose names no file system takes."""
    good = folder / "good.png"
    good.write_bytes(data.picture("PNG"))
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "empty").mkdir()
    paths = {
        "a pipe": folder / "pipe.png",
        "a device": "/dev/zero",
        "a link loop": folder / "loop.png",
        "an empty file": folder / "empty.png",
        "an empty folder": folder / "empty",
        "a long name": folder / ("n" * 300 + ".png"),
        "a missing file": folder / "no.png",
        "no name": "",
    }
    out = folder / "out"
    for name, path in paths.items():
        yield f"segment: {name}", Case(line("segment", path, "--classes", "sky, road", "--output", out))
        yield f"masks: {name}", Case(line("masks", "--images", path, "--generator", "felzenszwalb", "--output", out))
        yield f"masks --from: {name}", Case(line("masks", "--from", path, "--corrupt", 0.5, "--output", out))
        yield f"eval: {name}", Case(line("eval", "--dataset", "folder", "--root", path))
        yield f"report: {name}", Case(line("report", path))
        if name != "an empty file":  # an empty configuration is the default one
            yield f"train: {name}", Case(train(path))
        yield f"stream: {name}", Case(line("stream", path, "--classes", "sky, road", "--output", out))
    yield (
        "one bad image of two",
        Case(line("segment", folder / "empty.png", good, "--classes", "sky, road", "--output", out)),
    )


def train(*words: object) -> Callable[[], int]:
    from ovsdino.train.__main__ import main

    return lambda: main([str(word) for word in words])


def hostile_settings(folder: Path) -> Iterator[tuple[str, Case]]:
    """Try numbers and names out of their ranges."""
    config = training_folder(folder)
    settings = (
        "optim.lr=-1", "optim.lr=nan", "optim.lr=x", "optim.steps=-5", "optim.steps=0", "optim.steps=1e400",
        "optim.warmup=-1", "data.mix=2", "data.mix=-1", "data.root=/nowhere", "data.root=", "data.dataset=none",
        "stages=[]", "stages=5", "stages=null", "checkpoint_every=0", "log_every=0", "eval_every=-1", "seed=x",
        "output=/dev/null/x", "text_weights=/dev/zero", "text_weights=/nowhere", "device=tpu", "device=cuda:99",
        "supervision=none", "nothing=1", "optim=3", "optim.ema=2", "loss=none", "decoder=7", "=", "x", "optim.steps",
    )  # fmt: skip
    for number, setting in enumerate(settings):
        output = () if setting.startswith("output") else (f"output={folder / 'runs' / str(number)}",)
        yield f"train: {setting}", Case(train(config, *output, setting))
    image = folder / "a.png"
    image.write_bytes(data.picture("PNG"))
    for words in (
        ["--classes", ""], ["--classes", ","], ["--classes", "a,a"], ["--classes", "a\x07b"], ["--classes", "x" * 9999],
        ["--classes", "a", "--background", "2"], ["--classes", "a, b", "--background", "nan"],
        ["--classes", "a", "--short-side", "0"], ["--classes", "a", "--short-side", "-5"],
        ["--classes", "a", "--device", "tpu"], ["--classes", "a", "--model", "none"],
        ["--classes", "a", "--dtype", "f8"],
        ["--classes", "a", "--checkpoint", "/nowhere"], ["--nothing"],
    ):  # fmt: skip
        yield f"segment: {words}"[:80], Case(line("segment", image, "--output", folder / "out", *words))
    images = folder / "train/images"
    for words in (
        ["--shard", "1/1"], ["--shard", "x"], ["--shard", "0/" + "9" * 5000], ["--corrupt", "0.5"],
        ["--points-per-side", "0"], ["--generator", "none"], ["--seed", "x"],
    ):  # fmt: skip
        options = [] if "--generator" in words else ["--generator", "felzenszwalb"]
        yield (
            f"masks: {words}"[:80],
            Case(line("masks", "--images", images, "--output", folder / "m", *options, *words)),
        )
    masks = line("masks", "--images", images, "--output", folder / "m", "--generator", "felzenszwalb")
    for changes in ({"RANK": "x"}, {"RANK": "3", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "-1"}):
        yield f"environment: {changes}", Case(with_environment(masks, **changes))
    words = ("segment", image, "--classes", "a", "--output", folder / "o")
    yield "environment: OVSDINO_BACKEND=foo", Case(with_environment(process(*words), OVSDINO_BACKEND="foo"))


def process(*words: object, stdout: str = os.devnull, interrupted_at: Path | None = None) -> Callable[[], int]:
    """Return a function that runs a line of the command line in a process of its own.

    Args:
        words: The line.
        stdout: Where its output goes.
        interrupted_at: Ctrl-C is pressed once this file is there.
    """

    def run() -> int:
        with open(stdout, "w") as target:
            child = subprocess.Popen([sys.executable, "-m", "ovsdino", *map(str, words)], stdout=target)
            while interrupted_at and not interrupted_at.exists() and child.poll() is None:
                time.sleep(0.01)
            if interrupted_at:
                child.send_signal(signal.SIGINT)
            return child.wait()

    return run


def terminals(folder: Path) -> Iterator[tuple[str, Case]]:
    """Try a stdout that takes nothing, and Ctrl-C."""
    image, images = folder / "a.png", folder / "pictures"
    image.write_bytes(data.picture("PNG"))
    data.files_of(images, {f"{i:03d}.png": data.picture("PNG", data.pixels(i, 48, 48)) for i in range(70)})
    segment = ("segment", image, "--classes", "sky, road", "--output", folder / "o", "--json")
    yield "segment --json to a full device", Case(process(*segment, stdout="/dev/full"))
    masks = ("masks", "--images", images, "--generator", "felzenszwalb", "--output")
    yield "masks --json to a full device", Case(process(*masks, folder / "m", "--json", stdout="/dev/full"))
    first = folder / "n/shard-00000.jsonl"
    yield "Ctrl-C in masks", Case(process(*masks, folder / "n", interrupted_at=first), INTERRUPTED)
    yield "masks go on after Ctrl-C", Case(process(*masks, folder / "n"), DONE)


def full_disk(folder: Path) -> Iterator[tuple[str, Case]]:
    """Try every writer where the disk is full: exit code 2, and nothing cut off has a name."""
    config = training_folder(folder)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    image = folder / "a.png"
    image.write_bytes(data.picture("PNG", noise))
    images = folder / "pictures"
    data.files_of(images, {f"{i}.png": data.picture("PNG", noise) for i in range(2)})

    def nothing_in(output: Path, *suffixes: str) -> Callable[[], list[str]]:
        def after() -> list[str]:
            there = [p for p in output.rglob("*") if p.is_file()] if output.is_dir() else []
            return [f"{p.name} was left, {p.stat().st_size} bytes" for p in there if p.name.endswith(suffixes)]

        return after

    out = folder / "segment"
    words = line("segment", image, "--classes", "sky, road", "--output", out)
    yield "segment", Case(limited(words, 512), after=nothing_in(out, ".png", ".tmp"))
    out = folder / "masks"
    words = line("masks", "--images", images, "--output", out, "--generator", "felzenszwalb")
    yield "masks", Case(limited(words, 4096), after=nothing_in(out, ".jsonl", ".jpg", ".tmp"))
    bank = folder / "bank/bank.safetensors"
    yield (
        "text",
        Case(
            limited(line("text", "--classes", "sky, road", "--output", bank), 256),
            after=nothing_in(bank.parent, ".safetensors", ".tmp"),
        ),
    )
    out = folder / "run"
    yield "train", Case(limited(train(config), 1 << 16), after=nothing_in(out, ".safetensors", ".pt", ".tmp"))


def locks(folder: Path) -> Iterator[tuple[str, Case]]:
    """Try two writers of one folder, and outputs that are inputs."""
    from ovsdino.io.files import lock_folder

    images, out = folder / "pictures", folder / "out"
    data.files_of(images, {f"{i}.png": data.picture("PNG", data.pixels(i)) for i in range(2)})
    words = ("masks", "--images", images, "--generator", "felzenszwalb", "--output")
    with lock_folder(out, "run of `ovsdino masks`"):
        yield "masks into a folder in use", Case(line(*words, out))
    yield "masks into it once it is free", Case(line(*words, out), DONE)
    before = {p: sha256(p) for p in images.iterdir()}

    def unharmed() -> list[str]:
        return [] if {p: sha256(p) for p in images.iterdir()} == before else ["the images have changed"]

    (folder / "link").symlink_to(images)
    for output in (images, images / "masks", folder / "link"):
        yield f"masks into its own images: {output.name}", Case(line(*words, output), after=unharmed)
    config = training_folder(folder / "set")
    with lock_folder(folder / "set/run", "training"):
        yield "training into a folder in use", Case(train(config))
    yield "training into it once it is free", Case(train(config), DONE)


CASES: dict[str, Callable[[Path], Iterator[tuple[str, Case]]]] = {
    "hostile paths": hostile_paths,
    "hostile settings": hostile_settings,
    "full disk": full_disk,
    "terminals and signals": terminals,
    "two writers": locks,
}
