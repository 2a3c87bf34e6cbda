"""What a user sees: progress and complaints on stderr, results on stdout."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pipelines._options import Result


@dataclass(frozen=True)
class ConsoleReporter:
    """Reports to a console: bars on a terminal, a line for each step in a log.

    Parameters
    ----------
    console
        Where.
    verbose
        Whether to show where errors come from.
    """

    console: Console
    verbose: bool = False

    def message(self, text: str) -> None:
        """Print a line."""
        _line(self.console, text)

    def debug(self, text: str) -> None:
        """Print a trace if asked to."""
        if self.verbose and text:
            _line(self.console, text)

    def progress(self, title: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Count to ``total``."""
        return self._bar(title, total) if self.console.is_terminal else self._log(title, total)

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[last]}", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, last="")
            yield lambda name: progress.update(task, advance=1, last=name)

    @contextmanager
    def _log(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        counted = 0

        def advance(name: str) -> None:
            nonlocal counted
            counted += 1
            self.message(f"{title} {counted}/{total}: {name}")

        yield advance


def reporter(*, debug: bool) -> ConsoleReporter:
    """Report on stderr."""
    return ConsoleReporter(Console(stderr=True), debug)


def complain(text: str, *, trace: bool) -> None:
    """Say on stderr what went wrong, in one line; with ``trace`` the current exception's origin as well."""
    console = Console(stderr=True)
    if trace:
        console.print_exception()
    _line(console, " ".join(text.split()))


def show(result: Result, *, as_json: bool) -> None:
    """Print a result on stdout."""
    console = Console()
    if as_json:
        console.out(json.dumps(result.to_json(), indent=2), highlight=False)
        return
    for title, rows in result.sections():
        table = Table(title=Text(title), title_justify="left", show_header=False)
        for name, *values in rows:
            table.add_row(Text(name), *(Text(value, overflow="fold") for value in values))
        console.print(table)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show the library's log on stderr for as long as the context lasts."""
    logger = logging.getLogger("wsi_ats")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _line(console: Console, text: str) -> None:
    # As it is: brackets in a file's name are no markup, and a path must not be broken in two.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
