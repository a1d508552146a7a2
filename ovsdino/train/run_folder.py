"""The folder of a run: its checkpoint, weights, log and TensorBoard events."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, read_bytes, reading
from ovsdino.io.sealed import check_zip, seal_safetensors, seal_zip

__all__ = ["Board", "RunFolder"]


class RunFolder:
    """The files of a run: what it leaves, and what it continues from.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"
        self.log = self.path / "log.jsonl"
        self.remedy = f"remove it to begin anew, or choose another output than {self.path}"

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint, with its hash.

        Raises:
            OVSDinoError: It cannot be written; the one before is untouched.
        """
        buffer = io.BytesIO()  # into memory first: on a full disk torch.save ends in an error of its own
        torch.save(state, buffer)
        with atomic_write(self.checkpoint) as file:
            file.write(seal_zip(buffer.getvalue()))

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint's state on the CPU, None where there is none. One without a hash is read as well.

        Raises:
            OVSDinoError: It is damaged.
        """
        if not self.checkpoint.exists():
            return None
        data = read_bytes(self.checkpoint, "checkpoint", self.remedy)
        check_zip(data, self.checkpoint, self.remedy)
        with reading(self.checkpoint, "checkpoint", self.remedy):
            state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            if not isinstance(state, dict) or not isinstance(state.get("step"), int):
                raise ValueError("it has no step")
            return state

    def save_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Write weights as safetensors, floats as float16 and integers as they are, with their hash."""
        half = {k: (v.detach().half() if v.is_floating_point() else v).cpu().contiguous() for k, v in weights.items()}
        with atomic_write(self.path / name) as file:
            file.write(seal_safetensors(save(half)))

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line of the log.

        Raises:
            OVSDinoError: It cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OVSDinoError(f"{one_line(self.log)}: cannot write: {error.strerror}") from error

    def forget_after(self, step: int) -> None:
        """Remove the log lines that came after a step, and a line that a full disk cut: those steps are done again.

        The line of the configuration is written at every start, so one of this very step goes too.
        """
        if not self.log.is_file():
            return
        text = read_bytes(self.log, "log of a run").decode("utf-8", "replace")
        kept = []
        for line in text.split("\n"):
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                row = json.loads(line)
                if row["step"] < step or (row["step"] == step > 0 and row.get("kind") != "config"):
                    kept.append(line + "\n")
        with atomic_write(self.log) as file:
            file.write("".join(kept).encode())


class Board:
    """TensorBoard events, written at once and not by a thread: an error is then the caller's to see.

    Does nothing when tensorboard (extra "train") is not installed.

    Args:
        folder: Of the run.
        step: Events of an earlier run after this step are hidden by TensorBoard.

    Raises:
        OVSDinoError: The file cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            return
        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{step}"
        self.path = folder / "tensorboard" / name
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(self.path.open("ab"))
        except OSError as error:
            raise self._error(error) from error
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """Write scalars of a step, called `prefix/name`."""
        if self._writer is not None:
            pairs = [self._summary.Value(tag=f"{prefix}/{k}", simple_value=v) for k, v in values.items()]
            self._write(step=step, summary=self._summary(value=pairs))

    def close(self) -> None:
        """Close the file; later events are dropped."""
        if self._writer is not None:
            with suppress(OSError):  # all was flushed, and an error was raised then
                self._writer.close()
            self._writer = None

    def _write(self, **fields: Any) -> None:
        try:
            self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> OVSDinoError:
        return OVSDinoError(f"{one_line(self.path)}: cannot write: {error.strerror}")
