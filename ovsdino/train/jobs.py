"""Run tasks in several processes, each at one of them; a mistake or a signal ends all."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.train.stopping import Stopped, caught_signals

__all__ = ["run_tasks"]

Log = Callable[[str], None]
Work = Callable[[Any, Log], None]
POLL = 0.5  # seconds between looks at processes that say nothing


def run_tasks(work: Work, tasks: Sequence[Any], jobs: int, log: Log) -> None:
    """Do the tasks in their order, `jobs` at a time.

    With one job they run in this process. Otherwise `work` and the tasks must be picklable, and each process takes its
    share of the processor's threads.

    Args:
        work: Does a task; the second argument takes lines for people.
        tasks: What is done.
        jobs: Number of processes, >= 1.
        log: Takes the lines.

    Raises:
        OVSDinoError: A task raised one, or a process died.
        Stopped: SIGTERM or SIGINT came; the processes were told and have ended.
    """
    if jobs <= 1 or len(tasks) <= 1:
        for task in tasks:
            work(task, log)
        return
    context = multiprocessing.get_context("spawn")
    todo, said = context.Queue(), context.Queue()
    for task in tasks:
        todo.put(task)
    count = min(jobs, len(tasks))
    for _ in range(count):
        todo.put(None)
    threads = max(1, (os.cpu_count() or 1) // count)
    children = [context.Process(target=_serve, args=(work, todo, said, threads)) for _ in range(count)]
    with caught_signals() as received:
        for child in children:
            child.start()
        try:
            failure = _listen(children, said, received, log)
        finally:
            _end(children)
            todo.cancel_join_thread()
    if received:
        raise Stopped(received[0])
    if failure is not None:
        raise OVSDinoError(failure)


def _listen(children: Sequence[Any], said: Any, received: list[int], log: Log) -> str | None:
    """Pass on lines until all processes are done; return the message of the first failure, or None."""
    done = 0
    while done < len(children) and not received:
        try:
            kind, text = said.get(timeout=POLL)
        except queue.Empty:
            dead = [child for child in children if child.exitcode not in (None, 0)]
            if dead and said.empty():
                return f"a process of the study ended with {dead[0].exitcode} (memory?); the same command goes on"
            continue
        if kind == "line":
            log(text)
        elif kind == "error":
            return str(text)
        else:
            done += 1
    return None


def _end(children: Sequence[Any]) -> None:
    """Tell the processes that still run to stop, which saves their state, and wait for them."""
    for child in children:
        if child.is_alive():
            child.terminate()
    for child in children:
        child.join()


def _serve(work: Work, todo: Any, said: Any, threads: int) -> None:
    """Do tasks until there are none: the body of a process."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which sends SIGTERM
    try:
        while (task := todo.get()) is not None:
            work(task, lambda line: said.put(("line", line)))
    except OVSDinoError as error:
        said.put(("error", str(error)))
    except Stopped:
        pass
    except Exception as error:
        said.put(("error", f"{type(error).__name__}: {one_line(error, 300)}"))
    else:
        said.put(("done", ""))
