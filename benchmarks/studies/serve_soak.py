"""`ovsdino serve` under 200 requests, 20 at once, a fifth of them bad: none may be lost, and no memory either.

    python benchmarks/studies/serve_soak.py --json

The server is a process of its own, with the shipped model. Every good request has an image of its own, so none is
answered from the encoded images that are kept. Memory is the server's resident set as the system sees it, after a
warm-up of 40 requests against after the last one. No times are measured.
"""

from __future__ import annotations

import http.client
import io
import json
import platform
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ovsdino.benchmarks.lib.board import cpu_name
from ovsdino.benchmarks.lib.report import ReportOptions
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import run_script

WORDS = ("sky", "grass", "wall", "person", "violin")
SIZES = ((640, 480), (480, 640), (800, 600))
MOST_MEGABYTES = 2
MOST_GROWTH = 0.10
WARM_UP = 40
BOUNDARY = "soak"


@dataclass(frozen=True)
class Call:
    """A request, and the status that answers it."""

    kind: str
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


def form(image: bytes | None, **fields: str) -> bytes:
    """Return the body of a form."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    body = "".join(parts).encode()
    if image is not None:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        body += head.encode() + image + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def photograph(seed: int) -> bytes:
    """Return a JPEG unlike that of every other seed."""
    width, height = SIZES[seed % len(SIZES)]
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 190, (1, 1, 3))
    pixels[: height // 2] = rng.integers(0, 20, (height // 2, width, 3)) + np.array((110, 150, 220))
    return encoded(Image.fromarray(pixels.astype(np.uint8)), "JPEG")


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def bad_calls() -> list[Call]:
    """Return a request of each kind that is refused."""
    good, words = photograph(0), ",".join(WORDS)
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    return [
        Call("not an image", 400, form(b"not an image", classes=words)),
        Call("cut off", 400, form(good[: len(good) // 2], classes=words)),
        Call("no words", 400, form(good)),
        Call("bad number", 400, form(good, classes=words, confidence="2")),
        Call("bomb of pixels", 413, form(bomb, classes=words)),
        Call("too many bytes", 413, form(bytes(MOST_MEGABYTES * 1_000_000), classes=words)),
        Call("not a form", 415, b"{}", {"Content-Type": "application/json"}),
        Call("not a method", 405, b"", method="GET"),
        Call("another site", 403, form(good, classes=words), {"Origin": "https://elsewhere.example"}),
    ]


def calls(count: int, first: int) -> list[Call]:
    """Return requests, every fifth of them bad.

    Args:
        count: Their number.
        first: Seed of the first image.
    """
    bad = islice(cycle(bad_calls()), count // 5)
    found = []
    for number in range(count):
        if number % 5 == 4:
            found.append(next(bad))
        else:
            fields = {"classes": ",".join(WORDS[: 2 + number % 4]), "format": ("json", "json", "png")[number % 3]}
            found.append(Call(fields["format"], 200, form(photograph(first + number), **fields)))
    return found


def sent(address: str, call: Call) -> str:
    """Send a request; returns nothing, or what is wrong with its answer."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=300)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **call.headers}
    try:
        connection.request(call.method, "/segment", call.body, headers)
        answer = connection.getresponse()
        body = answer.read()
    except OSError as error:
        return f"{call.kind}: lost: {error}"
    finally:
        connection.close()
    if answer.status != call.status:
        return f"{call.kind}: {answer.status} in place of {call.status}: {body[:200]!r}"
    if call.status != 200:
        return "" if set(json.loads(body)) == {"error"} else f"{call.kind}: no sentence: {body[:200]!r}"
    if call.kind == "png":
        return "" if Image.open(io.BytesIO(body)).size in SIZES else "png: of another size"
    listed = [entry["name"] for entry in json.loads(body)["classes"]]
    return "" if tuple(listed) == WORDS[: len(listed)] and len(listed) > 1 else f"json: {listed}"


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """Yield the address and the process id of a server of the shipped model.

    Raises:
        OVSDinoError: It did not start.
    """
    command = [sys.executable, "-m", "ovsdino", "serve", "--port", "0", "--max-megabytes", str(MOST_MEGABYTES)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.match(r"(http://\S+) answers", process.stdout.readline())
        if address is None:
            raise OVSDinoError("ovsdino serve did not start: see its message above")
        yield address[1], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB (10^6 bytes)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def soak(requests: int, at_once: int, warm_up: int = WARM_UP, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the report of a soak.

    Args:
        requests: Their number.
        at_once: Clients that send at the same time.
        warm_up: Requests before memory is looked at first.
        options: Further ones of `ovsdino serve`.
    """
    with server(*options) as (address, pid), ThreadPoolExecutor(at_once) as pool:
        wrong = [text for text in pool.map(lambda call: sent(address, call), calls(warm_up, 10_000)) if text]
        memory = [resident_mb(pid)]
        counts: Counter[str] = Counter()
        for part in range(2):
            share = calls(requests // 2, part * requests)
            counts.update(f"{call.status} {call.kind}" for call in share)
            wrong += [text for text in pool.map(lambda call: sent(address, call), share) if text]
            memory.append(resident_mb(pid))
    growth = memory[-1] / memory[0] - 1
    return {
        "machine": {"cpu": cpu_name(), "arch": platform.machine()},
        "requests": sum(counts.values()),
        "at_once": at_once,
        "kinds": dict(sorted(counts.items())),
        "wrong": wrong,
        "rss_mb": {
            "after_warm_up": round(memory[0], 1),
            "half_way": round(memory[1], 1),
            "at_the_end": round(memory[2], 1),
            "growth_percent": round(100 * growth, 2),
        },
        "checks": {
            "every request was answered as expected": not wrong,
            f"memory grew by less than {MOST_GROWTH:.0%}": growth < MOST_GROWTH,
        },
    }


@dataclass(frozen=True, kw_only=True)
class ServeSoak(ReportOptions):
    """Send good and bad requests to `ovsdino serve`, many at once, and look at its answers and its memory."""

    requests: int = 200
    """Requests after the warm-up; every fifth is bad."""
    at_once: int = 20
    """Clients that send at the same time."""

    def run(self) -> int:
        if self.requests < 10 or not 1 <= self.at_once <= 32:
            raise OVSDinoError("expected --requests of 10 or more and --at-once of 1..32")
        return self.publish(soak(self.requests, self.at_once), text)


def text(report: dict[str, Any]) -> str:
    """Return the checks and the memory as lines."""
    lines = [f"{'ok  ' if good else 'FAIL'} {name}" for name, good in report["checks"].items()]
    memory = report["rss_mb"]
    lines.append(f"memory {memory['after_warm_up']} -> {memory['at_the_end']} MB ({memory['growth_percent']:+} %)")
    return "\n".join([*lines, *report["wrong"]])


if __name__ == "__main__":
    raise SystemExit(run_script(ServeSoak, "serve_soak.py"))
