"""What a cluster costs and gives when many slides are scored on it.

Run ``python -m benchmarks.collection``, or some parts of it by ``--only``. Models have learned nothing, and
slides are links to a few synthetic ones: neither changes what the work costs, except that files are in memory
after the first round.

``overhead``: the same task for the same slides, by ``for_each_slide`` and in a plain loop *in the same worker
processes*, in turn. ``overhead_ms`` is the wall time by which the cluster is slower, for each slide: aim 5 on
tiny slides; ``overhead_percent``: aim 5 on slides of real size.
``workers``: slides per hour by number of workers, of cores for each, and of slides at once in each. Starting
(``connect_s``: processes; ``start_s``: loading torch and the model) is not part of it. ``by_one`` is the
ratio to the first row, one worker that has a share of the cores as each of several has: aim 1.8 for two such
workers on two cores.
``memory``: the most that a worker process held, before the first slide and in all.
``batches``: slides of 4 to 12 tissue tiles; several at once in a worker may share the batches that they are
encoded in. ``by_alone`` is the ratio to one slide at once.

In each round all sides take turns; figures are medians over rounds, ``least`` and ``most`` are of rounds.
Nothing is extrapolated.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client

from benchmarks._collection import (
    RecordTask,
    hardware,
    links,
    loop,
    nothing,
    say,
    score_task,
    small_slides,
    table,
    tiny_slides,
    torch_threads,
    write_model,
)
from benchmarks.report import report
from benchmarks.slide_size import write
from pipelines._cluster import connect
from pipelines._records import SlideTask
from pipelines._tasks import for_each_slide
from pipelines._work import Outcome
from pipelines._workers import on_each_worker
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.testing.memory import peak_memory

Rows = list[dict[str, Any]]
Work = Callable[[SlideRef], Any]

PARTS = ("overhead", "workers", "memory", "batches")


@dataclass(frozen=True)
class Crew:
    """Worker processes of this machine.

    Parameters
    ----------
    workers
        How many.
    shares
        Into how many the cores are shared out, of which each worker has one.
    at_once
        Slides that each works on at once.
    """

    workers: int
    shares: int
    at_once: int = 1

    @contextmanager
    def at_work(self) -> Iterator[Client]:
        """Start them; they are stopped when the context ends."""
        with connect(
            workers=self.shares, tasks=self.shares, pending=self.workers, at_once=self.at_once
        ) as client:
            yield client


def timed(work: Work, refs: Sequence[SlideRef], client: Client) -> tuple[float, list[Outcome[Any]]]:
    """Call a function for each slide on a cluster; gives the seconds that it took.

    Raises
    ------
    RuntimeError
        When a slide fails: the time of failing is no figure.
    """
    outcomes: list[Outcome[Any]] = []
    begin = time.perf_counter()
    for_each_slide(work, refs, client, on_result=outcomes.append)
    seconds = time.perf_counter() - begin
    for outcome in outcomes:
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
    return seconds, outcomes


def looped(work: Work, refs: Sequence[SlideRef], client: Client) -> float:
    """Have each worker loop over its share of the slides; gives the seconds of the slowest."""
    addresses = list(client.scheduler_info()["workers"])
    futures = [
        client.submit(loop, work, refs[i :: len(addresses)], workers=[address], pure=False)
        for i, address in enumerate(addresses)
    ]
    return max(future.result() for future in futures)


def threads_of(client: Client) -> int:
    """Threads of torch in each worker."""
    (threads,) = set(client.run(torch_threads).values())
    return int(threads)


@dataclass(frozen=True)
class Case:
    """What is done to some slides.

    Parameters
    ----------
    name
        For people.
    task
        What; a :class:`pipelines._records.SlideTask` gets a new folder each time.
    refs
        The slides.
    """

    name: str
    task: Work
    refs: Sequence[SlideRef]


def overhead(cases: Sequence[Case], crews: Sequence[Crew], rounds: int, work: Path) -> Rows:
    """Compare a cluster with plain loops in its own processes.

    Parameters
    ----------
    cases
        Of slides, of which the first few are done once more, to warm up.
    crews
        With one slide at once.
    rounds
        How often.
    work
        For folders that are deleted.
    """
    rows: Rows = []
    for crew in crews:
        with crew.at_work() as client:
            for case in cases:
                task, refs = case.task, case.refs
                if isinstance(task, SlideTask):
                    on_each_worker(task.start, client)
                found: list[tuple[float, float, float]] = []
                for number in range(rounds + 1):
                    few = refs if number else refs[: 2 * crew.workers]
                    with _fresh(task, work) as fresh:
                        plain = looped(fresh, few, client)
                    with _fresh(task, work) as fresh:
                        whole, outcomes = timed(fresh, few, client)
                    found.append((plain, whole, sum(outcome.seconds for outcome in outcomes)))
                differences = [1e3 * (whole - plain) / len(refs) for plain, whole, _ in found[1:]]
                plain, whole, inside = (median(each) for each in zip(*found[1:], strict=True))
                row = {
                    "task": case.name,
                    "slides": len(refs),
                    "workers": crew.workers,
                    "threads": threads_of(client),
                    "rounds": rounds,
                    "loop_s": plain,
                    "cluster_s": whole,
                    "in_workers_s": inside,
                    "overhead_ms": 1e3 * (whole - plain) / len(refs),
                    "least": min(differences),
                    "most": max(differences),
                    "overhead_percent": None if task is nothing else 100 * (whole - plain) / plain,
                    "hardware": hardware(),
                }
                say("overhead", row)
                rows.append(row)
    return rows


@contextmanager
def _fresh(task: Any, work: Path) -> Iterator[Any]:
    """The task with a folder of its own: what is recorded is not done again."""
    if not isinstance(task, SlideTask):
        yield task
        return
    with TemporaryDirectory(dir=work) as out:
        yield replace(task, out=Path(out))


def rates(
    part: str, task: SlideTask, refs: Sequence[SlideRef], crews: Sequence[Crew], rounds: int, work: Path
) -> Rows:
    """Slides per hour by crew; in each round each is started anew, and its first slides are not counted."""
    found: dict[Crew, list[tuple[float, float, float]]] = {crew: [] for crew in crews}
    threads: dict[Crew, int] = {}
    tiles: list[int] = []
    for _ in range(rounds):
        for crew in crews:
            begin = time.perf_counter()
            with crew.at_work() as client:
                connected = time.perf_counter()
                on_each_worker(task.start, client)
                started = time.perf_counter()
                threads[crew] = threads_of(client)
                with _fresh(task, work) as fresh:
                    timed(fresh, refs[: 2 * crew.workers * crew.at_once], client)
                with _fresh(task, work) as fresh:
                    seconds, outcomes = timed(fresh, refs, client)
            found[crew].append((seconds, connected - begin, started - connected))
            tiles = [outcome.result["tiles_read"] for outcome in outcomes]
    rows: Rows = []
    for crew, figures in found.items():
        seconds, connect_s, start_s = (median(each) for each in zip(*figures, strict=True))
        hourly = [3600 * len(refs) / each for each, _, _ in figures]
        row = {
            "slides": len(refs),
            "tiles_a_slide": mean(tiles),
            "fewest_tiles": min(tiles),
            "most_tiles": max(tiles),
            "workers": crew.workers,
            "threads": threads[crew],
            "at_once": crew.at_once,
            "rounds": rounds,
            "connect_s": connect_s,
            "start_s": start_s,
            "seconds": seconds,
            "slides_per_hour": 3600 * len(refs) / seconds,
            "least": min(hourly),
            "most": max(hourly),
        }
        say(part, row)
        rows.append(row)
    return rows


def memory(
    task: SlideTask, refs: Mapping[int, Sequence[SlideRef]], crews: Sequence[Crew], work: Path
) -> Rows:
    """Most memory of a worker process, by the side of the slides; each time in new processes."""
    rows: Rows = []
    for side, slides in refs.items():
        for crew in crews:
            with crew.at_work() as client:
                on_each_worker(task.start, client)
                threads, before = threads_of(client), client.run(peak_memory).values()
                with _fresh(task, work) as fresh:
                    timed(fresh, slides, client)
                after = client.run(peak_memory).values()
            row = {
                "side": side,
                "slides": len(slides),
                "workers": crew.workers,
                "threads": threads,
                "at_once": crew.at_once,
                "loaded_mb": max(before) / 1e6,
                "peak_mb": max(after) / 1e6,
                "hardware": hardware(),
            }
            say("memory", row)
            rows.append(row)
    return rows


def compared(rows: Rows, name: str, base: int) -> Rows:
    """Add the ratio of slides per hour to one of the rows, and the hardware."""
    one = rows[base]["slides_per_hour"]
    return [{**row, name: row["slides_per_hour"] / one, "hardware": hardware()} for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and write them to ``results/collection_*.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="Small slides and networks: does it run?")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sides", type=int, nargs="+", help="Of the slides of real size, pixels.")
    parser.add_argument("--count", type=int, help="Tiny slides.")
    parser.add_argument("--copies", type=int, help="Slides of real size of which the rate is measured.")
    parser.add_argument("--small", type=int, help="Slides of few tiles.")
    parser.add_argument(
        "--at-once", type=int, nargs="+", help="Slides at once; the first is the base of ratios."
    )
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 2), help="Compared with one.")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.name=value")
    parser.add_argument("--slides", type=Path, default=Path("results/slides"), help="Kept for another run.")
    parser.add_argument("--work", type=Path, default=Path("results/collection"), help="For what is deleted.")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args(arguments)
    quick, most = options.quick, options.workers
    rounds = options.rounds or (1 if quick else 3)
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    backbone, tiles = ("test_resnet", 16) if quick else ("resnet18", 64)
    plain = ["model.pretrained=false", *options.set]
    real = Settings().with_values([f"model.backbone={backbone}", f"sampling.tiles={tiles}", *plain])
    model = write_model(work / "model", real)
    task = score_task(work, model)
    at_once = options.at_once or ([1] if quick else [1, 2])

    def slides(side: int) -> Path:
        return write(options.slides, side)

    if "overhead" in options.only:
        sides = options.sides or ([4096] if quick else [10_000, 20_000, 40_000])
        small = ("model.backbone=test_resnet", "tile.size=64", "sampling.tiles=2", *plain)
        score_tiny = score_task(work, write_model(work / "tiny_model", Settings().with_values(small)))
        tiny = links(tiny_slides(options.slides, 4), work / "tiny", options.count or (12 if quick else 1000))
        large = links([slides(side) for side in sides], work / "real", len(sides) * (2 if quick else 4))
        cases = [
            Case("nothing", nothing, tiny),
            Case("a record", RecordTask(work, "benchmark"), tiny),
            Case("score, tiny slides", score_tiny, tiny),
            Case(f"score, slides of {' '.join(map(str, sides))}", task, large),
        ]
        crews = [Crew(most, most)] if quick else [Crew(1, 1), Crew(most, most)]
        rows = overhead(cases, crews, rounds, work)
        report("overhead of a cluster", "collection_overhead", table(rows), options.out, below=["hardware"])
    if "workers" in options.only:
        side = (options.sides or [4096 if quick else 20_000])[0]
        refs = links([slides(side)], work / "rates", options.copies or (4 if quick else 16))
        crews = [crew for each in at_once for crew in (Crew(1, most, each), Crew(most, most, each))]
        crews += [] if quick else [Crew(1, 1, each) for each in at_once]
        rows = compared(rates("workers", task, refs, crews, rounds, work), "by_one", 0)
        named = [{"side": side, "backbone": real.model.backbone, **row} for row in rows]
        report("slides per hour", "collection_workers", table(named), options.out, below=["hardware"])
    if "memory" in options.only:
        sides = options.sides or ([4096] if quick else [20_000, 80_000])
        refs_by_side = {
            side: links([slides(side)], work / f"memory_{side}", 2 * max(at_once) + 2) for side in sides
        }
        crews = [Crew(1, most, each) for each in at_once]
        rows = memory(task, refs_by_side, crews, work)
        report("memory of a worker", "collection_memory", table(rows), options.out, below=["hardware"])
    if "batches" in options.only:
        count = options.small or (8 if quick else 64)
        refs = links(small_slides(options.slides, min(count, 16)), work / "small", count)
        crews = [Crew(1, 1, each) for each in options.at_once or ([1, 2] if quick else [1, 2, 4])]
        rows = compared(rates("batches", task, refs, crews, rounds, work), "by_alone", 0)
        report("slides of few tiles", "collection_batches", table(rows), options.out, below=["hardware"])


if __name__ == "__main__":
    main()
