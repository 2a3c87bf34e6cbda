"""Wheel and sdist are complete, and the installed command works outside the checkout.

The wheel is installed into an environment of its own, which sees the packages that it requires in that of the
tests, but nothing of the checkout.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

from wsi_ats.testing.synthetic import write_collection

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("wsi_ats", "pipelines")
SOURCES = {
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to call it from."""

    python: Path
    folder: Path

    def run(self, *words: str) -> str:
        """Run the command as it was installed."""
        command = [str(self.python.with_name("wsi-ats")), *words]
        done = subprocess.run(
            command, cwd=self.folder, env={"COLUMNS": "120"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def build(source: Path, out: Path) -> None:
    """Build as pip does, but with the setuptools of this environment and no network."""
    out.mkdir()
    code = f"import setuptools.build_meta as m; print(m.build_sdist({str(out)!r}))"
    name = subprocess.run(
        [sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True
    )
    with tarfile.open(out / name.stdout.split()[-1]) as archive:
        archive.extractall(out / "unpacked", filter="data")
    [unpacked] = (out / "unpacked").iterdir()
    code = f"import setuptools.build_meta as m; m.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=unpacked, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """An sdist of the checkout, and the wheel that is built from the sdist."""
    source, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("built") / "dist"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build(source, out)
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    home, folder = tmp_path_factory.mktemp("installed") / "env", tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    subprocess.run([*install, "--no-deps", "--no-compile", str(built.wheel)], check=True)
    [packages] = home.glob("lib/python*/site-packages")
    # Only the folder: links to editable packages in it are not followed.
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(python, folder)


def test_the_wheel_has_all_files_of_the_packages_and_no_others(built):
    names = {each for each in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in each}
    assert names == SOURCES
    kinds = {Path(name).suffix for name in names}
    assert kinds == {".py", ".jinja", ".js", ".groovy", ".html", ".css", ".typed"}


def test_the_sdist_has_what_the_wheel_is_built_from(built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*SOURCES, "pyproject.toml", "README.md", "LICENSE"}


def test_the_wheel_says_what_it_needs_and_which_extras_it_has(built):
    archive = zipfile.ZipFile(built.wheel)
    [name] = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
    about = Parser().parsestr(archive.read(name).decode())
    assert (about["Name"], about["Version"]) == ("wsi-ats", PROJECT["version"])
    assert about["Requires-Python"] == PROJECT["requires-python"]
    assert set(about.get_all("Provides-Extra")) == PROJECT["optional-dependencies"].keys()
    always = [each for each in about.get_all("Requires-Dist") if "extra ==" not in each]
    assert len(always) == len(PROJECT["dependencies"])


def test_the_packages_are_those_of_the_environment(installed):
    code = "import pipelines, wsi_ats; print(pipelines.__file__, wsi_ats.__file__)"
    found = subprocess.run(
        [installed.python, "-c", code],
        cwd=installed.folder,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    for file in found.stdout.split():
        assert Path(file).is_relative_to(installed.python.parents[1])


def test_the_installed_command_tells_of_itself(installed):
    assert PROJECT["version"] in installed.run("--version")
    assert all(name in installed.run("--help") for name in ("score", "train", "evaluate"))
    assert "[sampling]" in installed.run("settings")
    assert "torch" in installed.run("doctor")


def test_the_installed_command_reads_a_slide(installed):
    write_collection(
        installed.folder / "slides", slides=1, width=1024, height=1024, tile_size=64, seed=0, variants=4
    )
    [told] = json.loads(installed.run("info", "slides/slide_000.tif", "--json"))["slides"]
    assert (told["levels"][0]["width"], told["mpp"]) == (1024, 0.5)
