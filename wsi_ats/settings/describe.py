"""Descriptions of settings, from the text below each field, for a list and for a commented file."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import tomli_w

# Results that a section decides: what has to be made again after a change.
_FIXES = {
    "tile": ("thumbnails", "training", "scoring"),
    "thumbnail": ("thumbnails", "training", "scoring"),
    "model": ("network", "training", "scoring"),
    "sampling": ("training", "scoring"),
    "training": ("training",),
    "augmentation": ("training",),
    "scoring": ("scoring",),
}

# Settings of one kind of model; all others are of all kinds.
_KINDS = {
    "model.mil_attention": ("mil",),
    "model.mil_tiles": ("mil",),
    "model.scale": ("image",),
}


@dataclass(frozen=True)
class Described:
    """One setting.

    Parameters
    ----------
    name
        As ``section.name``.
    type
        ``int``, ``float``, ``bool`` or ``str``.
    default
        Its value unless another is given.
    reason
        Meaning, and reason for the default.
    fixes
        Results that depend on it: ``thumbnails``, ``network``, ``training``, ``scoring``.
    kinds
        Kinds of models that use it; empty for all.
    """

    name: str
    type: str
    default: bool | int | float | str
    reason: str
    fixes: tuple[str, ...]
    kinds: tuple[str, ...]


def described(settings: Any) -> list[Described]:
    """Describe all settings, section by section.

    Parameters
    ----------
    settings
        A record of sections, each with the text of a field below it.
    """
    found = []
    for section in fields(settings):
        record = getattr(settings, section.name)
        reasons = _reasons(type(record))
        for each in fields(record):
            name, value = f"{section.name}.{each.name}", getattr(record, each.name)
            kinds = _KINDS.get(name, ())
            found.append(
                Described(name, type(value).__name__, value, reasons[each.name], _FIXES[section.name], kinds)
            )
    return found


def commented(settings: Iterable[Described]) -> str:
    """Write settings as TOML, each below a comment with its reason.

    Parameters
    ----------
    settings
        The settings, section by section.
    """
    lines, section = ["# Settings of wsi-ats; what is left out keeps its default."], ""
    for each in settings:
        here, _, name = each.name.partition(".")
        if here != section:
            section = here
            lines += ["", f"[{section}]"]
        lines += textwrap.wrap(each.reason, 108, initial_indent="# ", subsequent_indent="# ")
        lines.append(tomli_w.dumps({name: each.default}).strip())
    return "\n".join(lines) + "\n"


def _reasons(record: type) -> dict[str, str]:
    """Return the text below each field of a record."""
    [body] = ast.parse(inspect.getsource(record)).body
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
