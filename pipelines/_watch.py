"""Slides that have arrived and are complete, and the request to end a watch. Nothing here knows Dask.

A scanner writes a slide for minutes, and a program that copies one may pause. So a slide is complete when
its files have kept their sizes and times for a while, or when its writer has put a marker beside it. The
time is that of a clock that is never set: times of files are compared with one another, never with now.
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
from threading import TIMEOUT_MAX
from types import FrameType
from typing import Any

from pipelines._records import absolute
from wsi_ats.errors import SettingsError, WsiAtsError
from wsi_ats.files import digest_of
from wsi_ats.slides.base import SlideRef, composed
from wsi_ats.slides.dicom import files_of_series, is_dicom
from wsi_ats.slides.storage import is_remote
from wsi_ats.tables.sources import find_slides

# Formats whose main file lists its others, and the most of it that is read for that.
_LISTS, _LIST_BYTES = frozenset({".vms", ".vmu"}), 1 << 16

# GNU `timeout` sends the same signal twice at once.
_ONE_REQUEST_SECONDS = 1.0


@dataclass(frozen=True)
class Arrivals:
    """Slides as they arrive.

    Parameters
    ----------
    sources
        Slides, folders, globs and tables on this machine, listed again at each look. At first, folders and
        tables may be empty, and globs may match nothing.
    mpp, reader
        Of the slides, as in :class:`~wsi_ats.slides.base.SlideRef`; the mpp of a table takes precedence.
    every
        Seconds between looks.
    settle
        Seconds that the files of a slide must have been the same, at two looks or more.
    marker
        The end of a file's name, such as ``".done"``: a new slide ``case7.svs`` is complete as soon as there
        is ``case7.svs.done`` or ``case7.done`` beside it, and not before. One that changes later has to
        settle.
    clock
        Seconds of a clock that is never set.
    pause
        Waits for some seconds, or less.

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
        if not 0 < self.every <= TIMEOUT_MAX:
            raise SettingsError(f"--every must be a positive number of seconds, not {self.every:g}")
        if not 0 <= self.settle < math.inf:
            raise SettingsError(f"--settle must be seconds, 0 or more, not {self.settle:g}")
        if self.marker is not None and (not self.marker or "/" in self.marker):
            raise SettingsError(f"--marker is {self.marker!r}, expected the end of a name such as .done")
        for source in self.sources:
            if is_remote(source):
                raise SettingsError(
                    f"{source}: --watch looks at files of this machine; score slides in stores without it"
                )
            SlideRef("slide", source, "slide", mpp=self.mpp, reader=self.reader)  # refuses what cannot be

    def watch(self, tell: Callable[[str], None]) -> Watch:
        """Begin to watch; ``tell`` is called once for each thing that cannot be used."""
        return Watch(self, tell)

    def find(self, source: str) -> list[SlideRef]:
        """List the slides of a source as it is now, complete or not.

        Raises
        ------
        ManifestError, MppError
            When it is not there, or cannot be understood.
        """
        return [
            replace(ref, reader=self.reader, mpp=self.mpp if ref.mpp is None else ref.mpp)
            for ref in absolute(find_slides(source))
        ]

    def marked(self, ref: SlideRef) -> bool:
        """Whether there is a marker beside the slide."""
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
    """A slide as it was first seen in its present state."""

    ref: SlideRef
    state: str
    since: float


