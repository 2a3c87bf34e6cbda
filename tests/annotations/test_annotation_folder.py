"""Files of annotations are found by the names of slides."""

from __future__ import annotations

import pytest

from wsi_ats.annotations.folder import AnnotationFolder
from wsi_ats.errors import AnnotationError, ManifestError


def test_each_ending_is_found_in_the_folder_and_below(tmp_path):
    names = ("a.geojson", "b.json", "deep/c.xml", "d.geojson.gz", "e.x.json.gz", "f.XML")
    for name in (*names, ".g.xml", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = AnnotationFolder.find(tmp_path)
    assert found.ids == ("a", "b", "c", "d", "e.x", "f")
    assert found.file_for("e.x") == tmp_path / "e.x.json.gz"
    assert (found.has("a"), found.has("g")) == (True, False)


def test_names_are_compared_in_one_form_of_unicode(tmp_path):
    (tmp_path / "Mu\u0308ller.xml").touch()
    assert AnnotationFolder.find(tmp_path).has("M\u00fcller")


def test_a_slide_without_a_file_or_with_two_is_an_error_of_that_slide(tmp_path):
    for name in ("a.xml", "a.geojson", "b.xml"):
        (tmp_path / name).touch()
    found = AnnotationFolder.find(tmp_path)
    assert found.file_for("b").name == "b.xml"
    with pytest.raises(
        AnnotationError, match=r"is one of 2 files of slide a: .*a\.geojson, .*a\.xml; keep one"
    ):
        found.file_for("a")
    with pytest.raises(AnnotationError, match="has no annotations of slide c, but of 2 others: a, b"):
        found.file_for("c")


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no annotations found; expected files <slide_id> with one of"):
        AnnotationFolder.find(tmp_path)
    with pytest.raises(ManifestError, match="no such folder"):
        AnnotationFolder.find(tmp_path / "missing")
