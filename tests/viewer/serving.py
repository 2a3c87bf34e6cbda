"""A viewer in a thread of the test, and requests to it."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from urllib.parse import urlsplit

from wsi_ats.viewer.collection import Collection
from wsi_ats.viewer.server import served


@contextmanager
def running(collection: Collection) -> Iterator[str]:
    """Answer requests for as long as the context lasts, and yield the address."""
    loop, stop, urls = asyncio.new_event_loop(), asyncio.Event(), Queue[str]()

    async def run() -> None:
        async with served(collection) as url:
            urls.put(url)
            await stop.wait()

    def in_thread() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=in_thread)
    thread.start()
    try:
        yield urls.get(timeout=60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def ask_path(url: str, path: str, *, host: str | None = None, method: str = "GET"):
    """Send a path as it is, which may be one that a client would mend; gives status, headers and body."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or place.netloc)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def ask(url: str, name: str = "", **options):
    """Ask for a part of the page; see :func:`ask_path`."""
    return ask_path(url, urlsplit(url).path + name, **options)
