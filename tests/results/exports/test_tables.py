"""Tables of all slides are the same in both formats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from results.scored_folder import selection, write_scores
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.results.selections import write_selection
from wsi_ats.tables.files import read_csv, read_parquet


@pytest.mark.parametrize("names", [("a", "b"), ()], ids=["two slides", "none"])
def test_all_selections_make_one_table_in_both_formats(tmp_path, names):
    scores = write_scores(tmp_path / "scores", *names)
    slides = [each for each in scores.slides if each.reads_tiles]
    for kind in ("csv", "parquet"):
        written = FORMATS[kind].collection(tmp_path, scores, slides)
        assert [path.name for path in written] == [f"selections.{kind}", f"predictions.{kind}"]
        assert written[1].read_bytes() == (scores.folder / written[1].name).read_bytes()
    text, (columns, _) = read_csv(tmp_path / "selections.csv"), read_parquet(tmp_path / "selections.parquet")
    assert columns["slide_id"] == [name for name in names for _ in range(4)] == text["slide_id"]
    assert list(text) == list(columns)
    expected = np.concatenate([[], *(selection(name).attention for name in names)])
    np.testing.assert_array_equal(columns["attention"], expected)
    np.testing.assert_array_equal([float(value) for value in text["attention"]], expected)
    assert text["x"] == [str(value) for value in columns["x"]]


def test_slides_without_evidence_have_empty_cells_beside_others(tmp_path):
    scores = write_scores(tmp_path / "scores", "a", "b")
    plain = replace(selection("b"), evidence={})
    write_selection(tmp_path / "scores" / "selections" / "b.parquet", plain)
    slides = [each for each in scores.slides if each.reads_tiles]
    for kind in ("csv", "parquet"):
        FORMATS[kind].collection(tmp_path, scores, slides)
    columns, _ = read_parquet(tmp_path / "selections.parquet")
    assert columns["evidence_tumour"] == [*selection("a").evidence_of("tumour"), *[None] * 4]
    assert read_csv(tmp_path / "selections.csv")["evidence_tumour"][4:] == [""] * 4
