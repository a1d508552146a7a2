"""The figures of a running stream for Prometheus, over HTTP on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ovsdino.errors import OVSDinoError, one_line

__all__ = ["MetricsServer", "metrics_text"]

# counters of the summary, and numbers that go up and down
COUNTERS = (
    *("frames", "captured", "dropped", "stale", "misses", "degradations", "recoveries", "failed", "corrupt"),
    *("stalls", "failures", "reconnects", "size_changes"),
)
GAUGES = ("fps", "seconds", "longest_gap_ms")
TIMES = ("camera_to_mask_ms", "inference_ms")


def metrics_text(summary: Mapping[str, Any]) -> str:
    """Return a summary of `Stream.summary` in Prometheus' text format 0.0.4.

    What several cameras have each is labeled camera="0", ..., so that a sum over them is right.
    """
    cameras = {f'camera="{place}"': one for place, one in enumerate(summary.get("cameras", ()))} or {"": summary}
    lines: list[str] = []
    for names, kind in ((COUNTERS, "counter"), (GAUGES, "gauge"), (TIMES, "gauge")):
        for name in names:
            metric = f"ovsdino_{name}" + ("_total" if kind == "counter" else "")
            lines.append(f"# TYPE {metric} {kind}")
            own = cameras if all(name in one for one in cameras.values()) else {"": summary}
            for label, figures in own.items():
                lines += _samples(metric, label, figures[name])
    return "\n".join(lines) + "\n"


def _samples(metric: str, label: str, value: Any) -> list[str]:
    """Return a line for a number, or for each of the parts of a time."""
    if value is None or isinstance(value, Mapping):
        parts = {f'part="{part}"': figure for part, figure in (value or {}).items()}
    else:
        parts = {"": value}
    labels = {",".join(filter(None, (label, part))): figure for part, figure in parts.items()}
    return [f"{metric}{{{one}}} {figure}" if one else f"{metric} {figure}" for one, figure in labels.items()]


class MetricsServer:
    """Serve `/metrics` until it is closed; a context manager.

    Args:
        port: TCP port; 0 for any that is free.
        read: Returns the summary; called by other threads.
        host: Address to listen at. The default is this machine alone.

    Raises:
        OVSDinoError: The port is taken or not allowed.
    """

    def __init__(self, port: int, read: Callable[[], Mapping[str, Any]], host: str = "127.0.0.1") -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.split("?")[0] == "/metrics"
                body = metrics_text(read()).encode() if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Say nothing: a line for each request would drown the reports."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise OVSDinoError(f"--metrics {port}: cannot listen at {host}: {one_line(error)}") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that it listens at."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
