"""Drawn tiles for ASAP as annotations, in the XML that Camelyon made known.

ASAP reads slides with OpenSlide from the corner of level 0, whether or not all of it was scanned. So
coordinates are level-0 pixels of the whole slide, (x, y). Open a slide, then load its file in the panel of
annotations.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from wsi_ats.files import atomic
from wsi_ats.results.exports.coordinates import tile_numbers
from wsi_ats.results.exports.format import Format
from wsi_ats.results.exports.outlines import ring
from wsi_ats.results.records import Selection
from wsi_ats.results.scores import ScoredSlide

# Colours that colour-blind people can tell apart (Okabe & Ito 2008), the first for tiles without a class.
_COLOURS = ("#999999", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def write_asap(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.xml``: a polygon for each distinct tile, in the group of the class it speaks for.

    That is the class with the most evidence, if it is positive (``for <name>``); other tiles are in the group
    ``for none``. The name of an annotation has the tile's numbers, as ASAP has no place for them.
    """
    selection = slide.selection()
    numbers = tile_numbers(selection)
    names = ["for none", *(f"for {name}" for name in selection.evidence)]
    root = ET.Element("ASAP_Annotations")
    annotations = ET.SubElement(root, "Annotations")
    for i, group in enumerate(_spoken_for(selection)):
        box = [int(numbers[name][i]) for name in ("x", "y", "width", "height")]
        shown = ", ".join(f"{name} {numbers[name][i]:.4g}" for name in ("attention", "weight", "draws"))
        annotation = ET.SubElement(
            annotations,
            "Annotation",
            Name=f"Tile {i}: {shown}",
            Type="Polygon",
            PartOfGroup=names[group],
            Color=_colour(group),
        )
        coordinates = ET.SubElement(annotation, "Coordinates")
        for order, (x, y) in enumerate(ring(*box)[:-1]):  # ASAP closes the polygon itself
            ET.SubElement(coordinates, "Coordinate", Order=str(order), X=str(x), Y=str(y))
    # ASAP refuses a file with a tile in a group that is not listed.
    groups = ET.SubElement(root, "AnnotationGroups")
    for group, name in enumerate(names):
        listed = ET.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color=_colour(group))
        ET.SubElement(listed, "Attributes")
    ET.indent(root)
    path = folder / f"{slide.id}.xml"
    with atomic(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    return [path]


def _spoken_for(selection: Selection) -> list[int]:
    """Return the number of the class that each distinct tile speaks for, from 1; 0 for none."""
    tiles = selection.distinct()
    evidence = np.array(
        [np.zeros(len(tiles.row)), *(each[tiles.row] for each in selection.evidence.values())]
    )
    groups: list[int] = np.nan_to_num(evidence).argmax(axis=0).tolist()
    return groups


def _colour(group: int) -> str:
    return _COLOURS[0] if group == 0 else _COLOURS[1 + (group - 1) % (len(_COLOURS) - 1)]


FORMAT = Format(
    "asap",
    programs="ASAP",
    contents="*.xml, a polygon for each tile in a group for its class",
    slide=write_asap,
)
