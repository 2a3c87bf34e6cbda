"""The site is built strictly: what leads nowhere, and what has no page, is an error."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wsi_ats
from wsi_ats.settings import describe

ROOT = Path(__file__).parents[1]


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build without running the notebooks, which have a test of their own."""
    command = (sys.executable, "-m", "sphinx", "-q", "-E", "-D", "nb_execution_mode=off", *options)
    return subprocess.run(
        [*command, "-d", out / "doctrees", source, out / "html"], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Sphinx writes the pages of names beside the others.
    source = shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("api"))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    built = build(source, folder, "-W", "--keep-going")
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_public_name_has_a_page(site):
    for name in wsi_ats.__all__:
        assert f'id="wsi_ats.{name}"' in (site / "reference" / "api" / f"wsi_ats.{name}.html").read_text(
            "utf-8"
        )


def test_options_and_settings_are_those_of_the_program(site):
    commands = (site / "reference" / "cli.html").read_text("utf-8")
    assert all(f">{option}<" in commands for option in ("--label-column", "--tolerance", "--json", "SLIDES"))
    settings = (site / "reference" / "settings.html").read_text("utf-8")
    assert all(f">{each.name}<" in settings for each in describe())


def test_pages_and_their_search_need_no_network(site):
    """Only what a reader clicks on leads elsewhere."""
    assert (site / "searchindex.js").stat().st_size > 10_000
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="([^"]+)"', page.read_text("utf-8"))
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page


def test_a_wrong_link_a_wrong_anchor_and_a_name_without_a_page_are_errors(tmp_path):
    for name in ("conf.py", "generated.py", "templates"):
        copy = shutil.copytree if (ROOT / "docs" / name).is_dir() else shutil.copy
        copy(ROOT / "docs" / name, tmp_path / name)
    (tmp_path / "index.md").write_text(
        "# One\n\n[a](none.md) [b](#none) [c](two.md#none)\n\n```{toctree}\ntwo\n```\n"
    )
    (tmp_path / "two.md").write_text("# Two\n")
    (tmp_path / "three.md").write_text("# Three\n")
    built = build(tmp_path, tmp_path / "out", "-W", "--keep-going")
    assert built.returncode == 1
    for wrong in (
        "target not found: 'none.md'",
        "target not found: 'none'",
        "local id not found in doc 'two': 'none'",
        "three.md: WARNING: document isn't included",
    ):
        assert wrong in built.stderr, built.stderr
    assert built.stderr.count("is public, but on no page") == len(wsi_ats.__all__)
