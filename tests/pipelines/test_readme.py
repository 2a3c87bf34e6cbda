"""The examples of the README and of the pages in docs/, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, table

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    str(page.relative_to(ROOT)): re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
    )
    for page in PAGES
}
PYTHON = [
    pytest.param(page, text, id=f"{page}-{number}")
    for page, blocks in BLOCKS.items()
    for number, text in enumerate(text for language, text in blocks if language == "python")
]
COMMANDS = [
    line
    for language, text in BLOCKS["README.md"]
    if language == ""
    for line in text.splitlines()
    if line.startswith("wsi-ats")
]


@pytest.fixture(autouse=True)
def _more(desk):
    """As many slides again, for six are too few to set some aside by default."""
    with Path("labels.csv").open("a") as file:
        for row in table(desk / "labels.csv"):
            name = row["slide_id"].replace("slide", "more").replace("case", "slide")
            Path(f"slides/{name}.tif").symlink_to(f"{row['slide_id']}.tif")
            file.write(f"{name},{row['label']}\n")


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_blocks_run(page, code):
    exec(compile(code, page, "exec"), {})  # the pages are ours


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_readme_has_commands():
    assert {line.split()[1] for line in COMMANDS} >= {"info", "train", "score", "export"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[1] in {"train", "score"}])
def test_commands_are_understood(line, run, monkeypatch):
    # Published weights are nothing that tests can download.
    monkeypatch.setattr("pipelines.train.check_network", lambda settings, target: None)
    words = [*shlex.split(line)[1:], "--dry-run"]
    words[words.index("--out") + 1] += "_dry"  # `run` is there already, as the model to score with
    if "--model" in words:
        words[words.index("--model") + 1] = "run"
    run(*words)


def test_scored_slides_can_be_exported(run):
    run("score", "slides/slide_002.tif", "--model", "run", "--out", "scores")
    (export,) = (line for line in COMMANDS if line.split()[1] == "export")
    run(*shlex.split(export)[1:])
    assert Path("exported/qupath/slide_002.geojson").stat().st_size > 0


def test_the_tests_are_run_with_the_command_that_ci_runs():
    commands = [line.split("#")[0].strip() for _, text in BLOCKS["README.md"] for line in text.splitlines()]
    assert "make test" in commands
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
