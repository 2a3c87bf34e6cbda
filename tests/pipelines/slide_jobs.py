"""Work on slides for tests; in a module of its own, because workers import it."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from pipelines._records import Row, SlideTask
from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.slides.base import SlideRef


def job(ref: SlideRef) -> str:
    """Behave as the slide's name says."""
    if ref.id.startswith("bad"):
        raise SlideReadError(ref.path, "is bad")
    if ref.id.startswith("bug"):
        return str(1 / 0)
    if ref.id.startswith("store"):
        try:
            raise ConnectionError(f"GET {ref.path}")  # as messages of libraries, which reveal secrets
        except ConnectionError as error:
            raise SlideReadError(ref.path, "does not answer") from error
    if ref.id.startswith("deadly"):
        os._exit(1)
    if ref.id.startswith("segfault"):
        ctypes.string_at(0)
    if ref.id.startswith("killed"):  # as by the kernel, for want of memory
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    if ref.id.startswith("slow"):
        time.sleep(0.3)
    if ref.id.startswith("sleeping"):
        time.sleep(3600)
    if ref.id.startswith("piped"):  # waits in C for a writer that never comes
        Path(ref.path).read_bytes()
    if ref.id.startswith("deaf"):
        _ignore_everything()
    return ref.id.upper()


def _ignore_everything() -> None:
    while True:
        with suppress(BaseException):
            time.sleep(0.01)


def environment(ref: SlideRef) -> str:
    job(ref)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "none")


def threads(ref: SlideRef) -> str:
    return os.environ["OMP_NUM_THREADS"]


class BrokenError(RuntimeError):
    """An error that cannot be sent anywhere."""

    def __init__(self) -> None:
        super().__init__("broken")
        self.lock = threading.Lock()


def unpicklable(ref: SlideRef) -> str:
    raise BrokenError


class TextTask(SlideTask):
    """Writes the slide's name into a file."""

    stage, tables = "test", ("texts",)

    @property
    def columns(self) -> dict[str, str]:
        return dict.fromkeys(("slide_id", "status", "value", "error"), "string")

    def files(self, slide_id: str) -> list[Path]:
        return [self.out / "texts" / f"{slide_id}.txt"]

    def work(self, ref: SlideRef) -> tuple[Row, list[Path]]:
        path = self.files(ref.id)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ref.id)
        return {"slide_id": ref.id, "status": "done", "value": job(ref)}, [path]


class CountedTask(TextTask):
    """Notes whenever work on a slide is begun, and when it is recorded."""

    def work(self, ref: SlideRef) -> tuple[Row, list[Path]]:
        self._note("begun", ref)
        return super().work(ref)

    def __call__(self, ref: SlideRef) -> Row:
        row = super().__call__(ref)
        self._note("recorded", ref)
        return row

    def _note(self, what: str, ref: SlideRef) -> None:
        with (self.out.parent / "noted.txt").open("a") as file:  # appended whole beside other writers
            file.write(f"{what} {ref.id} {os.getpid()}\n")


class DyingTask(CountedTask):
    """Its first workers die before they have done anything, once for each file that asks for it."""

    def start(self) -> None:
        for order in (self.out.parent / "orders").glob("*"):
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


class UnstartedTask(TextTask):
    def start(self) -> None:
        raise ModelError("no model today")
