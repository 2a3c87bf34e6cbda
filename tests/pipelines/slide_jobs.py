"""What tests have done to slides; in a module of its own, because workers import it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from pipelines._records import Row, SlideTask
from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.slides.base import SlideRef


def job(ref: SlideRef) -> str:
    """Do as the slide's name says."""
    if ref.id.startswith("bad"):
        raise SlideReadError(ref.path, "is bad")
    if ref.id.startswith("bug"):
        return str(1 / 0)
    if ref.id.startswith("deadly"):
        os._exit(1)
    if ref.id.startswith("slow"):
        time.sleep(0.3)
    return ref.id.upper()


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

    def files(self, slide_id: str) -> list[Path]:
        return [self.out / "texts" / f"{slide_id}.txt"]

    def work(self, ref: SlideRef) -> Row:
        path = self.files(ref.id)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ref.id)
        return {"slide_id": ref.id, "status": "done", "value": job(ref)}

    def failed(self, ref: SlideRef, error: str, seconds: float) -> Row:
        return {"slide_id": ref.id, "status": "failed", "error": error}


class UnstartedTask(TextTask):
    def start(self) -> None:
        raise ModelError("no model today")
