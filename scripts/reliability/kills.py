"""Kill processes while they write.

Every trial runs in a fork of this process, so that it begins at once and may be killed, limited, or hang.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.reliability import data_formats as data
from scripts.reliability.model_formats import training_folder
from tests.support.small import SIZE, small_model

Outcome = dict[str, Any]
SECONDS = 120  # after which a killed work hangs


@dataclass
class Ended:
    """The end of a fork: its exit code, or minus the signal, and its stderr."""

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
    """Return a function that runs a line of the command line."""
    from ovsdino.cli import main

    return lambda: main([str(word) for word in words])


@dataclass
class Work:
    """A work that is killed.

    Attributes:
        run: Begins the work, or goes on with it.
        check: Returns the faults of the files that are there, one line for each.
        result: Returns the finished work in a form that is equal for equal work.
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
    """Export a small model to ONNX with its sidecar."""
    from ovsdino.deploy.export.publish import publish
    from ovsdino.deploy.export.trace import export_graph
    from ovsdino.edge.sidecar import Sidecar

    model = small_model()
    path = output / "small.onnx"

    def run() -> int:
        output.mkdir(exist_ok=True)
        publish(path, export_graph(model, **SIZE))
        return 0

    def check() -> list[str]:
        if not path.exists():
            return []
        try:
            Sidecar.load(path).read(path)
        except ValueError as error:
            # A graph without its sidecar is refused, which is safe; one that another sidecar vouches for is not.
            return (
                [] if "missing" in str(error) or "sidecar says" in str(error) or "hash" in str(error) else [str(error)]
            )
        return []

    return Work(run, check, lambda: (Sidecar.load(path).read(path), Sidecar.load(path).input))


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
