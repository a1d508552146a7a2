"""Exit codes and messages of a command that fails."""

from __future__ import annotations

import json

import pytest

from ovsdino.console import run_command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "/x/last"), 2, "/x/last: No space left on device"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 2, "this command needs onnx"),
        (
            ModuleNotFoundError("No module named 'ovsdino.gone'", name="ovsdino.gone"),
            1,
            "internal error, please report",
        ),
        (KeyError("lost"), 1, "KeyError: 'lost' (internal error, please report it)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_the_machine_refuses_is_no_internal_error(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise error

    assert run_command(["--json"], body) == code
    out, err = capsys.readouterr()
    assert words in json.loads(out)["error"] and words in err
    assert ("Traceback" in err) == (code == 1) and (err.count("\n") == 1) == (code != 1)
