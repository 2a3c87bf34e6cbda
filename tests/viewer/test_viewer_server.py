"""The server answers only the user with the address, and nothing that is not part of the page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from viewer.folder import CLASS, DRAWN, HOSTILE, TARGET, WIDTH, attention, pixels
from viewer.serving import ask, ask_path, running
from wsi_ats.slides.jpeg import decode
from wsi_ats.viewer.server import grey_tile

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(collection):
    with running(collection) as url:
        yield url


def test_the_page_and_its_scripts_are_there_and_ask_for_nothing_from_the_network(url):
    for name, kind in {
        "": "text/html",
        "index.html": "text/html",
        "viewer.js": "text/javascript",
        "viewer.css": "text/css",
        "bokeh.js": "text/javascript",
        "slides.json": "application/json",
        "slides/0.json": "application/json",
        "slides/0/0/0_0.jpg": "image/jpeg",
    }.items():
        status, headers, body = ask(url, name)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind), name
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; " in policy
        assert "unsafe-eval" not in policy
        assert "Server" not in headers
        if name in {"", "viewer.js", "viewer.css"}:
            assert not re.search(rb"https?:|//[a-z]+\.", body)


@pytest.mark.parametrize("path", ["", "slides.json", "slides/0.json", "slides/0/0/0_0.jpg", "nothing"])
def test_a_wrong_token_is_refused_whatever_is_asked(url, path):
    place = urlsplit(url)
    token = place.path.strip("/")
    assert len(token) >= 32
    for wrong in ("x" * len(token), token[:-1], token + "x", "", "%00", "%C3%A9", ".."):
        assert ask_path(url, f"/{wrong}/{path}")[0] == 403, wrong
    for short in ("/", "//"):
        assert ask_path(url, short)[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]", "0.0.0.0"]
)
def test_another_host_is_refused_which_stops_rebound_names(url, host):
    assert ask(url, "slides.json", host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:9999"])
def test_a_tunnel_from_another_machine_may_have_another_port(url, host):
    assert ask(url, "slides.json", host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "slides/4.json",
            "slides/99/0/0_0.jpg",
            "slides/-1.json",
            "slides/0/0/1_0.jpg",
            "slides/0/9/0_0.jpg",
        ),
        *("slides/0/0/99999999999_0.jpg", "slides", "slides/", "slides/plain.json", "slides/0x0.json"),
        *("../run.json", "slides/../../run.json", "..%2frun.json", "%2e%2e/run.json", "slides/..%2f0.json"),
        *("%2fetc%2fpasswd", "//etc/passwd", "viewer.js%00.html", "viewer.py", "run.json", "viewer.js/"),
    ],
)
def test_what_is_not_part_of_the_page_is_not_found(url, path):
    status, headers, body = ask(url, path)
    assert status == 404
    assert headers["Content-Type"].startswith("text/plain")
    assert body == b"404 Not Found"


def test_only_reading_is_allowed(url):
    for method in ("POST", "PUT", "DELETE"):
        assert ask(url, "slides.json", method=method)[0] == 405


def test_the_list_has_a_row_for_each_slide_with_its_scores(url):
    table = json.loads(ask(url, "slides.json")[2])
    assert table["columns"] == [
        *(
            "slide_id",
            "predicted",
            *TARGET.columns,
            "logit_se",
            "case_id",
            "status",
            "tiles_read",
            "tiles_total",
        )
    ]
    assert [row[0] for row in table["rows"]] == [HOSTILE, "damaged", "plain", "failed"]
    assert table["rows"][2] == ["plain", "benign", 0.25, 0.75, None, "case of plain", "done", 4, 96]
    assert table["rows"][3][6] == "failed"


def test_a_tile_has_the_pixels_of_the_slide(url):
    body = ask(url, "slides/0/4/0_0.jpg")[2]
    shown = np.empty((256, 256, 3), np.uint8)
    decode(body, shown)
    difference = np.abs(shown.astype(int) - pixels()[:256, :256])
    assert difference.mean() < 1.5


def test_a_slide_has_its_facts_overlays_and_the_numbers_of_its_tiles(url):
    slide = json.loads(ask(url, "slides/0.json")[2])
    assert (slide["id"], slide["error"], slide["mpp"], slide["notes"]) == (HOSTILE, None, 0.5, [])
    facts = dict(slide["facts"])
    assert facts[f"prob_{CLASS}"] == 0.75
    assert facts["tiles read"] == "4 of 96"
    assert [each["name"] for each in slide["overlays"]] == ["attention", "tissue", "tiles", "annotations"]
    assert slide["overlays"][3]["classes"] == {CLASS: "#56b4e9"}


def test_the_plot_has_each_drawn_tile_at_its_place(collection):
    from wsi_ats.viewer.collection import _drawn

    tiles = _drawn(collection.scores.slides[0].selection(), attention())
    assert tiles.boxes.tolist() == [[100 * (cell % 30), 400, 100, 100] for cell in DRAWN]
    assert tiles.numbers["attention"] == [0.1, 0.2, 0.3, 0.05]
    assert tiles.numbers["attention (1 = uniform)"] == pytest.approx([9.6, 19.2, 28.8, 4.8])
    assert tiles.numbers["weight"] == [0.11, 0.22, 0.33, 0.04]
    assert tiles.numbers["order"] == [0, 1, 2, 3]
    assert tiles.numbers[f"evidence {CLASS}"] == [1.5, -2.5, 0.5, None]


def test_a_slide_that_failed_says_why_and_the_others_are_shown(url):
    slide = json.loads(ask(url, "slides/3.json")[2])
    assert (slide["plot"], slide["error"]) == (None, "failed.tif: it is an empty file; copy it again")


def test_a_tile_that_cannot_be_read_is_grey_and_says_why_and_its_neighbours_are_shown(url):
    status, headers, body = ask(url, "slides/1/4/0_0.jpg")  # half of it is the damaged tile
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/svg+xml", "no-store")
    text = "".join(ET.fromstring(body).itertext())
    assert "damaged.tif" in text
    assert ask(url, "slides/1/4/1_0.jpg")[1]["Content-Type"] == "image/jpeg"


def test_a_slide_that_has_changed_or_is_gone_says_so(url, collection, tmp_path):
    path = Path(collection.scores.slides[2].row["path"])
    path.rename(tmp_path / "away.tif")
    try:
        slide = json.loads(ask(url, "slides/2.json")[2])
        assert slide["plot"] is None
        assert "it cannot be shown: plain: " in slide["error"]
        assert "--slides FOLDER" in slide["error"]
        assert ask(url, "slides/2/0/0_0.jpg")[1]["Content-Type"] == "image/svg+xml"
    finally:
        (tmp_path / "away.tif").rename(path)
    assert json.loads(ask(url, "slides/2.json")[2])["error"] is None  # it was not remembered as bad


def test_a_damaged_file_of_annotations_is_a_note_and_the_slide_is_shown(url, collection, tmp_path):
    path = tmp_path / "damaged.geojson"
    path.write_text('{"features": [{"geometry": ')
    collection.annotations[HOSTILE] = path
    slide = json.loads(ask(url, "slides/0.json")[2])
    assert "damaged.geojson: is truncated or damaged JSON" in slide["notes"][0]
    assert slide["plot"] is not None


def test_many_tiles_at_once_are_all_answered_and_the_cache_stays_in_its_bounds(url, collection):
    collection.cache.most_bytes = 30_000
    names = [f"slides/{number}/4/{x}_{y}.jpg" for number in (0, 2) for x in range(10) for y in range(5)]
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda name: ask(url, name), names))
    assert {status for status, _, _ in answers} == {200}
    assert sum(len(body) for _, _, body in answers) > 30_000
    assert 0 < collection.cache.size <= 30_000


def test_a_grey_tile_shows_any_message_as_text():
    message = 'C:\\<svg onload="alert(1)"> & ' + "x" * 500
    root = ET.fromstring(grey_tile(message))
    assert {each.tag.rpartition("}")[2] for each in root.iter()} == {"svg", "rect", "text", "tspan"}
    assert '<svg onload="alert(1)"> &' in "".join(root.itertext())


# As a command


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "view", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_command_serves_until_ctrl_c_and_a_second_viewer_on_its_port_is_refused(scored):
    with start(scored, "--port", "0", "--slides", scored.parent / "slides") as first:
        try:
            line = first.stderr.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)[0]
            assert ask(url, "slides/2.json")[0] == 200
            port = urlsplit(url).port
            with start(scored, "--port", port) as second:
                stdout, stderr = second.communicate(timeout=120)
            assert (second.returncode, stdout) == (2, "")
            assert f"error: port {port} of 127.0.0.1 is in use" in stderr
            first.send_signal(signal.SIGINT)
            stdout, stderr = first.communicate(timeout=60)
            assert (first.returncode, stderr) == (0, "")
            assert "slides" in stdout
        finally:
            first.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(url)


def test_widths_beyond_the_slide_are_glass(url):
    shown = np.empty((256, 256, 3), np.uint8)
    decode(ask(url, f"slides/0/4/{WIDTH // 256}_0.jpg")[2], shown)
    assert (shown[:, WIDTH % 256 + 8 :] > 250).all()
