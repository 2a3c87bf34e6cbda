"""Slides: how one is named, opened and read.

Everything else sees only :class:`SlideRef`, :class:`Slide` and :func:`open_slide`; which library reads
which file is known in this folder alone.
"""

from __future__ import annotations

from pathlib import Path

from wsi_ats.slides.base import Mpp, Slide, SlideRef

__all__ = ["Mpp", "Slide", "SlideRef", "open_slide"]


def open_slide(ref: SlideRef | str | Path) -> Slide:
    """Open a slide; pixels are read only when asked for.

    Parameters
    ----------
    ref
        A reference, or the path of a file.

    Raises
    ------
    SlideOpenError
        When the file is missing, damaged or of a format no reader knows.

    Examples
    --------
    >>> with open_slide("scans/case7.svs") as slide:  # doctest: +SKIP
    ...     slide.levels[0].width
    """
    from wsi_ats.slides.openslide import OpenSlideSlide

    if not isinstance(ref, SlideRef):
        ref = SlideRef.from_path(ref)
    return OpenSlideSlide(ref.path, mpp=ref.mpp)
