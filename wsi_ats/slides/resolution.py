"""Micrometres per pixel (mpp), from the properties of a file.

Files store the mpp in many ways, and some store it wrong. It is never guessed: a missing or impossible value
is an error that lists everything that was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wsi_ats.slides.base import Mpp

# Tried in this order: the scanner's value, then the format's, then the tags of any TIFF file.
_KEYS = (
    ("aperio.MPP", "aperio.MPP", None),
    ("openslide.mpp-x", "openslide.mpp-y", None),
    ("ome.PhysicalSizeX", "ome.PhysicalSizeY", ("ome.PhysicalSizeXUnit", "ome.PhysicalSizeYUnit")),
)
_TAGS = ("tiff.XResolution", "tiff.YResolution", "tiff.ResolutionUnit")

# Units by their symbols in OME-XML and their names in OME-Zarr and TIFF.
MICROMETRES = {
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter; the line above has the separate micro sign
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

# Dots per inch that are impossible for a slide: a pixel would be 42 to 353 micrometres wide.
_PRINTED = frozenset({72.0, 96.0, 100.0, 150.0, 200.0, 300.0, 600.0})

# The magnification describes the objective, and not the camera's pixels.
_POWER = ("openslide.objective-power", "aperio.AppMag")

# One value is used for both axes, so they may differ only by an amount that a network does not notice.
_SQUARE = 1.1

ADVICE = "give the micrometres per pixel in the manifest's mpp column or with --mpp"


def mpp_or_problem(find: Callable[..., Mpp], *arguments: object) -> Mpp | str:
    """Return the resolution that a function finds, or the text of its ``ValueError``.

    Parameters
    ----------
    find
        The function, such as :func:`find_mpp`.
    *arguments
        Its arguments.

    Examples
    --------
    >>> mpp_or_problem(find_mpp, {"aperio.MPP": "0.25"}, None)
    Mpp(value=0.25, source='aperio.MPP')
    >>> mpp_or_problem(find_mpp, {"aperio.MPP": "fine"}, None)[:28]
    "aperio.MPP = 'fine' is not a"
    """
    try:
        return find(*arguments)
    except ValueError as error:
        return str(error)


def find_mpp(properties: Mapping[str, str], override: float | None) -> Mpp:
    """Find a slide's resolution.

    Parameters
    ----------
    properties
        The file's properties, by OpenSlide's names.
    override
        Micrometres per level-0 pixel, used instead of the file's value if given.

    Raises
    ------
    ValueError
        When there is no plausible value.

    Examples
    --------
    >>> find_mpp({"aperio.MPP": "0,25"}, None)
    Mpp(value=0.25, source='aperio.MPP')
    """
    if override is not None:
        return Mpp(override, "override")
    for key_x, key_y, units in _KEYS:
        if {key_x, key_y} <= properties.keys():
            scales = [_scale(properties, unit) for unit in units] if units else [1.0, 1.0]
            x, y = _number(properties, key_x), _number(properties, key_y)
            return square_mpp(x * scales[0], y * scales[1], key_x)
    unit = MICROMETRES.get(properties.get(_TAGS[2], ""))
    if unit is not None and set(_TAGS) <= properties.keys():
        x, y = (_number(properties, key) for key in _TAGS[:2])
        if properties[_TAGS[2]] == "inch" and x in _PRINTED and x == y:
            raise ValueError(
                f"{_TAGS[0]} says {x:g} dots per inch, a default for screens and printers that programs "
                f"write when they do not know the resolution; {ADVICE}"
            )
        if min(x, y) > 0:
            return square_mpp(unit / x, unit / y, _TAGS[0])
    raise ValueError(f"the file does not give its micrometres per pixel ({_tried(properties)}); {ADVICE}")


def _tried(properties: Mapping[str, str]) -> str:
    keys = [*(key for key, _, _ in _KEYS), *_TAGS]
    tried = [f"{key} = {properties.get(key, 'absent')}" for key in keys]
    power = {key: value for key, value in properties.items() if key in _POWER}
    return ", ".join(tried + [f"{key} = {value} is not a resolution" for key, value in power.items()])


def square_mpp(x: float, y: float, source: str) -> Mpp:
    """Combine the resolutions of both axes, which may differ slightly.

    Parameters
    ----------
    x, y
        Micrometres per level-0 pixel, across and down.
    source
        The property that gives them.

    Raises
    ------
    ValueError
        When they differ by more than a tenth, or are not plausible.
    """
    for value in (x, y):
        Mpp(value, source)
    if max(x, y) > _SQUARE * min(x, y):
        raise ValueError(
            f"{source} says {x} micrometres per pixel across and {y} down: pixels are not square; give one "
            "value in the manifest's mpp column or with --mpp"
        )
    return Mpp((x + y) / 2, source)


def _scale(properties: Mapping[str, str], key: str) -> float:
    unit = properties.get(key, "µm")  # the default of OME-XML
    if unit not in MICROMETRES:
        raise ValueError(f"{key} = {unit!r} is not a known unit of length; {ADVICE}")
    return MICROMETRES[unit]


def _number(properties: Mapping[str, str], key: str) -> float:
    text = properties[key]
    try:
        # In some countries, scanners write a decimal comma.
        return float(text.replace(",", "."))
    except ValueError as error:
        raise ValueError(f"{key} = {text!r} is not a number; {ADVICE}") from error
