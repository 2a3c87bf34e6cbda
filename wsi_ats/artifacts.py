"""Files that are either whole or not there, and folders that one run holds at a time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from wsi_ats.errors import ArtifactError, LockedError, SettingsError, SlideOpenError
from wsi_ats.geometry import Grid
from wsi_ats.selection import AttentionMap, Quality, TissueMask
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.storage import is_remote

# What of a folder of Zarr tells it from others: its own metadata, and those of its levels.
_ZARR_METADATA = ("zarr.json", ".zattrs", "*/zarr.json", "*/.zarray")

# A process that has taken a folder writes its name there at once, unless the machine is busy.
_OWNER_LOOKS, _OWNER_SECONDS = 20, 0.1

# Long enough to tell slides apart that a scanner wrote with one size in one second.
_HEADER_BYTES = 1 << 16


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it takes its own name only when it is complete.

    Parameters
    ----------
    path
        The final name; its folder is made if need be.

    Yields
    ------
    Path
        Where to write. After an error it is removed and what stood under the final name is untouched.

    Raises
    ------
    ArtifactError
        When the folder cannot be made or written to.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "scores.txt"
    >>> with atomic(target) as temporary:
    ...     _ = temporary.write_text("done")
    >>> target.read_text()
    'done'
    """
    # Without the name, which may be as long as names can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask allows; some writers make files private
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror or error}; check the disk's free space and the "
            "folder's permissions"
        ) from error
    finally:
        with suppress(OSError):  # nothing is left where nothing could be written
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what :func:`atomic` was writing into a folder when its process was killed.

    Only whoever holds the folder may do so; see :func:`locked`.

    Parameters
    ----------
    folder
        The folder; it may be missing.
    """
    for path in folder.glob(".*.part*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold an output folder against other runs.

    The operating system drops the lock when its process dies, however it dies, so no lock is ever stale.

    Parameters
    ----------
    folder
        The folder; it is made if need be.
    command
        Told to whoever is refused.

    Raises
    ------
    LockedError
        When another run holds the folder; names it.
    ArtifactError
        When the folder cannot be made or written to.
    """
    owner = folder / ".owner.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        held = _owner(owner)
        raise LockedError(
            f"{folder} is in use by process {held.get('process', '?')} on {held.get('host', '?')} "
            f"({held.get('command', 'still starting')}); wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written to: {error.strerror or error}") from error
    try:
        write_json(owner, {"process": os.getpid(), "host": platform.node(), "command": command})
        yield
        owner.unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(path: Path) -> dict[str, Any]:
    """Who holds a folder; whoever has just taken it is given time to write that down."""
    for _ in range(_OWNER_LOOKS):
        if path.exists():
            return read_json(path)
        time.sleep(_OWNER_SECONDS)
    return {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, atomically; not-a-number is refused."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    ArtifactError
        When the file is missing or holds no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; was the run completed?") from error
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} should hold a JSON object, not a {type(record).__name__}")
    return record


def digest_of(*parts: str) -> str:
    """Fingerprint of some texts."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


def slide_digest(path: str) -> str:
    """Fingerprint of a slide's file: its size, time of change and first bytes.

    Of a folder of Zarr, the same of all its metadata, which are written last. Reading a whole slide to
    recognise it would cost more than scoring it. A missing file has a fingerprint too, so that its absence
    can be recorded.
    """
    if is_remote(path):
        return _remote_digest(path)
    try:
        facts = Path(path).stat()
        if not Path(path).is_file():
            metadata = sorted(file for name in _ZARR_METADATA for file in Path(path).glob(name))
            if metadata:
                return digest_of("zarr", *(slide_digest(str(file)) for file in metadata))
            return digest_of("folder", str(facts.st_mtime_ns))
        with Path(path).open("rb") as file:
            header = hashlib.sha256(file.read(_HEADER_BYTES)).hexdigest()
    except OSError as error:
        return digest_of("unreadable", type(error).__name__)
    return digest_of(str(facts.st_size), str(facts.st_mtime_ns), header)


def _remote_digest(url: str) -> str:
    """Fingerprint of a slide in a store: its size, ETag or time of change, and first bytes; one request."""
    from wsi_ats.slides.remote import RemoteFile

    folder = url.rstrip("/")
    names = [f"{folder}/zarr.json", f"{folder}/.zattrs"] if folder.endswith(".zarr") else [url]
    reason = ""
    for name in names:
        try:
            file = RemoteFile(name)
            with file.open() as opened:
                header = hashlib.sha256(opened.read(_HEADER_BYTES)).hexdigest()
        except SlideOpenError as error:
            reason = type(error).__name__
        else:
            return digest_of(str(file.size), file.mark, header)
    return digest_of("unreadable", reason)


@dataclass(frozen=True)
class Prepared:
    """What ``prepare`` keeps of a slide.

    Parameters
    ----------
    thumbnail
        RGB, uint8, shape (rows * p, columns * p, 3).
    tissue
        Tissue cells and their grid.
    quality
        What spoils them, as far as it was told.
    """

    thumbnail: Pixels
    tissue: TissueMask
    quality: Quality = field(default_factory=Quality)


def save_prepared(path: Path, prepared: Prepared) -> None:
    """Write a thumbnail with its tissue and quality, atomically."""
    _save_arrays(
        path,
        prepared.tissue.grid,
        thumbnail=prepared.thumbnail,
        fraction=prepared.tissue.fraction,
        mask=prepared.tissue.mask,
        **prepared.quality.maps,
    )


def load_prepared(path: Path) -> Prepared:
    """Read what :func:`save_prepared` wrote.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    maps = [each.name for each in fields(Quality)]
    grid, arrays = _load_arrays(path, "thumbnail", "fraction", "mask", optional=maps)
    return Prepared(
        arrays["thumbnail"],
        TissueMask(grid, arrays["fraction"], arrays["mask"]),
        Quality(**{name: arrays[name] for name in maps if name in arrays}),
    )


def save_attention(path: Path, attention: AttentionMap) -> None:
    """Write an attention map, atomically."""
    _save_arrays(path, attention.grid, attention=attention.attention, tissue=attention.tissue)


def load_attention(path: Path) -> AttentionMap:
    """Read what :func:`save_attention` wrote.

    Raises
    ------
    ArtifactError
        When the file is missing or damaged.
    """
    grid, arrays = _load_arrays(path, "attention", "tissue")
    return AttentionMap(grid, arrays["attention"], arrays["tissue"])


def _save_arrays(path: Path, grid: Grid, **arrays: np.ndarray[Any, Any]) -> None:
    with atomic(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, grid=json.dumps(asdict(grid)), **arrays)


# All that a changed byte was seen to raise; that of an unknown compression is a RuntimeError.
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    SettingsError,
)


def _load_arrays(path: Path, *names: str, optional: Sequence[str] = ()) -> tuple[Grid, dict[str, Any]]:
    try:
        # Opened here: numpy leaves a file open that it finds damaged.
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            there = [name for name in optional if name in file]
            return Grid(**json.loads(str(file["grid"]))), {name: file[name] for name in (*names, *there)}
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}; make it again") from error
