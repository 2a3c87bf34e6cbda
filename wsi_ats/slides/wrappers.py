"""Slides around other slides: what all have in common, and one that keeps account."""

from __future__ import annotations

from dataclasses import dataclass

from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.base import Closable, Mpp, Pixels, Slide


@dataclass(frozen=True, slots=True)
class Request:
    """One call of ``read_regions``.

    Parameters
    ----------
    level
        The level read.
    regions, pixels
        How many of each.
    stored_bytes
        As :meth:`wsi_ats.slides.base.Slide.stored_bytes` says.
    """

    level: int
    regions: int
    pixels: int
    stored_bytes: int | None


def bytes_read(slide: Slide) -> int | None:
    """All bytes that were read of a slide since it was opened; ``None`` where its reader does not count them.

    Of a slide in a store, those that the store has sent: of its index, and between joined tiles, too.
    """
    return getattr(slide, "bytes_read", None)


class WrappedSlide(Closable):
    """A slide that passes everything on to another one; what subclasses change, they override.

    Parameters
    ----------
    inner
        The slide that does the reading.
    """

    def __init__(self, inner: Slide) -> None:
        self._inner = inner

    @property
    def bytes_read(self) -> int | None:
        """The inner slide's."""
        return bytes_read(self._inner)

    @property
    def path(self) -> str:
        """The inner slide's."""
        return self._inner.path

    @property
    def levels(self) -> tuple[Level, ...]:
        """The inner slide's."""
        return self._inner.levels

    @property
    def mpp(self) -> Mpp:
        """The inner slide's."""
        return self._inner.mpp

    @property
    def background(self) -> tuple[int, int, int]:
        """The inner slide's."""
        return self._inner.background

    @property
    def bounds(self) -> Region:
        """The inner slide's."""
        return self._inner.bounds

    @property
    def scanned(self) -> tuple[Region, ...]:
        """The inner slide's."""
        return self._inner.scanned

    @property
    def icc(self) -> bytes | None:
        """The inner slide's."""
        return self._inner.icc

    @property
    def vendor(self) -> str:
        """The inner slide's."""
        return self._inner.vendor

    def tile_shape(self, level: int) -> tuple[int, int] | None:
        """The inner slide's."""
        return self._inner.tile_shape(level)

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """The inner slide's."""
        return self._inner.read_regions(level, corners, width, height)

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """The inner slide's."""
        return self._inner.stored_bytes(level, corners, width, height)

    def close(self) -> None:
        """Close the inner slide."""
        self._inner.close()


class CountingSlide(WrappedSlide):
    """A slide that keeps account of what is read from it.

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
        """Compressed bytes under all that was read; ``None`` where the format does not tell."""
        sizes = [request.stored_bytes for request in self.requests]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """Read from the inner slide and note the request."""
        pixels = self._inner.read_regions(level, corners, width, height)
        stored = self._inner.stored_bytes(level, corners, width, height)
        self.requests.append(Request(level, len(corners), len(corners) * width * height, stored))
        return pixels
