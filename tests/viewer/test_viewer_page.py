"""The page in a real browser: pixels, overlays, clicks, keys, links, and names that would be HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pytest

from viewer.browser import Tab
from viewer.folder import CLASS, DRAWN, GLASS, HEIGHT, HOSTILE, TISSUE, WIDTH
from viewer.serving import running
from wsi_ats.results.scores import read_scores
from wsi_ats.viewer.collection import Collection


@contextmanager
def opened(browser, collection: Collection) -> Iterator[Tab]:
    """Show a collection in a tab, in which nothing may go wrong."""
    with running(collection) as url:
        tab = Tab(browser, url)
        yield tab
        tab.page.close()
        assert tab.troubles == []


@pytest.fixture
def tab(browser, collection) -> Iterator[Tab]:
    with opened(browser, collection) as tab:
        yield tab


def test_a_slide_is_shown_where_it_is_and_overlays_have_opacities(tab):
    tab.show()
    assert tab.texts("#name") == [HOSTILE]
    np.testing.assert_allclose(tab.place[:2], [WIDTH / 2, HEIGHT / 2], atol=1)
    inside, glass, drawn = (1350, 950), (2500, 1500), (450, 450)
    np.testing.assert_allclose(tab.colour(*glass), GLASS, atol=8)
    before = tab.colour(*drawn)
    assert np.abs(before - TISSUE).max() > 40  # attention is high there
    tab.opacity("attention", 0)
    np.testing.assert_allclose(tab.colour(*drawn), TISSUE, atol=12)
    np.testing.assert_allclose(tab.colour(*inside), TISSUE, atol=12)
    tab.opacity("tissue", 1)
    np.testing.assert_allclose(tab.colour(*inside), (0, 160, 160), atol=3)
    np.testing.assert_allclose(tab.colour(*glass), GLASS, atol=8)
    tab.opacity("tissue", 0)
    np.testing.assert_allclose(tab.colour(301, 600), (86, 180, 233), atol=90)  # the annotation
    tab.opacity("annotations", 0)
    np.testing.assert_allclose(tab.colour(301, 600), TISSUE, atol=12)


def test_wheel_and_drag_lead_to_pixels_of_level_0_and_the_address_restores_the_place(tab):
    tab.show()
    tab.page.mouse.move(*tab.at(1000, 600))
    for _ in range(8):
        tab.page.mouse.wheel(0, -120)
        tab.page.wait_for_timeout(20)
    tab.settle()
    assert tab.place[2] < 0.7  # tiles of level 0
    before = tab.place
    tab.drag()
    tab.settle()
    moved = tab.place
    np.testing.assert_allclose(np.subtract(before, moved)[:2], [100 * moved[2], 50 * moved[2]], atol=1)
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.show("#" + tab.page.url.partition("#")[2])
    np.testing.assert_allclose(tab.place, moved, rtol=1e-3)
    assert any(f"/0/4/{int(moved[0]) // 256}_{int(moved[1]) // 256}.jpg" in url for url in asked)


def test_the_slide_can_be_moved_at_the_closest_zoom(tab):
    tab.show("#plain/1000/600/0.2")
    tab.page.mouse.move(*tab.at(1000, 600))
    for _ in range(8):  # as far as it goes
        tab.page.mouse.wheel(0, -120)
        tab.page.wait_for_timeout(50)
    tab.wait("zoomed() < 0.14")
    tab.page.wait_for_timeout(500)
    before = tab.place
    tab.drag()
    tab.page.wait_for_timeout(500)
    np.testing.assert_allclose(np.subtract(before, tab.place)[:2], [13.9, 7.0], atol=1)


def test_a_click_on_a_drawn_tile_shows_its_numbers(tab):
    tab.show(f"#{quote(HOSTILE, safe='')}/650/450/0.7")
    assert tab.texts("#tile") == ["click one to see its numbers, or press t for the next"]
    tab.page.mouse.click(*tab.at(650, 450))
    tab.page.wait_for_selector("#tile table")
    assert DRAWN[1] % 30 == 6
    numbers = dict(zip(tab.texts("#tile th"), tab.texts("#tile td"), strict=True))
    assert numbers == {
        "x, y (level 0)": "600, 400",
        "attention (1 = uniform)": "19.20",
        "attention": "0.2000",
        "weight": "0.2200",
        "inclusion": "0.5000",
        "draws": "1",
        "draw": "0",
        "order": "1",
        f"evidence {CLASS}": "-2.500",
        "evidence benign": "2.500",
    }
    tab.page.wait_for_timeout(1000)  # else it would be a double click
    tab.page.mouse.click(*tab.at(750, 550))  # no drawn tile
    tab.page.wait_for_selector("#tile table", state="detached")
    tab.page.keyboard.press("t")
    tab.page.keyboard.press("t")
    tab.settle()
    assert tab.texts("#tile td")[0] == "600, 400"
    np.testing.assert_allclose(tab.place, [650, 450, 0.5], rtol=1e-3)  # a third of the window is the tile


def test_the_list_sorts_finds_and_is_walked_by_keys_and_a_failed_slide_says_why(tab):
    tab.show()
    names = "#list tbody td:first-child"
    assert tab.texts(names) == [HOSTILE, "damaged", "plain", "failed"]
    tab.page.locator("#list th", has_text="prob_benign").click()
    assert tab.texts(names) == [HOSTILE, "damaged", "plain", "failed"]  # no score comes last
    tab.page.locator("#list th", has_text="prob_benign").click()
    assert tab.texts(names) == ["plain", "damaged", HOSTILE, "failed"]
    tab.page.keyboard.press("p")
    tab.wait("document.title === 'damaged'")
    tab.page.keyboard.press("n")
    tab.page.keyboard.press("n")
    tab.wait("document.title === 'failed'")
    assert tab.texts("#error") == ["failed.tif: it is an empty file; copy it again"]
    assert tab.texts("#list tr.current td:first-child") == ["failed"]
    assert tab.page.url.endswith("#failed")
    tab.page.locator("#find").fill("PLAI")
    assert tab.texts(names) == ["plain"]


def test_a_tile_that_cannot_be_read_is_grey_and_the_rest_of_the_slide_is_shown(tab):
    tab.show("#damaged/300/130/1")
    np.testing.assert_allclose(tab.colour(240, 240), (187, 187, 187), atol=3)
    tab.opacity("attention", 0)
    np.testing.assert_allclose(tab.colour(450, 250), TISSUE, atol=12)


@pytest.fixture
def many(browser, scored) -> Iterator[Tab]:
    """A tab with 10,000 slides, of which only the list can be seen."""
    scores = read_scores(scored)
    plain = scores.by_id["plain"]
    slides = [replace(plain, row={**plain.row, "slide_id": f"slide {i}"}) for i in range(10_000)]
    with opened(browser, Collection(replace(scores, slides=slides), {})) as tab:
        yield tab


def test_ten_thousand_slides_are_listed_a_part_at_a_time(many):
    many.page.goto(many.url)
    many.wait("document.title === 'slide 0'")
    rows = many.page.locator("#list tbody tr")
    assert rows.count() == 200
    many.page.locator("#list").evaluate("(list) => list.scrollTo(0, list.scrollHeight)")
    many.wait("document.querySelectorAll('#list tbody tr').length >= 400")
    assert rows.count() <= 600
    assert many.texts("#title") == ["scores: 10000 slides"]


def test_a_link_to_one_of_ten_thousand_slides_draws_the_rows_around_it(many):
    many.page.goto(many.url + "#slide%209000")
    many.wait("document.title === 'slide 9000'")
    assert many.texts("#list tr.current td:first-child") == ["slide 9000"]
    rows = many.page.locator("#list tbody tr")
    assert rows.count() <= 600
    many.page.keyboard.press("p")
    many.wait("document.title === 'slide 8999'")
    many.page.locator("#list").evaluate("(list) => list.scrollTo(0, 0)")
    many.wait("+document.querySelector('#list tbody tr').dataset.slide < 8900")
    names = many.texts("#list tbody td:first-child")
    start = int(names[0].split()[1])
    assert names == [f"slide {start + i}" for i in range(len(names))]  # each once, in order
    assert many.page.locator("#list").evaluate("(list) => list.scrollTop") > 0  # the same rows are seen


def test_exported_files_are_the_same_page(browser, scored, tmp_path):
    from web import web_server

    from pipelines.view import view

    done = view(scored, export=tmp_path / "out", annotations=scored.parent / "annotations")
    assert done.failed.keys() == {"damaged", "failed"}
    with web_server() as server:
        for path in (tmp_path / "out").rglob("*"):
            if path.is_file():
                server.files[f"/{path.relative_to(tmp_path / 'out')}"] = path
        tab = Tab(browser, server.address + "/")
        tab.show("index.html")
        tab.opacity("attention", 0)
        np.testing.assert_allclose(tab.colour(1350, 950), TISSUE, atol=12)
        tab.page.close()
    assert tab.troubles == []
    assert json.loads((tmp_path / "out" / "slides.json").read_text())["rows"][0][0] == HOSTILE


def test_the_collection_can_be_made_without_annotations(scored):
    slide = Collection(read_scores(scored), {}).slide(2)
    assert [each["name"] for each in slide["overlays"]] == ["attention", "tissue", "tiles"]
