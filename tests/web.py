"""A real web server for tests, which serves ranges, counts bytes sent and misbehaves on request."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class WebServer(ThreadingHTTPServer):
    """Serves ``files``, by path; each is bytes or a file on the disk.

    ``trouble`` is what goes wrong with the next ``times`` requests: a status; ``drop`` the connection after
    half of the body; be ``silent``; ``drip`` a few bytes a second; send the ``whole`` file, or it
    ``endless``, without a size; a range of ``no size``, ``shifted``, ``short`` or too ``long``.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes | Path] = {}
        self.mark = True
        self.trouble: int | str | None = None
        self.times = 0
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        self.ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def misbehave(self, trouble: int | str, times: int = 1_000_000) -> None:
        self.trouble, self.times = trouble, times

    def forget(self) -> None:
        self.requests.clear()
        self.sent = 0

    def count(self, size: int) -> None:
        with self._lock:
            self.sent += size

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that disconnect are not an error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        trouble = server.trouble if server.times > 0 else None
        server.times -= trouble is not None
        file = server.files.get(self.path.partition("?")[0])
        if isinstance(trouble, int) or file is None:
            return self.refuse(trouble if isinstance(trouble, int) else 404)
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        known = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        start, last = (int(known[1]), int(known[2])) if known else (0, size - 1)
        if start >= size:
            return self.refuse(416)
        last = min(last, size - 1)
        whole = known is None or trouble in {"whole", "endless"}
        if whole:
            start, last = 0, size - 1
        self.send_response(200 if whole else 206)
        mark = md5(file if isinstance(file, bytes) else str(file).encode(), usedforsecurity=False).hexdigest()
        if server.mark:
            self.send_header("ETag", f'"{mark}"')
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        if not whole:
            total = "*" if trouble == "no size" else size
            self.send_header("Content-Range", f"bytes {start + (trouble == 'shifted')}-{last}/{total}")
        if trouble in {"endless", "long"}:
            self.send_header("Connection", "close")  # the body ends where the connection does
        else:
            last -= 10 * (trouble == "short")
            self.send_header("Content-Length", str(last + 1 - start))
        if trouble == "silent":
            server.ended.wait(10)
            self.close_connection = True
            return None
        self.end_headers()
        self.send(self.part(file, start, last + 1), trouble)
        return None

    def part(self, file: bytes | Path, start: int, stop: int) -> Iterator[bytes]:
        for at in range(start, stop, 1 << 16):
            end = min(stop, at + (1 << 16))
            if isinstance(file, bytes):
                yield file[at:end]
            else:
                with file.open("rb") as opened:
                    opened.seek(at)
                    yield opened.read(end - at)

    def send(self, chunks: Iterator[bytes], trouble: int | str | None) -> None:
        for chunk in chunks:
            if trouble == "drop":
                chunk = chunk[: len(chunk) // 2]
            elif trouble == "long":
                chunk += bytes(1000)
            for at in range(0, len(chunk), 10) if trouble == "drip" else [0]:
                some = chunk[at : at + 10] if trouble == "drip" else chunk
                self.server.count(len(some))  # before it can have arrived
                self.wfile.write(some)
                if trouble == "drip" and self.server.ended.wait(0.1):
                    break
            if trouble == "drop":
                break
        self.close_connection |= trouble in {"drop", "drip", "long", "endless"}

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def web_server() -> Iterator[WebServer]:
    """Start a server; it ends with the context."""
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
