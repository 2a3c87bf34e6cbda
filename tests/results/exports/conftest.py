"""Scores of two slides, and the files that a format makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.scored_folder import write_scores
from wsi_ats.results.exports.registry import FORMATS


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return write_scores(tmp_path_factory.mktemp("scores"), "a", "b")


@pytest.fixture
def exported(scores, tmp_path):
    """The function that exports to a format, and returns its folder and the files it says it wrote."""

    def export(name: str, slides=None) -> tuple[Path, list[Path]]:
        made, own = FORMATS[name], [each for each in scores.slides if each.reads_tiles]
        files = [path for slide in own if made.slide for path in made.slide(tmp_path, slide)]
        files += made.collection(tmp_path, scores, own) if made.collection else []
        return tmp_path, files

    return export
