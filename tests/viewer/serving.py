"""A viewer in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

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
