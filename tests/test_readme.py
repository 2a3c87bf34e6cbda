"""The examples of the README and of the pages in docs/, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipelines.cli import app
from wsi_ats.models.checkpoints import save_model
from wsi_ats.models.kinds import model_for
from wsi_ats.settings import Settings
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.synthetic import write_collection

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    page.name: re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the README assumes: ``slides/``, ``labels.csv``, and a model in ``run/``."""
    folder = tmp_path_factory.mktemp("readme")
    write_collection(
        folder / "slides", slides=12, width=1024, height=1024, tile_size=64, seed=0, variants=2, palettes=1
    )
    (folder / "slides" / "labels.csv").rename(folder / "labels.csv")
    (folder / "slides" / "slide_000.tif").with_name("case_001.tif").symlink_to("slide_000.tif")
    settings = Settings().with_values(
        [
            "tile.size=64",
            "thumbnail.pixels_per_cell=4",
            "model.backbone=test_vit",
            "model.pretrained=false",
            "sampling.tiles=4",
        ]
    )
    torch.manual_seed(0)
    target = Target("classification", ("negative", "positive"))
    save_model(folder / "run", model_for(settings, target), settings, target)
    return folder


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_blocks_run(page, code):
    exec(compile(code, page, "exec"), {})  # the pages are ours


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_resolve(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_readme_has_commands():
    assert {line.split()[1] for line in COMMANDS} >= {"info", "train", "score", "export"}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[1] in {"train", "score"}])
def test_commands_are_understood(line, monkeypatch):
    # Published weights are nothing that tests can download.
    monkeypatch.setattr("pipelines.train.check_network", lambda settings, target: None)
    words = [*shlex.split(line)[1:], "--dry-run"]
    words[words.index("--out") + 1] += "_dry"  # `run` is there already, as the model to score with
    if "--model" in words:
        words[words.index("--model") + 1] = "run"
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_scored_slides_can_be_exported():
    scored = CliRunner().invoke(app, ["score", "slides/slide_001.tif", "--model", "run", "--out", "scores"])
    assert scored.exit_code == 0, scored.output
    (export,) = (line for line in COMMANDS if line.split()[1] == "export")
    exported = CliRunner().invoke(app, shlex.split(export)[1:])
    assert exported.exit_code == 0, exported.output
    assert Path("qupath/slide_001.geojson").stat().st_size > 0


def test_the_tests_are_run_with_the_command_that_ci_runs():
    commands = [line.split("#")[0].strip() for _, text in BLOCKS["README.md"] for line in text.splitlines()]
    assert "make test" in commands
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
