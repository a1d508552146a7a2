"""`ovsdino serve` and `ovsdino demo`: the HTTP endpoint, and the page with it."""

from __future__ import annotations

import ipaddress
import signal
from dataclasses import dataclass, field

from ovsdino.console import say
from ovsdino.options import SegmenterOptions
from ovsdino.serve.limits import Limits

__all__ = ["Demo", "Serve"]


@dataclass(frozen=True, kw_only=True)
class Serve(SegmenterOptions):
    """Answer HTTP: POST /segment takes an image and words, and gives masks as JSON or PNG; GET /health.

    Only programs of this machine reach it, unless --host says otherwise. Ctrl-C ends it.
    """

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every one of this machine, without a password."""
    port: int = 7861
    """Port; 0 takes a free one, which the first line of the output names."""
    allow_host: tuple[str, ...] = ()
    """Names that this server is called by, besides localhost and addresses in numbers, as a proxy's."""
    limits: Limits = field(default_factory=Limits)

    @property
    def page(self) -> bool:
        """Whether the page is served as well."""
        return False

    def run(self) -> int:
        from ovsdino.serve.server import address_of, application, check_installed, listening, serve
        from ovsdino.serve.worker import Worker

        self.limits.checked()
        check_installed(self.page)
        with listening(self.host, self.port) as bound:
            worker = Worker(self.load(), self.limits)
            try:
                worker.warm_up()
                app = application(worker, page=self.page, hosts=self.allow_host)
                address = address_of(bound)
                if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
                    say("note: everyone who reaches this machine can use this server: it asks for no password")
                print(f"{address} answers; Ctrl-C ends it", flush=True)
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # ends as by Ctrl-C, its files removed
                serve(app, bound)
            except KeyboardInterrupt:
                say("stopped")
            finally:
                worker.close()
        return 0


@dataclass(frozen=True, kw_only=True)
class Demo(Serve):
    """Open a page to try a model on: an image, a webcam or a short video in, words typed, the result with names on it.

    The endpoint of `ovsdino serve` is there as well. Only this machine's browsers reach it, unless --host says
    otherwise. Ctrl-C ends it.
    """

    port: int = 7860
    """Port; 0 takes a free one, which the first line of the output names."""

    @property
    def page(self) -> bool:
        """Whether the page is served as well."""
        return True
