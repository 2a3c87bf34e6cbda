"""Micrometres per pixel, from what a file says of itself.

Files say it in many ways, and some say it wrong. It is never guessed: what is missing or cannot be true is an
error that names everything that was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

from wsi_ats.errors import MppError
from wsi_ats.slides.base import Mpp

# In this order: what the scanner says, then what a format says, then what every TIFF file may say.
_KEYS = (
    ("aperio.MPP", "aperio.MPP", None),
    ("openslide.mpp-x", "openslide.mpp-y", None),
    ("ome.PhysicalSizeX", "ome.PhysicalSizeY", ("ome.PhysicalSizeXUnit", "ome.PhysicalSizeYUnit")),
)
_TAGS = ("tiff.XResolution", "tiff.YResolution", "tiff.ResolutionUnit")

# By the signs of OME-XML, the names of OME-Zarr, and those of TIFF.
MICROMETRES = {
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter, where the other is the sign of its own
    "um": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "inch": 25_400.0,
    "m": 1e6,
    "meter": 1e6,
}

# Dots per inch that are no slide's: a pixel would be of 42 to 353 micrometres.
_PRINTED = frozenset({72.0, 96.0, 100.0, 150.0, 200.0, 300.0, 600.0})

# A magnification is that of a lens, and says little of the camera behind it.
_POWER = ("openslide.objective-power", "aperio.AppMag")

# One value serves both axes, so they may differ only by as much as a network does not notice.
_SQUARE = 1.1

ADVICE = "give the micrometres per pixel in the manifest's mpp column or with --mpp"


def find_mpp(path: str, properties: Mapping[str, str], override: float | None) -> Mpp:
    """Find a slide's resolution.

    Parameters
    ----------
    path
        What errors call the slide.
    properties
        What the file says, by OpenSlide's names.
    override
        Micrometres per level-0 pixel, where the caller knows better.

    Raises
    ------
    MppError
        When nothing gives a plausible value.

    Examples
    --------
    >>> find_mpp("a.svs", {"aperio.MPP": "0,25"}, None)
    Mpp(value=0.25, source='aperio.MPP')
    """
    if override is not None:
        return given_mpp(path, override)
    for key_x, key_y, units in _KEYS:
        if {key_x, key_y} <= properties.keys():
            scales = [_scale(path, properties, unit) for unit in units] if units else [1.0, 1.0]
            x, y = _number(path, properties, key_x), _number(path, properties, key_y)
            return square_mpp(path, x * scales[0], y * scales[1], key_x)
    unit = MICROMETRES.get(properties.get(_TAGS[2], ""))
    if unit is not None and set(_TAGS) <= properties.keys():
        x, y = (_number(path, properties, key) for key in _TAGS[:2])
        if properties[_TAGS[2]] == "inch" and x in _PRINTED and x == y:
            raise MppError(
                path,
                f"{_TAGS[0]} says {x:g} dots per inch, as programs write for screens and printers when "
                f"they do not know; {ADVICE}",
            )
        if min(x, y) > 0:
            return square_mpp(path, unit / x, unit / y, _TAGS[0])
    raise MppError(
        path, f"the file does not say how many micrometres a pixel has ({_looked_at(properties)}); {ADVICE}"
    )


def _looked_at(properties: Mapping[str, str]) -> str:
    keys = [*(key for key, _, _ in _KEYS), *_TAGS]
    looked = [f"{key} = {properties.get(key, 'absent')}" for key in keys]
    power = {key: value for key, value in properties.items() if key in _POWER}
    return ", ".join(looked + [f"{key} = {value} is no resolution" for key, value in power.items()])


def given_mpp(path: str, override: float) -> Mpp:
    """Take the caller's word for a slide's resolution, if it can be true."""
    return Mpp(override, "override").check(path)


def square_mpp(path: str, x: float, y: float, source: str) -> Mpp:
    """Make one resolution of those across and down, which may differ a little.

    Parameters
    ----------
    path
        What errors call the slide.
    x, y
        Micrometres per level-0 pixel, across and down.
    source
        Where the file says so.

    Raises
    ------
    MppError
        When they differ by more than a tenth, or cannot be true.
    """
    for value in (x, y):
        Mpp(value, source).check(path)
    if max(x, y) > _SQUARE * min(x, y):
        raise MppError(
            path,
            f"{source} says {x} micrometres per pixel across and {y} down: pixels are not square; give one "
            "value in the manifest's mpp column or with --mpp",
        )
    return Mpp((x + y) / 2, source)


def _scale(path: str, properties: Mapping[str, str], key: str) -> float:
    unit = properties.get(key, "µm")  # the default of OME-XML
    if unit not in MICROMETRES:
        raise MppError(path, f"{key} = {unit!r} is no unit of length that is known here; {ADVICE}")
    return MICROMETRES[unit]


def _number(path: str, properties: Mapping[str, str], key: str) -> float:
    text = properties[key]
    try:
        # Some scanners write the decimal comma of their country.
        return float(text.replace(",", "."))
    except ValueError as error:
        raise MppError(path, f"{key} = {text!r} is no number; {ADVICE}") from error
