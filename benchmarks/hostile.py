"""Outcomes of reading thousands of damaged slides, in every format that we can write.

Run ``python -m benchmarks.hostile --minutes 5``. Small slides are truncated, and bits, bytes and blocks of
them are changed, most often where a file describes its content. Each slide is opened and all its levels are
read in a process with limits on time and memory; the process continues with the next one unless it dies.

==============  =====================================================================================
column          outcome
==============  =====================================================================================
SlideError      refused, by an error of this library that names the file
same            the pixels of the undamaged slide
other           other pixels, levels or sizes: formats without checksums cannot detect it
foreign error   an error of another library came through
crash           the process died
slow            more than 10 seconds; the undamaged slide takes a hundredth of a second
large           more than 500 MB beyond the process's own
==============  =====================================================================================

The last four should be zero. Files with one of these outcomes are kept in the folder ``--keep``.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.report import command, report
from wsi_ats.errors import SlideError
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Pixels
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import write_pyramid
from wsi_ats.testing.dicom import write_dicom
from wsi_ats.testing.memory import peak_memory

OUTCOMES = ("SlideError", "same", "other", "foreign error", "crash", "slow", "large")
BAD = OUTCOMES[3:]

_SECONDS, _BYTES = 10.0, 500 << 20
_ADDRESSES = 8 << 30  # so that an attempt to take all memory ends in an error

# Share of changes to the parts that describe a file's content; pixels are a hundred times as many bytes.
_INDEX_SHARE = 0.7
_BLOCK = 512

# Ways to do damage, and the share of each.
_WAYS = {"cut": 0.15, "bit": 0.3, "byte": 0.25, "number": 0.2, "block": 0.08, "gone": 0.02}


def picture() -> Pixels:
    """Make pixels with waves and grain."""
    y, x = np.indices((256, 320))
    waves = np.stack([np.sin(x / 17 + k) + np.cos(y / 23 - k) for k in range(3)], 2)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    return np.clip(150 + 40 * waves + noise, 0, 255).astype(np.uint8)


def _tiff(path: Path, *, bigtiff: bool = False, **options: Any) -> None:
    pixels, form = picture(), {"tile": (64, 64)} if "rowsperstrip" not in options else {}
    units: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": 3, "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for kind, level in enumerate((pixels, pixels[::2, ::2])):
            file.write(level, photometric="rgb", subfiletype=kind, **units, **form, **options)


def _ome(path: Path) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(picture(), subifds=1, **options, metadata={"axes": "YXS"})
        file.write(picture()[::2, ::2], subfiletype=1, **options)


def _zarr(path: Path, codec: str) -> None:
    write_pyramid(MemorySlide([picture()], mpp=0.5), str(path), codec=codec, quality=None, source="made")


def _dicom(path: Path) -> None:
    write_dicom(path / "0.dcm", "1.2.3.4", picture())
    write_dicom(path / "1.dcm", "1.2.3.4", np.ascontiguousarray(picture()[:128, :128]), mpp=1.0)


FORMATS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "TIFF, not compressed": ("s.tif", partial(_tiff, compression=None)),
    "TIFF, LZW": ("s.tif", partial(_tiff, compression="lzw")),
    "TIFF, deflate and differences": ("s.tif", partial(_tiff, compression="zlib", predictor=True)),
    "BigTIFF, zstd": ("s.tif", partial(_tiff, compression="zstd", bigtiff=True)),
    "TIFF, JPEG": ("s.tif", partial(_tiff, compression="jpeg")),
    "TIFF, JPEG 2000": ("s.tif", partial(_tiff, compression="aperio_jp2000_rgb")),
    "TIFF in strips": ("s.tif", partial(_tiff, compression="zlib", rowsperstrip=32)),
    "OME-TIFF, SubIFDs": ("s.ome.tif", _ome),
    "OME-Zarr, JPEG": ("s.ome.zarr", partial(_zarr, codec="jpeg")),
    "OME-Zarr, zstd": ("s.ome.zarr", partial(_zarr, codec="zstd")),
    "DICOM": ("s", _dicom),
}


@dataclass(frozen=True)
class Subject:
    """A slide to damage: its format, its file or folder, and the fingerprint of its pixels."""

    name: str
    path: Path
    truth: str

    @classmethod
    def write(cls, name: str, folder: Path) -> Subject:
        """Write a slide of a format into a folder."""
        ending, write = FORMATS[name]
        write(folder / ending)
        return cls(name, folder / ending, read_all(_to_open(folder / ending)))

    def damaged(self, number: int, folder: Path) -> Path:
        """Write the slide with one of its files damaged in a way that follows from the number."""
        generator = np.random.default_rng([number, len(self.name)])
        target = folder / self.path.name
        if self.path.is_dir():
            shutil.copytree(self.path, target)
            files = sorted(file for file in target.rglob("*") if file.is_file())
            small = [file for file in files if file.suffix == ".json"] or files
            file = generator.choice(small if generator.random() < _INDEX_SHARE else files)
        else:
            file = shutil.copy(self.path, target)
        damage(Path(file), generator)
        return _to_open(target)


def _to_open(path: Path) -> Path:
    """Return one of the files of a DICOM folder; return any other path unchanged."""
    return path if path.suffix else path / "0.dcm"


def _index_of(file: Path) -> NDArray[np.int64]:
    """Return the places in a file that describe its content, as far as is known."""
    if file.suffix != ".tif":
        return np.arange(min(file.stat().st_size, 2048))
    index = np.ones(file.stat().st_size, dtype=bool)
    with tifffile.TiffFile(file) as tiff:
        for page in [*tiff.pages, *(tiff.pages[0].pages or ())]:  # type: ignore[union-attr]
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                index[offset : offset + count] = False
    return np.flatnonzero(index)


def damage(file: Path, generator: np.random.Generator) -> None:
    """Truncate a file, or change some of its bytes."""
    content, index = bytearray(file.read_bytes()), _index_of(file)
    within = len(index) > 0 and generator.random() < _INDEX_SHARE
    place = int(generator.choice(index)) if within else int(generator.integers(len(content)))
    match str(generator.choice(list(_WAYS), p=list(_WAYS.values()))):
        case "cut":
            del content[place:]
        case "bit":
            content[place] ^= 1 << int(generator.integers(8))
        case "byte":
            content[place] = int(generator.choice([0, 1, 127, 128, 255]))
        case "number":
            value = int(generator.choice([0, 1, 255, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1]))
            content[place : place + 4] = value.to_bytes(4, "little")
        case "block":
            content[place : place + _BLOCK] = bytes(_BLOCK)
        case _:
            file.unlink()
            return
    file.write_bytes(content)


def read_all(path: Path) -> str:
    """Read a slide to its end, and return a fingerprint of its pixels."""
    shown = sha256()
    with open_slide(path) as slide:
        for number, level in enumerate(slide.levels):
            shown.update(f"{level.width} {level.height};".encode())
            # A damaged index may claim any size, and a viewer asks for no more than a screen.
            width, height = min(level.width, 512), min(level.height, 512)
            shown.update(slide.read_regions(number, np.array([[0, 0]]), width, height).tobytes())
    return shown.hexdigest()


@dataclass(frozen=True)
class Ended:
    """The end of reading a slide: an outcome or the fingerprint, a message, seconds, and peak memory."""

    result: str
    message: str = ""
    seconds: float = 0.0
    memory: int = 0

    def outcome(self, truth: str) -> str:
        """Return the column of the outcome; too much time or memory counts however the read ended."""
        if self.result == "crash":
            return "crash"
        if self.result == "slow" or self.seconds > _SECONDS:
            return "slow"
        if self.memory > _BYTES:
            return "large"
        return self.result if self.result in OUTCOMES else "same" if self.result == truth else "other"


def serve(pipe: Connection) -> None:
    """Read slides whose paths come through a pipe, and send back how each ended."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        path: Path = pipe.recv()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
        before, begin = peak_memory(), time.perf_counter()
        try:
            result, message = read_all(path), ""
        except SlideError as error:
            # An error that does not name the file is as bad as one of another library.
            message = str(error)
            result = "SlideError" if str(path.parent) in message else "foreign error"
        except Exception as error:  # noqa: BLE001  (whether any comes here is the question)
            result, message = "foreign error", repr(error)
        pipe.send(Ended(result, message, time.perf_counter() - begin, peak_memory() - before))


