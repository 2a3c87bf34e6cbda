"""List all settings, or write a settings file to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from wsi_ats.errors import SettingsError
from wsi_ats.files import atomic
from wsi_ats.settings import Described, commented_toml, describe, json_schema


@dataclass(frozen=True)
class SettingsList:
    """All settings.

    Parameters
    ----------
    settings
        The settings, section by section.
    written
        File to which they were written; ``None`` if they are only listed.
    """

    settings: Sequence[Described]
    written: Path | None = None
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        written = None if self.written is None else str(self.written)
        return {"settings": [asdict(each) for each in self.settings], "written": written}

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return a table for each section, or the file that was written."""
        if self.written is not None:
            return [("settings", [("written", str(self.written))])]
        return [
            (f"[{section}]", [_row(each) for each in own])
            for section, own in groupby(self.settings, lambda each: each.name.partition(".")[0])
        ]


@dataclass(frozen=True)
class SettingsSchema:
    """The JSON Schema of settings files, which is for programs only."""

    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the schema."""
        return json_schema()

    def sections(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Return nothing, so that the schema is printed as it is."""
        return []


def settings(
    write: Path | None = None, *, overwrite: bool = False, schema: bool = False
) -> SettingsList | SettingsSchema:
    """List all settings, write them to a file, or return the schema of such files.

    Parameters
    ----------
    write
        TOML file with all defaults, each below a comment with its reason.
    overwrite
        Whether to replace a file that exists.
    schema
        Whether to return the schema, for editors, and to write nothing.

    Raises
    ------
    SettingsError
        When the file exists, ``overwrite`` is given without a file, or ``schema`` with any of them.
    ArtifactError
        When the file cannot be written.

    Examples
    --------
    >>> [each.default for each in settings().settings if each.name == "tile.size"]
    [256]
    """
    if schema:
        if write is not None or overwrite:
            raise SettingsError("--schema prints a schema and writes no settings; give it without --write")
        return SettingsSchema()
    if write is None:
        if overwrite:
            raise SettingsError("--overwrite has no effect without --write; name a file to write")
        return SettingsList(describe())
    if write.exists() and not overwrite:
        raise SettingsError(f"{write} exists; choose another file, or replace it with --overwrite")
    with atomic(write) as path:
        path.write_text(commented_toml(), encoding="utf-8")
    return SettingsList(describe(), write)


def _row(setting: Described) -> tuple[str, ...]:
    default = setting.default if isinstance(setting.default, str) else str(setting.default).lower()
    kinds = f"; only with model.kind {', '.join(setting.kinds)}" if setting.kinds else ""
    reason = setting.reason.replace("``", "")
    why = f"{reason} Fixes: {', '.join(setting.fixes)}{kinds}."
    return setting.name.partition(".")[2], setting.type, default or '""', why
