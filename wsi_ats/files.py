"""Files that are either complete or absent, folders locked by one run at a time, and fingerprints."""

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

# A process that has just locked a folder records itself there at once, unless the machine is busy.
_OWNER_LOOKS, _OWNER_SECONDS = 20, 0.1


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name, and rename it when it is complete.

    Parameters
    ----------
    path
        The final name; its folder is created if needed.

    Yields
    ------
    Path
        The temporary file. After an error it is removed, and any file under the final name is unchanged.

    Raises
    ------
    ArtifactError
        When the folder cannot be created or written to.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "scores.txt"
    >>> with atomic(target) as temporary:
    ...     _ = temporary.write_text("done")
    >>> target.read_text()
    'done'
    """
    # The file's own name is left out, because it may already have the greatest length allowed.
    temporary = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # follows the user's umask; some writers make files private
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
        with suppress(OSError):  # if the folder cannot be written to, there is nothing to remove
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove temporary files that :func:`atomic` left behind when its process was killed.

    The caller must hold the folder; see :func:`locked`.

    Parameters
    ----------
    folder
        The folder; it may be missing.
    """
    for path in folder.glob(".*.part*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Lock an output folder so that no other run can use it.

    The operating system releases the lock when the process ends for any reason, so locks never become stale.

    Parameters
    ----------
    folder
        The folder; it is created if needed.
    command
        This run's command, which the error shows to a run that is refused.

    Raises
    ------
    LockedError
        When another run holds the folder; the message names that run.
    ArtifactError
        When the folder cannot be created or written to.
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
    """Read which run holds a folder; wait briefly for a run that has just locked it."""
    for _ in range(_OWNER_LOOKS):
        if path.exists():
            return read_json(path)
        time.sleep(_OWNER_SECONDS)
    return {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, atomically; NaN and infinity are refused."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ArtifactError
        When the file is missing or does not hold a JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; was the run completed?") from error
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} must hold a JSON object, not a {type(record).__name__}")
    return record


def digest_of(*parts: str | bytes) -> str:
    """Return a fingerprint of texts and bytes: 16 hexadecimal digits.

    Examples
    --------
    >>> digest_of("a", "b"), digest_of("a", b"b")
    ('59b271ae1bbcb1d3', '11897bce6ae93e03')
    """
    texts = (part if isinstance(part, str) else hashlib.sha256(part).hexdigest() for part in parts)
    return hashlib.sha256("\x00".join(texts).encode()).hexdigest()[:16]


def save_arrays(path: Path, grid: Grid, **arrays: np.ndarray[Any, Any]) -> None:
    """Write arrays and the grid that they belong to, compressed and atomically.

    Parameters
    ----------
    path
        The file.
    grid
        Grid of the arrays' cells.
    **arrays
        Arrays by name; read them with :func:`load_arrays`.
    """
    with atomic(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, grid=json.dumps(asdict(grid)), **arrays)


# All errors that a changed byte was seen to raise; an unknown compression raises RuntimeError.
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
    """Read a file that :func:`save_arrays` wrote.

    Parameters
    ----------
    path
        The file.
    *names
        Arrays that must be there.
    optional
        Arrays that may be missing; the result then lacks them.

    Raises
    ------
    ArtifactError
        When the file or an array is missing, or the file is damaged.
    """
    try:
        # The file is opened here because numpy does not close a damaged file.
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            there = [name for name in optional if name in file]
            return Grid(**json.loads(str(file["grid"]))), {name: file[name] for name in (*names, *there)}
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}; make it again") from error
