"""A process that listens: the endpoint alone, or the page and the endpoint."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from ovsdino.errors import OVSDinoError
from ovsdino.serve.worker import Worker

__all__ = ["address_of", "application", "check_installed", "listening", "serve", "server_of"]

MODULES = {"serve": ("starlette", "uvicorn", "python_multipart", "pycocotools"), "demo": ("gradio", "cv2")}

CONNECTIONS = 512  # open at once; a page holds a few for each visitor
GRACE_SECONDS = 5  # for answers under way when the server is stopped


def application(worker: Worker, *, page: bool = False, hosts: Iterable[str] = ()) -> Any:
    """Return the ASGI application.

    Args:
        worker: Runs the model; whoever made it closes it.
        page: Serve the page at `/` as well.
        hosts: Names of this server, see `Guard`.

    Raises:
        OVSDinoError: A package of the extra serve or demo is not installed.
    """
    check_installed(page)
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    from ovsdino.serve.endpoint import routes
    from ovsdino.serve.guard import Guard

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = {404: "there are POST /segment and GET /health here", 405: "POST /segment, GET /health"}
        body = {"error": text.get(error.status_code, error.detail)}
        return JSONResponse(body, error.status_code, error.headers)

    app: Any = Starlette(routes=routes(worker), exception_handlers={HTTPException: refused})
    if page:
        from ovsdino.serve.page import mounted

        app = mounted(app, worker)
    return Guard(app, worker.limits, hosts)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: A name or address of this machine; "::" and "0.0.0.0" are all.
        port: 0 takes a free one.

    Raises:
        OVSDinoError: The address cannot be had.
    """
    if not 0 <= port <= 65_535:
        raise OVSDinoError(f"--port is {port}: expected 0..65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(CONNECTIONS)  # who connects from now on waits for its turn
    except OSError as error:
        raise OVSDinoError(f"cannot listen at {host}:{port}: {error.strerror}; give another --port or --host") from None
    return found


def address_of(bound: socket.socket) -> str:
    """Return the address that a browser takes."""
    host, port = bound.getsockname()[:2]
    place = ipaddress.ip_address(host)
    if place.is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if place.version == 6 and not place.is_unspecified else f"http://{host}:{port}"


def serve(app: Any, bound: socket.socket) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM).

    Args:
        app: Of `application`.
        bound: Of `listening`.
    """
    server_of(app).run(sockets=[bound])


def server_of(app: Any) -> Any:
    """Return uvicorn's server, which takes its settings here alone."""
    import uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
    )
    return uvicorn.Server(config)


def check_installed(page: bool) -> None:
    """Raise in one line where a package is missing.

    Args:
        page: The page is wanted as well.

    Raises:
        OVSDinoError: It names the extra.
    """
    for extra in ("serve", "demo") if page else ("serve",):
        missing = [module for module in MODULES[extra] if find_spec(module) is None]
        if missing:
            names = ", ".join(missing)
            raise OVSDinoError(f"this needs {names}, which is not installed: pip install 'ovsdino[{extra}]'")
