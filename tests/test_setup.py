"""Three files list the requirements, and must agree."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from wsi_ats.errors import SettingsError
from wsi_ats.results.exports.registry import FORMATS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def required() -> set[str]:
    return {name_of(each) for each in PROJECT["dependencies"]}


def extra(name: str) -> set[str]:
    return {name_of(each) for each in PROJECT["optional-dependencies"][name]}


def test_constraints_hold_names_versions_and_markers_only():
    """No index addresses, paths, hashes or options: the user's own pip settings decide where from."""
    for line in constraints():
        assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.]+( ; [\w .'<>=!()]+)?", line), line


def test_every_requirement_is_pinned_in_the_constraints():
    fixed = {name_of(line) for line in constraints()}
    assert required() <= fixed
    assert extra("dev") | extra("all") <= fixed


# It needs an older Dask than the constraints, so it is in an environment of its own; geopandas comes with it.
APART = {"spatialdata": {"spatialdata", "geopandas"}}


def test_all_extras_are_in_all_and_none_of_them_is_always_installed():
    names = PROJECT["optional-dependencies"].keys() - {"all", "dev", "docs", *APART}
    assert set().union(*map(extra, names)) == extra("all")
    assert not extra("all") & required()


def test_make_docs_needs_nothing_that_make_test_does_not_install():
    assert extra("docs") <= extra("dev")


def test_fixed_versions_satisfy_the_lower_bounds():
    versions = {}
    for line in constraints():
        versions.setdefault(name_of(line), []).append(line.split(" ;")[0].split("==")[1])
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *extras["all"]]:
        _, bounded, bound = requirement.partition(">=")
        for version in versions[name_of(requirement)] if bounded else ():
            assert Version(version) >= Version(bound), requirement


def test_torch_is_not_pinned_to_a_build_for_one_kind_of_hardware():
    assert not [line for line in constraints() if "+" in line]
    for name in ("pyproject.toml", "Makefile", "environment.yml"):
        assert not re.search(r"index-url|find-links|\+cpu|\+cu\d", (ROOT / name).read_text())


def test_environment_file_installs_what_the_makefile_does_and_every_extra():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    python, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}" == "python>=3.11"
    assert pip == "pip"
    assert packages == {"pip": ["-c constraints.txt -e .[all,dev]"]}
    assert "--constraints constraints.txt --editable '.[dev]'" in (ROOT / "Makefile").read_text()


def test_continuous_integration_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    commands = [
        line for line in script.read_text().splitlines() if line and not line.startswith(("#", "set", "cd"))
    ]
    *browser, tests = commands
    assert tests == "make test"
    assert all("chromium" in line for line in browser)
    assert script.stat().st_mode & 0o100
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)


def imported(folder: str) -> dict[str, str]:
    """Top-level names imported in a folder, each with one file that does."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: str(path) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found[node.module.split(".")[0]] = str(path)
    return found


@pytest.mark.parametrize("folder", ["wsi_ats", "pipelines"])
def test_every_imported_package_is_a_direct_requirement(folder):
    homes = packages_distributions()
    for name, path in imported(folder).items():
        if name in {*sys.stdlib_module_names, "wsi_ats", "pipelines"}.union(*APART.values()):
            continue
        asked = required() | extra("all") | ({"pytest"} if "testing" in path else set())
        assert {name_of(each) for each in homes[name]} & asked, f"{path} imports {name}"


OPTIONAL = {"bokeh": "view", "lifelines": "survival", "matplotlib": "plots", "prometheus_client": "metrics"}


@pytest.mark.parametrize("name", [each.name for each in FORMATS.values() if each.packages])
def test_packages_of_a_format_are_in_the_extra_that_its_error_names(name):
    assert set(map(name_of, FORMATS[name].packages)) == extra(FORMATS[name].extra)


@pytest.mark.parametrize("name", OPTIONAL)
def test_make_demo_and_make_test_install_what_they_need(name):
    assert name.replace("_", "-") in extra(OPTIONAL[name]) & extra("dev")


@pytest.mark.parametrize(
    ("missing", "module"),
    [
        ("bokeh", "wsi_ats.viewer.collection"),
        ("lifelines", "wsi_ats.tasks.concordance"),
        ("matplotlib", "wsi_ats.results.plots"),
        ("matplotlib", "wsi_ats.results.pictures"),
        ("matplotlib", "pipelines.demo"),  # before it makes slides
        ("prometheus_client", "pipelines._metrics"),
    ],
)
def test_a_missing_extra_is_an_error_that_says_how_to_install_it(without, missing, module):
    without(missing)
    with pytest.raises(
        SettingsError, match=rf'is not installed; pip install "wsi-ats\[{OPTIONAL[missing]}\]"$'
    ):
        importlib.import_module(module)


def test_the_library_and_the_other_commands_need_no_extra():
    names = [*OPTIONAL, "s3fs", "aiohttp", "tensorboard", "dask_jobqueue"]
    names += [package for each in FORMATS.values() for package in each.packages]
    stages = ("convert", "doctor", "export", "info", "prepare", "score", "settings", "train", "view")
    code = (
        "import sys\n"
        f"sys.modules |= dict.fromkeys({names})\n"
        f"import wsi_ats, {', '.join(f'pipelines.{stage}' for stage in stages)}\n"
        "for name in wsi_ats.__all__: getattr(wsi_ats, name)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
