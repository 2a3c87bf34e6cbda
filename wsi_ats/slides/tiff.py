"""Slides in TIFF files with tiles that are read directly, on this machine or in a store.

OpenSlide composes regions for viewers, which costs two to five times as much as decoding. Here, the tiles
under all regions of a batch are found first, announced to the disk together, decoded once each, and copied to
their places. The pixels are the same as OpenSlide's (`tests/slides/test_tiff_against_openslide.py`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.advice import advice_on
from wsi_ats.slides.base import Pixels, Slide, SlideInfo
from wsi_ats.slides.resolution import find_mpp, mpp_or_problem
from wsi_ats.slides.storage import Fetch, Storage, open_storage
from wsi_ats.slides.stored_image import StoredImage
from wsi_ats.slides.tiff_index import TiffIndex

# Vendors whose files are plain pyramids of tiles. Files of other vendors follow rules that OpenSlide
# implements.
_PLAIN = frozenset({"aperio", "generic-tiff", "ome-tiff"})


class TiffSlide(Slide):
    """A slide in a TIFF file: Aperio's SVS, OME-TIFF, any tiled or striped TIFF of RGB or grey pixels.

    Parameters
    ----------
    path
        The file, or a URL.
    mpp
        Micrometres per level-0 pixel, if the file's own value is missing or wrong.
    channel
        Name or number of the channel to read from a file with several; empty for other files.
    threads
        Number of threads that decode the tiles of a read.
    storage, index
        The open file and its index, if available; the slide closes the file.

    Raises
    ------
    SlideOpenError
        When the file is not TIFF, is damaged, or cannot be read directly.
    """

    def __init__(
        self,
        path: str,
        *,
        mpp: float | None = None,
        channel: str = "",
        threads: int = 1,
        storage: Storage | None = None,
        index: TiffIndex | None = None,
    ) -> None:
        self._storage = storage or open_storage(path)
        try:
            index = index or TiffIndex.of(self._storage)
            if index is None:
                raise SlideOpenError(path, "it is not a TIFF file; leave out --reader to try another reader")
            if channel:
                index = index.of_channel(path, channel)
            refused = why_not(index, like_openslide=False)
            if refused:
                raise SlideOpenError(path, f"it cannot be read directly: {refused}; leave out --reader")
        except SlideOpenError:
            self._storage.close()
            raise
        self._images = levels_of(index)
        self._icc = index.icc
        full = self._images[0]
        self.info = SlideInfo(
            path,
            index.vendor,
            tuple(
                Level(each.width, each.height, (full.width / each.width + full.height / each.height) / 2)
                for each in self._images
            ),
            tuple((each.tile_width, each.tile_height) for each in self._images),
            mpp_or_problem(find_mpp, index.properties, mpp),
            scan=_scan(full),
        )
        self._closed = False
        self._glass = np.array([[self.background]], dtype=np.uint8)
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, "decode") if threads > 1 else None

    @property
    def icc(self) -> bytes | None:
        """The file's colour profile, if it has one."""
        return self._icc

    @property
    def bytes_read(self) -> int:
        """Bytes requested from the disk or the store so far."""
        return self._storage.bytes_read

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`; exact at every level."""
        if self._closed:
            raise _closed(self.path)
        image = self._images[level]
        regions = np.empty((len(corners), height, width, 3), dtype=np.uint8)
        places = _Places.of(image, corners, width, height)
        places.fill_outside(regions, self.background)
        stored = [tile for tile in places.tiles if image.sizes[tile]]
        for tile in places.tiles.keys() - set(stored):  # the writer leaves out tiles that were not scanned
            places.paste(regions, tile, self._glass)
        rows, columns = (np.array([tile[axis] for tile in stored], dtype=np.int64) for axis in (0, 1))
        fetch = self._storage.fetch(
            image.offsets[rows, columns].astype(np.int64), image.sizes[rows, columns].astype(np.int64)
        )

        def decode(first: int, step: int) -> None:
            for number in range(first, len(stored), step):
                self._decode(level, stored[number], fetch, number, places, regions)

        if self._threads is None:
            decode(0, 1)
        else:
            # One task for each thread, because a task for each tile would cost a tenth of its decoding.
            try:
                shares = [self._threads.submit(decode, i, self._count) for i in range(self._count)]
            except RuntimeError as error:
                if not self._closed:
                    raise  # no thread could be started
                raise _closed(self.path) from error  # another thread closed it after the check above
            for share in shares:
                share.result()
        return regions

    def _decode(
        self, level: int, tile: tuple[int, int], fetch: Fetch, number: int, places: _Places, regions: Pixels
    ) -> None:
        """Decode one tile into all regions that show it."""
        image, alone = self._images[level], places.alone(tile)
        shape = image.rows_stored(tile[0]), image.tile_width, 3
        pixels = regions[alone] if alone is not None else np.empty(shape, dtype=np.uint8)
        try:
            image.decode(fetch(number), pixels)
        except (SlideReadError, ValueError) as error:
            x, y = (
                round(place * side * self.levels[level].downsample)
                for place, side in zip(tile[::-1], (image.tile_width, image.tile_height), strict=True)
            )
            problem = error.problem if isinstance(error, SlideReadError) else str(error)
            if isinstance(error, ValueError) and not any(fetch(number)):
                problem = f"its bytes are only zeros, as in an unfinished copy ({problem})"
            raise SlideReadError(
                self.path,
                f"level {level}, the tile of {shape[1]} x {shape[0]} pixels at level-0 ({x}, {y}) cannot be "
                f"read: {problem}; {advice_on(problem)}",
            ) from error
        if alone is None:
            places.paste(regions, tile, pixels)

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """See :meth:`wsi_ats.slides.base.Slide.stored_bytes`."""
        return self._images[level].touched(corners, width, height)

    def close(self) -> None:
        """Release the file."""
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        self._storage.close()


def _closed(path: str) -> SlideReadError:
    return SlideReadError(path, "the slide is closed; open it again to read")


def levels_of(index: TiffIndex) -> tuple[StoredImage, ...]:
    """Return the levels among the images of a file, by OpenSlide's rules, without labels and overviews.

    Unlike OpenSlide, this also accepts levels below the first image (in SubIFDs), if there are none in the
    main sequence.

    Returns
    -------
    tuple of StoredImage
        The levels, finest first. Never empty.
    """
    first, *others = index.images
    beside = [each for each in others if not each.below]
    # Images in SubIFDs follow the image that they belong to: only those right after the first are its levels.
    below = [each for each in takewhile(lambda each: each.below, others) if each.tiled == first.tiled]
    if index.vendor == "aperio":
        return first, *(each for each in beside if each.tiled)  # in the file's order, as in OpenSlide
    if index.vendor == "hamamatsu":
        levels = [each for each in beside if _is_smaller(each, first)]
    else:
        levels = [each for each in beside if each.reduced and each.tiled == first.tiled]
        levels = levels or [each for each in below if _is_smaller(each, first)]
    return tuple(sorted([first, *levels], key=lambda each: -each.width))


def _scan(image: StoredImage) -> Region:
    """Return the rectangle around all stored tiles; all of level 0 if there are none."""
    there = image.sizes > 0
    rows, columns = np.flatnonzero(there.any(axis=1)).tolist(), np.flatnonzero(there.any(axis=0)).tolist()
    if not rows:
        return Region(0, 0, image.width, image.height)
    left, top = columns[0] * image.tile_width, rows[0] * image.tile_height
    right = min((columns[-1] + 1) * image.tile_width, image.width)
    bottom = min((rows[-1] + 1) * image.tile_height, image.height)
    return Region(left, top, right - left, bottom - top)


def _is_smaller(image: StoredImage, full: StoredImage) -> bool:
    """Return whether an image is the full one at a lower resolution, to within one of its own pixels."""
    scale = full.width / image.width
    return scale > 1 and abs(full.height / scale - image.height) <= 1 + full.height / full.width


def why_not(index: TiffIndex, *, like_openslide: bool = True) -> str:
    """Return the reason why :class:`TiffSlide` cannot read a file; empty if it can.

    Parameters
    ----------
    index
        The file's index.
    like_openslide
        Whether its levels must also be those that OpenSlide finds.
    """
    if index.planes > 1:
        names = ", ".join(filter(None, index.pages))
        return f"it has {index.planes} channels, depths or times of the same place" + (
            f" ({names})" if names else ""
        )
    levels = levels_of(index)
    refused = next((each.refused for each in levels if each.coding is None), "")
    if refused:
        return refused
    if any(a.width <= b.width or a.height < b.height for a, b in pairwise(levels)):
        return "its levels are not in order"
    if index.vendor == "aperio" and any((each.sizes == 0).any() for each in levels):
        return "some of its tiles are missing and must be computed from another level"
    if index.vendor == "hamamatsu" and like_openslide:
        return "OpenSlide adds further levels to hamamatsu files"
    if index.vendor not in {*_PLAIN, "hamamatsu"}:
        return f"tiles of {index.vendor} files are arranged by rules of their own"
    return ""


def damaged_level(index: TiffIndex) -> StoredImage | None:
    """Find a level that cannot be decoded here although level 0 can: damaged, or for OpenSlide to read."""
    first, *others = levels_of(index)
    if index.vendor not in _PLAIN or first.coding is None:
        return None
    return next((each for each in others if each.coding is None), None)


@dataclass(frozen=True)
class _Places:
    """The tiles under the regions of one read.

    Parameters
    ----------
    image
        The level.
    corners
        Top-left ``x, y`` of each region in pixels of the level.
    width, height
        Size of each region.
    tiles
        Numbers of the regions that show a tile, by tile (row, column), in the order of the file's grid.
    across_the_edge
        Numbers of the regions that extend beyond the image.
    """

    image: StoredImage
    corners: list[tuple[int, int]]
    width: int
    height: int
    tiles: dict[tuple[int, int], list[int]]
    across_the_edge: list[int]

    @classmethod
    def of(cls, image: StoredImage, corners: IntArray, width: int, height: int) -> _Places:
        rows, columns = image.sizes.shape
        tiles: dict[tuple[int, int], list[int]] = {}
        across: list[int] = []
        places = [(int(x), int(y)) for x, y in corners.tolist()]
        for number, (x, y) in enumerate(places):
            right, bottom = x + width, y + height
            if x < 0 or y < 0 or right > image.width or bottom > image.height:
                across.append(number)
                if right <= 0 or bottom <= 0 or x >= image.width or y >= image.height:
                    continue
            for row in range(max(0, y // image.tile_height), min(rows, -(-bottom // image.tile_height))):
                for column in range(
                    max(0, x // image.tile_width), min(columns, -(-right // image.tile_width))
                ):
                    tiles.setdefault((row, column), []).append(number)
        return cls(image, places, width, height, dict(sorted(tiles.items())), across)

    def fill_outside(self, regions: Pixels, colour: tuple[int, int, int]) -> None:
        """Fill the area beyond the image, and only that, because a thumbnail is large."""
        image = self.image
        for number in self.across_the_edge:
            x, y = self.corners[number]
            top, bottom = (min(max(edge - y, 0), self.height) for edge in (0, image.height))
            left, right = (min(max(edge - x, 0), self.width) for edge in (0, image.width))
            region = regions[number]
            for part in (region[:top], region[bottom:], region[:, :left], region[:, right:]):
                part[:] = colour

    def alone(self, tile: tuple[int, int]) -> int | None:
        """Return the only region that shows a tile, if it equals the tile: it is then decoded in place."""
        image, numbers = self.image, self.tiles[tile]
        x, y = tile[1] * image.tile_width, tile[0] * image.tile_height
        same = (self.width, self.height) == (image.tile_width, image.tile_height)
        inside = x + image.tile_width <= image.width and y + image.tile_height <= image.height
        if same and inside and len(numbers) == 1 and self.corners[numbers[0]] == (x, y):
            return numbers[0]
        return None

    def paste(self, regions: Pixels, tile: tuple[int, int], pixels: Pixels) -> None:
        """Copy a tile to all regions that show it; a single pixel fills the whole tile."""
        image = self.image
        left, top = tile[1] * image.tile_width, tile[0] * image.tile_height
        right, bottom = min(left + image.tile_width, image.width), min(top + image.tile_height, image.height)
        for number in self.tiles[tile]:
            x, y = self.corners[number]
            x0, x1 = max(x, left), min(x + self.width, right)
            y0, y1 = max(y, top), min(y + self.height, bottom)
            part = pixels if pixels.size == 3 else pixels[y0 - top : y1 - top, x0 - left : x1 - left]
            regions[number, y0 - y : y1 - y, x0 - x : x1 - x] = part
