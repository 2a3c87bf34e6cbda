"""Files in object stores and on web servers: the only import of fsspec.

Only the byte ranges that are needed are requested: neighbouring ranges are joined, and all ranges of a batch
are fetched at once. Answers are checked for their length, and for changes to the file since its index was
read.

``s3://`` needs the package s3fs, ``https://`` and ``http://`` need aiohttp; both come with
``wsi-ats[remote]``. Other stores that fsspec supports (``gs://``, ``abfs://`` ...) need the package that
fsspec names; they are not tested.

Credentials are read by the store's own library: for S3 from the variables ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN`` and ``AWS_PROFILE``, the files in ``~/.aws``, or the
machine's role. ``AWS_ENDPOINT_URL`` selects a server other than Amazon's, such as MinIO. Any option of an
fsspec file system can be set by a variable, for example ``FSSPEC_S3_ANON=true`` for public buckets, or in
``~/.config/fsspec/``. Workers on other machines need the same settings there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.asyn import get_loop, sync

from wsi_ats.errors import ManifestError, SlideError, SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray
from wsi_ats.slides.answers import (
    COPY,
    Answer,
    FailedError,
    alone,
    ask_http,
    ask_s3,
    asking,
    failure_of,
    raised,
)
from wsi_ats.slides.ranges import BLOCK, Blocks, joined

if TYPE_CHECKING:
    from wsi_ats.slides.storage import Fetch

T = TypeVar("T")

# Number of simultaneous requests of one read: botocore keeps this many connections to a host.
_AT_ONCE = 10

# A listing of a million files takes minutes.
_LISTING_SECONDS = 600.0

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"}


@dataclass(frozen=True, slots=True)
class Patience:
    """The time limits and tries for a store's answers.

    Parameters
    ----------
    tries
        Number of tries for one range, if connections drop or the server is busy or silent. File systems also
        retry by themselves, within the time of one try.
    pause
        Seconds before the second try; each further pause is twice as long.
    seconds
        Time limit for an empty answer: a busy store answers within a few seconds.
    bytes_per_second
        Lowest speed: slower requests are cancelled, because a slide would take hours.

    Examples
    --------
    >>> Patience().limit(8 << 20)
    158.0
    """

    tries: int = 3
    pause: float = 0.5
    seconds: float = 30.0
    bytes_per_second: int = 64 << 10

    def limit(self, size: int) -> float:
        """Return the time limit in seconds for a request of ``size`` bytes."""
        return self.seconds + size / self.bytes_per_second


PATIENCE = Patience()


class RemoteFile:
    """A file at a URL; a :class:`wsi_ats.slides.storage.Storage`.

    Parameters
    ----------
    path
        Its URL.
    patience
        Time limits and tries.

    Attributes
    ----------
    size : int
        Its size in bytes.
    mark : str
        Its ETag or time of last change; empty if the store reports neither.

    Raises
    ------
    SlideOpenError
        When there is no such file, the store refuses access or does not support ranges, or a package is
        missing.

    Examples
    --------
    >>> import fsspec
    >>> import numpy as np
    >>> fsspec.filesystem("memory").pipe_file("/a.svs", b"0123456789")
    >>> file = RemoteFile("memory://a.svs")
    >>> bytes(file.fetch(np.array([3]), np.array([2]))(0))
    b'34'
    """

    def __init__(self, path: str, *, patience: Patience = PATIENCE) -> None:
        self.path = path
        self._patience = patience
        self._bytes_read = 0
        self._closed = False
        self._process = os.getpid()
        try:
            self._files, self._name = _files_of(path)
        except ValueError as error:
            raise SlideOpenError(path, str(error)) from error
        self._loop = self._files.loop if self._files.async_impl else get_loop()
        self._ask = asking(self._files)
        self.size, self.mark = -1, ""  # set by the first answer
        self.size, self.mark, self._start = self._run(self._opened, SlideOpenError)

    @property
    def bytes_read(self) -> int:
        """Bytes that the store has sent so far, including the index and the gaps between joined ranges."""
        return self._bytes_read

    def fetch(self, offsets: IntArray, sizes: IntArray) -> Fetch:
        """See :meth:`wsi_ats.slides.storage.Storage.fetch`; all bytes have arrived when it returns."""
        return self._fetch(offsets.tolist(), sizes.tolist(), SlideReadError)

    def open(self) -> BinaryIO:
        """See :meth:`wsi_ats.slides.storage.Storage.open`; the blocks that were read are kept."""

        def fetch(offsets: list[int], sizes: list[int]) -> Fetch:
            return self._fetch(offsets, sizes, SlideOpenError)

        return cast(BinaryIO, Blocks(self.path, self.size, self._start, fetch))

    def close(self) -> None:
        """See :meth:`wsi_ats.slides.storage.Storage.close`. Connections are kept for other files."""
        self._closed = True

    def _fetch(self, offsets: list[int], sizes: list[int], kind: type[SlideError]) -> Fetch:
        if self._closed:
            raise SlideReadError(self.path, "the slide is closed; open it again to read")
        if os.getpid() != self._process:
            raise kind(self.path, "it was opened by another process; open it again in this one")
        requests, places = joined(offsets, sizes)
        bodies = self._run(lambda: self._all(requests), kind)

        def part(i: int) -> memoryview:
            if not sizes[i]:
                return memoryview(b"")
            begin = offsets[i] - requests[places[i]][0]
            return bodies[places[i]][begin : begin + sizes[i]]

        return part

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], kind: type[SlideError]) -> T:
        """Run a coroutine in fsspec's own thread."""
        try:
            return cast(T, sync(self._loop, work))
        except FailedError as error:
            raise kind(self.path, str(error)) from error

    async def _opened(self) -> tuple[int, str, memoryview]:
        """Return the size, mark and first bytes; web servers and S3 send all three in one answer."""
        size, mark = (None, "") if self._ask in {ask_http, ask_s3} else await self._about()
        stop = BLOCK if size is None else min(BLOCK, size)
        if not stop:
            return 0, mark, memoryview(b"")
        answer, body = await self._request(0, stop)
        size = answer.size if size is None else size
        if size is None:
            raise FailedError(f"its server does not report its size; {COPY}")
        if len(body) != min(size, stop):
            raise FailedError(f"its server sent {len(body)} of {min(size, stop)} bytes; is it at fault?")
        return size, answer.mark or mark, body

    async def _about(self) -> tuple[int, str]:
        """Return the size and mark, from stores that do not send them with each answer."""

        async def ask() -> dict[str, Any]:
            async with asyncio.timeout(self._patience.limit(0)):
                if self._files.async_impl:
                    return cast(dict[str, Any], await self._files._info(self._name))
                return await asyncio.to_thread(alone, self._files.info, self._name)

        info = await self._several_tries(ask, 0)
        if info.get("type") == "directory":
            raise FailedError("it is a folder, not a file; check the URL in the manifest")
        if info.get("size") is None:
            raise FailedError(f"its server does not report its size; {COPY}")
        names = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "modified", "created")
        return int(info["size"]), next((str(info[name]) for name in names if info.get(name)), "")

    async def _all(self, requests: list[tuple[int, int]]) -> list[memoryview]:
        """Fetch ranges, several at a time; the first failure cancels the others."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(start: int, stop: int) -> memoryview:
            if stop > self.size:
                raise FailedError(f"bytes {start} to {stop} are beyond its end")
            async with limit:
                _, body = await self._request(start, stop)
            if len(body) != stop - start:
                raise FailedError(
                    f"its server sent {len(body)} of {stop - start} bytes; has the file changed?"
                )
            return body

        tasks = [asyncio.ensure_future(one(*request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _request(self, start: int, stop: int) -> tuple[Answer, memoryview]:
        async def ask() -> tuple[Answer, memoryview]:
            async with (
                asyncio.timeout(self._patience.limit(stop - start)),
                self._ask(self._files, self._name, start, stop) as answer,
            ):
                self._check(answer)
                body = bytearray()
                async for chunk in answer.chunks:
                    self._bytes_read += len(chunk)
                    body += chunk
                    if len(body) > stop - start:
                        raise FailedError(f"its server sends more bytes than were requested; {COPY}")
            expected = stop - start if answer.size is None else min(stop, answer.size) - start
            if len(body) < expected:
                raise FailedError(f"only {len(body)} of {expected} bytes arrived", passing=True)
            return answer, memoryview(body)

        return await self._several_tries(ask, stop - start)

    def _check(self, answer: Answer) -> None:
        """Refuse an answer if the file has changed since it was opened."""
        if self.size < 0:
            return
        if answer.size not in {None, self.size} or (answer.mark and self.mark and answer.mark != self.mark):
            raise FailedError(
                f"it has changed since it was opened: it had {self.size} bytes and the mark {self.mark}, now "
                f"it has {answer.size} and {answer.mark}; open it again"
            )

    async def _several_tries(self, ask: Callable[[], Coroutine[Any, Any, T]], size: int) -> T:
        tries = self._patience.tries
        for number in range(tries):
            try:
                return await ask()
            except FailedError as error:
                failure = error
            except raised() as error:
                failure = failure_of(error, self._patience.limit(size))
            if not failure.passing:
                raise failure
            if number + 1 < tries:
                await asyncio.sleep(self._patience.pause * 2**number)
        raise FailedError(f"{failure} (tried {tries} times); check the network and the server") from failure


def find_files(url: str) -> list[str]:
    """List files in a store.

    Parameters
    ----------
    url
        A file; a folder, for all files in and below it; or a pattern with ``*``, ``?``, ``[...]`` or ``**``,
        unless a file has exactly that name (``slide[1].svs``, ``slide.svs?versionId=...``).

    Returns
    -------
    list of str
        URLs, sorted; only the given URL if it is a file.

    Raises
    ------
    ManifestError
        When the store does not answer, has no such file, or is a web server, which lists no folders.

    Examples
    --------
    >>> import fsspec
    >>> fsspec.filesystem("memory").pipe_file("/listed/a.svs", b"")
    >>> find_files("memory://listed/")
    ['memory:///listed/a.svs']
    """
    try:
        files, name = _files_of(url)
    except ValueError as error:
        raise ManifestError(f"{url}: {error}") from error
    if asking(files) is ask_http:
        if "*" in url.partition("?")[0] or url.endswith("/"):
            raise ManifestError(
                f"{url}: web servers do not list their files; name each slide, or give a table of slides "
                "with the URLs in a column path"
            )
        return [url]
    magic = any(each in name for each in "*?[")

    async def look() -> dict[str, dict[str, Any]]:
        async with asyncio.timeout(_LISTING_SECONDS):
            if magic and await _is_there(files, name):
                return {name: {"type": "file"}}
            if files.async_impl:
                work = files._glob(name, detail=True) if magic else files._find(name, detail=True)
                return cast(dict[str, dict[str, Any]], await work)
            work = files.glob if magic else files.find
            return await asyncio.to_thread(alone, work, name, detail=True)

    try:
        files.invalidate_cache()
        found = sync(files.loop if files.async_impl else get_loop(), look)
    except raised() as error:
        raise ManifestError(f"{url}: {failure_of(error, _LISTING_SECONDS)}") from error
    names = sorted(each for each, info in found.items() if info["type"] == "file" and not each.endswith("/"))
    if not names:
        raise ManifestError(f"{url}: no such file or folder in the store, or nothing in it")
    return [url] if names == [name] else [str(files.unstrip_protocol(each)) for each in names]


async def _is_there(files: Any, name: str) -> bool:
    """Return whether a name that looks like a pattern is a file, by requesting one byte."""
    try:
        async with asking(files)(files, name, 0, 1):
            return True
    except FailedError:
        return False
    except raised():
        return False


def _files_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the file's name in it; raise a ``ValueError`` if there is none."""
    protocol = url.partition("://")[0]
    try:
        files, name = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        advice = f'{package} is not installed; pip install "wsi-ats[remote]"' if package else str(error)
        raise ValueError(f"the package for {protocol}:// is missing: {advice}") from error
    except ValueError as error:
        raise ValueError(
            f"{protocol}:// is not a known protocol ({error}); expected s3://, https://, http:// or another "
            "protocol of fsspec"
        ) from error
    return files, name
