"""Look at every request first: who asks, how much is sent, and in which time."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from ovsdino.serve.limits import Limits

__all__ = ["Guard"]

Scope = Any
Receive = Callable[[], Any]
Send = Callable[[Any], Any]

DRAIN_SECONDS = 5.0  # for the rest of a body that is refused

# Nothing is loaded from elsewhere, the page stands in no foreign frame, and no type is guessed. gradio's page has
# scripts and styles within it, and compiles templates.
HEADERS = {
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}


class Guard:
    """An ASGI application in front of another one.

    A page of another site can send its visitor's browser here, though it cannot read the answer: requests with the
    `Origin` of another host are refused. Nor are names of hosts taken that are not ours, since a foreign name can be
    made to lead to 127.0.0.1 (DNS rebinding); addresses in numbers cannot be forged so.

    Args:
        app: The application.
        limits: Of the body and its time.
        hosts: Names that this server is known by, besides localhost.
    """

    def __init__(self, app: Any, limits: Limits, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.limits = limits
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        most = self.limits.max_megabytes * 1_000_000
        too_large = f"the request has more than {self.limits.max_megabytes} MB: send a smaller file"
        # Who is told to wait before it sends (Expect) sends nothing once it is refused.
        silent = scope["method"] in ("GET", "HEAD") or b"expect" in headers
        body = _Body(receive, send, most, self.limits.max_seconds, drained=not silent)
        if (refusal := self._refusal(headers)) is not None:
            return await answer(body.send, 403, refusal)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            return await answer(body.send, 413, too_large)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if body.problem is None:
                raise
        if body.problem is not None and not body.started:
            text = too_large if body.problem == 413 else f"the request took more than {self.limits.max_seconds} s"
            status, body.problem = body.problem, None
            await answer(body.send, status, text)

    def _refusal(self, headers: dict[bytes, bytes]) -> str | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._ours(host):
            return f"host {host!r} is not a name of this server: start it with --allow-host NAME"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower():
            return "this request comes from the page of another site"
        return None

    def _ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            if name not in self.hosts:
                ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _Body:
    """The two ends of a request, watched: its bytes and time on the way in, a few headers on the way out."""

    def __init__(self, receive: Receive, send: Send, most: int, seconds: float, drained: bool) -> None:
        self._receive, self._send = receive, send
        self._most, self._drained = most, drained
        self._left = most
        self._until = asyncio.get_running_loop().time() + seconds
        self._whole = False  # nothing more is to be handed on
        self._ended = False  # nothing more is to come
        self.problem: int | None = None
        self.started = False

    async def receive(self) -> Any:
        if self._whole:
            return await self._receive()
        try:
            left = self._until - asyncio.get_running_loop().time()
            message = await asyncio.wait_for(self._receive(), max(left, 0.0))
        except asyncio.TimeoutError:
            return self._end(408)
        self._left -= len(message.get("body", b""))
        self._whole = self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return self._end(413) if self._left < 0 else message

    async def send(self, message: Any) -> None:
        if self.problem is not None and not self.started:
            return  # the guard's own answer comes instead
        if message["type"] == "http.response.start":
            self.started = True
            await self._drain()
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((name, value) for name, value in HEADERS.items() if name not in present),
            ]
        await self._send(message)

    async def _drain(self) -> None:
        """Read what is left of a body that nobody wants, within bounds.

        A connection that is closed while its client still sends is reset, and the client loses the answer.
        """
        left, until = self._most, asyncio.get_running_loop().time() + DRAIN_SECONDS
        more = self._drained and not self._ended
        while more and left > 0:
            try:
                seconds = until - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(self._receive(), max(seconds, 0.0))
            except asyncio.TimeoutError:
                return
            left -= len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
        self._ended = True

    def _end(self, problem: int) -> Any:
        self.problem, self._whole = problem, True
        return {"type": "http.disconnect"}


async def answer(send: Send, status: int, text: str) -> None:
    """Send {"error": text}, and close the connection, whose body may not be read to its end."""
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
