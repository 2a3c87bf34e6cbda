"""Fingerprints of slides, by which a record knows whether its file is still the same."""

from __future__ import annotations

from pathlib import Path

from wsi_ats.errors import SlideOpenError
from wsi_ats.files import digest_of
from wsi_ats.slides.storage import is_remote

# Files that identify a folder of Zarr: its own metadata, and those of its levels.
_ZARR_METADATA = ("zarr.json", ".zattrs", "*/zarr.json", "*/.zarray")

# Long enough to tell slides apart that a scanner wrote with the same size in the same second.
_HEADER_BYTES = 1 << 16


def slide_digest(path: str) -> str:
    """Return the fingerprint of a slide's file: of its size, time of change and first bytes.

    For a folder of Zarr, it is that of all its metadata, which are written last. To read a whole slide would
    cost more than to score it. A missing file has a fingerprint too, so that its absence can be recorded.
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
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        return digest_of("unreadable", type(error).__name__)
    return digest_of(str(facts.st_size), str(facts.st_mtime_ns), header)


def _remote_digest(url: str) -> str:
    """Return the fingerprint of a slide in a store: of size, ETag or time of change, and first bytes."""
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
            return digest_of(str(file.size), file.mark, header)
    return digest_of("unreadable", reason)
