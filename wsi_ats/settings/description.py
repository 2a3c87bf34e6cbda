"""All settings as a list for readers, and as a commented settings file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any

import tomli_w

from wsi_ats.settings.fields import Rule, reasons, rule_of
from wsi_ats.settings.model import KINDS, ModelSettings
from wsi_ats.settings.settings import Settings
from wsi_ats.settings.tables import NAMES_OR_NUMBERS

_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Described:
    """The description of one setting.

    Parameters
    ----------
    name
        Its name, as ``section.name``.
    type
        ``int``, ``float``, ``bool`` or ``str``.
    default
        Its default value.
    reason
        Its meaning, and the reason for the default.
    fixes
        The results that depend on it: any of ``thumbnails``, ``network``, ``training``, ``scoring``.
    needs_training
        Whether a change requires new training; otherwise a trained model can be scored with the new value.
    kinds
        Kinds of models that have or use it; empty for all.
    allowed
        Its allowed values in the words of JSON Schema, such as ``{"minimum": 1}``, as far as it has any.
    """

    name: str
    type: str
    default: bool | int | float | str
    reason: str
    fixes: tuple[str, ...]
    needs_training: bool
    kinds: tuple[str, ...]
    allowed: Mapping[str, Any]


def describe() -> list[Described]:
    """List all settings, in the order of the settings file.

    Examples
    --------
    >>> found = {each.name: each for each in describe()}
    >>> found["model.mil_tiles"].default, found["model.mil_tiles"].kinds
    (0, ('mil',))
    >>> [name for name in found if name.startswith("sampling") and not found[name].needs_training]
    ['sampling.design', 'sampling.tiles', 'sampling.regions', 'sampling.exploration', 'sampling.draws', \
'sampling.tolerance', 'sampling.max_tiles']
    """
    found: dict[str, Described] = {}
    for section in fields(Settings):
        default = getattr(Settings(), section.name)
        for record in KINDS.values() if isinstance(default, ModelSettings) else [type(default)]:
            why = reasons(record)
            for each in fields(record):
                name = f"{section.name}.{each.name}"
                if name not in found:
                    found[name] = _described(name, each, why[each.name])
    return list(found.values())


def _described(name: str, each: Field[Any], reason: str) -> Described:
    rule = rule_of(each)
    default: Any = each.default
    if name.startswith("model."):
        kinds = [kind for kind, record in KINDS.items() if each.name in {own.name for own in fields(record)}]
    else:
        kinds = [kind for kind, record in KINDS.items() if not rule.needs or getattr(record, rule.needs)]
    return Described(
        name=name,
        type=type(default).__name__,
        default=default,
        reason=reason,
        fixes=rule.fixes.words,
        needs_training=not rule.fixes.changeable_at_scoring,
        kinds=() if len(kinds) == len(KINDS) else tuple(kinds),
        allowed=_allowed(name, rule),
    )


def _allowed(name: str, rule: Rule) -> Mapping[str, Any]:
    if name == "model.kind":  # the record of each kind allows its own name only
        return {"enum": tuple(KINDS)}
    return {} if rule.must is None else rule.must.schema


# JSON Schema's names of types; an integer is a number, too.
_TYPES = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema (draft 2020-12) of settings files, with which editors complete and check them.

    It cannot express rules that concern several settings; these are checked when a command reads the file.

    Examples
    --------
    >>> json_schema()["properties"]["sampling"]["properties"]["tiles"]["minimum"]
    1
    """
    sections: dict[str, dict[str, Any]] = {}
    for each in describe():
        section, _, name = each.name.partition(".")
        kinds = f" Only with model.kind {', '.join(each.kinds)}." if each.kinds else ""
        sections.setdefault(section, {})[name] = {
            "type": ["string", "integer"] if each.name in NAMES_OR_NUMBERS else _TYPES[each.type],
            "default": each.default,
            "description": each.reason + kinds,
            **each.allowed,
        }
    closed = {"type": "object", "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of wsi-ats",
        **closed,
        "properties": {name: {**closed, "properties": own} for name, own in sections.items()},
    }


def commented_toml() -> str:
    """Return a settings file with all defaults, each below its reason; settings of other kinds are comments.

    Examples
    --------
    >>> import tomllib
    >>> Settings.from_mapping(tomllib.loads(commented_toml())) == Settings()
    True
    """
    lines = [
        "# Settings of wsi-ats. A setting that is left out keeps its default.",
        *_comment(
            "The brackets list the results that depend on a setting. If they contain thumbnails or scoring, "
            "but not network, a trained model can be scored with another value. Other changes need training."
        ),
    ]
    section, own = "", {f"model.{each.name}" for each in fields(Settings().model)}
    for each in describe():
        here, _, name = each.name.partition(".")
        if here != section:
            lines += ["", f"[{here}]"]
            section = here
        kinds = f"; kind {', '.join(each.kinds)}" if each.kinds else ""
        lines += _comment(f"{each.reason} [{', '.join(each.fixes)}{kinds}]")
        elsewhere = here == "model" and each.name not in own
        lines.append(("# " if elsewhere else "") + tomli_w.dumps({name: each.default}).strip())
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