class Watch:
    """The state of arrivals from one look to the next.

    Parameters
    ----------
    arrivals
        The slides to look for.
    tell
        Called once for each thing that cannot be used.
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
        """Slides that were there at the last look, complete or not."""
        return [seen.ref for seen in self._seen.values()]

    @property
    def waiting(self) -> list[SlideRef]:
        """Those of them that have not been taken as they are, complete or not."""
        return [seen.ref for name, seen in self._seen.items() if self._taken.get(name) != seen.state]

    def look(self) -> list[SlideRef]:
        """Look at all sources; list the slides that are complete and have not been taken as they are."""
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
        # Where a source could not be listed, it is unknown what went away.
        for name in self._seen.keys() - there if whole else ():
            del self._seen[name]
            if name in self._failed:  # perhaps for that: a share that was lost comes back as it was
                self._failed.discard(name)
                del self._taken[name]
        return complete

    def take(self, names: Iterable[str], *, failed: Iterable[str] = ()) -> None:
        """Do not list slides again as they were at the last look; failed ones, until they come again."""
        for name in names:
            self._taken[name] = self._seen[name].state
            self._failed.discard(name)
        self._failed.update(failed)

    def changed(self, ref: SlideRef) -> bool:
        """Whether a slide that is waiting was taken before, in another state."""
        return ref.id in self._taken

    def _list(self) -> tuple[dict[str, SlideRef], bool]:
        """Slides by name, one for each, and whether all sources could be listed."""
        found: dict[str, list[SlideRef]] = {}
        whole = True
        for source in self._arrivals.sources:
            try:
                refs = self._arrivals.find(source)
            except WsiAtsError as error:
                whole = False
                self._once(source, f"{error}; the next look may find it mended")
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
                continue  # it may well be there still
            ref = (own or refs)[0]
            other = next((each.path for each in refs if _place(each) != _place(ref)), None)
            text = f"warning: two slides are called {name!r}; {ref.path} is scored, {other} is not: rename it"
            self._once(f"name {name}", text if other is not None else "")
            listed[name] = ref
        return listed, whole

    def _once(self, topic: str, text: str) -> None:
        """Tell a text, unless it was the last one of its topic."""
        if text and self._told.get(topic) != text:
            self._tell(text)
        self._told[topic] = text
        if not text:
            del self._told[topic]


class Stop:
    """A request to end; the handler of a signal may make it."""

    def __init__(self) -> None:
        self._made = False
        # Its methods may interrupt one another in one thread; those of `threading.Event` may not.
        self._told: SimpleQueue[None] = SimpleQueue()

    def __call__(self) -> bool:
        """Whether it was made."""
        return self._made

    def make(self) -> None:
        """Make it."""
        self._made = True
        self._told.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait until it is made, some seconds at most; whether it was made."""
        if not self._made:
            with suppress(Empty):
                self._told.get(timeout=seconds)
        return self._made


@contextmanager
def stop_on_signals(clock: Callable[[], float] = time.monotonic) -> Iterator[Stop]:
    """Take SIGTERM and Ctrl-C for a request to end, for as long as the context lasts.

    Signals that the process ignores, as jobs of a shell's background ignore Ctrl-C, are ignored here, too.

    Raises
    ------
    KeyboardInterrupt
        At the second signal, if it comes a second or more after the first.
    """
    stop = Stop()
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (what handlers are given)
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
    """The file or folder that is the slide; of DICOM, which file stands for the slide may change."""
    return Path(ref.path).parent if _is_dicom(ref) else Path(ref.path)


def _state(ref: SlideRef) -> str | None:
    """Return a fingerprint of a slide's reference and its files' sizes and times; none without files."""
    try:
        facts = [(str(file), file.stat()) for file in _files(Path(ref.path))]
    except OSError:
        return None
    files = (f"{name} {each.st_size} {each.st_mtime_ns}" for name, each in facts)
    return digest_of(ref.id, ref.path, ref.case, str(ref.mpp), *files)


def _files(path: Path) -> list[Path]:
    """List the files of a slide that are there."""
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
    """Files that a Hamamatsu index names, in lines such as ``ImageFile=scan_1.jpg``, and that are there."""
    with path.open("rb") as file:
        text = file.read(_LIST_BYTES).decode("latin-1")
    names = {line.partition("=")[2].strip() for line in text.splitlines()} - {""}
    return sorted(path.with_name(name) for name in names if "/" not in name and _is_file(path.parent, name))


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # a value that is no name: too long, or with a NUL
        return False
