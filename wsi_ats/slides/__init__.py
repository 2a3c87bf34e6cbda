"""Slides: how one is named, opened and read.

Everything else sees only :class:`SlideRef`, :class:`Slide` and :func:`open_slide`; which library reads
which file is known in this folder alone.
"""

from __future__ import annotations

from wsi_ats.slides.base import Mpp, Slide, SlideRef
from wsi_ats.slides.opening import Choice, choose_reader, open_slide

__all__ = ["Choice", "Mpp", "Slide", "SlideRef", "choose_reader", "open_slide"]
