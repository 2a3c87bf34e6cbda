"""Files that are either complete or absent, folders that one run holds at a time, and fingerprints."""

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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from wsi_ats.errors import ArtifactError, LockedError, SettingsError
from wsi_ats.geometry import Grid

# A process that has locked a folder writes its name there at once, unless the machine is busy.
_OWNER_LOOKS, _OWNER_SECONDS = 20, 0.1


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
        The temporary file. After an error it is removed, and a file under the final name is untouched.

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
    # Without the file's own name, which may be as long as names can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # by the user's umask; some writers make files private
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
        Named in the error of a run that is refused.

    Raises
    ------
    LockedError
        When another run holds the folder; the message names that run.
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
    """Read who holds a folder, with a little patience for a run that has just locked it."""
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


def digest_of(*parts: str | bytes) -> str:
    """Return the fingerprint of some texts and bytes: 16 hexadecimal digits.

    Examples
    --------
    >>> digest_of("a", "b"), digest_of("a", b"b")
    ('59b271ae1bbcb1d3', '11897bce6ae93e03')
    """
    texts = (part if isinstance(part, str) else hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()[:16]


def save_arrays(path: Path, grid: Grid, **arrays: np.ndarray[Any, Any]) -> None:
    """Write arrays over the cells of a grid, compressed and atomically.

    Parameters
    ----------
    path
        The file.
    grid
        Of the cells.
    **arrays
        By name; :func:`load_arrays` returns them.
    """
    with atomic(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, grid=json.dumps(asdict(grid)), **arrays)


# All that a changed byte was seen to raise; an unknown compression raises RuntimeError.
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


def load_arrays(path: Path, *names: str, optional: Sequence[str] = ()) -> tuple[Grid, dict[str, Any]]:
    """Read a file of :func:`save_arrays`.

    Parameters
    ----------
    path
        The file.
    *names
        Arrays that must be there.
    optional
        Arrays that may be missing, and are then missing in the result.

    Raises
    ------
    ArtifactError
        When the file or an array is missing, or the file is damaged.
    """
    try:
        # Opened here, because numpy leaves a damaged file open.
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            there = [name for name in optional if name in file]
            return Grid(**json.loads(str(file["grid"]))), {name: file[name] for name in (*names, *there)}
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}; make it again") from error
