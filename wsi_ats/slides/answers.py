"""Requests to stores for parts of files, and the meaning of their answers and errors.

Requests to web servers and S3 use these stores' own libraries, with the connections of fsspec's file systems:
fsspec's functions accept any answer as the requested range, even a whole file or an error page.
"""

from __future__ import annotations

import asyncio
import errno
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# Bytes of an answer that are passed on at once.
_PIECE = 64 << 10

COPY = "copy the slide to this machine, or to a server that supports ranges"

# Errors of the stores' libraries, by name: a library that raised an error has already been imported. After
# the first two groups, another try may help.
_DROPPED = (
    ("aiohttp", "ClientPayloadError"),
    ("aiohttp", "ServerDisconnectedError"),
    ("botocore.exceptions", "ConnectionClosedError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.exceptions", "ResponseStreamingError"),
)
_PASSING = (
    *_DROPPED,
    ("aiohttp", "ClientConnectionError"),
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"),
)
_LASTING = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
_NO_CREDENTIALS = (
    ("botocore.exceptions", "NoCredentialsError"),
    ("botocore.exceptions", "PartialCredentialsError"),
    ("botocore.exceptions", "ProfileNotFound"),
)
_BUSY = {408, 425, 429, 500, 502, 503, 504}

# File systems that are not asynchronous share one connection, or one position in a file, among all threads.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """A store's answer to a request for a part of a file.

    Parameters
    ----------
    size
        Size of the whole file in bytes, if the store reports it.
    mark
        The file's ETag or time of last change; empty if the store reports neither.
    chunks
        The bytes, piece by piece.
    """

    size: int | None
    mark: str
    chunks: AsyncIterator[bytes]


class FailedError(Exception):
    """A failed request; ``passing`` if another try may help."""

    def __init__(self, problem: str, *, passing: bool = False) -> None:
        super().__init__(problem)
        self.passing = passing


Ask = Callable[[Any, str, int, int], AbstractAsyncContextManager[Answer]]


def asking(files: Any) -> Ask:
    """Return the function that requests ranges from a file system."""
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    if "s3" in protocols:
        return ask_s3
    return ask_http if "http" in protocols else ask_any


@asynccontextmanager
async def ask_http(files: Any, url: str, start: int, stop: int) -> AsyncIterator[Answer]:
    """Request the bytes of ``url`` from ``start`` to ``stop``, through fsspec's connections in ``files``."""
    headers = dict(files.kwargs.get("headers", {}))
    headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    session = await files.set_session()
    async with session.get(files.encode_url(url), **{**files.kwargs, "headers": headers}) as answer:
        given = answer.headers
        if answer.status == 206:
            size = _size_of(given.get("Content-Range"), start)
        elif answer.status == 200:
            size = _whole(given.get("Content-Length"), start, stop)
        else:
            raise _refused(answer.status, str(answer.reason), start, stop)
        mark = given.get("ETag", "").removeprefix("W/") or given.get("Last-Modified", "")
        yield Answer(size, mark, answer.content.iter_any())


@asynccontextmanager
async def ask_s3(files: Any, name: str, start: int, stop: int) -> AsyncIterator[Answer]:
    """Request the bytes of ``name`` in S3 from ``start`` to ``stop``, through the connections in ``files``.

    fsspec's own function returns neither size nor ETag.
    """
    bucket, key, version = files.split_path(name)
    options = {"VersionId": version} if version else {}
    answer = await files._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **options
    )
    async with answer["Body"] as body:
        given = answer.get("ContentRange")
        size = _size_of(given, start) if given else _whole(answer.get("ContentLength"), start, stop)
        yield Answer(size, answer.get("ETag", ""), body.iter_chunks(_PIECE))


@asynccontextmanager
async def ask_any(files: Any, name: str, start: int, stop: int) -> AsyncIterator[Answer]:
    """Request the bytes of ``name`` from ``start`` to ``stop`` in other ``files``, without size and mark."""
    if files.async_impl:
        body = await files._cat_file(name, start=start, end=stop)
    else:
        body = await asyncio.to_thread(alone, files.cat_file, name, start=start, end=stop)

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    yield Answer(None, "", chunks())


def alone(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call ``work`` with ``arguments`` and ``options``, in one thread at a time."""
    with _ONE_AT_A_TIME:
        return work(*arguments, **options)


def _size_of(content_range: str | None, start: int) -> int | None:
    """Return the size of a file from the header of a part, which must be the requested part."""
    known = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range or "")
    if known is None or int(known[1]) != start:
        raise FailedError(f"bytes from {start} were requested, but its server sent {content_range!r}; {COPY}")
    return None if known[2] == "*" else int(known[2])


def _whole(length: Any, start: int, stop: int) -> int:
    """Return the size of a file that was sent whole, which must not be larger than the requested part."""
    if length is None or start or int(length) > stop:
        size = "its bytes" if length is None else f"{length} bytes"
        raise FailedError(f"a range of bytes was requested, but its server would send all {size}; {COPY}")
    return int(length)


def _refused(status: int, reason: str, start: int, stop: int) -> FailedError:
    """Return the failure for a status of a web server."""
    answer = f"{status} {reason}".strip()
    if status in {404, 410}:
        return FailedError(f"no such file ({answer}); check the URL in the manifest")
    if status in {401, 403}:
        return FailedError(_no_access(answer))
    if status == 416:
        return FailedError(f"bytes {start} to {stop} are beyond its end ({answer}); is the file complete?")
    return FailedError(f"its server answered {answer}", passing=status in _BUSY)


def _no_access(answer: str) -> str:
    return f"access is refused ({answer}); check the credentials or, for a signed URL, its expiry time"


def failure_of(error: Exception, seconds: float) -> FailedError:
    """Return the failure for an error of a file system; ``seconds`` is the time limit of the request."""
    code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    busy = isinstance(error, OSError) and error.errno in {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
    text = " ".join(str(error).split())[:300]
    if isinstance(error, FileNotFoundError):
        failure = FailedError(f"no such file ({text}); check the URL in the manifest")
    elif isinstance(error, PermissionError):
        failure = FailedError(_no_access(text))
    elif isinstance(error, _loaded(_NO_CREDENTIALS)):
        failure = FailedError(
            f"no credentials ({text}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or "
            "FSSPEC_S3_ANON=true for a public bucket"
        )
    elif code in {"InvalidRange", "416"}:
        failure = FailedError(f"the requested bytes are beyond its end ({text}); is the file complete?")
    elif isinstance(error, TimeoutError):
        failure = FailedError(f"no answer within {seconds:.3g} s", passing=True)
    elif isinstance(error, _loaded(_DROPPED)):
        failure = FailedError(f"its server dropped the connection ({type(error).__name__})", passing=True)
    else:
        passing = busy or isinstance(error, (ConnectionError, *_loaded(_PASSING)))
        failure = FailedError(f"it cannot be read: {type(error).__name__}: {text}", passing=passing)
    failure.__cause__ = error
    return failure


def raised() -> tuple[type[Exception], ...]:
    """Return the errors that file systems raise; ``ValueError`` is for names that a store does not accept."""
    return (OSError, ValueError, *_loaded(_PASSING), *_loaded(_LASTING))


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[type[Exception], ...]:
    """Return the classes whose libraries are already imported."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
