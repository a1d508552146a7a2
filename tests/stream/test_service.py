"""What systemd is told of a stream, over a socket of its kind."""

from __future__ import annotations

import configparser
import socket
from pathlib import Path

import pytest

from ovsdino.stream.service import Service, notify

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "ovsdino-stream.service"


def test_ready_at_the_first_result_and_a_watchdog_in_half_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [0.0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        service = Service(lambda: seconds[0])
        for seconds[0] in (0.0, 0.5, 1.1, 1.2, 2.2):
            service(None)
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_without_a_service_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    Service()(None)


def test_the_unit_waits_for_the_notification() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    assert unit["Service"]["Type"] == "notify" and int(unit["Service"]["WatchdogSec"]) > 0
    assert "ovsdino stream" in unit["Service"]["ExecStart"] and "-HUP" in unit["Service"]["ExecReload"]
