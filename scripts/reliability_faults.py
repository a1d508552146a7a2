"""Kill processes while they write, and give the command line hostile paths, settings and environments.

Every trial runs in a fork of this process, so that it begins at once and may be killed, limited, or hang.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reliability_formats as data
from reliability_models import training_folder

Outcome = dict[str, Any]
SECONDS = 120  # after which a killed work hangs
HANGS = 40  # seconds after which a case hangs
WARM = ("torch", "torchvision", "cv2", "ovsdino.pipeline", "ovsdino.models.zoo", "ovsdino.deploy.stream",
        "ovsdino.train.dense", "ovsdino.train.start", "ovsdino.train.pseudo_masks", "ovsdino.train.sam_targets",
        "ovsdino.data.corrupt", "ovsdino.eval.evaluate", "ovsdino.eval.report", "skimage.segmentation",
        "torch.utils.tensorboard", "ovsdino.commands.eval", "ovsdino.commands.segment", "ovsdino.commands.stream",
        "ovsdino.commands.masks", "ovsdino.commands.report", "ovsdino.commands.text")  # fmt: skip
REFUSED, DONE, INTERRUPTED = 2, 0, 130


@dataclass
class Ended:
    """How a fork ended: its exit code, or minus the signal; and what it wrote to stderr."""

    code: int
    said: str
    seconds: float


def forked(work: Callable[[], int], *, kill_after: float = SECONDS, number: int = signal.SIGKILL) -> Ended:
    """Run in a fork, its output caught; send it a signal when the time is over.

    Args:
        work: Returns the exit code.
        kill_after: Seconds until the signal.
        number: The signal; `SECONDS` later comes SIGKILL.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(errors.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 the fork ends here
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                code = work()
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(OSError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        code = waited(child, kill_after)
        if code is None:
            os.kill(child, number)
            code = waited(child, SECONDS if number != signal.SIGKILL else 1e9)
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = -signal.SIGKILL
        seconds = time.monotonic() - started
        errors.seek(0)
        return Ended(code, errors.read().decode("utf-8", "replace"), seconds)


def waited(child: int, seconds: float) -> int | None:
    """Return the exit code of a child that ends within some seconds, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def line(*words: object) -> Callable[[], int]:
    """Return what runs a line of the command line."""
    from ovsdino.cli import main

    return lambda: main([str(word) for word in words])


# -- kills ---------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What is killed.

    Attributes:
        run: Begins the work, or goes on with it.
        check: Returns what is wrong with what lies there, a line each.
        result: Returns what the finished work is: equal for equal work.
    """

    run: Callable[[], int]
    check: Callable[[], list[str]]
    result: Callable[[], Any]


def masks_work(folder: Path, output: Path) -> Work:
    """Pseudo-masks of 130 small images: five shards."""
    from ovsdino.data.masks import MaskStore, decode

    images = folder / "images"
    if not images.exists():
        data.files_of(images, {f"{i:03d}.png": data.picture("PNG", data.pixels(i, 40, 56)) for i in range(130)})

    def check() -> list[str]:
        wrong = []
        if (output / "manifest.json").exists():
            store = MaskStore.open(output)
            for shard in set(range(store.shards)) - set(store.missing()):
                try:
                    for row in store.read(shard):
                        decode(row)
                except ValueError as error:
                    wrong.append(f"a shard is there and not whole: {error}")
        return wrong

    def result() -> dict[str, str]:
        return {p.name: sha256(p) for p in output.iterdir() if not p.name.startswith(".ovsdino.lock")}

    run = line("masks", "--images", images, "--output", output, "--generator", "felzenszwalb")
    return Work(run, check, result)


def training_work(folder: Path, output: Path) -> Work:
    """Ten steps of training, a checkpoint every second."""
    from ovsdino.train.__main__ import main

    config = folder / "config.yaml"
    if not config.exists():
        training_folder(folder, steps=10)
    path = output / "log.jsonl"

    def rows() -> list[dict[str, Any]]:
        return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def check() -> list[str]:
        last = output / "last.safetensors"
        return [] if not last.exists() or last.stat().st_size > 1 << 20 else ["last.safetensors is cut off"]

    def result() -> Any:
        steps = [(row["step"], row["loss"]) for row in rows() if row["kind"] == "train"]
        temporary = [p.name for p in output.iterdir() if ".tmp" in p.name]
        return sha256(output / "last.safetensors"), steps, temporary

    return Work(lambda: main([str(config), f"output={output}"]), check, result)


def export_work(folder: Path, output: Path) -> Work:
    """The export of a small model to ONNX with its sidecar."""
    from ovsdino.config import BackboneConfig, ModelConfig, SAEConfig, SMDConfig, TextConfig
    from ovsdino.deploy.export_onnx import export_onnx
    from ovsdino.deploy.script import randomise
    from ovsdino.deploy.sidecar import Sidecar
    from ovsdino.models.ovsdino import OVSDINO
    from ovsdino.models.text import HashedTextTower

    config = ModelConfig(
        name="small",
        backbone=BackboneConfig(timm_name="nano_vit", patch_size=16, embed_dim=32, depth=2, num_heads=2, taps=(0, 1)),
        sae=SAEConfig(guide_dim=16, mid_dim=16, structure_dim=32),
        smd=SMDConfig(width=32, heads=2, head_dim=8, structure_rank=7, value_dim=16, blocks=1),
        text=TextConfig(kind="hashed", width=16, buckets=64),
        short_side=48,
    )
    model = randomise(OVSDINO(config, HashedTextTower(32, 16, 64)).eval().requires_grad_(False), 0)
    path = output / "small.onnx"

    def run() -> int:
        output.mkdir(exist_ok=True)
        export_onnx(model, path, height=48, width=80)
        return 0

    def check() -> list[str]:
        if not path.exists():
            return []
        try:
            Sidecar.load(path).check_file(path)
        except ValueError as error:
            # A graph without its sidecar is refused, which is safe; one that another sidecar vouches for is not.
            return (
                [] if "missing" in str(error) or "sidecar says" in str(error) or "hash" in str(error) else [str(error)]
            )
        return []

    return Work(run, check, lambda: (Sidecar.load(path).check_file(path), Sidecar.load(path).input))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


KILLED: dict[str, Callable[[Path, Path], Work]] = {
    "masks": masks_work,
    "training": training_work,
    "export": export_work,
}


def try_kills(seed: int, kills: int) -> dict[str, Outcome]:
    """Kill each kind of work at random times, `kills` times in all, and once by Ctrl-C where that is promised."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for name, make in KILLED.items():
        broken: list[str] = []
        with tempfile.TemporaryDirectory(prefix="reliability-") as scratch:
            folder = Path(scratch)
            whole = make(folder, folder / "whole")
            reference = forked(whole.run)
            if reference.code:
                raise SystemExit(f"{name}: failed where nobody killed it: {reference.said[-1000:]}")
            expected, rng = whole.result(), random.Random(f"{seed}:{name}")
            share, tried = max(1, kills // len(KILLED)), 0
            while tried < share:
                output = folder / f"killed-{tried}"
                work = make(folder, output)
                for _ in range(3):  # some works are killed more than once before they end
                    ended = forked(work.run, kill_after=rng.uniform(0.02, 1.0) * reference.seconds)
                    tried += ended.code == -signal.SIGKILL
                    broken += work.check()
                    if ended.code != -signal.SIGKILL:
                        break
                ended = forked(work.run)
                if ended.code or work.result() != expected:
                    broken.append(f"after {tried} kills, code {ended.code}: another result; {ended.said[-300:]}")
        found[name] = {"tried": tried, "broken": broken}
    return found


# -- cases ---------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A trial of the command line.

    Attributes:
        run: In a fork.
        code: The exit code that is promised; with 2 stderr must hold one line that begins with "error: ".
        after: Returns what is wrong afterwards, a line each.
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
                if ended.code != case.code or "Traceback" in said or errors != (case.code == REFUSED):
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
    """Inputs that are no files, or whose names no file system takes."""
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
    """Numbers and names out of their ranges."""
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
    for changes in ({"RANK": "x"}, {"RANK": "3", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "-1"}, {"OVSDINO_BACKEND": "foo"}):
        work = (
            masks
            if "OVSDINO_BACKEND" not in changes
            else line("segment", image, "--classes", "a", "--output", folder / "o")
        )
        yield f"environment: {changes}", Case(with_environment(work, **changes))


def full_disk(folder: Path) -> Iterator[tuple[str, Case]]:
    """Every writer where the disk is full: exit code 2, and nothing cut off has a name."""
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
    """Two writers of one folder, and outputs that are inputs."""
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
    "two writers": locks,
}
