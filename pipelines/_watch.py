"""Slides that have arrived and are complete, and the request to end a watch. This module does not use Dask.

A scanner takes minutes to write a slide, and a copying program may pause. So a slide is complete when its
files have kept their sizes and times for a while, or when its writer has put a marker beside it. Waiting is
measured with a monotonic clock: times of files are compared with one another, never with the time of day.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from pipelines._records import absolute
from pipelines._runs import check_seconds
from wsi_ats.errors import SettingsError, WsiAtsError
from wsi_ats.files import digest_of
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.slides.dicom import files_of_series, is_dicom
from wsi_ats.slides.storage import is_remote
from wsi_ats.tables.manifest import find_slides

# Formats whose main file lists the others, and how much of it is read to find them.
_LISTS, _LIST_BYTES = frozenset({".vms", ".vmu"}), 1 << 16

# GNU `timeout` sends the same signal twice at once.
_ONE_REQUEST_SECONDS = 1.0


@dataclass(frozen=True)
class Arrivals:
    """Slides as they arrive.

    Parameters
    ----------
    sources
        Slides, folders, globs and tables on this machine, listed again at each check. At first, folders and
        tables may be empty, and globs may match nothing.
    mpp, reader
        Resolution and reader of the slides, as in :class:`~wsi_ats.slides.base.SlideRef`; the mpp of a table
        takes precedence.
    every
        Seconds between checks.
    settle
        Seconds for which the files of a slide must not have changed, at two checks or more.
    marker
        The ending of a file's name, such as ``".done"``: a new slide ``case7.svs`` is complete as soon as
        ``case7.svs.done`` or ``case7.done`` exists beside it, and not before. One that changes later has to
        settle.
    clock
        Returns seconds of a monotonic clock.
    pause
        Waits for at most so many seconds.

    Raises
    ------
    SettingsError, MppError
        For an impossible source, time, marker, reader or mpp.

    Examples
    --------
    >>> Arrivals(["scans"], every=0)
    Traceback (most recent call last):
    wsi_ats.errors.SettingsError: --every must be a positive number of seconds, not 0
    """

    sources: Sequence[str]
    mpp: float | None = None
    reader: str = "auto"
    every: float = 10.0
    settle: float = 30.0
    marker: str | None = None
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        check_seconds("--every", self.every)
        if not 0 <= self.settle < math.inf:
            raise SettingsError(f"--settle must be seconds, 0 or more, not {self.settle:g}")
        if self.marker is not None and (not self.marker or "/" in self.marker):
            raise SettingsError(f"--marker is {self.marker!r}, expected the ending of a name such as .done")
        for source in self.sources:
            if is_remote(source):
                raise SettingsError(
                    f"{source}: --watch needs files of this machine; score slides in stores without it"
                )
            SlideRef("slide", source, "slide", mpp=self.mpp, reader=self.reader)  # refuses impossible values

    def watch(self, tell: Callable[[str], None]) -> Watch:
        """Begin to watch; ``tell`` is called once for each source or slide that cannot be used."""
        return Watch(self, tell)

    def find(self, source: str) -> list[SlideRef]:
        """List the slides of a source as it is now, complete or not.

        Raises
        ------
        ManifestError, MppError
            When the source does not exist, or cannot be understood.
        """
        return [
            replace(ref, reader=self.reader, mpp=self.mpp if ref.mpp is None else ref.mpp)
            for ref in absolute(find_slides(source))
        ]

    def marked(self, ref: SlideRef) -> bool:
        """Return whether there is a marker beside the slide."""
        file = Path(ref.path)
        names = {file: {file.name, file.stem}}
        if _is_dicom(ref):  # in folders called 1.2.840.1, which have no ending
            folder = file.parent
            of_folder = ref.id == composed(folder.resolve().name)  # as find_series names it
            names = {folder: {folder.name}} if of_folder else {file: {file.name, ref.id}}
        return any(
            place.with_name(f"{name}{self.marker}").exists() for place, each in names.items() for name in each
        )


@dataclass(frozen=True)
class _Seen:
    """A slide, its current state, and the time at which that state was first seen."""

    ref: SlideRef
    state: str
    since: float


class Watch:
    """The state of arrivals from one check to the next.

    Parameters
    ----------
    arrivals
        The slides to wait for.
    tell
        Called once for each source or slide that cannot be used.
    """

    def __init__(self, arrivals: Arrivals, tell: Callable[[str], None]) -> None:
        self._arrivals = arrivals
        self._tell = tell
        self._seen: dict[str, _Seen] = {}
        self._taken: dict[str, str] = {}  # state by slide
        self._failed: set[str] = set()
        self._told: dict[str, str] = {}

    @property
    def present(self) -> list[SlideRef]:
        """Slides that were present at the last check, complete or not."""
        return [seen.ref for seen in self._seen.values()]

    @property
    def waiting(self) -> list[SlideRef]:
        """Slides that are present and have not been taken in their current state, complete or not."""
        return [seen.ref for name, seen in self._seen.items() if self._taken.get(name) != seen.state]

    def check(self) -> list[SlideRef]:
        """Check all sources; list the slides that are complete and not taken in their current state."""
        listed, whole = self._list()
        there, complete = set(), []
        for name, ref in listed.items():
            before = self._arrivals.clock()
            state = _state(ref)
            if state is None:
                continue
            there.add(name)
            seen = self._seen.get(name)
            if seen is None or seen.state != state:
                self._seen[name] = _Seen(ref, state, self._arrivals.clock())
                settled = False
            else:
                settled = before - seen.since >= self._arrivals.settle
            by_marker = self._arrivals.marker is not None and name not in self._taken
            if self._taken.get(name) != state and (self._arrivals.marked(ref) if by_marker else settled):
                complete.append(ref)
        # If a source could not be listed, it is unknown which slides have gone.
        for name in self._seen.keys() - there if whole else ():
            del self._seen[name]
            if name in self._failed:  # perhaps because it was gone: a lost share comes back unchanged
                self._failed.discard(name)
                del self._taken[name]
        return complete

    def take(self, names: Iterable[str], *, failed: Iterable[str] = ()) -> None:
        """Do not list slides again in the state of the last check; failed ones only until they reappear."""
        for name in names:
            self._taken[name] = self._seen[name].state
            self._failed.discard(name)
        self._failed.update(failed)

    def changed(self, ref: SlideRef) -> bool:
        """Return whether a waiting slide was taken before, in another state."""
        return ref.id in self._taken

    def _list(self) -> tuple[dict[str, SlideRef], bool]:
        """Return slides by name, one for each, and whether all sources could be listed."""
        found: dict[str, list[SlideRef]] = {}
        whole = True
        for source in self._arrivals.sources:
            try:
                refs = self._arrivals.find(source)
            except WsiAtsError as error:
                whole = False
                self._once(source, f"{error}; it is tried again at the next check")
                continue
            stored = [ref.path for ref in refs if is_remote(ref.path)]
            text = f"{source}: {len(stored)} slides in stores are left out; score them without --watch"
            self._once(source, text if stored else "")
            for ref in refs:
                if not is_remote(ref.path):
                    found.setdefault(ref.id, []).append(ref)
        listed = {}
        for name, refs in found.items():
            known = self._seen.get(name)
            own = [ref for ref in refs if known is not None and _place(ref) == _place(known.ref)]
            if known is not None and not own and not whole:
                continue  # it may still be present
            ref = (own or refs)[0]
            other = next((each.path for each in refs if _place(each) != _place(ref)), None)
            text = f"warning: two slides are called {name!r}; {ref.path} is scored, {other} is not: rename it"
            self._once(f"name {name}", text if other is not None else "")
            listed[name] = ref
        return listed, whole

    def _once(self, topic: str, text: str) -> None:
        """Report a text, unless it was the last one of its topic."""
        if text and self._told.get(topic) != text:
            self._tell(text)
        self._told[topic] = text
        if not text:
            del self._told[topic]


class Stop:
    """A request to end, which a signal handler may make."""

    def __init__(self) -> None:
        self._made = False
        # Safe when a signal handler interrupts it in the same thread, unlike `threading.Event`.
        self._told: SimpleQueue[None] = SimpleQueue()

    def __call__(self) -> bool:
        """Return whether the request was made."""
        return self._made

    def make(self) -> None:
        """Make the request."""
        self._made = True
        self._told.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for the request, for at most so many seconds; return whether it was made."""
        if not self._made:
            with suppress(Empty):
                self._told.get(timeout=seconds)
        return self._made


