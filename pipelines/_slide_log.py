"""A log for programs: a line of JSON for each slide as it ends (``--log-json``)."""

from __future__ import annotations

import json
import os
import stat
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines._reports import Finished, Silent
from wsi_ats.errors import SettingsError


class SlideLog(Silent):
    """A reporter that appends a line for each slide, and one for the beginning and the end of a stage.

    Each line is written at once and in one piece, so that a program that follows the file sees slides as they
    end. If the file can no longer be written, there is one warning and the run continues; the log continues
    as soon as the disk has room again.

    Parameters
    ----------
    path
        The file; lines are appended to it.
    complain
        Called once when the file can no longer be written.
    command
        Recorded at the beginning of each stage.
    clock, timer
        Time of day, and seconds of a monotonic clock.

    Raises
    ------
    SettingsError
        When the file cannot be opened.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> with SlideLog(path, complain=print).slides("score", total=1, reused=0) as tell:
    ...     tell(Finished("a", "done", seconds=1.5, tiles_read=40))
    >>> [json.loads(line)["event"] for line in path.read_text().splitlines()]
    ['start', 'slide', 'end']
    """

    def __init__(
        self,
        path: Path,
        *,
        complain: Callable[[str], None],
        command: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._complain, self._command, self._clock, self._timer = complain, command, clock, timer
        self._complained = False
        if str(path) == "-":
            raise SettingsError("--log-json needs a file, not '-'; /dev/stderr is one")
        try:
            # Unbuffered, and not a Python file, which would have to be closed.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            weakref.finalize(self, os.close, self._file)
            self._torn = stat.S_ISREG(os.fstat(self._file).st_mode) and _is_torn(path)
        except OSError as error:
            raise SettingsError(
                f"--log-json {path} cannot be written: {error.strerror or error}; name a file in a folder "
                "that exists and is writable"
            ) from error

    @contextmanager
    def slides(self, stage: str, total: int, reused: int) -> Iterator[Callable[[Finished], None]]:
        """Write lines about a stage's slides."""
        begin, counts = self._timer(), Counter[str]()
        self._write("start", stage, {"command": self._command, "slides": total, "finished_earlier": reused})

        def tell(slide: Finished) -> None:
            counts[slide.status] += 1
            values = {
                "slide_id": slide.slide_id,
                "status": slide.status,
                "seconds": round(slide.seconds, 3),
                "worker": slide.worker or None,
            }
            read = {"tiles_read": slide.tiles_read, "bytes_read": slide.bytes_read, "error": slide.error}
            known = {name: value for name, value in read.items() if value is not None}
            self._write("slide", stage, values | known)

        try:
            yield tell
        finally:
            seconds = round(self._timer() - begin, 3)
            complete = counts.total() == total
            self._write("end", stage, {"counts": counts, "complete": complete, "seconds": seconds})

    def _write(self, event: str, stage: str, values: Mapping[str, Any]) -> None:
        record = {"time": self._clock().isoformat(), "event": event, "stage": stage, **values}
        line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
        # A line that was written in part must not damage the next one.
        data = ("\n" * self._torn + line).encode("utf-8", "backslashreplace")
        try:
            written = os.write(self._file, data)
        except OSError as error:
            self._failed(error.strerror or str(error))
            return
        if written < len(data):
            self._torn = True
            self._failed("a line was written only in part")
        else:
            self._torn = False

    def _failed(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._complain(f"warning: --log-json {self.path} can no longer be written: {reason}")


def _is_torn(path: Path) -> bool:
    """Return whether the last line of a file is incomplete, as after a full disk."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
