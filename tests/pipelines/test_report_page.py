"""A report in a real browser: complete without network and JavaScript, sorted, filtered, printed, legible."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from viewer.folder import CLASS, HOSTILE, write_scores

from pipelines import report as module
from wsi_ats.results.shown import SHEETS
from wsi_ats.slides.resample import write_png

# The least contrast of text that is easy to read (WCAG 2.2, level AA).
LEAST_CONTRAST = 4.5
# Contrast of each element that has text of its own with the nearest background behind it.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0);
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (![...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim())) continue;
    if (element.matches("script") || !element.checkVisibility()) continue;
    let behind = element;
    while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
      behind = behind.parentElement;
    const back = behind ? channels(getComputedStyle(behind).backgroundColor) : [255, 255, 255];
    const pair = [light(channels(getComputedStyle(element).color)), light(back)];
    found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), element.textContent]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two pages: a hostile, a damaged, a plain and a failed slide, two on each."""
    root = tmp_path_factory.mktemp("report")
    scores = write_scores(root)
    for folder, size in ((scores / "pictures", (900, 600)), (scores / "pictures" / SHEETS, (900, 1300))):
        folder.mkdir()
        for shade, name in enumerate((HOSTILE, "damaged", "plain"), size[1] // 200):
            write_png(folder / f"{name}.png", np.full((*size[::-1], 3), 25 * shade, np.uint8))
    labels = root / "labels.csv"
    names = {HOSTILE: CLASS, "damaged": "benign", "plain": "benign"}
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
    lines = [f"{quoted[name]},{label}\n" for name, label in names.items()]
    labels.write_text("slide_id,label\n" + "".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLIDES_A_PAGE", 2)
        module.report(scores, root / "report.html", labels=labels)
    return root / "report.html"


@pytest.fixture(params=[True, False], ids=["JavaScript", "no JavaScript"])
def page(request, browser, report) -> Iterator[object]:
    """The first page; afterwards, nothing was asked for but the report, and nothing went wrong."""
    context = browser.new_context(java_script_enabled=request.param)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: asked.append(request.url))
    asked: list[str] = []
    page.goto(report.as_uri())
    yield page
    context.close()
    assert troubles == []
    own = report.parent.as_uri()
    assert [url for url in asked if not url.startswith((own, "data:"))] == []


def texts(page, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def names_shown(page) -> list[str]:
    return texts(page, "#table tbody tr:not([hidden]) td:first-child")


@pytest.mark.parametrize("page", [True], indirect=True)
def test_the_table_is_sorted_by_a_click_or_a_key_and_says_so(page):
    before = names_shown(page)
    assert before == [HOSTILE, "damaged", "plain", "failed"]
    score = page.locator("#table th", has_text="P(benign)")
    score.locator("button").click()
    assert names_shown(page) == [HOSTILE, "damaged", "plain", "failed"], "0.25, 0.5, 0.75, none"
    assert score.get_attribute("aria-sort") == "ascending"
    score.locator("button").press("Enter")
    assert names_shown(page) == ["plain", "damaged", HOSTILE, "failed"], "a slide without score stays last"
    assert score.get_attribute("aria-sort") == "descending"
    page.locator("#table th button", has_text="Slide").first.click()
    assert names_shown(page) == [HOSTILE, "damaged", "failed", "plain"]
    assert score.get_attribute("aria-sort") is None


@pytest.mark.parametrize("page", [True], indirect=True)
def test_the_table_is_filtered_by_text_and_status(page):
    page.get_by_label("Find").fill("<SCRIPT>")
    assert names_shown(page) == [HOSTILE]
    assert texts(page, "#shown") == ["1 of 4 slides"]
    page.get_by_label("Find").fill("")
    page.get_by_label("Status").select_option("failed")
    assert names_shown(page) == ["failed"]
    page.get_by_label("Status").select_option("all")
    assert len(names_shown(page)) == 4


def test_a_name_leads_to_the_part_on_its_slide_and_back(page):
    page.locator("#table a", has_text="plain").click()
    page.wait_for_url("**/report-2.html#slide-3")
    assert page.locator("#slide-3 h3").inner_text() == "plain"
    assert page.locator("#slide-3").bounding_box()["y"] < 200, "it is in view"
    page.locator("#slide-3 a", has_text="Back to the table").click()
    page.wait_for_url("**/report.html#slides")
    page.get_by_label("Pages of slides").get_by_role("link", name="2").click()
    page.wait_for_url("**/report-2.html")


def test_everything_can_be_read(page, request):
    scripted = "no JavaScript" not in request.node.name
    assert page.locator(".filters").is_visible() == scripted, "what does not work is not shown"
    for heading in ("Outcome", "Comparison with labels", "What was run", "Slides"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    assert names_shown(page) == [HOSTILE, "damaged", "plain", "failed"]
    page.locator("summary").click()
    assert page.get_by_text("sampling.tiles", exact=True).is_visible()
    for place in range(2):
        images = page.locator("img")
        assert images.count() == 1 + 2 * 2 if place == 0 else 2  # curves; a slide and its tiles
        for image in images.all():
            image.scroll_into_view_if_needed()
            assert image.bounding_box()["height"] > 50, "it is drawn"
            assert image.get_attribute("alt")
        page.goto(page.url.replace("report.html", "report-2.html"))


@pytest.mark.parametrize("page", [True], indirect=True)
def test_text_has_contrast_and_headings_are_in_order(page):
    for _ in range(2):
        page.locator("details").evaluate_all("all => all.forEach((each) => each.open = true)")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 20
        assert [each for each in found if each[0] < LEAST_CONTRAST] == []
        tags = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all("all => all.map((each) => each.tagName)")
        levels = [int(tag[1]) for tag in tags]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        page.goto(page.url.replace("report.html", "report-2.html"))


def test_it_is_printed_with_all_pictures(page):
    images = page.locator("img").count()
    printed = page.pdf(format="A4")
    assert len(re.findall(rb"/Subtype\s*/Image", printed)) >= images > 1
    page.goto(page.url.replace("report.html", "report-2.html"))
    pages = re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4"))
    assert len(pages) == 2 + 1, "a page for the slide and one for its tiles; one for the slide that failed"


def test_a_small_screen_needs_no_scrolling_to_the_side(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for _ in range(2):
        assert page.locator("html").evaluate("e => e.scrollWidth") <= 390
        page.goto(page.url.replace("report.html", "report-2.html"))


def test_a_slide_that_cannot_be_drawn_does_not_end_the_report(tmp_path):
    """Its attention has other cells than its thumbnail gives now."""
    module.report(write_scores(tmp_path), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("There is no picture: ") == 3
    assert "plain: the overview has 8 x 12 cells, but attention 20 x 30; score the slide again" in text
