"""Fingerprints of slides, which show whether a file has changed since it was recorded."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.errors import SlideOpenError
from wsi_ats.files import digest_of
from wsi_ats.slides.storage import is_remote

# Files that identify a Zarr folder: its own metadata, and those of its levels.
_ZARR_METADATA = ("zarr.json", ".zattrs", "*/zarr.json", "*/.zarray")

# Long enough to distinguish slides of the same size that a scanner wrote in the same second.
_HEADER_BYTES = 1 << 16


def slide_digest(path: str) -> str:
    """Return a fingerprint of a slide's file, from its size, time of change and first bytes.

    For a Zarr folder, it is computed from all metadata files, which are written last. Reading a whole slide
    would cost more than scoring it. A missing file also has a fingerprint, so that its absence can be
    recorded.
    """
    return _digest(path, dated=True)


def contents_digest(path: str) -> str:
    """Return a fingerprint like :func:`slide_digest` without the time, so that copies of a slide share it."""
    return _digest(path, dated=False)


def _digest(path: str, *, dated: bool) -> str:
    if is_remote(path):
        return _remote_digest(path, dated=dated)
    try:
        facts = Path(path).stat()
        if not Path(path).is_file():
            metadata = sorted(file for name in _ZARR_METADATA for file in Path(path).glob(name))
            if metadata:
                return digest_of("zarr", *(_digest(str(file), dated=dated) for file in metadata))
            return digest_of("folder", *([str(facts.st_mtime_ns)] if dated else []))
        with Path(path).open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        return digest_of("unreadable", type(error).__name__)
    return digest_of(str(facts.st_size), *([str(facts.st_mtime_ns)] if dated else []), header)


def _remote_digest(url: str, *, dated: bool) -> str:
    """Return a fingerprint of a slide in a store, from its size, ETag or time of change, and first bytes."""
    from wsi_ats.slides.remote import RemoteFile

    folder = url.rstrip("/")
    names = [f"{folder}/zarr.json", f"{folder}/.zattrs"] if folder.endswith(".zarr") else [url]
    reason = ""
    for name in names:
        try:
            file = RemoteFile(name)
            with file.open() as opened:
                header = opened.read(_HEADER_BYTES)
        except SlideOpenError as error:
            reason = type(error).__name__
        else:
            return digest_of(str(file.size), *([file.mark] if dated else []), header)
    return digest_of("unreadable", reason)
