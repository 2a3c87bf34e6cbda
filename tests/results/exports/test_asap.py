"""Annotations for ASAP are read as its source reads them (annotation/XmlRepository.cpp)."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest

from results import scored_folder
from results.scored_folder import GRID, write_scores
from wsi_ats.results.exports.registry import FORMATS


def load(path):
    """Colours of groups, and for each annotation its name, group and points; a group must be listed."""
    root = ET.parse(path).getroot()
    assert root.tag == "ASAP_Annotations"
    groups = {each.get("Name"): each.get("Color") for each in root.find("AnnotationGroups")}
    found = []
    for each in root.find("Annotations"):
        assert each.get("Type") == "Polygon"
        assert each.get("PartOfGroup") in groups
        assert each.get("Color") == groups[each.get("PartOfGroup")]
        points = {
            int(p.get("Order")): (float(p.get("X")), float(p.get("Y"))) for p in each.find("Coordinates")
        }
        assert sorted(points) == list(range(len(points)))
        found.append((each.get("Name"), each.get("PartOfGroup"), [points[i] for i in sorted(points)]))
    return groups, found


def test_polygons_are_in_pixels_of_the_whole_slide(exported):
    """As OpenSlide counts, with which ASAP reads, also where only a part was scanned."""
    folder, _ = exported("asap")
    _, found = load(folder / "a.xml")
    boxes = [
        (*np.min(points, axis=0), *(np.max(points, axis=0) - np.min(points, axis=0))) for *_, points in found
    ]
    assert boxes == [tuple(box) for box in GRID.boxes([0, 5, 7]).tolist()]
    assert [len(points) for *_, points in found] == [4, 4, 4]
    assert found[1][0] == "Tile 1: attention 0.4, weight 0.625, draws 2"


def test_tiles_are_grouped_by_the_class_they_speak_for(exported, scores):
    folder, _ = exported("asap")
    groups, found = load(folder / "a.xml")
    assert list(groups) == ["for none", "for normal", "for tumour"]
    assert len(set(groups.values())) == 3
    selection = scores.by_id["a"].selection()
    tumour = selection.evidence["tumour"][selection.distinct().row] > 0
    assert [group for _, group, _ in found] == ["for tumour" if each else "for normal" for each in tumour]


@pytest.mark.parametrize("evidence", [{}, {"value": np.full(4, np.nan)}, {"value": np.full(4, -1.0)}])
def test_tiles_that_speak_for_no_class_are_in_a_group_of_their_own(tmp_path, evidence):
    slide = write_scores(tmp_path / "scores", "a").slides[0]
    plain = scored_folder.selection("a")
    plain.evidence.clear()
    plain.evidence.update(evidence)
    scored_folder.write_selection(tmp_path / "scores" / "selections" / "a.parquet", plain)
    FORMATS["asap"].slide(tmp_path, slide)
    assert {group for _, group, _ in load(tmp_path / "a.xml")[1]} == {"for none"}
