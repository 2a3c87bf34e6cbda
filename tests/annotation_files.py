"""Files of annotations as QuPath, ASAP and Aperio ImageScope write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Corners = Sequence[tuple[float, float]]


def rectangle(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


def feature(corners: Corners, name: str | None = "Tumor", holes: Sequence[Corners] = ()) -> dict:
    """An annotation of QuPath 0.4 and later, whose rings end where they begin."""
    rings = [[list(corner) for corner in (*ring, ring[0])] for ring in (corners, *holes)]
    kind = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    return {
        "type": "Feature",
        "id": "6f0f2a3e-6c1b-4c0e-9d39-0b6a3c1f7d52",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {"objectType": "annotation", **kind},
    }


def write_qupath(path: Path, features: Sequence[dict]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def asap(annotations: Sequence[tuple[str, str, Corners]]) -> str:
    """The XML of ASAP, from type, group and corners of each."""
    text = '<?xml version="1.0"?>\n<ASAP_Annotations>\n\t<Annotations>\n'
    for number, (kind, group, corners) in enumerate(annotations):
        text += f'\t\t<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" '
        text += 'Color="#F4FA58">\n'
        text += "\t\t\t<Coordinates>\n"
        for order, (x, y) in enumerate(corners):
            text += f'\t\t\t\t<Coordinate Order="{order}" X="{x}" Y="{y}" />\n'
        text += "\t\t\t</Coordinates>\n\t\t</Annotation>\n"
    text += "\t</Annotations>\n\t<AnnotationGroups>\n"
    for group in sorted({group for _, group, _ in annotations} - {"None"}):
        text += f'\t\t<Group Name="{group}" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>\n'
    return text + "\t</AnnotationGroups>\n</ASAP_Annotations>\n"


def aperio(layers: Sequence[tuple[str, str, Sequence[tuple[int, int, Corners]]]]) -> str:
    """The XML of ImageScope: name, description and regions (type, NegativeROA, corners) of each layer."""
    text = '<Annotations MicronsPerPixel="0.499000">\n'
    for number, (name, description, regions) in enumerate(layers, 1):
        text += (
            f'<Annotation Id="{number}" Name="{name}" ReadOnly="0" NameReadOnly="0" LineColorReadOnly="0" '
            'Incremental="0" Type="4" LineColor="65280" Visible="1" Selected="1" MarkupImagePath="" '
            f'MacroName=""><Attributes><Attribute Name="Description" Id="0" Value="{description}"/>'
            '</Attributes><Regions><RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region" '
            'ColumnWidth="-1"/></RegionAttributeHeaders>'
        )
        for region, (kind, negative, corners) in enumerate(regions, 1):
            text += (
                f'<Region Id="{region}" Type="{kind}" Zoom="0.5" Selected="0" ImageLocation="" '
                f'ImageFocus="-1" Length="80" Area="400" LengthMicrons="40" AreaMicrons="100" Text="" '
                f'NegativeROA="{negative}" InputRegionId="0" Analyze="1" DisplayId="{region}"><Attributes/>'
                "<Vertices>"
            )
            text += "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
            text += "</Vertices></Region>"
        text += "</Regions><Plots/></Annotation>"
    return text + "</Annotations>"
