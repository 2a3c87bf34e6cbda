"""Real slides of several scanners, one of them without a resolution."""

from __future__ import annotations

import pytest
from conftest import files, table


@pytest.fixture
def real(shared_data):
    folder = shared_data / "slides"
    if not folder.is_dir():
        pytest.skip(f"real slides are not there: {folder}")
    return folder


NO_MPP = {"tiff_slaid_patch"}


@pytest.mark.parametrize("mpp", [None, 0.5])
def test_prepare_score_export(real, run, model, config, tmp_path, mpp):
    given = () if mpp is None else ("--mpp", mpp)
    failed = NO_MPP if mpp is None else set()
    work, scores, exported = (tmp_path / name for name in ("work", "scores", "exported"))

    prepared = run("prepare", real, "--out", work, "--config", config, "--json", *given, code=len(failed))
    assert prepared.json["failed"].keys() == failed
    rows = {row["slide_id"]: row for row in table(work / "slides.csv")}
    assert len(rows) == 5
    if mpp is None:
        assert "--mpp" in rows["tiff_slaid_patch"]["error"]

    scored = run("score", real, "--model", model, "--out", scores, "--json", *given, code=len(failed))
    assert scored.json["failed"].keys() == failed
    done = {row["slide_id"] for row in table(scores / "predictions.csv") if row["status"] == "done"}
    assert done == rows.keys() - failed

    run("export", scores, "--to", "qupath", "--out", exported)
    kinds = ("", ".attention", ".tissue")
    expected = [f"{name}{kind}.geojson" for name in done for kind in kinds]
    assert files(exported / "qupath") == sorted([*expected, "open_in_qupath.groovy", "slides.json"])
