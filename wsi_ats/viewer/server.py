"""The page for one user on this machine: the only import of tornado.

The address holds a random token, without which nothing is answered, and requests must name this machine as
their host, so that no other page in the browser can ask (DNS rebinding). Requests give numbers of slides and
of tiles; no part of a request becomes a path.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import escape
from textwrap import wrap
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from wsi_ats.errors import SettingsError, WsiAtsError
from wsi_ats.viewer.collection import Collection
from wsi_ats.viewer.tiles import SIZE

ADDRESS = "127.0.0.1"

# Slides wait for disks and stores, so a few more than cores.
_THREADS = 8
_HOSTS = {ADDRESS, "localhost"}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEADERS = {
    # Bokeh writes style sheets into the page, but runs no script that is not a file.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, max-age=3600",
}


@dataclass(frozen=True)
class _Service:
    collection: Collection
    token: str
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS, "view"))


class _Handler(RequestHandler):
    """Refuses requests without the token or from another host, and answers the others with 404."""

    def initialize(self, service: _Service) -> None:
        self.service = service

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        token = self.request.path.removeprefix("/").partition("/")[0]
        if self.request.host_name not in _HOSTS:
            raise HTTPError(403, reason="Unknown host")
        if not hmac.compare_digest(token.encode(), self.service.token.encode()):
            raise HTTPError(403, reason="Wrong token")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        del kwargs
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(f"{status_code} {self._reason}")

    def log_exception(self, *_: Any) -> None:
        """Log nothing: the line would hold the token."""

    async def get(self, *_: str) -> None:
        raise HTTPError(404)

    async def call(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Ask the collection in another thread."""
        return await asyncio.get_running_loop().run_in_executor(self.service.threads, ask, *arguments)

    def number(self, text: str) -> int:
        """Return the number of a slide that exists."""
        if int(text) >= len(self.service.collection.scores.slides):
            raise HTTPError(404)
        return int(text)

    def send_json(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(json.dumps(value, allow_nan=False))


class _File(_Handler):
    async def get(self, *given: str) -> None:
        path = self.service.collection.files()[given[0] or "index.html"]  # a name in the route
        self.set_header("Content-Type", f"{_TYPES[path.suffix]}; charset=utf-8")
        self.finish(path.read_bytes())


class _Table(_Handler):
    async def get(self, *_: str) -> None:
        self.send_json(await self.call(self.service.collection.table))


class _Slide(_Handler):
    async def get(self, *given: str) -> None:
        self.set_header("Cache-Control", "no-store")  # a disk may come back
        self.send_json(await self.call(self.service.collection.slide, self.number(given[0])))


class _Tile(_Handler):
    async def get(self, *given: str) -> None:
        number, *place = given
        try:
            ask = self.service.collection.tile
            tile = await self.call(ask, self.number(number), *map(int, place))
            kind = "image/jpeg"
        except LookupError as error:
            raise HTTPError(404) from error
        except WsiAtsError as error:  # the page lives, and shows why this tile is grey
            tile, kind = grey_tile(str(error)), "image/svg+xml"
            self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", kind)
        self.finish(tile)


def grey_tile(message: str) -> bytes:
    """Draw a tile that shows a message, as SVG."""
    lines = wrap(message, 38, max_lines=12)
    text = "".join(f'<tspan x="10" dy="17">{escape(line)}</tspan>' for line in lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE}" height="{SIZE}">'
        f'<rect width="100%" height="100%" fill="#bbb"/><text font-family="sans-serif" font-size="12">{text}'
        "</text></svg>"
    ).encode()


@asynccontextmanager
async def served(collection: Collection, port: int = 0) -> AsyncIterator[str]:
    """Answer requests for as long as the context lasts, and yield the address of the page.

    Parameters
    ----------
    collection
        What is shown.
    port
        Port of 127.0.0.1; 0 takes a free one.

    Raises
    ------
    SettingsError
        When the port is in use or not allowed.
    """
    service = _Service(collection, secrets.token_urlsafe(24))
    given = {"service": service}
    names = "|".join(name.replace(".", r"\.") for name in collection.files())
    app = Application(
        [
            (rf"/[^/]+/({names}|)", _File, given),
            (r"/[^/]+/slides\.json", _Table, given),
            (r"/[^/]+/slides/([0-9]{1,9})\.json", _Slide, given),
            (r"/[^/]+/slides/([0-9]{1,9})/([0-9]{1,2})/([0-9]{1,9})_([0-9]{1,9})\.jpg", _Tile, given),
        ],
        default_handler_class=_Handler,
        default_handler_args=given,
        log_function=lambda _: None,  # its lines would hold the token
    )
    try:
        sockets = bind_sockets(port, ADDRESS)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use, perhaps by another viewer" if taken else f"cannot be used: {error.strerror}"
        raise SettingsError(
            f"port {port} of {ADDRESS} {reason}; choose another --port, or leave it out for a free one"
        ) from error
    server = HTTPServer(app)
    server.add_sockets(sockets)
    try:
        yield f"http://{ADDRESS}:{sockets[0].getsockname()[1]}/{service.token}/"
    finally:
        server.stop()
        await server.close_all_connections()
        service.threads.shutdown(cancel_futures=True)
        collection.close()


def serve(collection: Collection, port: int, announce: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Parameters
    ----------
    collection, port
        See :func:`served`.
    announce
        Receives the address of the page.
    """

    async def until_stopped() -> None:
        stop = asyncio.Event()
        async with served(collection, port) as url:
            for each in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(each, stop.set)
            announce(url)
            await stop.wait()

    asyncio.run(until_stopped())
