"""Slides read by OpenSlide: the only import of OpenSlide, where its errors are translated."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.advice import advice_on
from wsi_ats.slides.base import Pixels, Slide, SlideInfo
from wsi_ats.slides.dicom import check_offsets, files_of_series, is_dicom
from wsi_ats.slides.resolution import find_mpp, mpp_or_problem
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.tiff_index import TiffIndex

# Randomly drawn tiles are hardly ever read twice, so the cache is only large enough for neighbouring tiles of
# one read. A larger one would cost memory, and training keeps many slides open.
_CACHE_BYTES = 4 << 20

_RECTANGLE = ("x", "y", "width", "height")
_OPAQUE = np.array([0, 0, 0, 255], dtype=np.uint8)


class OpenSlideSlide(Slide):
    """A slide in any format that OpenSlide reads.

    At levels whose downsample is not a whole number (3.9997), OpenSlide rounds a region's corner to a level-0
    pixel and interpolates: pixels are off by up to half a level-0 pixel.

    Parameters
    ----------
    path
        The file.
    mpp
        Micrometres per level-0 pixel, if the file's own value is missing or wrong.

    Raises
    ------
    SlideOpenError
        When OpenSlide cannot open the file.
    """

    bytes_read = None  # OpenSlide does not count bytes

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle: openslide.OpenSlide | None = None
        self._closed = False
        self._index: TiffIndex | None = None
        self._indexed = False
        try:
            self.info = _describe(self._open(), path, mpp)
        except ValueError as error:
            self.close()
            raise SlideOpenError(path, f"its properties cannot be understood: {error}") from error

    def _open(self) -> openslide.OpenSlide:
        with self._lock:
            if self._closed:
                raise SlideReadError(self._path, "the slide is closed; open it again to read")
            if self._handle is None:
                self._handle = _open(self._path)
            return self._handle

    @property
    def icc(self) -> bytes | None:
        """The file's colour profile, if it has one."""
        profile = self._open().color_profile
        return None if profile is None else bytes(profile.tobytes())

    def read_regions(self, level: int, corners: IntArray, width: int, height: int) -> Pixels:
        """See :meth:`wsi_ats.slides.base.Slide.read_regions`."""
        downsample = self.levels[level].downsample
        pixels = np.empty((len(corners), height, width, 3), dtype=np.uint8)
        for i, (x, y) in enumerate(corners.tolist()):
            location = (round(x * downsample), round(y * downsample))
            handle = self._open()
            try:
                rgba = np.asarray(handle.read_region(location, level, (width, height)))
            except openslide.OpenSlideError as error:
                # After an error, OpenSlide's handle refuses all calls: the next read opens a new one.
                with self._lock:
                    if self._handle is handle:
                        self._handle = None
                raise SlideReadError(
                    self.path,
                    f"level {level}, {width} x {height} pixels at level-0 {location} cannot be "
                    f"read: {error}; {advice_on(str(error))}",
                ) from error
            if not downsample.is_integer():
                # OpenSlide takes whole level-0 pixels, which fall between the pixels of such a level. It then
                # interpolates, and pixels become partly transparent where its tiles meet.
                rgba = np.where(rgba[..., 3:] >= 128, rgba | _OPAQUE, 0)
            pixels[i] = _over(rgba, self.background)
        return pixels

    def stored_bytes(self, level: int, corners: IntArray, width: int, height: int) -> int | None:
        """See :meth:`wsi_ats.slides.base.Slide.stored_bytes`."""
        if not self._indexed:
            self._index = _index(self.path)
            self._indexed = True
        image = self._index and self._index.image(self.levels[level].width, self.levels[level].height)
        return image.touched(corners, width, height) if image else None

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._closed = True
            if self._handle is not None:
                self._handle.close()
                self._handle = None


def _open(path: str) -> openslide.OpenSlide:
    """Open a file, after checks for problems that make OpenSlide wait, guess or end the process."""
    file = Path(path)
    if not file.exists():
        raise SlideOpenError(path, "no such file; check the path in the manifest")
    if not (file.is_file() or file.is_dir()):  # opening a pipe would wait forever
        raise SlideOpenError(path, "it is a device, not a file")
    if file.suffix.lower() == ".mrxs" and not file.with_suffix("").is_dir():
        raise SlideOpenError(
            path, f"its pixels are missing: MIRAX stores them in a folder {file.stem!r} beside it; copy both"
        )
    try:
        if is_dicom(file):
            for each in files_of_series(file):
                check_offsets(each)
    except OSError as error:
        raise SlideOpenError(path, f"cannot be read: {error.strerror}") from error
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideOpenError(
            path,
            "OpenSlide does not know this format (or the file is damaged); "
            "`wsi-ats doctor` lists the formats that can be read",
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideOpenError(path, f"OpenSlide cannot open it: {error}; {advice_on(str(error))}") from error
    handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
    return handle


def properties_of(handle: openslide.OpenSlide) -> Mapping[str, str]:
    """Return the properties of an open file, except names that are not UTF-8, which have no value."""
    values = {name: handle.properties.get(name) for name in handle.properties}
    return {name: value for name, value in values.items() if value is not None}


def _describe(handle: openslide.OpenSlide, path: str, mpp: float | None) -> SlideInfo:
    properties = properties_of(handle)
    sizes = zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    levels = tuple(Level(width, height, downsample) for (width, height), downsample in sizes)
    red, green, blue = bytes.fromhex(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF"))
    # Leica and Zeiss name several scanned regions.
    regions: list[Region] = []
    while region := _numbers(properties, f"openslide.region[{len(regions)}].{{}}", *_RECTANGLE):
        regions.append(Region(*region))
    # MIRAX and some Hamamatsu leave a margin around the scan.
    scan = _numbers(properties, "openslide.bounds-{}", *_RECTANGLE)
    return SlideInfo(
        path,
        properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
        levels,
        tuple(_tile_shape(properties, level) for level in range(len(levels))),
        mpp_or_problem(find_mpp, properties, mpp),
        (red, green, blue),
        Region(*scan) if scan else None,
        tuple(regions),
    )


def _tile_shape(properties: Mapping[str, str], level: int) -> tuple[int, int] | None:
    sides = _numbers(properties, f"openslide.level[{level}].tile-{{}}", "width", "height")
    return (sides[0], sides[1]) if sides else None


def _numbers(properties: Mapping[str, str], name: str, *endings: str) -> list[int] | None:
    """Return the integers of properties whose names differ in an ending; ``None`` if one is missing."""
    texts = [properties.get(name.format(ending)) for ending in endings]
    return None if None in texts else [int(str(text)) for text in texts]


def _index(path: str) -> TiffIndex | None:
    """Read the index of a TIFF file, for the sizes of its stored tiles."""
    try:
        file = LocalFile(path)
        try:
            return TiffIndex.of(file)
        finally:
            file.close()
    except SlideOpenError:
        # It is a folder, or its index is too damaged to give sizes; OpenSlide may still read the pixels.
        return None


def _over(rgba: Pixels, background: tuple[int, int, int]) -> Pixels:
    """Composite (h, w, 4) pixels on a colour."""
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    if alpha.min() == 255:
        return colour
    share = alpha.astype(np.float32) / 255
    mixed = colour * share + np.asarray(background, dtype=np.float32) * (1 - share)
    return np.rint(mixed).astype(np.uint8)


def is_known(path: str) -> bool:
    """Return whether OpenSlide knows a file's format; the file may still be damaged."""
    return openslide.OpenSlide.detect_format(path) is not None


def library_version() -> str:
    """Return the version of the OpenSlide C library."""
    return str(openslide.__library_version__)
