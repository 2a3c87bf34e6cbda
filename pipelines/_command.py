"""The frame of every command: options, result and exit code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from pipelines._arguments import EXECUTION
from pipelines._options import CommonOptions

INTERRUPTED = 130
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


class Result(Protocol):
    """The result of a command."""

    @property
    def exit_code(self) -> int:
        """0 if all is done, 1 if some slides failed."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the result for programs."""
        ...

    def sections(self) -> Sequence[tuple[str, Sequence[tuple[str, ...]]]]:
        """Return the result for people: titled lists of names and values."""
        ...


def _without_flag_types(params: list[Any]) -> list[Any]:
    """Show no type beside options that are on or off: typer would print ``<bool>``."""
    for each in params:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    return params


class PlainCommand(TyperCommand):
    """A command whose help page shows no type for options that are on or off."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return options and arguments."""
        params = _without_flag_types(super().get_params(ctx))
        for each in params:
            if each.name == "help":
                each.rich_help_panel = EXECUTION
        return params


class PlainGroup(TyperGroup):
    """The same for the program itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return options and arguments."""
        return _without_flag_types(super().get_params(ctx))


def command(body: Callable[..., Result]) -> Callable[..., None]:
    """Turn a function into a command; a parameter that is a group of options becomes its options.

    ``--json`` and ``--debug`` are added to every command. The command shows the result of the function and
    ends with its exit code. An error raised on purpose becomes one line on stderr and exit code 2, Ctrl-C
    exit code 130, and a bug one line and exit code 70.
    """
    parameters = inspect.signature(body, eval_str=True).parameters
    groups = {name: each.annotation for name, each in parameters.items() if is_dataclass(each.annotation)}
    expanded = [part for each in parameters.values() for part in _expanded(each)]
    if "common" not in groups:
        expanded += _expanded(inspect.Parameter("common", _KEYWORD, annotation=CommonOptions))

    @functools.wraps(body)
    def run(**values: Any) -> None:
        common = CommonOptions(json=values.pop("json"), debug=values.pop("debug"))

        def work() -> Result:  # a group refuses impossible values
            made = {
                name: common if kind is CommonOptions else _made(kind, values)
                for name, kind in groups.items()
            }
            return body(**made, **values)

        raise typer.Exit(_run(work, common))

    signature = inspect.Signature(expanded)
    run.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return run


def _fields(group: Any) -> list[tuple[str, Any, Any]]:
    """Return name, type and default of each field of a group."""
    hints = get_type_hints(group, include_extras=True)
    return [(each.name, hints[each.name], each.default) for each in fields(group)]


def _expanded(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Return the options of a group, which may have groups as fields, or the parameter itself."""
    if not is_dataclass(parameter.annotation):
        return [parameter.replace(kind=_KEYWORD)]
    return [
        part
        for name, kind, default in _fields(parameter.annotation)
        for part in _expanded(inspect.Parameter(name, _KEYWORD, default=default, annotation=kind))
    ]


def _made(group: Any, values: dict[str, Any]) -> Any:
    """Make a group from its options, and remove these from the values."""
    return group(
        **{
            name: _made(kind, values) if is_dataclass(kind) else values.pop(name)
            for name, kind, _ in _fields(group)
        }
    )


def _run(body: Callable[[], Result], common: CommonOptions) -> int:
    from pipelines import _console
    from pipelines._runs import speaks
    from wsi_ats.errors import WsiAtsError

    try:
        with _console.warnings_shown():
            result = body()
        if speaks():
            _console.show(result, as_json=common.json)
    except WsiAtsError as error:
        _console.complain(f"error: {error}", trace=common.debug)
        return 2
    except KeyboardInterrupt:
        _console.complain("interrupted; run the same command again to continue", trace=common.debug)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the outermost point: all that is left is to report it)
        advice = "please report it" if common.debug else "run again with --debug and please report it"
        _console.complain(f"unexpected {type(error).__name__}: {error}; {advice}", trace=common.debug)
        return UNEXPECTED
    return result.exit_code
