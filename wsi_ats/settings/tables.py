"""Records built from tables: names and types are checked, and errors suggest the nearest known name."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, fields
from typing import Any, TypeVar, get_type_hints

from wsi_ats.errors import SettingsError
from wsi_ats.settings.model import KINDS, ModelSettings

_Record = TypeVar("_Record")

# Settings whose value is a name or a number.
NAMES_OR_NUMBERS = frozenset({"tile.channel"})


def parse(text: str) -> Any:
    """Read a TOML value, or an unquoted word, as typed on a command line."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def known_section(name: str, known: Iterable[Field[Any]]) -> str:
    """Return the name of a section, or raise a ``SettingsError`` that lists the known sections."""
    names = [each.name for each in known]
    if name not in names:
        raise SettingsError(
            f"unknown settings section {name!r};{_nearest('', name, names)} known are {', '.join(names)}"
        )
    return name


def with_kind(own: ModelSettings, table: Mapping[str, Any]) -> tuple[type[ModelSettings], dict[str, Any]]:
    """Return the record of the kind of model named in a table of changes, and the values that are kept.

    Raises
    ------
    SettingsError
        For an unknown kind; when a setting that the new kind does not have was changed from its default.
    """
    name, values = table.get("kind", own.kind), asdict(own)
    if name == own.kind:
        return type(own), values
    if name not in KINDS:
        *others, last = KINDS
        raise SettingsError(f"model.kind must be {', '.join(others)} or {last}, not {name!r}")
    kind = KINDS[name]
    kept = {each.name for each in fields(kind)}
    for each in fields(own):
        if each.name not in kept and values[each.name] != each.default:
            raise SettingsError(
                f"model.{each.name} is {values[each.name]!r}, but a model of kind {name} has no such "
                "setting; leave it out"
            )
    return kind, {name: value for name, value in values.items() if name in kept}


def build(kind: type[_Record], values: Mapping[str, Any], section: str) -> _Record:
    """Build a record of a ``kind`` from a table of ``values``; errors name the ``section``.

    Raises
    ------
    SettingsError
        For an unknown name, a wrong type or a value out of range.
    """
    hints: dict[str, type[Any]] = get_type_hints(kind)
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise SettingsError(_unknown(section, name, known, values))
        wanted = hints[name]
        if wanted is float and type(value) is int:
            value = float(value)
        if f"{section}.{name}" in NAMES_OR_NUMBERS and type(value) is int:
            value = str(value)
        if type(value) is not wanted:
            raise SettingsError(f"{section}.{name} must be of type {wanted.__name__}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{section}.{name} must be a finite number, not {value}")
        made[name] = value
    return kind(**made)


def _unknown(section: str, name: str, known: list[str], values: Mapping[str, Any]) -> str:
    if section == "model":
        kinds = [each for each, kind in KINDS.items() if name in {own.name for own in fields(kind)}]
        if kinds:
            return (
                f"model.{name} is a setting of kind {' and '.join(kinds)}, but model.kind is "
                f"{values['kind']}; leave it out, or set model.kind={kinds[0]}"
            )
    return (
        f"unknown setting {section}.{name};{_nearest(f'{section}.', name, known)} known are "
        f"{', '.join(known)}"
    )


def _nearest(prefix: str, name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, known, 1)
    return f" did you mean {prefix}{found[0]}?" if found else ""
