"""A report stands alone, says what happened, and shows no name as markup."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import all_files, table

from pipelines import report as report_module
from pipelines._runs import Execution
from pipelines.score import score
from wsi_ats.errors import ArtifactError
from wsi_ats.slides.base import SlideRef

NASTY = '<script>alert(1)<&"quoted"'


class Page(HTMLParser):
    """Tags, ids, links and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def scores(client, refs, model, tmp_path_factory):
    """Four scored slides and a damaged one with a name of special characters."""
    root = tmp_path_factory.mktemp("report")
    damaged = root / f"{NASTY}.tif"
    damaged.write_bytes(Path(refs[0].path).read_bytes()[:2000])
    score(
        [*refs[:4], SlideRef.from_path(damaged)],
        model,
        root / "scores",
        execution=Execution(scheduler=client),
    )
    return root / "scores"


@pytest.fixture(scope="module")
def labels(slides, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    path.write_text("".join((slides / "labels.csv").read_text().splitlines(keepends=True)[:5]))
    return path


@pytest.fixture(scope="module")
def page(scores, labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    report_module.report(scores, out, labels=labels)
    return Page(out)


def test_it_needs_nothing_else(page):
    sources = [each[name] for _, each in page.tags for name in ("src", "href") if each.get(name)]
    assert sources
    assert all(each.startswith(("data:image/webp;base64,", "#")) for each in sources)
    assert {each["href"][1:] for each in page.all("a")} <= set(page.ids)


def test_it_says_how_the_run_went_and_what_was_run(page, scores):
    for text in ("Outcome", "What was run", "Comparison with labels", "sampling.tiles", "model digest"):
        assert text in page.text
    for row in table(scores / "predictions.csv"):
        assert row["slide_id"] in page.text
    assert "its TIFF index is damaged" in page.text or "is the copy complete" in page.text


def test_metrics_are_those_of_evaluate(page, scores, labels, run, tmp_path):
    run("evaluate", scores, "--labels", labels, "--out", tmp_path / "e")
    for row in table(tmp_path / "e" / "metrics.csv"):
        if row["value"]:
            assert f"{float(row['value']):.3f}" in page.text
            assert row["metric"].replace("_", " ") in page.text


def test_each_scored_slide_has_pictures_and_its_tiles(page):
    assert len(page.all("section")) == 5
    assert len(page.all("img")) == 1 + 2 * 4  # curves; each slide with its contact sheet
    assert page.text.count("drawn tiles with the largest evidence") == 4


def test_names_are_text_and_not_markup(page):
    assert len(page.all("script")) == 1  # ours
    assert NASTY in page.text


def test_it_is_accessible(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(each.get("alt") for each in page.all("img"))
    assert len(page.ids) == len(set(page.ids))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(each.get("scope") in {"col", "row"} for each in page.all("th"))


def test_many_slides_are_on_several_pages(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "SLIDES_A_PAGE", 2)
    made = report_module.report(scores, tmp_path / "r.html", pictures=False)
    assert made.counts == {"slides": 5, "pages": 3}
    pages = {path.name: Page(path) for path in tmp_path.glob("*.html")}
    assert sorted(pages) == ["r-2.html", "r-3.html", "r.html"]
    assert [len(pages[name].all("section")) for name in ("r.html", "r-2.html", "r-3.html")] == [2, 2, 1]
    links = [each["href"] for page in pages.values() for each in page.all("a")]
    for link in links:
        name, _, place = link.partition("#")
        assert not place or name == "" or place in pages[name].ids
    assert "r-3.html#slide-5" in links


def test_further_pages_are_replaced_only_if_asked_and_surplus_ones_go(scores, tmp_path, monkeypatch):
    (tmp_path / "r-2.html").write_text("mine")
    with pytest.raises(ArtifactError, match=r"r-2\.html exists"):
        report_module.report(scores, tmp_path / "r.html", pictures=False)
    assert not (tmp_path / "r.html").exists()
    monkeypatch.setattr(report_module, "SLIDES_A_PAGE", 2)
    again = Execution(overwrite=True)
    report_module.report(scores, tmp_path / "r.html", pictures=False, execution=again)
    assert all_files(tmp_path) == ["r-2.html", "r-3.html", "r.html"]
    monkeypatch.setattr(report_module, "SLIDES_A_PAGE", 200)
    report_module.report(scores, tmp_path / "r.html", pictures=False, execution=again)
    assert all_files(tmp_path) == ["r.html"]


def test_what_is_damaged_in_scores_is_said_where_it_is_missed(scores, tmp_path):
    shutil.copytree(scores, tmp_path / "scores")
    (tmp_path / "scores" / "selections" / "slide_000.parquet").write_bytes(b"no table")
    (tmp_path / "scores" / "pictures").mkdir()
    (tmp_path / "scores" / "pictures" / "slide_001.png").write_bytes(b"no picture")
    report_module.report(tmp_path / "scores", tmp_path / "r.html")
    text = Page(tmp_path / "r.html").text
    assert "The drawn tiles cannot be read: " in text
    assert "There is no picture: " in text
    assert "cannot be read as an image" in text


def test_pictures_that_scoring_kept_are_used_and_a_missing_slide_is_said(scores, tmp_path):
    shutil.copytree(scores, tmp_path / "scores")
    record = tmp_path / "scores" / "records" / "slide_000.json"
    record.write_text(record.read_text().replace("slide_000.tif", "gone.tif"))
    report_module.report(tmp_path / "scores", tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert len(page.all("img")) == 2 * 3
    assert "There is no picture: slide_000:" in page.text
    (tmp_path / "scores" / "pictures").mkdir()
    kept = Path(__file__).parents[2] / "docs" / "images" / "demo.png"
    shutil.copy(kept, tmp_path / "scores" / "pictures" / "slide_000.png")
    report_module.report(
        tmp_path / "scores", tmp_path / "r.html", execution=Execution(overwrite=True), labels=None
    )
    assert len(Page(tmp_path / "r.html").all("img")) == 2 * 3 + 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "report.pdf"), "expected an HTML file such as report.html"),
        (("--out", "r.html", "--by", "case"), "have no effect without --labels"),
        (("--out", "there.html"), "exists; choose another --out, or replace it with --overwrite"),
    ],
)
def test_what_cannot_be_is_refused(run, scores, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine")
    assert said in run("report", scores, *words, code=2).stderr
    assert Path("there.html").read_text() == "mine"
    run("report", scores, "--out", "dry.html", "--dry-run", "--no-pictures")
    assert not Path("dry.html").exists()
