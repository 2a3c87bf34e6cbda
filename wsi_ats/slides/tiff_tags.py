"""Pages and tags of a TIFF file, listed by tifffile and checked, because it skips those it cannot read."""

from __future__ import annotations

import struct
from typing import Any, cast

# The sequence of pages may seem endless in a file with a damaged index.
_MOST_PAGES = 10_000

# Largest part of a text that is read, to recognise the file's vendor.
_MOST_TEXT = 1 << 20

# Types of a value, by number.
_BYTES, _WHOLE, RATIONAL, REAL = {1, 2, 7}, {1, 3, 4, 13, 16, 18}, {5, 10}, {11, 12}

# Bytes of a value, by the number of its type.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= dict.fromkeys((16, 17, 18), 8)

# The place of the DICOM mark, regardless of the file's first bytes.
_DICOM = slice(128, 132)
HEADER_BYTES = _DICOM.stop
"""Bytes that :func:`is_tiff` needs."""


def is_tiff(start: bytes) -> bool:
    """Return whether a file is TIFF, from its first bytes; DICOM may begin like TIFF, and is excluded."""
    return start[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"} and start[_DICOM] != b"DICM"


def pages_of(tiff: Any) -> list[tuple[Any, bool]]:
    """Return all pages of a ``tifffile.TiffFile``, each with a flag for pages below another (SubIFDs).

    Raises
    ------
    ValueError
        When a page or one of its tags cannot be read, or there are too many pages. Errors of tifffile are not
        translated.
    """
    pages: list[tuple[Any, bool]] = []
    _check_sequence(tiff)
    for page in tiff.pages:
        pages.append((page, False))
        below = len(page.subifds or ())
        if len(pages) + below > _MOST_PAGES:
            raise ValueError(f"more than {_MOST_PAGES} images")
        if below:
            found = list(page.pages or ())
            if len(found) < below:
                raise ValueError(f"{len(found)} of {below} images below another one")
            pages += [(each, True) for each in found]
    if not pages:
        raise ValueError("no image")
    for page, _ in pages:
        _check_tags(page)
    return pages


def _check_sequence(tiff: Any) -> None:
    """Follow the sequence of images to its end; at damage, tifffile stops and only logs it."""
    file, form, seen, place = tiff.filehandle, tiff.tiff, set[int](), int(tiff.pages.first.offset)
    while place:
        if place in seen:
            raise ValueError(f"image {len(seen) + 1} in the sequence repeats an earlier one")
        seen.add(place)
        if len(seen) > _MOST_PAGES:
            raise ValueError(f"more than {_MOST_PAGES} images")
        file.seek(place)
        (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        file.seek(place + form.tagnosize + count * form.tagsize)
        (place,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))


def _check_tags(page: Any) -> None:
    """Refuse an image with unreadable tags; tifffile leaves them out and only logs it."""
    tiff, file = page.parent.tiff, page.parent.filehandle
    file.seek(page.offset)
    (count,) = struct.unpack(tiff.tagnoformat, file.read(tiff.tagnosize))
    if len(page.tags) != count:
        entries = file.read(count * tiff.tagsize)
        where = "" if tiff.is_ndpi else _where_cut(entries, tiff, file.size)
        raise ValueError(f"{count - len(page.tags)} of {count} tags of an image cannot be read{where}")


def _where_cut(entries: bytes, form: Any, size: int) -> str:
    """Return a text on tag values beyond the end of a file of ``size`` bytes; empty if there are none."""
    for place in range(0, len(entries), form.tagsize):
        _, kind, count, value = struct.unpack(form.tagheaderformat, entries[place : place + form.tagsize])
        (start,) = struct.unpack(form.offsetformat, value)
        length = count * _SIZES.get(kind, 0)
        if length > form.tagoffsetthreshold and start + length > size:
            return f": values at {start} lie beyond the end of the file, {size} bytes"
    return ""


def text_of(page: Any, code: int) -> bytes:
    """Return the beginning of a tag's stored text; empty without the tag."""
    tag = page.tags.get(code)
    if tag is None or tag.dtype not in _BYTES:
        return b""
    file = page.parent.filehandle
    file.seek(tag.valueoffset)
    return cast(bytes, file.read(min(tag.valuebytecount, _MOST_TEXT))).partition(b"\0")[0]


def description_of(page: Any) -> str:
    """Return the beginning of a page's description (tag 270)."""
    return text_of(page, 270).decode(errors="replace")


def bytes_of(page: Any, code: int) -> bytes | None:
    """Return the bytes of a tag; ``None`` without the tag.

    Raises
    ------
    ValueError
        When its values are not bytes, or lie beyond the end of the file.
    """
    tag = page.tags.get(code)
    if tag is None:
        return None
    file = page.parent.filehandle
    if tag.dtype not in {1, 7} or tag.valueoffset + tag.valuebytecount > file.size:
        raise ValueError(
            f"tag {code} has {tag.count} values of type {tag.dtype}, expected bytes within the file"
        )
    file.seek(tag.valueoffset)
    return cast(bytes, file.read(tag.valuebytecount))


def number_of(page: Any, code: int, default: int) -> int:
    """Return the first integer of a tag.

    Parameters
    ----------
    page
        The page.
    code
        Number of the tag.
    default
        The result without the tag, or if its values are not integers.
    """
    tag = page.tags.get(code)
    if tag is None or tag.dtype not in _WHOLE or not tag.count:
        return default
    value = tag.value
    return int(value[0] if isinstance(value, bytes | tuple) else value)


def is_reduced(page: Any) -> bool:
    """Return whether a page is marked as another image at a lower resolution (tag 254)."""
    return bool(number_of(page, 254, 0) & 1)


def orientation_of(page: Any) -> int:
    """Return the number for the order of rows and columns (tag 274); 1 is upright."""
    return number_of(page, 274, 1)
