"""Metrics of a run for Prometheus, in a file that its node exporter collects (``--metrics``)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipelines._reports import Finished, Silent
from wsi_ats.errors import SettingsError, not_installed

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, write_to_textfile
except ModuleNotFoundError as error:
    raise not_installed("prometheus-client", "metrics", "--metrics") from error

# Bounds of the histogram: from a thumbnail on a local disk to a large slide on one slow core.
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class MetricsFile(Silent):
    """A reporter that keeps a file in Prometheus' text format up to date; the file is always complete.

    Its metrics, each by stage::

        wsi_ats_slides_total{status}           slides that have ended
        wsi_ats_slides_expected                slides to do, in the current round of a watch, or fold
        wsi_ats_slides_reused                  slides that an earlier run had finished
        wsi_ats_tiles_read_total, wsi_ats_bytes_read_total
        wsi_ats_slide_seconds                  histogram of the wall time of slides
        wsi_ats_last_slide_timestamp_seconds   when the last one ended
        wsi_ats_running                        1 until the stage has finished its slides, then 0

    A killed process leaves ``wsi_ats_running`` at 1: base an alarm on the time of the last slide.

    Parameters
    ----------
    path
        The file; the node exporter collects those whose name ends in ``.prom``.
    complain
        Called once when the file can no longer be written.
    every
        Minimum seconds between two writes; the beginning and the end of a stage are always written.
    clock, timer
        Time of day, and seconds of a monotonic clock.

    Raises
    ------
    SettingsError
        When the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        complain: Callable[[str], None],
        every: float = 5.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        _check(path)
        self.path = path
        self._complain, self._every, self._clock, self._timer = complain, every, clock, timer
        self._complained = False
        self._registry = registry = CollectorRegistry()
        stage = ("stage",)
        self._slides = Counter(
            "wsi_ats_slides", "Slides that have ended.", (*stage, "status"), registry=registry
        )
        self._expected = Gauge("wsi_ats_slides_expected", "Slides to do.", stage, registry=registry)
        self._reused = Gauge("wsi_ats_slides_reused", "Slides finished earlier.", stage, registry=registry)
        self._tiles = Counter("wsi_ats_tiles_read", "Tiles read.", stage, registry=registry)
        self._bytes = Counter("wsi_ats_bytes_read", "Bytes read.", stage, registry=registry)
        self._seconds = Histogram(
            "wsi_ats_slide_seconds", "Wall time of a slide.", stage, buckets=_SECONDS, registry=registry
        )
        self._last = Gauge(
            "wsi_ats_last_slide_timestamp_seconds", "When the last slide ended.", stage, registry=registry
        )
        self._running = Gauge("wsi_ats_running", "Whether a stage is running.", stage, registry=registry)

    @contextmanager
    def slides(self, stage: str, total: int, reused: int) -> Iterator[Callable[[Finished], None]]:
        """Count a stage's slides."""
        self._expected.labels(stage).set(total)
        self._reused.labels(stage).set(reused)
        self._running.labels(stage).set(1)
        for status in ("done", "failed", "no_tissue"):
            self._slides.labels(stage, status)  # present from the start: a rate needs a first value
        self._write()
        written = self._timer()

        def tell(slide: Finished) -> None:
            nonlocal written
            self._slides.labels(stage, slide.status).inc()
            self._tiles.labels(stage).inc(slide.tiles_read or 0)
            self._bytes.labels(stage).inc(slide.bytes_read or 0)
            self._seconds.labels(stage).observe(slide.seconds)
            self._last.labels(stage).set(self._clock().timestamp())
            if self._timer() - written >= self._every:
                self._write()
                written = self._timer()

        try:
            yield tell
        finally:
            self._running.labels(stage).set(0)
            self._write()

    def _write(self) -> None:
        try:
            write_to_textfile(str(self.path), self._registry)
        except OSError as error:
            if not self._complained:
                self._complained = True
                reason = error.strerror or str(error)
                self._complain(f"warning: --metrics {self.path} can no longer be updated: {reason}")


def _check(path: Path) -> None:
    """Check that the file at a path can be replaced."""
    reason = "Is a directory" if path.is_dir() else ""
    try:
        if not reason:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise SettingsError(
            f"--metrics {path} cannot be written: {reason}; name a file in a folder that exists and is "
            "writable"
        )
