"""Slides through OpenSlide: the only import of openslide, and where its errors are translated."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from wsi_ats.errors import SlideOpenError, SlideReadError
from wsi_ats.geometry import IntArray, Level, Region
from wsi_ats.slides.base import Closable, Mpp, Pixels, advice_on
from wsi_ats.slides.dicom import check_offsets, files_of_series, is_dicom
from wsi_ats.slides.resolution import find_mpp
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.tiff_index import TiffIndex

# Randomly drawn tiles are hardly ever read twice: a larger cache than for neighbouring tiles of one read
# only costs memory, and training keeps many slides open.
_CACHE_BYTES = 4 << 20

_OPAQUE = np.array([0, 0, 0, 255], dtype=np.uint8)


class OpenSlideSlide(Closable):
    """A slide in any format that OpenSlide reads.

    At levels whose downsample is not whole (3.9997), OpenSlide places regions to the nearest level-0 pixel
    and interpolates: pixels lie up to half a level-0 pixel from where they were asked for.

    Parameters
    ----------
    path
        The file.
    mpp
        Micrometres per level-0 pixel, where the file's own value is missing or wrong.

    Raises
    ------
    SlideOpenError
        When OpenSlide cannot open the file.
    """

    def __init__(self, path: str, *, mpp: float | None = None) -> None:
        self.path = path
        self._override = mpp
        self._lock = threading.Lock()
        self._handle: openslide.OpenSlide | None = None
        self._closed = False
        handle = self._open()
        # A name that is no UTF-8 is listed, and has no value.
        values = {name: handle.properties.get(name) for name in handle.properties}
        self._properties: Mapping[str, str] = {name: v for name, v in values.items() if v is not None}
        self.levels = tuple(
            Level(width, height, downsample)
            for (width, height), downsample in zip(
                handle.level_dimensions, handle.level_downsamples, strict=True
            )
        )
        self._index: TiffIndex | None = None
        self._indexed = False

    def _open(self) -> openslide.OpenSlide:
        with self._lock:
            if self._closed:
                raise SlideReadError(self.path, "the slide is closed; open it again to read")
            if self._handle is None:
                path = Path(self.path)
                if not path.exists():
                    raise SlideOpenError(self.path, "no such file; check the path in the manifest")
                if not (path.is_file() or path.is_dir()):  # a pipe would be waited for without end
                    raise SlideOpenError(self.path, "it is a device and no file")
                if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
                    raise SlideOpenError(
                        self.path,
                        f"its pixels are missing: MIRAX keeps them in a folder {path.stem!r} beside it; copy "
                        "both",
                    )
                try:
                    if is_dicom(path):
                        for file in files_of_series(path):
                            check_offsets(file)
                except OSError as error:
                    raise SlideOpenError(self.path, f"cannot be read: {error.strerror}") from error
                try:
                    self._handle = openslide.OpenSlide(self.path)
                except openslide.OpenSlideUnsupportedFormatError as error:
                    raise SlideOpenError(
                        self.path,
                        "OpenSlide does not know this format (or the file is damaged); "
                        "`wsi-ats doctor` lists the formats that can be read",
                    ) from error
                except openslide.OpenSlideError as error:
                    raise SlideOpenError(
                        self.path, f"OpenSlide cannot open it: {error}; {advice_on(str(error))}"
                    ) from error
                self._handle.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
            return self._handle

    @property
    def vendor(self) -> str:
        """OpenSlide's name of the format."""
        return self._properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")

    @property
    def icc(self) -> bytes | None:
        """The file's colour profile, if it has one."""
        profile = self._open().color_profile
        return None if profile is None else bytes(profile.tobytes())

    @property
    def mpp(self) -> Mpp:
        """The override, else the file's own value, else an error that says what was found."""
        return find_mpp(self.path, self._properties, self._override)

    @property
    def background(self) -> tuple[int, int, int]:
        """The file's background colour; white where it names none."""
        text = self._properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        red, green, blue = bytes.fromhex(text)
        return red, green, blue

    @property
    def bounds(self) -> Region:
        """The scanned rectangle, where the format (MIRAX, some Hamamatsu) leaves a margin around it."""
        whole = Region(0, 0, self.levels[0].width, self.levels[0].height)
        return self._rectangle("openslide.bounds-{}") or whole

    @property
    def scanned(self) -> tuple[Region, ...]:
        """The scanned regions, where the format (Leica, Zeiss) names several."""
        found: list[Region] = []
        while region := self._rectangle(f"openslide.region[{len(found)}].{{}}"):
            found.append(region)
        return tuple(found) or (self.bounds,)

    def _rectangle(self, name: str) -> Region | None:
        """What properties say of a rectangle; in their name is a place for ``x``, ``width`` and so on."""
        texts = [self._properties.get(name.format(side)) for side in ("x", "y", "width", "height")]
        return None if None in texts else Region(*(int(str(text)) for text in texts))

    def tile_shape(self, level: int) -> tuple[int, int] | None:
        """Width and height of the file's tiles, where OpenSlide tells."""
        width, height = (
            self._properties.get(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")
        )
        return None if width is None or height is None else (int(width), int(height))

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
                # After an error OpenSlide's handle refuses everything: the next read opens a new one.
                with self._lock:
                    if self._handle is handle:
                        self._handle = None
                raise SlideReadError(
                    self.path,
                    f"level {level}, {width} x {height} pixels at level-0 {location} cannot be "
                    f"read: {error}; {advice_on(str(error))}",
                ) from error
            if not downsample.is_integer():
                # OpenSlide takes whole level-0 pixels, which fall between the pixels of such a level. It
                # then interpolates, and lets the background shine through where its tiles meet.
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


def _index(path: str) -> TiffIndex | None:
    """The index of a TIFF file, for what it says of sizes."""
    try:
        file = LocalFile(path)
        try:
            return TiffIndex.of(file)
        finally:
            file.close()
    except SlideOpenError:
        # A folder, or an index so damaged that its sizes are not known; whether pixels can be read is for
        # OpenSlide to say.
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
    """Whether OpenSlide knows a file's format; it may be damaged all the same."""
    return openslide.OpenSlide.detect_format(path) is not None


def library_version() -> str:
    """Version of the OpenSlide C library."""
    return str(openslide.__library_version__)