@contextmanager
def stop_on_signals(clock: Callable[[], float] = time.monotonic) -> Iterator[Stop]:
    """Treat SIGTERM and Ctrl-C as a request to end, for as long as the context lasts.

    Signals that the process already ignores stay ignored, as Ctrl-C is for background jobs of a shell.

    Raises
    ------
    KeyboardInterrupt
        At the second signal, if it comes a second or more after the first.
    """
    stop = Stop()
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature of handlers)
        if not first:
            first.append(clock())
            stop.make()
        elif clock() - first[0] >= _ONE_REQUEST_SECONDS:
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        for each in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(each) not in {signal.SIG_IGN, None}:
                before[each] = signal.signal(each, handle)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_dicom(ref: SlideRef) -> bool:
    return is_dicom(Path(ref.path))


def _place(ref: SlideRef) -> Path:
    """Return the file or folder of a slide; for DICOM the folder, because the main file may change."""
    return Path(ref.path).parent if _is_dicom(ref) else Path(ref.path)


def _state(ref: SlideRef) -> str | None:
    """Return a fingerprint of a slide's reference and its files' sizes and times; ``None`` without files."""
    try:
        facts = [(str(file), file.stat()) for file in _files(Path(ref.path))]
    except OSError:
        return None
    files = (f"{name} {each.st_size} {each.st_mtime_ns}" for name, each in facts)
    return digest_of(ref.id, ref.path, ref.case, str(ref.mpp), *files)


def _files(path: Path) -> list[Path]:
    """List the existing files of a slide."""
    ending = path.suffix.lower()
    if path.is_dir():
        return _below(path)
    if is_dicom(path):
        return files_of_series(path)
    if ending == ".mrxs":
        return [path, *_below(path.with_suffix(""))]
    return [path, *_named_in(path)] if ending in _LISTS else [path]


def _below(folder: Path) -> list[Path]:
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _named_in(path: Path) -> list[Path]:
    """List the existing files that a Hamamatsu index names, in lines such as ``ImageFile=scan_1.jpg``."""
    with path.open("rb") as file:
        text = file.read(_LIST_BYTES).decode("latin-1")
    names = {line.partition("=")[2].strip() for line in text.splitlines()} - {""}
    return sorted(path.with_name(name) for name in names if "/" not in name and _is_file(path.parent, name))


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # not a name: too long, or with a NUL
        return False
