"""What reading chosen tiles costs, by reader, against the floor: read and decode exactly the tiles touched.

Run ``python -m benchmarks.reading``. Regions of level 0 lie in tissue, at random. Each round asks every
reader in turn, so that a busy machine is busy for all; figures are medians over rounds.

``reading``: warm (the file is in memory), time of the processor and of the clock, as ratios to the floor's;
cold (dropped from memory before each read), bytes that came from the disk, by those compressed in the touched
tiles of the TIFF file; nothing where the file cannot be dropped. ``equal`` is the share of regions that are
the same as ours, pixel by pixel.
``opening``: what opening and the thumbnail cost per pixel of the thumbnail, by size of the slide.
``memory``: the whole process's peak when a slide is prepared and scored with 0.4 megapixels of thumbnail.

Readers that are not installed are left out: ``pip install tiffslide fastslide cucim-cu12``. Zarr copies are
made of slides of at most 20,000 pixels a side.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import simplejpeg

from benchmarks.report import report
from benchmarks.slide_size import write
from wsi_ats.geometry import IntArray
from wsi_ats.settings import Settings
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.stored_image import StoredImage
from wsi_ats.slides.tiff_index import TiffIndex
from wsi_ats.testing.memory import peak_memory

Read = Callable[..., Any]

# Side of the regions, and whether they lie on the file's own tiles of 256 pixels.
CASES = ((256, True), (256, False), (512, False))
_TISSUE_BYTES = 8000  # of a tile of 256 pixels; glass has fewer


def regions(image: StoredImage, count: int, side: int, aligned: bool, seed: int) -> IntArray:
    """Top-left corners of regions in tissue, shape (count, 2), in level-0 pixels."""
    rng = np.random.default_rng(seed)
    tissue = np.argwhere(image.sizes > _TISSUE_BYTES)
    corners = tissue[rng.choice(len(tissue), count, replace=len(tissue) < count)][:, ::-1] * image.tile_width
    if not aligned:
        corners = corners + rng.integers(0, image.tile_width, corners.shape)
    limit = [image.width - side, image.height - side]
    return np.minimum(corners, limit).astype(np.int64)


def tiles_under(
    image: StoredImage, corners: IntArray, width: int, height: int | None = None
) -> list[tuple[int, int]]:
    """Row and column of each tile under regions, squares by default, each once, in the file's order."""
    size, (rows, columns) = image.tile_width, image.sizes.shape
    found = {
        (row, column)
        for x, y in corners.tolist()
        for row in range(max(0, y // size), min(rows, -(-(y + (height or width)) // size)))
        for column in range(max(0, x // size), min(columns, -(-(x + width) // size)))
    }
    return sorted(found)


@contextlib.contextmanager
def floor(path: Path, image: StoredImage) -> Iterator[Read]:
    """Read and decode each tile once, one after the other, into one place."""
    assert image.coding is not None
    prefix = image.coding.prefix
    out = np.empty((image.tile_height, image.tile_width, 3), dtype=np.uint8)
    number = os.open(path, os.O_RDONLY)

    def read(corners: IntArray, width: int, height: int | None = None) -> None:
        for tile in tiles_under(image, corners, width, height):
            data = os.pread(number, int(image.sizes[tile]), int(image.offsets[tile]))
            simplejpeg.decode_jpeg(prefix + data[2:], "RGB", fastdct=False, fastupsample=False, buffer=out)

    yield read
    os.close(number)


@contextlib.contextmanager
def ours(path: Path, reader: str, threads: int = 1) -> Iterator[Read]:
    """A reader of this library."""
    with open_slide(SlideRef("slide", str(path), "slide", reader=reader), threads=threads) as slide:
        yield lambda corners, side: slide.read_regions(0, corners, side, side)


@contextlib.contextmanager
def with_openslide(path: Path) -> Iterator[Read]:
    """OpenSlide and Pillow, as pipelines use them."""
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        yield lambda corners, side: np.stack(
            [
                np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))
                for x, y in corners.tolist()
            ]
        )


@contextlib.contextmanager
def with_tiffslide(path: Path) -> Iterator[Read]:
    """The library tiffslide, which is tifffile and zarr."""
    import tiffslide

    with tiffslide.TiffSlide(path) as slide:
        yield lambda corners, side: np.stack(
            [slide.read_region((x, y), 0, (side, side), as_array=True) for x, y in corners.tolist()]
        )


@contextlib.contextmanager
def with_cucim(path: Path, threads: int = 1) -> Iterator[Read]:
    """NVIDIA's cuCIM, on the processor."""
    from cucim import CuImage

    image = CuImage(str(path))

    def read(corners: IntArray, side: int) -> Pixels:
        if threads == 1:
            parts = [image.read_region([x, y], (side, side), 0) for x, y in corners.tolist()]
            return np.stack([np.asarray(part) for part in parts])
        batch = image.read_region(corners.tolist(), (side, side), 0, num_workers=threads)
        return np.stack([np.array(part) for part in batch])  # each is a view of the same memory

    yield read
    image.close()


@contextlib.contextmanager
def with_fastslide(path: Path) -> Iterator[Read]:
    """The library fastslide."""
    import fastslide

    slide = fastslide.FastSlide.from_file_path(str(path))
    yield lambda corners, side: np.stack(
        [slide.read_region((x, y), 0, (side, side)).numpy()[..., :3] for x, y in corners.tolist()]
    )
    slide.close()


def readers(path: Path, image: StoredImage, copies: dict[str, Path]) -> dict[str, Any]:
    """Context managers that open each reader, by name; the floor first, then ours."""
    found: dict[str, Any] = {
        "floor": lambda: floor(path, image),
        "direct": lambda: ours(path, "direct"),
        "direct, 2 threads": lambda: ours(path, "direct", 2),
        "OpenSlide + Pillow": lambda: with_openslide(path),
        "OpenSlide, our reader": lambda: ours(path, "openslide"),
    }
    others = {"tiffslide": with_tiffslide, "cucim": with_cucim, "fastslide": with_fastslide}
    for name, reader in others.items():
        if importlib.util.find_spec(name) is not None:
            found[name] = lambda reader=reader: reader(path)
    if "cucim" in found:
        found["cucim, 2 threads"] = lambda: with_cucim(path, 2)
    for name, copy in copies.items():
        found[f"zarr, {name}"] = lambda copy=copy: ours(copy, "zarr")
    return found


def drop_from_memory(paths: list[Path]) -> None:
    """Have the system forget what it holds of files."""
    for path in paths:
        for each in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            number = os.open(each, os.O_RDONLY)
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def from_disk() -> int:
    """Bytes that came from the disk for this process so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def compare(path: Path, copies: dict[str, Path], count: int, rounds: int) -> list[dict[str, Any]]:
    """Read with every reader in turn."""
    file = LocalFile(str(path))
    index = TiffIndex.of(file)
    file.close()
    assert index is not None
    image = index.images[0]
    named = readers(path, image, copies)
    rows = []
    for side, aligned in CASES:
        warm: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
        cold: dict[str, list[tuple[int, float]]] = {name: [] for name in named}
        same: dict[str, float | None] = {}
        corners = regions(image, count, side, aligned, 0)
        stored = image.touched(corners, side, side)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(reader()) for name, reader in named.items()}
            true = opened["direct"](corners, side)
            for name, read in opened.items():  # warms up, too
                got = read(corners, side)
                same[name] = None if got is None else float((got == true).all((1, 2, 3)).mean())
            for _ in range(rounds):
                for name, read in opened.items():
                    begin = time.process_time(), time.perf_counter()
                    read(corners, side)
                    warm[name].append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
        for _ in range(rounds):
            for name, reader in named.items():
                # Opened first: its index would count, and be read from the disk page by page. Then forgotten.
                with reader() as read:
                    drop_from_memory([path, *copies.values()])
                    before, clock = from_disk(), time.perf_counter()
                    read(corners, side)
                    cold[name].append((from_disk() - before, time.perf_counter() - clock))
        least = median(cpu for cpu, _ in warm["floor"])
        clock_least = median(clock for _, clock in warm["floor"])
        # A file that lies in memory, as in /dev/shm, or that the system keeps there all the same.
        forgotten = median(size for size, _ in cold["floor"]) > 0
        for name in named:
            cpu = median(cpu for cpu, _ in warm[name])
            clock = median(clock for _, clock in warm[name])
            rows.append(
                {
                    "slide": path.stem,
                    "regions": f"{count} of {side}, {'aligned' if aligned else 'anywhere'}",
                    "reader": name,
                    "cpu_ms_a_region": 1e3 * cpu / count,
                    "cpu_by_floor": cpu / least,
                    "clock_by_floor": clock / clock_least,
                    "cold_bytes_by_stored": median(size for size, _ in cold[name]) / stored
                    if forgotten
                    else None,
                    "cold_clock_by_warm_floor": median(clock for _, clock in cold[name]) / clock_least
                    if forgotten
                    else None,
                    "equal": same[name],
                }
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures that performance is held to, by slide and kind of region."""
    found = []
    for key in dict.fromkeys((row["slide"], row["regions"]) for row in rows):
        of = {row["reader"]: row for row in rows if (row["slide"], row["regions"]) == key}
        direct, two = of["direct"], of["direct, 2 threads"]
        found.append(
            {
                "slide": key[0],
                "regions": key[1],
                "cpu_by_floor (aim 1.2)": direct["cpu_by_floor"],
                "cpu_by_openslide (aim 0.35)": direct["cpu_by_floor"]
                / of["OpenSlide + Pillow"]["cpu_by_floor"],
                "two_threads (aim 1.8)": direct["clock_by_floor"] / two["clock_by_floor"],
                "cold_bytes (aim 1.25)": direct["cold_bytes_by_stored"],
            }
        )
    return found


def opening(path: Path, rounds: int) -> dict[str, Any]:
    """Open and read the thumbnail, some times."""
    from wsi_ats.overview.tiles import grid_for, read_thumbnail

    times: dict[str, list[float]] = {"open": [], "openslide": [], "thumbnail": []}
    for _ in range(rounds):
        begin = time.perf_counter()
        with open_slide(path) as slide:
            times["open"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            thumbnail = read_thumbnail(slide, grid_for(slide, tile_size=256, mpp=0.5, tolerance=0.1), 8)
            times["thumbnail"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        open_slide(SlideRef("s", str(path), "s", reader="openslide")).close()
        times["openslide"].append(time.perf_counter() - begin)
    pixels = thumbnail.shape[0] * thumbnail.shape[1]
    opened, looked = median(times["open"]), median(times["thumbnail"])
    return {
        "slide": path.stem,
        "thumbnail_megapixels": pixels / 1e6,
        "open_ms": 1e3 * opened,
        "open_ms_openslide": 1e3 * median(times["openslide"]),
        "thumbnail_ms": 1e3 * looked,
        "both_ns_a_pixel": 1e9 * (opened + looked) / pixels,
    }


def look_alone(path: Path, pixels_per_cell: int) -> dict[str, Any]:
    """Prepare a slide in this process; see ``memory``."""
    from wsi_ats.overview.overview import inspect

    settings = Settings().with_values([f"thumbnail.pixels_per_cell={pixels_per_cell}"])
    with open_slide(path) as slide:
        view = inspect(slide, settings)
        _ = view.tissue, view.beyond  # found when asked for
    return {"peak_mb": peak_memory() / 1e6, "pixels": view.thumbnail.shape[0] * view.thumbnail.shape[1]}


def memory(path: Path, side: int) -> dict[str, Any]:
    """Prepare and score a slide, each in a new process, with 0.4 megapixels of thumbnail."""
    pixels = max(1, 640 * 256 // side)

    def run(*arguments: str) -> dict[str, Any]:
        ran = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    looked = run("benchmarks.reading", "--look", str(path), str(pixels))
    scored = run(
        "benchmarks.slide_size", "--one", str(path), "1", "--set", f"thumbnail.pixels_per_cell={pixels}"
    )
    return {
        "slide": path.stem,
        "thumbnail_megapixels": looked["pixels"] / 1e6,
        "prepare_peak_mb": looked["peak_mb"],
        "score_peak_mb": scored["peak_mb"],
    }


def copy_as_zarr(path: Path, codec: str) -> Path:
    """Convert a slide, unless that was done."""
    from pipelines._runs import Execution
    from pipelines.convert import convert

    out = path.parent / f"zarr-{codec}"
    convert([SlideRef.from_path(path)], out, codec=codec, execution=Execution(workers=1))
    return out / f"{path.stem}.ome.zarr"


def main() -> None:
    """Print the tables and write them to ``results/reading*.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=(20_000, 80_000), help="To be read.")
    parser.add_argument("--growth", type=int, nargs="+", default=(10_000, 20_000, 40_000, 80_000, 160_000))
    parser.add_argument("--slides", type=Path, default=Path("results/slides"), help="Kept for another run.")
    parser.add_argument("--regions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--look", nargs=2, metavar=("PATH", "PIXELS"), help="Measure in this process.")
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look_alone(Path(options.look[0]), int(options.look[1]))))
        return
    rows: list[dict[str, Any]] = []
    for side in options.sides:
        path = write(options.slides, side)
        copies = {codec: copy_as_zarr(path, codec) for codec in ("zstd", "jpeg")} if side <= 20_000 else {}
        rows += compare(path, copies, options.regions, options.rounds)
    grown = [write(options.slides, side) for side in options.growth]
    tables = {
        "reading": rows,
        "reading_aims": summary(rows),
        "reading_opening": [opening(path, options.rounds) for path in grown],
        "reading_memory": [memory(path, side) for path, side in zip(grown, options.growth, strict=True)],
    }
    for name, table in tables.items():
        report(name.replace("_", ": "), name, {key: [row[key] for row in table] for key in table[0]})


if __name__ == "__main__":
    main()
