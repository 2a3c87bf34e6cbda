"""Output for the user: progress and errors on stderr, results on stdout."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from pipelines._reports import Finished, duration

if TYPE_CHECKING:
    from pipelines._command import Result

# The rate is measured over the slides of this many seconds, at most 1000 slides. A slide may take an hour, so
# rich's default of half a minute would never contain two.
_RATE_SECONDS = 6 * 3600.0


class _Rate(ProgressColumn):
    """Slides per minute, shown once a slide has ended."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed) if task.speed else "")


@dataclass(frozen=True)
class ConsoleReporter:
    """A reporter that prints bars on a terminal, occasional lines in a log, and every failure in both.

    Parameters
    ----------
    console
        The console to print to.
    verbose
        Whether to print tracebacks of errors.
    timer
        Returns seconds of a clock that never goes back.
    every
        Minimum seconds between two lines about slides in a log; the first and the last slide always get one.
    """

    console: Console
    verbose: bool = False
    timer: Callable[[], float] = time.monotonic
    every: float = 30.0

    def message(self, text: str) -> None:
        """Print a line."""
        _line(self.console, text)

    def debug(self, text: str) -> None:
        """Print a trace if ``verbose``."""
        if self.verbose and text:
            _line(self.console, text)

    def progress(self, title: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Count to ``total``."""
        return self._bar(title, total) if self.console.is_interactive else self._log(title, total)

    @contextmanager
    def slides(self, stage: str, total: int, reused: int) -> Iterator[Callable[[Finished], None]]:
        """Show slides done, failed and per minute, and the time left; reused slides are not counted."""
        del reused
        bar = Progress(
            TextColumn("{task.description}"),
            # The bar and the slide's name share the width that the numbers leave.
            BarColumn(None, table_column=Column(ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[failures]}", style="red"),
            _Rate(Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[last]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            expand=True,
            console=self.console,
            get_time=self.timer,
            speed_estimate_period=_RATE_SECONDS,
            disable=not (self.console.is_interactive and total),
        )
        number = bar.add_task(stage, total=total, failures="", last="")
        # Measure the rate from now on: the first slides of many workers end together and would look fast.
        bar.advance(number, 0)
        [task] = bar.tasks
        failed, printed, shown = 0, -math.inf, 0

        def tell(slide: Finished) -> None:
            nonlocal failed, printed, shown
            if slide.failed:
                failed += 1
                self.message(f"{slide.slide_id} failed: {slide.error}")
            failures = f"{failed} failed" if failed else ""
            bar.update(number, advance=1, failures=failures, last=f"{slide.slide_id} {slide.status}")
            if bar.disable and (task.finished or self.timer() - printed >= self.every):
                self.message(_state(task))
                printed, shown = self.timer(), int(task.completed)

        with bar:
            try:
                yield tell
            finally:
                if bar.disable and shown < task.completed:  # stopped early
                    self.message(_state(task))

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


def _state(task: Task) -> str:
    """Return the progress in one line."""
    parts = [f"{task.description} {task.completed:.0f}/{task.total:.0f}", task.fields["failures"]]
    if task.speed:
        parts.append(_rate(task.speed))
    if task.time_remaining:
        parts.append(f"{duration(task.time_remaining)} left")
    return ", ".join(filter(None, parts))


def _rate(per_second: float) -> str:
    rate = 60 * per_second
    return f"{rate:.0f} slides/min" if rate >= 10 else f"{rate:.2g} slides/min"


def reporter(*, debug: bool) -> ConsoleReporter:
    """Return the reporter on stderr."""
    return ConsoleReporter(Console(stderr=True), debug)


def complain(text: str, *, trace: bool) -> None:
    """Print an error on stderr in one line; with ``trace`` the traceback of the current exception first."""
    console = Console(stderr=True)
    if trace:
        console.print_exception()
    _line(console, " ".join(text.split()))


def show(result: Result, *, as_json: bool) -> None:
    """Print a result on stdout: as JSON, also if there is nothing in it for people."""
    console = Console()
    if as_json or not result.sections():
        console.out(json.dumps(result.to_json(), indent=2), highlight=False)
        return
    for title, rows in result.sections():
        table = Table(title=Text(title), title_justify="left", show_header=False)
        for name, *values in rows:
            table.add_row(Text(name), *(Text(value, overflow="fold") for value in values))
        console.print(table)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show the library's warnings on stderr within the context."""
    logger = logging.getLogger("wsi_ats")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _line(console: Console, text: str) -> None:
    # Unchanged: brackets in a file's name are not markup, and a path must stay in one piece.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
