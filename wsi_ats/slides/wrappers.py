"""Slides that wrap other slides: the base class, and a slide that records its reads."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ats.geometry import IntArray
from wsi_ats.slides.base import Pixels, Slide


@dataclass(frozen=True, slots=True)
class Request:
    """One call of ``read_regions``.

    Parameters
    ----------
    level
        The level that was read.
    regions, pixels
        Number of regions, and of their pixels.
    stored_bytes
        Result of :meth:`wsi_ats.slides.base.Slide.stored_bytes`.
    """

    level: int
    regions: int
    pixels: int
    stored_bytes: int | None


class WrappedSlide(Slide):
    """A slide that wraps another one; subclasses define only the reading of regions.

    Parameters
    ----------
    inner
        The slide that does the reading.
    """

    def __init__(self, inner: Slide) -> None:
        self.info = inner.info
        self._inner = inner

    @property
    def icc(self) -> bytes | None:
        """The inner slide's."""
        return self._inner.icc

    @property
    def bytes_read(self) -> int | None:
        """The inner slide's."""
        return self._inner.bytes_read

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """Return the inner slide's stored bytes."""
        return self._inner.stored_bytes(level, corners, width, height)

    def close(self) -> None:
        """Close the inner slide."""
        self._inner.close()


class CountingSlide(WrappedSlide):
    """A slide that records every read.

    Parameters
    ----------
    inner
        The slide that does the reading.

    Attributes
    ----------
    requests : list of Request
        Every read, in order.
    """

    def __init__(self, inner: Slide) -> None:
        super().__init__(inner)
        self.requests: list[Request] = []

    @property
    def stored_bytes_read(self) -> int | None:
        """Compressed bytes of all tiles that were read; ``None`` if the format does not record them."""
        sizes = [request.stored_bytes for request in self.requests]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read from the inner slide and record the request."""
        pixels = self._inner.read_regions(level, corners, width, height)
        stored = self._inner.stored_bytes(level, corners, width, height)
        self.requests.append(Request(level, len(corners), len(corners) * width * height, stored))
        return pixels
