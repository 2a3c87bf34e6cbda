"""Parts of pages in Markdown, written from the commands and settings as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import groupby
from typing import Any

import typer.main

from pipelines.cli import app
from wsi_ats.settings import KINDS, Described, Settings, describe


def commands() -> str:
    """Return a section for each command: purpose, usage, and a table for each group of options."""
    root = typer.main.get_command(app)
    return "\n\n".join("\n\n".join(_command(name, each)) for name, each in root.commands.items())


def _command(name: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=f"wsi-ats {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}\n\n{command.help}\n\n```text\nwsi-ats {name} {usage}\n```"
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    for panel in dict.fromkeys(_panel(each) for each in shown):
        rows = [_option(each, context) for each in shown if _panel(each) == panel]
        yield f"**{panel}**\n\n{_table(('option', 'value', 'meaning'), rows)}"


def _panel(option: Any) -> str:
    return option.rich_help_panel or ("Arguments" if option.param_type_name == "argument" else "Options")


def _option(option: Any, context: Any) -> tuple[str, str, str]:
    if option.param_type_name == "argument":
        names, value = [option.display_name_raw], ""
    else:
        names = [*option.opts, *option.secondary_opts]
        value = option.display_type(context) if option.metavar is None else option.metavar
    meaning = option.help or ""
    if option.required:
        meaning += " Required."
    elif option.show_default and option.default not in (None, False, (), []):
        meaning += f" Default: {option.default}."
    return ", ".join(f"`{each}`" for each in names), f"`{value}`" if value else "", meaning


def settings() -> str:
    """Return a section for each section of the settings file, with a row for each setting."""
    parts = []
    for section, own in groupby(describe(), lambda each: each.name.partition(".")[0]):
        table = _table(("setting", "default", "meaning, and the reason for the default"), map(_setting, own))
        parts.append(f"## [{section}]\n\n{_purpose(section)}\n\n{table}")
    return "\n\n".join(parts)


def _purpose(section: str) -> str:
    if section == "model":
        return f"Which settings there are depends on `kind`: {', '.join(f'`{kind}`' for kind in KINDS)}."
    (field,) = (each for each in fields(Settings) if each.name == section)
    record = type(getattr(Settings(), field.name))
    return str(record.__doc__).split("\n\n")[0]


def _setting(each: Described) -> tuple[str, str, str]:
    default = f'"{each.default}"' if isinstance(each.default, str) else str(each.default).lower()
    more = f" Only with `model.kind` {', '.join(f'`{kind}`' for kind in each.kinds)}." if each.kinds else ""
    more += "" if each.needs_training else " *May be changed when scoring.*"
    return f"`{each.name}`", f"`{default}`", f"{each.reason}{more}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in line) + " |"
        for line in lines
    )
