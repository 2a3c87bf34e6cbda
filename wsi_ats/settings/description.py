"""All settings as a list for readers, and as a commented settings file."""

from __future__ import annotations

import textwrap
from dataclasses import Field, dataclass, fields
from typing import Any

import tomli_w

from wsi_ats.settings.fields import reasons, rule_of
from wsi_ats.settings.model import KINDS, ModelSettings
from wsi_ats.settings.settings import Settings

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
    """

    name: str
    type: str
    default: bool | int | float | str
    reason: str
    fixes: tuple[str, ...]
    needs_training: bool
    kinds: tuple[str, ...]


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
    )


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