class Child:
    """A process that reads slides, and is replaced when it dies."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pipe, other = get_context("spawn").Pipe()
        self.process = get_context("spawn").Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def ask(self, path: Path) -> Ended:
        """Read a slide."""
        try:
            self._pipe.send(path)
            if self._pipe.poll(3 * _SECONDS):
                ended: Ended = self._pipe.recv()
                return ended
            result = "slow"
        except (EOFError, ConnectionError):
            result = "crash"
        self.close()
        self._start()
        return Ended(result)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def trials(subject: Subject, first: int, step: int, until: float, keep: Path) -> Iterator[str]:
    """Damage a slide repeatedly, and yield each outcome."""
    child, number = Child(), first
    try:
        while time.monotonic() < until:
            with tempfile.TemporaryDirectory() as folder:
                ended = child.ask(subject.damaged(number, Path(folder)))
                found = ended.outcome(subject.truth)
                if found in BAD:
                    name = f"{subject.name} {number} {found}".replace(" ", "_").replace(",", "")
                    shutil.copytree(folder, keep / name, dirs_exist_ok=True)
                    print(name, ended, flush=True)
            yield found
            number += step
    finally:
        child.close()


def main() -> None:
    """Damage slides of each format, and print and write the table; exit with 1 if an outcome is bad."""
    parser = command(__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="all formats together")
    parser.add_argument("--first", type=int, default=0, help="number of the first damage")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--keep", type=Path, default=Path("results/hostile"))
    given = parser.parse_args()
    rows = []
    for name in given.formats:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.processes) as pool:
            subject = Subject.write(name, Path(folder))
            until = time.monotonic() + 60 * given.minutes / len(given.formats)
            jobs = [
                pool.submit(
                    lambda *arguments: Counter(trials(*arguments)),
                    *(subject, given.first + number, given.processes, until, given.keep),
                )
                for number in range(given.processes)
            ]
            counts = sum((job.result() for job in jobs), Counter[str]())
        rows.append({"format": name, "damaged": counts.total()} | {each: counts[each] for each in OUTCOMES})
        print(rows[-1], flush=True)
    report("damaged slides", "hostile", rows, given.out)
    sys.exit(any(row[name] for row in rows for name in BAD))


if __name__ == "__main__":
    main()
