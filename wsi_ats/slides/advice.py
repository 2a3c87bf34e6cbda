"""Advice on files that cannot be read, from the text of the error.

OpenSlide, the decoders and Zarr raise the same error class for all problems: only the text shows whether a
copy is incomplete or a file is damaged.
"""

from __future__ import annotations

import re

# Words with which OpenSlide, zlib, numpy and this library describe incomplete files.
_CUT_SHORT = re.compile(
    r"beyond|\beof\b|end of file|too short|short read|truncat|not enough data|premature|no such file|missing|"
    r"requires a buffer|only zeros",
    re.IGNORECASE,
)

# Words with which they describe intact files of an unsupported kind.
_NOT_READ = re.compile(r"unsupported|not supported|can not handle", re.IGNORECASE)


def advice_on(problem: str) -> str:
    """Return advice on a file that cannot be read: copy it again, convert it, or have it written again.

    Parameters
    ----------
    problem
        The text of the error.

    Examples
    --------
    >>> advice_on("TIFFFillTile: Read error at row 0: Short read")
    'is the copy complete?'
    >>> advice_on("Unsupported TIFF compression: 34712")
    'convert it, with vips or bioformats2raw for example'
    >>> advice_on("Dimensional mismatch reading JPEG")
    'the file is damaged, or was written wrongly; copy it again, or have it written again'
    """
    if _CUT_SHORT.search(problem):
        return "is the copy complete?"
    if _NOT_READ.search(problem):
        return "convert it, with vips or bioformats2raw for example"
    return "the file is damaged, or was written wrongly; copy it again, or have it written again"
