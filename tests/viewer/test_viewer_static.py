"""The page as files, and what the command refuses before it writes or serves anything."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from pipelines._reports import Silent
from pipelines.view import view
from viewer.folder import HEIGHT, HOSTILE, WIDTH, pixels
from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.slides.jpeg import decode
from wsi_ats.viewer.tiles import Pyramid

PYRAMID = Pyramid(WIDTH, HEIGHT)


class Said(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def exported(scored, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("exported") / "new" / "page", Said()
    return out, said.texts, view(scored, export=out, reporter=said)


def test_every_tile_of_every_slide_is_a_file_and_has_its_pixels(exported):
    out, _, _ = exported
    for number in (0, 2):
        tiles = {
            str(path.relative_to(out / "slides" / str(number))) for path in out.glob(f"slides/{number}/*/*")
        }
        assert tiles == {
            f"{zoom}/{column}_{row}.jpg"
            for zoom in range(PYRAMID.top + 1)
            for row in range(PYRAMID.shape(zoom)[0])
            for column in range(PYRAMID.shape(zoom)[1])
        }
        assert len(tiles) == PYRAMID.count
    shown = np.empty((256, 256, 3), np.uint8)
    decode((out / "slides" / "2" / "4" / "1_1.jpg").read_bytes(), shown)
    assert np.abs(shown.astype(int) - pixels()[256:512, 256:512]).mean() < 1.5
    assert json.loads((out / "slides.json").read_text())["rows"][0][0] == HOSTILE
    assert {path.name for path in out.iterdir()} == {
        *("index.html", "viewer.js", "viewer.css", "bokeh.js", "slides.json", "slides", ".wsi-ats-view")
    }


def test_slides_that_cannot_be_shown_say_so_on_their_pages_and_in_the_summary(exported):
    out, _, done = exported
    assert done.exit_code == 1
    assert done.failed.keys() == {"damaged", "failed"}
    for number, name in ((1, "damaged"), (3, "failed")):
        page = json.loads((out / "slides" / f"{number}.json").read_text())
        assert (page["plot"], page["overlays"], page["id"]) == (None, [], name)
        assert f"{name}.tif" in page["error"]


def test_the_size_is_said_before(exported):
    out, said, _ = exported
    [line] = said
    size, count = re.match(r"about ([\d,]+) MB in ([\d,]+) tiles of 4 slides, in ", line).groups()
    assert int(count) == 3 * PYRAMID.count  # of those that can be opened
    written = sum(path.stat().st_size for path in out.glob("slides/*/*/*.jpg")) / 1e6
    assert math.isclose(int(size), 1.5 * written, abs_tol=2)  # one of the three is damaged


def test_only_an_earlier_export_is_replaced_and_only_if_asked(scored, tmp_path):
    view(scored, export=tmp_path)
    with pytest.raises(ArtifactError, match=r"is not empty; choose another folder, or .* --overwrite"):
        view(scored, export=tmp_path)
    old = tmp_path / "slides" / "77"
    old.mkdir()
    view(scored, export=tmp_path, overwrite=True)
    assert not old.exists()
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"other files than those of an export \(thesis\.docx\)"):
        view(scored, export=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.docx").exists()
    assert (tmp_path / "index.html").exists()


def test_a_disk_without_room_is_refused_before_a_tile_is_written(scored, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(ArtifactError, match="has room for 0 MB only"):
        view(scored, export=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".wsi-ats-view"]


def test_a_folder_of_other_slides_is_no_earlier_export(scored, tmp_path):
    (tmp_path / "slides").mkdir()
    with pytest.raises(ArtifactError, match=r"other files than those of an export \(slides\)"):
        view(scored, export=tmp_path, overwrite=True)
    assert (tmp_path / "slides").exists()


def test_options_that_would_be_ignored_are_refused(scored, tmp_path):
    with pytest.raises(SettingsError, match="--export writes files and serves nothing"):
        view(scored, export=tmp_path, port=8000)
    with pytest.raises(SettingsError, match="--overwrite is for --export"):
        view(scored, overwrite=True)


def test_a_missing_extra_is_said_before_the_scores_are_read(without, tmp_path):
    without("bokeh")
    with pytest.raises(SettingsError, match=r'`wsi-ats view` needs bokeh.*pip install "wsi-ats\[view\]"'):
        view(tmp_path / "no scores")


def test_slides_that_were_moved_are_shown_from_where_they_are(scored, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (scored.parent / "slides").iterdir():
        shutil.copy(path, moved)
    copied = tmp_path / "scores"
    shutil.copytree(scored, copied)
    plain = copied / "records" / "plain.json"
    record = json.loads(plain.read_text())
    record["slide"]["path"] = str(Path("/nowhere") / "plain.tif")
    plain.write_text(json.dumps(record))
    assert "plain" in view(copied, export=tmp_path / "a").failed
    assert "plain" not in view(copied, slides=moved, export=tmp_path / "b").failed
