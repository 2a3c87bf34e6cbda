"""Loaded by workers before anything else: notes which slides are worked on, and lets some hang."""

from __future__ import annotations

import os
import time
from pathlib import Path


def dask_setup(worker):
    from pipelines.prepare import PrepareTask
    from pipelines.score import ScoreTask

    for task in (PrepareTask, ScoreTask):
        task.work = noting(task.work)


def noting(work):
    def noted(self, ref):
        with Path(os.environ["NOTED_RUNS"]).open("a") as file:
            file.write(f"{self.out.name} {ref.id} {os.getpid()}\n")
        if ref.id.startswith("sleeping"):
            time.sleep(3600)
        return work(self, ref)

    return noted
