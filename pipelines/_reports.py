"""The interface of reporters, and the records they receive; each kind of reporter has its own file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from wsi_ats.errors import without_secrets


@dataclass(frozen=True)
class Finished:
    """A slide that has just ended, in success or failure; secrets in URLs are removed, because it is logged.

    Parameters
    ----------
    slide_id, status
        Its id and its status, a value of :class:`wsi_ats.results.records.Status`.
    seconds
        Wall time in the worker; 0 if unknown.
    worker
        Address of the worker's host and number of its process; empty if unknown.
    error
        The reason why it failed, or why it has nothing to read.
    tiles_read, bytes_read
        Numbers of tiles and bytes read; ``None`` if not counted.
    """

    slide_id: str
    status: str
    seconds: float = 0.0
    worker: str = ""
    error: str | None = None
    tiles_read: int | None = None
    bytes_read: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "slide_id", without_secrets(self.slide_id))
        if self.error is not None:
            object.__setattr__(self, "error", without_secrets(self.error))

    @property
    def failed(self) -> bool:
        """Return whether it has no result."""
        return self.status == "failed"


class Reporter(Protocol):
    """A receiver of messages and progress of a run."""

    def message(self, text: str) -> None:
        """Show a text that the user should read now."""
        ...

    def debug(self, text: str) -> None:
        """Show a text that helps to find a bug."""
        ...

    def progress(self, title: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Begin to count to ``total``; call the function of the context for each step, with its name."""
        ...

    def slides(
        self, stage: str, total: int, reused: int
    ) -> AbstractContextManager[Callable[[Finished], None]]:
        """Begin with ``total`` slides, besides those ``reused`` from an earlier run.

        The context gives a function to call for each slide as it ends. The context ends after the last
        slide, or earlier when the run is stopped or fails.
        """
        ...


class Silent:
    """A reporter that reports nothing, and a base for reporters of single events."""

    def message(self, text: str) -> None:
        """See :class:`Reporter`."""

    def debug(self, text: str) -> None:
        """See :class:`Reporter`."""

    def progress(self, title: str, total: int) -> AbstractContextManager[Callable[[str], None]]:  # noqa: ARG002
        """See :class:`Reporter`."""
        return nullcontext(lambda name: None)  # noqa: ARG005

    def slides(
        self,
        stage: str,  # noqa: ARG002
        total: int,  # noqa: ARG002
        reused: int,  # noqa: ARG002
    ) -> AbstractContextManager[Callable[[Finished], None]]:
        """See :class:`Reporter`."""
        return nullcontext(lambda slide: None)  # noqa: ARG005


@dataclass(frozen=True)
class Several:
    """Several reporters as one, called in order."""

    reporters: Sequence[Reporter]

    def message(self, text: str) -> None:
        """See :class:`Reporter`."""
        for each in self.reporters:
            each.message(text)

    def debug(self, text: str) -> None:
        """See :class:`Reporter`."""
        for each in self.reporters:
            each.debug(text)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """See :class:`Reporter`."""
        with ExitStack() as stack:
            steps = [stack.enter_context(each.progress(title, total)) for each in self.reporters]

            def step(name: str) -> None:
                for each in steps:
                    each(name)

            yield step

    @contextmanager
    def slides(self, stage: str, total: int, reused: int) -> Iterator[Callable[[Finished], None]]:
        """See :class:`Reporter`."""
        with ExitStack() as stack:
            listeners = [stack.enter_context(each.slides(stage, total, reused)) for each in self.reporters]

            def tell(slide: Finished) -> None:
                for each in listeners:
                    each(slide)

            yield tell


def duration(seconds: float) -> str:
    """Return a duration in words.

    Examples
    --------
    >>> [duration(each) for each in (0.4, 50, 1300, 20000, 200000)]
    ['0.4 s', '50 s', '22 min', '5 h 33 min', '2 d 7 h']
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"
