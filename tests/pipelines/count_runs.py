"""Loaded by workers before anything else: notes which slides are scored, and lets some hang."""

from __future__ import annotations

import os
import time
from pathlib import Path


def dask_setup(worker):
    from pipelines.score import ScoreTask

    work = ScoreTask.work

    def noted(self, ref):
        with Path(os.environ["NOTED_RUNS"]).open("a") as file:
            file.write(f"{self.out.name} {ref.id} {os.getpid()}\n")
        if ref.id.startswith("sleeping"):
            time.sleep(3600)
        return work(self, ref)

    ScoreTask.work = noted
