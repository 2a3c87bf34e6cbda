"""Cost of reading chosen tiles, by reader, relative to reading and decoding only the touched tiles (floor).

Run ``python -m benchmarks.reading``. Regions of level 0 lie at random places in tissue. Readers take turns in
each round, so that they meet the same load; numbers are medians over rounds.

``reading``: warm (the file is in memory), CPU time and wall time as ratios to the floor; cold (dropped from
memory before each read), bytes read from the disk relative to the compressed bytes of the touched tiles;
empty if the file cannot be dropped. ``equal`` is the share of regions with exactly our pixels.
``opening``: cost of opening and of the thumbnail per pixel of the thumbnail, by size of the slide.
``memory``: peak memory of the process when a slide is prepared and scored, with a thumbnail of 0.4
megapixels.

Readers that are not installed are left out: ``pip install tiffslide fastslide cucim-cu12``. Zarr copies are
made of slides of at most 20,000 pixels a side.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openslide
import simplejpeg

from benchmarks.report import Rows, command, report
from benchmarks.synthetic import slide_of
from benchmarks.timing import in_new_process, interleaved, process_io
from pipelines._runs import Execution
from pipelines.convert import convert
from wsi_ats.geometry import IntArray
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import grid_for, read_thumbnail
from wsi_ats.settings import Settings
from wsi_ats.slides import SlideRef, open_slide
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.storage import LocalFile
from wsi_ats.slides.stored_image import StoredImage
from wsi_ats.slides.tiff import levels_of
from wsi_ats.slides.tiff_index import TiffIndex
from wsi_ats.testing.memory import peak_memory

Read = Callable[[IntArray, int], Any]
Opener = Callable[[], contextlib.AbstractContextManager[Read]]

# Side of the regions, and whether they lie on the file's own tiles of 256 pixels.
CASES = ((256, True), (256, False), (512, False))
_TISSUE_BYTES = 8000  # of a tile of 256 pixels; glass has fewer


def stored_levels(path: Path) -> list[StoredImage]:
    """Return the levels of a TIFF file as its index has them."""
    with contextlib.closing(LocalFile(str(path))) as file:
        index = TiffIndex.of(file)
    assert index is not None
    return list(levels_of(index))


def regions(image: StoredImage, count: int, side: int, aligned: bool) -> IntArray:
    """Draw top-left corners of regions in tissue, shape (count, 2), in level-0 pixels."""
    rng = np.random.default_rng(0)
    tissue = np.argwhere(image.sizes > _TISSUE_BYTES)
    corners = tissue[rng.choice(len(tissue), count, replace=len(tissue) < count)][:, ::-1] * image.tile_width
    if not aligned:
        corners = corners + rng.integers(0, image.tile_width, corners.shape)
    return np.minimum(corners, [image.width - side, image.height - side]).astype(np.int64)


def tiles_under(image: StoredImage, corners: IntArray, width: int, height: int) -> list[tuple[int, int]]:
    """Return row and column of each tile under regions, each once, in the file's order."""
    size, (rows, columns) = image.tile_width, image.sizes.shape
    return sorted(
        {
            (row, column)
            for x, y in corners.tolist()
            for row in range(max(0, y // size), min(rows, -(-(y + height) // size)))
            for column in range(max(0, x // size), min(columns, -(-(x + width) // size)))
        }
    )


@contextlib.contextmanager
def floor(path: Path, image: StoredImage) -> Iterator[Callable[..., None]]:
    """Read and decode each tile under squares or rectangles once, one after the other, into one place."""
    assert image.coding is not None
    prefix = image.coding.prefix
    out = np.empty((image.tile_height, image.tile_width, 3), dtype=np.uint8)
    number = os.open(path, os.O_RDONLY)

    def read(corners: IntArray, width: int, height: int | None = None) -> None:
        for tile in tiles_under(image, corners, width, height or width):
            data = os.pread(number, int(image.sizes[tile]), int(image.offsets[tile]))
            simplejpeg.decode_jpeg(prefix + data[2:], "RGB", fastdct=False, fastupsample=False, buffer=out)

    yield read
    os.close(number)


@contextlib.contextmanager
def ours(path: Path, reader: str, threads: int = 1) -> Iterator[Read]:
    """Open a reader of this library."""
    with open_slide(SlideRef("slide", str(path), "slide", reader=reader), threads=threads) as slide:
        yield lambda corners, side: slide.read_regions(0, corners, side, side)


def with_openslide(slide: Any, corners: IntArray, side: int) -> Pixels:
    """Read squares by OpenSlide and Pillow, as pipelines use them."""
    found = [slide.read_region((x, y), 0, (side, side)).convert("RGB") for x, y in corners.tolist()]
    return np.stack([np.asarray(each) for each in found])


@contextlib.contextmanager
def one_by_one(path: Path, library: str) -> Iterator[Read]:
    """Open OpenSlide, tiffslide, fastslide or cuCIM on the processor, which read one region at a time."""
    if library == "openslide":
        slide: Any = openslide.OpenSlide(path)
        yield partial(with_openslide, slide)
        slide.close()
        return
    module = importlib.import_module(library)
    opener, read = {
        "tiffslide": ("TiffSlide", lambda s, x, y, n: s.read_region((x, y), 0, (n, n), as_array=True)),
        "fastslide": ("FastSlide", lambda s, x, y, n: s.read_region((x, y), 0, (n, n)).numpy()[..., :3]),
        "cucim": ("CuImage", lambda s, x, y, n: np.asarray(s.read_region([x, y], (n, n), 0))),
    }[library]
    opened = getattr(module, opener)
    slide = opened.from_file_path(str(path)) if library == "fastslide" else opened(str(path))
    yield lambda corners, side: np.stack([read(slide, x, y, side) for x, y in corners.tolist()])
    slide.close()


def readers(path: Path, image: StoredImage, copies: Mapping[str, Path]) -> dict[str, Opener]:
    """Return context managers that open each reader, by name; the floor first, then ours."""
    found: dict[str, Opener] = {
        "floor": lambda: floor(path, image),
        "direct": lambda: ours(path, "direct"),
        "direct, 2 threads": lambda: ours(path, "direct", 2),
        "OpenSlide + Pillow": lambda: one_by_one(path, "openslide"),
        "OpenSlide, our reader": lambda: ours(path, "openslide"),
    }
    others = [name for name in ("tiffslide", "cucim", "fastslide") if importlib.util.find_spec(name)]
    found |= {name: partial(one_by_one, path, name) for name in others}
    return found | {f"zarr, {name}": partial(ours, copy, "zarr") for name, copy in copies.items()}


def drop_from_memory(path: Path) -> None:
    """Drop a file, or all files of a folder, from the memory of the system."""
    for each in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        number = os.open(each, os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


def cold_bytes(opener: Opener, files: list[Path], corners: IntArray, side: int) -> int:
    """Read regions from disk, and return the bytes that came from there."""
    # Opened first: its index would count, and be read from the disk page by page. Then forgotten.
    with opener() as read:
        for path in files:
            drop_from_memory(path)
        before = process_io("read_bytes")
        read(corners, side)
        return process_io("read_bytes") - before


def compare(path: Path, copies: Mapping[str, Path], count: int, rounds: int) -> Rows:
    """Read with every reader in turn."""
    image = stored_levels(path)[0]
    named, files = readers(path, image, copies), [path, *copies.values()]
    rows: Rows = []
    for side, aligned in CASES:
        corners = regions(image, count, side, aligned)
        stored = image.touched(corners, side, side)
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(opener()) for name, opener in named.items()}
            true = opened["direct"](corners, side)
            same = {
                name: float((read(corners, side) == true).all((1, 2, 3)).mean())
                for name, read in opened.items()
                if name != "floor"
            }
            warm = interleaved({name: partial(read, corners, side) for name, read in opened.items()}, rounds)
        cold = {
            name: median(cold_bytes(opener, files, corners, side) for _ in range(rounds))
            for name, opener in named.items()
        }
        for name, times in warm.items():
            rows.append(
                {
                    "slide": path.stem,
                    "regions": f"{count} of {side}, {'aligned' if aligned else 'anywhere'}",
                    "reader": name,
                    "cpu_ms_a_region": 1e3 * times.processor_seconds / count,
                    "cpu_by_floor": times.processor_seconds / warm["floor"].processor_seconds,
                    "clock_by_floor": times.seconds / warm["floor"].seconds,
                    # Nothing is read from the disk if the file is in memory, as in /dev/shm.
                    "cold_bytes_by_stored": cold[name] / stored if cold["floor"] else None,
                    "equal": same.get(name),
                }
            )
    return rows


def opening(path: Path, rounds: int) -> dict[str, Any]:
    """Time opening and the thumbnail."""
    with open_slide(path) as slide:
        grid = grid_for(slide, tile_size=256, mpp=0.5, tolerance=0.1)
        pixels = read_thumbnail(slide, grid, 8)[..., 0].size

    def both() -> None:
        with open_slide(path) as slide:
            read_thumbnail(slide, grid, 8)

    times = interleaved({"open": lambda: open_slide(path).close(), "both": both}, rounds)
    return {
        "slide": path.stem,
        "thumbnail_megapixels": pixels / 1e6,
        "open_ms": 1e3 * times["open"].seconds,
        "thumbnail_ms": 1e3 * (times["both"].seconds - times["open"].seconds),
        "both_ns_a_pixel": 1e9 * times["both"].seconds / pixels,
    }


def prepare(path: str, pixels_per_cell: int) -> dict[str, Any]:
    """Prepare a slide in this process; see ``memory``."""
    with open_slide(path) as slide:
        settings = Settings().with_values([f"thumbnail.pixels_per_cell={pixels_per_cell}"])
        view = read_overview(slide, settings, measure_quality=True)
    return {"peak_mb": peak_memory() / 1e6, "pixels": view.thumbnail.shape[0] * view.thumbnail.shape[1]}


def memory(path: Path, side: int) -> dict[str, Any]:
    """Prepare and score a slide, each in a new process, with 0.4 megapixels of thumbnail."""
    pixels = max(1, 640 * 256 // side)
    prepared = in_new_process("benchmarks.reading", "prepare", str(path), pixels)
    change = f"thumbnail.pixels_per_cell={pixels}"
    scored = in_new_process("benchmarks.slide_size", "measure", str(path), 1, [change])
    return {
        "slide": path.stem,
        "thumbnail_megapixels": prepared["pixels"] / 1e6,
        "prepare_peak_mb": prepared["peak_mb"],
        "score_peak_mb": scored["peak_mb"],
    }


def copy_as_zarr(path: Path, codec: str) -> Path:
    """Convert a slide, unless that was done."""
    out = path.parent / f"zarr-{codec}"
    convert([SlideRef.from_path(path)], out, codec=codec, execution=Execution(workers=1))
    return out / f"{path.stem}.ome.zarr"


def main() -> None:
    """Print the tables and write them to ``reading*.csv``."""
    parser = command(__doc__, slides=True)
    parser.add_argument(
        "--sides", type=int, nargs="+", default=(20_000, 80_000), help="of the slides to read"
    )
    parser.add_argument("--growth", type=int, nargs="+", default=(10_000, 20_000, 40_000, 80_000, 160_000))
    parser.add_argument("--regions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows: Rows = []
    for side in options.sides:
        path = slide_of(options.slides, side)
        copies = {codec: copy_as_zarr(path, codec) for codec in ("zstd", "jpeg")} if side <= 20_000 else {}
        rows += compare(path, copies, options.regions, options.rounds)
    grown = {side: slide_of(options.slides, side) for side in options.growth}
    tables = {
        "reading": rows,
        "reading_opening": [opening(path, options.rounds) for path in grown.values()],
        "reading_memory": [memory(path, side) for side, path in grown.items()],
    }
    for name, table in tables.items():
        report(name.replace("_", ": "), name, table, options.out, machine=True)


if __name__ == "__main__":
    main()
