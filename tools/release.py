"""The checklist before a release, carried out: ``python -m tools.release``, or ``make release-check``.

It goes through the points in order and stops at the first that fails. Built files are left in ``dist/``, to
be uploaded. Nothing is tagged, pushed or uploaded.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"


class ReleaseError(Exception):
    """A point of the checklist that is not fulfilled."""


def version(root: Path = ROOT) -> str:
    """Return the version in ``pyproject.toml``."""
    found = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return str(found)


def check_versions(root: Path = ROOT) -> None:
    """Check that ``CITATION.cff`` has the version of ``pyproject.toml``."""
    [cited] = re.findall(
        r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE
    )
    if cited != version(root):
        raise ReleaseError(
            f"CITATION.cff has version {cited}, pyproject.toml {version(root)}; make them equal"
        )


def check_changelog(root: Path = ROOT) -> None:
    """Check that the first section of the changelog is that of the version, with a date."""
    [first, *_] = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if not re.fullmatch(rf"{re.escape(version(root))} \(\d{{4}}-\d{{2}}-\d{{2}}\)", first):
        expected = f"## {version(root)} (YEAR-MONTH-DAY)"
        raise ReleaseError(f"CHANGELOG.md begins with '## {first}', expected '{expected}'; write the date")


def check_committed() -> None:
    """Check that the checkout has no changes."""
    changed = _run("git", "status", "--porcelain", quiet=True)
    if changed:
        raise ReleaseError(f"files are not committed:\n{changed}commit them or remove them")


def check_code() -> None:
    """Run ruff and mypy."""
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        _run(sys.executable, "-m", *words)


def check_tests() -> None:
    """Run all tests but those that need a GPU."""
    _run(sys.executable, "-m", "pytest", "-m", "not gpu")


def build() -> None:
    """Build wheel and sdist into ``dist/``."""
    shutil.rmtree(DIST, ignore_errors=True)
    _run(sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", str(DIST))


def check_wheel() -> None:
    """Install the wheel and what it requires into an empty environment, and run the command there."""
    [wheel] = DIST.glob("*.whl")
    home, uv = DIST / "env", [sys.executable, "-m", "uv"]
    python, installed = home / "bin" / "python", home / "bin" / "wsi-ats"
    _run(*uv, "venv", "--quiet", "--python", sys.executable, str(home))
    _run(*uv, "pip", "install", "--python", str(python), "--constraints", "constraints.txt", str(wheel))
    for words in (["--version"], ["--help"], ["settings"], ["doctor"]):
        _run(str(installed), *words, folder=home)
    shutil.rmtree(home)


CHECKLIST: dict[str, Callable[[], None]] = {
    "everything is committed": check_committed,
    "the version is the same everywhere": check_versions,
    "the changelog has the version and its date": check_changelog,
    "style and types": check_code,
    "all tests": check_tests,
    "wheel and sdist are built": build,
    "the wheel works in an empty environment": check_wheel,
}


def _run(*words: str, folder: Path = ROOT, quiet: bool = False) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=quiet, text=True)
    if done.returncode:
        raise ReleaseError(f"`{' '.join(words)}` ended with exit code {done.returncode}")
    return done.stdout or ""


def main() -> None:
    """Go through the checklist."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for number, (point, check) in enumerate(CHECKLIST.items(), 1):
        print(f"{number} of {len(CHECKLIST)}: {point}", flush=True)
        try:
            check()
        except ReleaseError as error:
            sys.exit(f"not ready: {error}")
    print(f"ready: upload the files in {DIST}, and tag v{version()}")


if __name__ == "__main__":
    main()
