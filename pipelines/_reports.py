"""Who is told how a run goes, and what they are told; each kind of listener is a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from wsi_ats.errors import without_secrets


@dataclass(frozen=True)
class Finished:
    """A slide that has just ended, well or badly; tells no secret of a URL, for it goes into logs.

    Parameters
    ----------
    slide_id, status
        Which, and how it ended: a value of :class:`wsi_ats.results.records.Status`.
    seconds
        Wall time in the worker; 0 where the worker could not tell.
    worker
        Address of its host and number of its process; empty where unknown.
    error
        Why it failed, or why there was nothing to read in it.
    tiles_read, bytes_read
        What was read of it, where that is counted.
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
        """Whether it has no result."""
        return self.status == "failed"


class Reporter(Protocol):
    """Whoever is told how a run goes."""

    def message(self, text: str) -> None:
        """Something the user should read now."""
        ...

    def debug(self, text: str) -> None:
        """Something for whoever looks for a mistake."""
        ...

    def progress(self, title: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Begin to count to ``total``; call what the context gives once for each step, with its name."""
        ...

    def slides(
        self, stage: str, total: int, reused: int
    ) -> AbstractContextManager[Callable[[Finished], None]]:
        """Begin with ``total`` slides, besides those ``reused`` of an earlier run.

        What the context gives is called once for each slide, as it ends. The context ends with the last
        one, or early: when the run is stopped or fails.
        """
        ...


class Silent:
    """A reporter that keeps everything to itself; others take from it what they have nothing to say of."""

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
    """Reporters that all hear of everything, in their order."""

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
    """Say in words how long something takes.

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
