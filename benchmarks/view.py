"""How fast a viewer answers 100 requests for tiles that come at once.

``python -m benchmarks.view`` serves a synthetic slide of 16,384 pixels a side from a process of its own, and
asks for 100 tiles of each of several zooms over as many connections, first when none was asked for before and
then again. Tiles of the highest zoom are cut from level 0; others are averages of finer levels. The operating
system has the file in its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from benchmarks.report import Rows, command, report
from wsi_ats.files import write_json
from wsi_ats.results.scores import ScoredSlide, Scores
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.fingerprint import contents_digest
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.memory import peak_memory
from wsi_ats.viewer.collection import Collection
from wsi_ats.viewer.server import served
from wsi_ats.viewer.tiles import Pyramid

REQUESTS = 100
TARGET = Target("classification", ("negative", "positive"))


def serve(slide: Path) -> None:
    """Serve a slide until the input ends; print the address, then the peak of the memory in MB."""
    folder = slide.parent / f"{slide.stem}_scores"
    ref = SlideRef.from_path(slide)
    recorded = asdict(ref) | {"digest": contents_digest(ref.path)}
    write_json(folder / "records" / f"{ref.id}.json", {"slide": recorded})
    row = {"slide_id": ref.id, "case_id": ref.case, "path": ref.path, "status": "done"}
    collection = Collection(Scores(folder, TARGET, [ScoredSlide(folder, row, TARGET, {})], None, {}), {})

    async def until_the_input_ends() -> None:
        async with served(collection) as url:
            print(url, flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(until_the_input_ends())
    print(peak_memory() / 1e6)


@contextmanager
def viewer(slide: Path) -> Iterator[tuple[str, list[float]]]:
    """Start a viewer; give its address, and at the end the peak of its memory."""
    words = [sys.executable, "-m", "benchmarks.view", "--serve", str(slide)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        peak: list[float] = []
        yield str(process.stdout and process.stdout.readline().strip()), peak
        peak.append(float(process.communicate()[0]))


def ask(url: str) -> tuple[float, int]:
    """Ask for a tile; return seconds and bytes."""
    place, begin = urlsplit(url), time.perf_counter()
    connection = http.client.HTTPConnection(str(place.hostname), place.port)
    connection.request("GET", place.path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg"), body[:300]
    return time.perf_counter() - begin, len(body)


def measure(slide: Path, side: int, requests: int) -> Rows:
    """Ask for tiles of several zooms, twice."""
    pyramid, rows = Pyramid(side, side), []
    with viewer(slide) as (url, peak), ThreadPoolExecutor(requests) as threads:
        for zoom in sorted({max(0, pyramid.top - down) for down in (0, 1, 2)}, reverse=True):
            down, across = pyramid.shape(zoom)
            start = max(0, down * across // 2 - requests // 2)  # in the middle, where tissue is
            places = [divmod(i, across) for i in range(start, min(start + requests, down * across))]
            urls = [f"{url}slides/0/{zoom}/{x}_{y}.jpg" for y, x in places]
            for asked in ("first", "again"):
                begin = time.perf_counter()
                seconds, sizes = zip(*threads.map(ask, urls), strict=True)
                rows.append(
                    {
                        "level0_pixels_per_pixel": pyramid.scale(zoom),
                        "asked": asked,
                        "tiles": len(urls),
                        "all_seconds": time.perf_counter() - begin,
                        "median_seconds": median(seconds),
                        "mb": sum(sizes) / 1e6,
                    }
                )
    return [{**row, "cores": os.cpu_count(), "peak_mb": peak[0]} for row in rows]


def main() -> None:
    """Print and write ``view.csv``."""
    parser = command(__doc__, slides=True)
    parser.add_argument("--side", type=int, default=16_384, help="side of the slide in pixels")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="tiles asked for at once")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    from benchmarks.synthetic import slide_of  # imports torch, of which a viewer needs nothing

    rows = measure(slide_of(given.slides, given.side), given.side, given.requests)
    report("tiles of a viewer", "view", rows, given.out, machine=True)


if __name__ == "__main__":
    main()
