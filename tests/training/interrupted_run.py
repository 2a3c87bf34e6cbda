"""A run that prints each read, to be interrupted; its argument is a folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from training.runs import INTERRUPTED_READ, run, slide_of
from wsi_ats.slides.memory import MemorySlide


class Announcing(MemorySlide):
    reads = 0

    def read_regions(self, *args):
        Announcing.reads += 1
        print(f"read {Announcing.reads}", flush=True)  # noqa: T201  (the other process listens)
        if Announcing.reads == INTERRUPTED_READ:
            time.sleep(3)  # long enough for a signal to arrive on a busy machine
        return super().read_regions(*args)


if __name__ == "__main__":
    run(
        Path(sys.argv[1]),
        threads=1,
        opener=lambda ref: Announcing(slide_of(ref.id)._pyramid, mpp=0.5, path=ref.id),
    )
