"""Files as each program writes them are read in the frame of the whole slide; others are refused by name."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from annotation_files import aperio, asap, feature, rectangle, write_qupath

from wsi_ats.annotations.opening import read_annotations
from wsi_ats.annotations.record import Frame
from wsi_ats.errors import AnnotationError
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.exports.qupath import qupath_features
from wsi_ats.results.records import Selection

WHOLE = Frame(2000, 1000, Region(0, 0, 2000, 1000))
# As of a MIRAX slide: QuPath shows only these 1500 x 800 pixels.
BOUNDED = Frame(2000, 1000, Region(400, 150, 1500, 800))


def write(path, text):
    path.write_text(text)
    return path


def bounds_of(found):
    return [tuple(shape.bounds) for shape in found.shapes]


# --- QuPath ---


@pytest.mark.parametrize("form", ["collection", "array", "single"])
def test_all_forms_of_geojson_are_read(tmp_path, form):
    one = feature(rectangle(10, 20, 30, 40))
    document = {"collection": {"type": "FeatureCollection", "features": [one]}, "array": [one], "single": one}
    found = read_annotations(write(tmp_path / "a.json", json.dumps(document[form])), WHOLE)
    assert (found.program, found.classes, found.notes) == ("QuPath", ("Tumor",), ())
    assert bounds_of(found) == [(10, 20, 40, 60)]


def test_qupath_counts_from_the_corner_of_the_scanned_bounds(tmp_path):
    path = write_qupath(tmp_path / "a.geojson", [feature(rectangle(10, 20, 30, 40))])
    assert bounds_of(read_annotations(path, BOUNDED)) == [(410, 170, 440, 210)]


def test_holes_and_several_polygons_of_an_object(tmp_path):
    ring = feature(rectangle(0, 0, 100, 100), holes=[rectangle(20, 20, 50, 50)])
    two = feature(rectangle(200, 0, 10, 10))
    two["geometry"] = {
        "type": "MultiPolygon",
        "coordinates": [two["geometry"]["coordinates"], ring["geometry"]["coordinates"]],
    }
    found = read_annotations(write_qupath(tmp_path / "a.geojson", [ring, two]), WHOLE)
    assert [shape.area for shape in found.shapes] == [7500, 100, 7500]
    assert found.classes == ("Tumor",) * 3


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Stroma", "color": [1, 2, 3]}, "Stroma"),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive"),
        (
            {"name": "Positive", "parentClass": {"name": "Tumor", "colorRGB": -1}, "colorRGB": -2},
            "Tumor: Positive",
        ),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),  # QuPath 0.2 and 0.3
        ("Tumor", "Tumor"),
        ({}, ""),
        (None, ""),
    ],
)
def test_classes_of_all_versions_of_qupath(tmp_path, classification, name):
    one = feature(rectangle(0, 0, 10, 10))
    one["properties"]["classification"] = classification
    assert read_annotations(write_qupath(tmp_path / "a.geojson", [one]), WHOLE).classes == (name,)


def test_objects_without_a_class_points_lines_and_children(tmp_path):
    parent = feature(rectangle(0, 0, 100, 100), None)
    parent["properties"]["childObjects"] = [feature(rectangle(10, 10, 5, 5), "Cell")]
    point = feature(rectangle(0, 0, 1, 1))
    point["geometry"] = {"type": "Point", "coordinates": [3, 4]}
    nothing = {"type": "Feature", "geometry": None, "properties": None}
    found = read_annotations(write_qupath(tmp_path / "a.geojson", [parent, point, nothing]), WHOLE)
    assert found.classes == ("", "Cell")
    assert found.notes == ("2 annotations have no area and were left out",)


def test_polygons_in_a_collection_of_geometries_are_found(tmp_path):
    one = feature(rectangle(10, 20, 30, 40))
    point = {"type": "Point", "coordinates": [3, 4]}
    inner = {"type": "GeometryCollection", "geometries": [one["geometry"], point]}
    one["geometry"] = {"type": "GeometryCollection", "geometries": [point, inner]}
    none = feature(rectangle(0, 0, 1, 1))
    none["geometry"] = {"type": "GeometryCollection", "geometries": [point]}
    found = read_annotations(write_qupath(tmp_path / "a.geojson", [one, none]), WHOLE)
    assert (bounds_of(found), found.classes) == ([(10, 20, 40, 60)], ("Tumor",))
    assert found.notes == ("1 annotations have no area and were left out",)


def test_an_object_of_qupath_0_2_is_read(tmp_path):
    """Whose id is its kind, and whose measurements are a list."""
    old = feature(rectangle(10, 20, 30, 40))
    old["id"] = "PathAnnotationObject"
    old["properties"] = {
        "classification": {"name": "Tumor", "colorRGB": -3670016},
        "isLocked": False,
        "measurements": [{"name": "Area", "value": 1200.0}],
    }
    found = read_annotations(write(tmp_path / "a.json", json.dumps([old])), WHOLE)
    assert (bounds_of(found), found.classes) == ([(10, 20, 40, 60)], ("Tumor",))


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": []},
        {"type": "MultiPolygon", "coordinates": []},
        {"type": "MultiPolygon", "coordinates": [[]]},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[5, 5], [5, 5], [5, 5], [5, 5]]]},
        {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
        {},
    ],
)
def test_an_object_without_area_is_left_out_and_the_others_are_read(tmp_path, geometry):
    flat, other = feature(rectangle(0, 0, 1, 1)), feature(rectangle(10, 20, 30, 40))
    flat["geometry"] = geometry
    found = read_annotations(write_qupath(tmp_path / "a.geojson", [flat, other]), WHOLE)
    assert bounds_of(found) == [(10, 20, 40, 60)]
    assert found.notes == ("1 annotations have no area and were left out",)


@pytest.mark.parametrize("frame", [WHOLE, BOUNDED])
def test_our_own_export_for_qupath_comes_back_to_the_same_place(tmp_path, frame):
    selection = Selection(
        slide_id="a",
        path="a.svs",
        grid=Grid(2000, 1000, 256, 256),
        level=0,
        mpp=0.5,
        bounds=frame.bounds,
        cells=np.array([18, 10, 10, 12]),
        **dict.fromkeys(("attention", "inclusion", "weight"), np.full(4, 0.5)),
        draw=np.array([0, 0, 1, 1]),
        order=np.array([0, 1, 0, 1]),
        scores={},
        evidence={},
    )
    path = write(tmp_path / "a.geojson", json.dumps(qupath_features(selection)))
    found = read_annotations(path, frame)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in selection.grid.boxes(sorted({*selection.cells})).tolist()]
    assert bounds_of(found) == boxes
    assert set(found.classes) == {"Sampled tile"}


# --- ASAP ---


@pytest.mark.parametrize("frame", [WHOLE, BOUNDED])
def test_asap_counts_from_the_corner_of_the_whole_slide(tmp_path, frame):
    text = asap(
        [
            ("Polygon", "_0", rectangle(500, 200, 30.25, 40)),
            ("Spline", "_2", rectangle(510, 210, 5, 5)),
            ("Rectangle", "None", rectangle(600, 300, 7, 8)),
            ("Dot", "_0", [(5, 5)]),
            ("PointSet", "_0", [(5, 5), (6, 6), (7, 9)]),
        ]
    )
    found = read_annotations(write(tmp_path / "a.xml", text), frame)
    assert (found.program, found.classes) == ("ASAP", ("_0", "_2", ""))
    assert bounds_of(found)[0] == (500, 200, 530.25, 240)
    assert found.notes == ("2 annotations have no area and were left out",)
    # Camelyon16: what is in group _2 does not belong to the tumour around it.
    assert found.area(["_0", "!_2"]).area == 30.25 * 40 - 25
    assert found.area(["!_2"]).area == 30.25 * 40 - 25 + 56
    assert found.contents == "(no class) 1, _0 1, _2 1"


def test_corners_of_asap_are_in_their_order(tmp_path):
    square = asap([("Polygon", "Tumor", rectangle(0, 0, 10, 10))])
    mixed = square.replace('Order="0"', 'Order="9"')  # the first corner comes last: the same square
    swapped = square.replace('Order="1"', 'Order="7"').replace('Order="2"', 'Order="1"')
    assert read_annotations(write(tmp_path / "a.xml", mixed), WHOLE).shapes[0].area == 100
    assert read_annotations(write(tmp_path / "b.xml", swapped), WHOLE).shapes[0].area < 100


def test_the_class_of_an_annotation_in_a_group_of_a_group_is_its_own_group(tmp_path):
    text = asap([("Polygon", "invasive", rectangle(0, 0, 10, 10))])
    inner = '<Group Name="invasive" PartOfGroup="None"'
    assert inner in text
    text = text.replace(inner, f'<Group Name="tumor" PartOfGroup="None" />{inner.replace("None", "tumor")}')
    assert read_annotations(write(tmp_path / "a.xml", text), WHOLE).classes == ("invasive",)


# --- Aperio ImageScope ---


@pytest.mark.parametrize("frame", [WHOLE, BOUNDED])
def test_layers_of_imagescope_with_holes(tmp_path, frame):
    layers = [
        ("Tumor", "", [(0, 0, rectangle(500, 200, 100, 100)), (0, 1, rectangle(510, 210, 20, 20))]),
        ("", "necrosis", [(1, 0, rectangle(700, 300, 50, 50)), (3, 0, [(1, 1), (2, 2)])]),
        ("", "", [(2, 0, [(800, 400), (840, 420)]), (1, 0, [(800, 500), (810, 520)])]),
    ]
    found = read_annotations(write(tmp_path / "a.xml", aperio(layers)), frame)
    assert found.program == "Aperio ImageScope"
    assert found.classes == ("Tumor", "necrosis", "", "")
    assert [shape.area for shape in found.shapes][:2] == [100 * 100 - 20 * 20, 2500]
    ellipse, box = found.shapes[2:]
    assert bounds_of(found)[2] == (800, 400, 840, 420)
    assert ellipse.area == pytest.approx(3.14159 * 20 * 10, rel=1e-3)
    assert box.area == 200
    assert found.notes == ("1 annotations have no area and were left out",)


# --- compression, encodings, damage, other files ---


SQUARE = rectangle(0, 0, 10, 10)
TEXTS = {
    "Aperio ImageScope": aperio([("Tumör", "", [(0, 0, SQUARE)])]),
    "ASAP": asap([("Polygon", "Tumör", SQUARE)]),
    "QuPath": json.dumps([feature(SQUARE, "Tumör")], ensure_ascii=False),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("declared", ["", "utf-8", "utf-16", "UTF-16LE"])
@pytest.mark.parametrize("program", TEXTS)
def test_the_byte_order_mark_says_how_a_file_is_encoded(tmp_path, program, declared, encoding, packed):
    text = TEXTS[program].removeprefix('<?xml version="1.0"?>\n')
    if declared and program != "QuPath":
        text = f'<?xml version="1.0" encoding="{declared}"?>\r\n{text}'
    mark = "\ufeff" if encoding in {"utf-16-be", "utf-16-le"} else ""
    content = (mark + text).encode(encoding)
    path = tmp_path / "a.xml"
    path.write_bytes(gzip.compress(content) if packed else content)
    if program != "QuPath" and encoding == "utf-8" and declared.upper().startswith("UTF-16"):
        with pytest.raises(AnnotationError, match="encoding specified in XML declaration is incorrect"):
            read_annotations(path, WHOLE)
        return
    found = read_annotations(path, WHOLE)
    assert (found.program, found.classes, bounds_of(found)) == (program, ("Tumör",), [(0, 0, 10, 10)])


def test_latin_letters_are_read_as_the_declaration_says(tmp_path):
    path = tmp_path / "a.xml"
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>' + TEXTS["Aperio ImageScope"]
    path.write_bytes(text.encode("latin-1"))
    assert read_annotations(path, WHOLE).classes == ("Tumör",)


def test_the_content_decides_the_format_and_not_the_name(tmp_path):
    text = asap([("Polygon", "Tumor", rectangle(0, 0, 10, 10))])
    packed = tmp_path / "a.geojson"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert read_annotations(packed, WHOLE).program == "ASAP"


DAMAGED = {
    "missing.xml": (None, "cannot be read"),
    "folder.xml": ("a folder", "cannot be read"),
    "packed.gz": (gzip.compress(b"{" * 999)[:-9], "cannot be read"),
    "zip.geojson": (b"PK\x03\x04...", "is a ZIP archive; unpack it"),
    "cut.geojson": (b'{"type": "FeatureCollection", "features": [{', "truncated or damaged JSON"),
    "cut.xml": (b"<ASAP_Annotations><Annotations>", "truncated or damaged XML"),
    "other.json": (b'{"slide": 3}', "it has the type None, expected FeatureCollection"),
    "numbers.json": (b"[1, 2]", "does not have the form"),
    "open.json": (b'[{"geometry": {"type": "Polygon", "coordinates": [[1, 2]]}}]', "does not have the form"),
    "nan.json": (json.dumps([feature([(0, 0), (float("nan"), 5), (9, 9)])]).encode(), "NaN or infinite"),
    "words.xml": (asap([("Polygon", "None", [("a", "b")])]).encode(), "does not have the form"),
    "viewer.xml": (
        b"<annotations><ndpviewstate/></annotations>",
        "the root 'annotations'; known are GeoJSON",
    ),
    "text.json": (b"slide_id,label", "is not a file of annotations; known are GeoJSON of QuPath"),
    "empty.json": (b"", "is empty, which no program writes; export it again"),
    "blank.xml": (b"\xef\xbb\xbf \r\n", "is empty"),
    "packed.xml": (gzip.compress(b""), "is empty"),
    "cut16.xml": ("\ufeff<Annotations/>".encode("utf-16-le")[:-1], "does not have the form"),
    "no layer.xml": (aperio([]).encode(), "has no polygon (0 annotations are points"),
    "no region.xml": (aperio([("Tumor", "", [])]).encode(), "has no polygon (0 annotations are points"),
    "two corners.xml": (aperio([("", "", [(0, 0, [(1, 1), (9, 9)])])]).encode(), "has no polygon"),
    "no corners.xml": (aperio([("", "", [(1, 0, [])])]).encode(), "has no polygon"),
    "no group.xml": (asap([("Polygon", "None", [])]).encode(), "has no polygon"),
    "geometry.json": (b'{"type": "Polygon", "coordinates": []}', "the type 'Polygon', expected Feat"),
    "none.json": (b'{"type": "FeatureCollection", "features": []}', "has no polygon (0 annotations"),
    "dots.xml": (asap([("Dot", "None", [(1, 1)])]).encode(), "has no polygon (1 annotations are points"),
    "line.xml": (asap([("Polygon", "None", [(1, 1), (2, 2), (1, 1)])]).encode(), "has no polygon"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_cannot_be_used_are_named_with_the_reason(tmp_path, name):
    content, reason = DAMAGED[name]
    path = tmp_path / name
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, WHOLE)
    assert caught.value.path == str(path)
    assert reason in caught.value.problem


def test_entities_that_would_fill_the_memory_are_refused(tmp_path):
    lines = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "lol">{lines}]><ASAP_Annotations>&a9;</ASAP_Annotations>'
    with pytest.raises(AnnotationError, match="defines entities or a document type"):
        read_annotations(write(tmp_path / "a.xml", bomb), WHOLE)


def test_a_file_without_polygons_may_say_that_nothing_was_found(tmp_path):
    path = write_qupath(tmp_path / "a.geojson", [])
    found = read_annotations(path, WHOLE, may_be_empty=True)
    assert (found.shapes, found.contents) == ((), "nothing")
    assert found.area().is_empty


# --- coordinates of another slide ---


def test_coordinates_of_the_whole_slide_in_a_file_of_qupath_are_explained(tmp_path):
    path = write_qupath(tmp_path / "a.geojson", [feature(rectangle(1600, 800, 200, 100))])
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, BOUNDED)
    assert "from (1600, 800) to (1800, 900), but the scanned bounds of the slide are 1500 x 800" in str(
        caught.value
    )
    assert "1 of 1 annotations and 100% of their area lie outside" in str(caught.value)
    assert "QuPath counts from that of the scanned bounds, (400, 150); subtract it" in str(caught.value)


def test_coordinates_from_the_bounds_in_a_file_of_asap_are_explained(tmp_path):
    path = write(tmp_path / "a.xml", asap([("Polygon", "None", rectangle(-300, 0, 100, 100))]))
    with pytest.raises(AnnotationError, match=r"ASAP counts from that of the whole slide; add it"):
        read_annotations(path, BOUNDED)


@pytest.mark.parametrize("frame", [WHOLE, BOUNDED])
def test_annotations_of_another_slide_or_level_are_refused(tmp_path, frame):
    path = write(tmp_path / "a.xml", asap([("Polygon", "None", rectangle(1900, 900, 6100, 3000))]))
    with pytest.raises(
        AnnotationError, match=r"but the slide is 2000 x 1000 .* another slide, or of another level"
    ):
        read_annotations(path, frame)


def test_annotations_may_reach_a_little_beyond_the_edge_and_say_so(tmp_path):
    text = asap([("Polygon", "None", rectangle(1900, 0, 110, 100))])
    found = read_annotations(write(tmp_path / "a.xml", text), WHOLE)
    assert found.notes == ("9% of the annotated area lies outside the slide",)
