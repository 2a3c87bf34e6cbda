"""OME-XML: the description of an image in an OME-TIFF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from xml.etree import ElementTree as ET

_SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeXUnit", "PhysicalSizeYUnit")


@dataclass(frozen=True)
class OmeXml:
    """The description of the first image, which is the slide.

    Parameters
    ----------
    sizes
        Physical size of a pixel: the attributes such as ``PhysicalSizeX`` that are present, with the prefix
        ``ome.``.
    planes
        Number of images of the same place: channels, depths and times.
    channels
        Names of the channels, one for each page; empty if there are also depths or times, or if pages are not
        in the order of the channels.
    files
        Names of the files that the image is spread over; empty if it is all in this file.
    """

    sizes: Mapping[str, str]
    planes: int = 1
    channels: tuple[str, ...] = ()
    files: str = ""

    @classmethod
    def of(cls, text: str, samples: int) -> Self:
        """Read a description.

        Parameters
        ----------
        text
            The XML.
        samples
            Colours per pixel, which count as one channel.

        Raises
        ------
        ValueError
            When the XML is damaged.

        Examples
        --------
        >>> pixels = '<Pixels SizeC="2"><Channel Name="DAPI"/><Channel Name="CD3"/></Pixels>'
        >>> OmeXml.of(f"<OME><Image>{pixels}</Image></OME>", 1).channels
        ('DAPI', 'CD3')
        """
        try:
            root = ET.fromstring(text)
        except ET.ParseError as error:
            raise ValueError(f"its OME-XML cannot be read: {error}") from error
        named = {_name_of(each): each for each in reversed(list(root.iter()))}
        files = _files(root, named)
        pixels = named.get("Pixels")
        if pixels is None:
            return cls({}, files=files)
        colours, depths, times = (int(pixels.get(f"Size{axis}", 1)) for axis in "CZT")
        return cls(
            {f"ome.{name}": pixels.attrib[name] for name in _SIZES if name in pixels.attrib},
            max(1, colours // samples) * depths * times,
            _channels(pixels),
            files,
        )


def _files(root: ET.Element, named: Mapping[str, ET.Element]) -> str:
    # If there are several images, the first is the slide; the others may be in other files.
    parts = [each for each in named.get("Image", root).iter() if _name_of(each) == "UUID"]
    files = {each.get("FileName", "") for each in parts} - {""}
    own = {"", *((each.text or "").strip() for each in parts)}
    elsewhere = bool(parts) and root.get("UUID", "") not in own
    if "BinaryOnly" in named:
        files.add(named["BinaryOnly"].get("MetadataFile", "another"))
    if len(files) > 1 or elsewhere or "BinaryOnly" in named:
        return ", ".join(sorted(files)) or "another"
    return ""


def _channels(pixels: ET.Element) -> tuple[str, ...]:
    flat = pixels.get("SizeZ", "1") == pixels.get("SizeT", "1") == "1"
    # Pages may be assigned to channels in any order; in all known files, they are in the order of the
    # channels.
    data = (each for each in pixels if _name_of(each) == "TiffData")
    in_order = all(each.get("IFD", "0") == each.get("FirstC", "0") for each in data)
    names = (each.get("Name", "") for each in pixels if _name_of(each) == "Channel")
    return tuple(names) if flat and in_order else ()


def _name_of(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
