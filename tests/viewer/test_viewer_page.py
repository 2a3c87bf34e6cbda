"""The page in a real browser: pixels, overlays, clicks, keys, links, and names that would be HTML."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from viewer.folder import CLASS, DRAWN, GLASS, HEIGHT, HOSTILE, TISSUE, WIDTH
from viewer.serving import running
from wsi_ats.results.scores import read_scores
from wsi_ats.viewer.collection import Collection

# Seconds after which a test has failed that waits for something.
LIMIT = 60


@pytest.fixture
def tab(browser, collection) -> Iterator[Tab]:
    with running(collection) as url:
        tab = Tab(browser, url)
        yield tab
        tab.page.close()
        assert tab.troubles == []


class Tab:
    """A tab of the browser that shows the page."""

    def __init__(self, browser, url: str) -> None:
        self.url = url
        self.page = browser.new_page(viewport={"width": 1100, "height": 600})
        self.page.set_default_timeout(LIMIT * 1000)
        self.troubles: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message) or dialog.dismiss())
        self.page.on("request", self._check)

    def _hear(self, message) -> None:
        if message.type in {"error", "warning"}:
            self.troubles.append(message.text)

    def _check(self, request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.troubles.append(f"asks for {request.url}")

    def show(self, place: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(self.url + place)
        self.settle()

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; Playwright's own waiting needs `eval`, which the page forbids."""
        end = time.monotonic() + LIMIT
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(50)

    def settle(self) -> None:
        """Wait until a slide is shown, and all tiles that it needs are drawn."""
        self.wait("plot?.document.is_idle && location.hash.split('/').length === 4")
        # Bokeh asks for tiles a moment after it has painted.
        self.page.wait_for_timeout(150)
        tiles = "[...plot.document.get_model_by_name('source').tiles.values()]"
        self.wait(f"{tiles}.every((each) => each.loaded || each.finished)")
        self.page.wait_for_timeout(300)  # the page remembers its place, and Bokeh paints

    @property
    def place(self) -> list[float]:
        """Middle in level-0 pixels, and level-0 pixels per pixel of the screen."""
        return [float(each) for each in self.page.url.partition("#")[2].split("/")[1:]]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place of the slide is on the screen."""
        box = self.page.locator("#plot").bounding_box()
        middle_x, middle_y, zoom = self.place
        return (
            box["x"] + box["width"] / 2 + (x - middle_x) / zoom,
            box["y"] + box["height"] / 2 + (y - middle_y) / zoom,
        )

    def colour(self, x: float, y: float) -> np.ndarray:
        """Return the mean colour of 5 x 5 pixels of the screen at a place of the slide."""
        screen = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(float)
        column, row = map(round, self.at(x, y))
        return screen[row - 2 : row + 3, column - 2 : column + 3].mean((0, 1))

    def opacity(self, name: str, value: float) -> None:
        self.page.locator(f"#opacity-{name}").fill(str(value))
        self.page.wait_for_timeout(300)

    def drag(self) -> None:
        """Move the plot by 100 pixels to the right and 50 down."""
        address = self.page.evaluate("location.hash")
        x, y = self.at(*self.place[:2])
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for step in range(1, 6):
            self.page.mouse.move(x + 20 * step, y + 10 * step)
            self.page.wait_for_timeout(30)
        self.page.mouse.up()
        self.wait(f"location.hash !== {json.dumps(address)}")

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


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
    tab.wait("zoomed() < 0.134")
    tab.page.wait_for_timeout(500)
    before = tab.place
    tab.drag()
    tab.page.wait_for_timeout(500)
    np.testing.assert_allclose(np.subtract(before, tab.place)[:2], [13.3, 6.7], atol=1)


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


def test_ten_thousand_slides_are_listed_a_part_at_a_time(tab, collection, scored):
    [slide] = [each for each in read_scores(scored).slides if each.id == "plain"]
    many = [replace(slide, row={**slide.row, "slide_id": f"slide {i}"}) for i in range(10_000)]
    collection.scores = replace(collection.scores, slides=many)
    tab.page.goto(tab.url)
    tab.wait("document.title === 'slide 0'")
    rows = tab.page.locator("#list tbody tr")
    assert rows.count() == 200
    tab.page.locator("#list").evaluate("(list) => list.scrollTo(0, list.scrollHeight)")
    tab.wait("document.querySelectorAll('#list tbody tr').length >= 400")
    assert rows.count() <= 600
    assert tab.texts("#title") == ["scores: 10000 slides"]


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
