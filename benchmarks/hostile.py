"""What damaged slides do: thousands of them in every format that can be written, each read to its end.

Run ``python -m benchmarks.hostile --minutes 5``. Small slides are cut short, and bits, bytes and blocks of
them changed, most often where a file says what it holds. Each is opened and all its levels are read in a
process of its own kind, with limits on time and memory, which goes on to the next unless it dies.

==============  =====================================================================================
column          how it ended
==============  =====================================================================================
SlideError      refused, by an error of this library that names the file
same            the pixels of the slide as it was
other           other pixels, levels or sizes: formats without checksums cannot tell
foreign error   an error of another library came through
crash           the process died
slow            more than 10 seconds, where the whole slide takes a hundredth of one
large           more than 500 MB beyond what the process had
==============  =====================================================================================

The last four should be zero. Files that did one of them are kept in the folder ``--keep``.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.report import report
from wsi_ats.errors import SlideError
from wsi_ats.slides import open_slide
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.slides.pyramid import write_pyramid
from wsi_ats.testing.dicom import write_dicom
from wsi_ats.testing.memory import peak_memory

Pixels = NDArray[np.uint8]

OUTCOMES = ("SlideError", "same", "other", "foreign error", "crash", "slow", "large")
BAD = OUTCOMES[3:]

_SECONDS, _BYTES = 10.0, 500 << 20
_ADDRESSES = 8 << 30  # so that what claims the whole memory gets an error instead

# Where a file says what it holds, a change is as likely as in all its pixels, which are a hundred times more.
_INDEX_SHARE = 0.7
_BLOCK = 512

# Ways to do damage, and how often each is tried.
_WAYS = {"cut": 0.15, "bit": 0.3, "byte": 0.25, "number": 0.2, "block": 0.08, "gone": 0.02}


def picture(seed: int = 0, width: int = 320, height: int = 256) -> Pixels:
    """Make pixels with something to see in them, and grain."""
    generator = np.random.default_rng(seed)
    y, x = np.indices((height, width))
    waves = np.stack([np.sin(x / 17 + k) + np.cos(y / 23 - k) for k in range(3)], 2)
    return np.clip(150 + 40 * waves + generator.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


def _tiff(path: Path, *, compression: str | None, tile: bool = True, **options: object) -> None:
    pixels = picture()
    form = {"tile": (64, 64)} if tile else {"rowsperstrip": 32}
    with tifffile.TiffWriter(path, bigtiff=bool(options.pop("bigtiff", False))) as file:
        for level in (pixels, pixels[::2, ::2]):
            file.write(
                level,
                photometric="rgb",
                compression=compression,
                subfiletype=int(level is not pixels),
                metadata=None,
                resolution=(20000, 20000),
                resolutionunit=3,
                **form,  # type: ignore[arg-type]
                **options,  # type: ignore[arg-type]
            )


def _ome(path: Path) -> None:
    pixels = picture()
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pixels, subifds=1, **options, metadata={"axes": "YXS"})  # type: ignore[arg-type]
        file.write(pixels[::2, ::2], subfiletype=1, **options)  # type: ignore[arg-type]


def _zarr(path: Path, codec: str) -> None:
    write_pyramid(MemorySlide([picture()], mpp=0.5), str(path), codec=codec, quality=None, source="made")


def _dicom(path: Path) -> None:
    pixels = picture()
    write_dicom(path / "0.dcm", "1.2.3.4", pixels)
    write_dicom(path / "1.dcm", "1.2.3.4", np.ascontiguousarray(pixels[:128:, :128]), mpp=1.0)


FORMATS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "TIFF, not compressed": ("s.tif", partial(_tiff, compression=None)),
    "TIFF, LZW": ("s.tif", partial(_tiff, compression="lzw")),
    "TIFF, deflate and differences": ("s.tif", partial(_tiff, compression="zlib", predictor=True)),
    "BigTIFF, zstd": ("s.tif", partial(_tiff, compression="zstd", bigtiff=True)),
    "TIFF, JPEG": ("s.tif", partial(_tiff, compression="jpeg")),
    "TIFF, JPEG 2000": ("s.tif", partial(_tiff, compression="aperio_jp2000_rgb")),
    "TIFF in strips": ("s.tif", partial(_tiff, compression="zlib", tile=False)),
    "OME-TIFF, SubIFDs": ("s.ome.tif", _ome),
    "OME-Zarr, JPEG": ("s.ome.zarr", partial(_zarr, codec="jpeg")),
    "OME-Zarr, zstd": ("s.ome.zarr", partial(_zarr, codec="zstd")),
    "DICOM": ("s", _dicom),
}


def _index_of(file: Path) -> NDArray[np.int64]:
    """Places in a file that say what it holds, as far as is known."""
    size = file.stat().st_size
    if file.suffix == ".tif":
        told = np.ones(size, dtype=bool)
        with tifffile.TiffFile(file) as tiff:
            for page in [*tiff.pages, *(tiff.pages[0].pages or ())]:  # type: ignore[union-attr]
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                    told[offset : offset + count] = False
        return np.flatnonzero(told)
    return np.arange(min(size, 2048))


@dataclass(frozen=True)
class Subject:
    """A slide that is to be damaged.

    Parameters
    ----------
    name
        Its format.
    path
        The whole slide, a file or a folder.
    truth
        What reading it to its end says.
    """

    name: str
    path: Path
    truth: str

    def damaged(self, number: int, folder: Path) -> Path:
        """Write the slide with one of its files damaged, which one and how by the number."""
        generator = np.random.default_rng([number, len(self.name)])
        target = folder / self.path.name
        if self.path.is_dir():
            shutil.copytree(self.path, target)
            files = sorted(file for file in target.rglob("*") if file.is_file())
            small = [file for file in files if file.suffix == ".json"] or files
            file = generator.choice(small if generator.random() < _INDEX_SHARE else files)
        else:
            shutil.copy(self.path, target)
            file = target
        damage(Path(file), generator)
        return target if target.suffix or target.is_file() else target / "0.dcm"


def damage(file: Path, generator: np.random.Generator) -> None:
    """Cut a file short, or change some of its bytes."""
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
    """Read a slide to its end; a fingerprint of what it shows."""
    shown = sha256()
    with open_slide(path) as slide:
        for number, level in enumerate(slide.levels):
            shown.update(f"{level.width} {level.height};".encode())
            # A damaged index may claim any size, and a viewer asks for no more than a screen.
            width, height = min(level.width, 512), min(level.height, 512)
            shown.update(slide.read_regions(number, np.array([[0, 0]]), width, height).tobytes())
    return shown.hexdigest()


def serve() -> None:
    """Read slides that are named on standard input, and say of each how it ended and what it took."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        path = Path(json.loads(line))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
        before, begin = peak_memory(), time.perf_counter()
        try:
            said, what = read_all(path), ""
        except SlideError as error:
            said, what = "SlideError", str(error)
            if str(path.parent) not in what:
                said = "foreign error"  # it does not say of which slide
        except Exception as error:  # noqa: BLE001  (that none comes here is what is to be found out)
            said, what = "foreign error", repr(error)
        print(json.dumps([said, what, time.perf_counter() - begin, peak_memory() - before]), flush=True)


class Child:
    """A process that reads slides; started anew when it is gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> tuple[str, str, float, int]:
        """How reading a slide ended, its message, seconds, and bytes at the peak."""
        process = self._process
        if process is None:
            command = [sys.executable, "-c", "from benchmarks.hostile import serve; serve()"]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        begin = time.perf_counter()
        with suppress(BrokenPipeError):  # it is gone, and what it says has an end
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 3 * _SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            said, what, seconds, memory = json.loads(line)
            return said, what, seconds, memory
        self.close()
        return ("crash" if ready else "slow"), "", time.perf_counter() - begin, 0

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.communicate()
            self._process = None


def outcome(subject: Subject, said: str, seconds: float, memory: int) -> str:
    """Which column it counts in; what took too much counts so, however it ended."""
    if said == "crash":
        return said
    if said == "slow" or seconds > _SECONDS:
        return "slow"
    if memory > _BYTES:
        return "large"
    if said in OUTCOMES:
        return said
    return "same" if said == subject.truth else "other"


def trials(subject: Subject, first: int, step: int, until: float, keep: Path) -> Iterator[str]:
    """Damage a slide again and again, and say how each ended."""
    child, number = Child(), first
    try:
        while time.monotonic() < until:
            with tempfile.TemporaryDirectory() as folder:
                path = subject.damaged(number, Path(folder))
                said, what, seconds, memory = child.ask(path)
                found = outcome(subject, said, seconds, memory)
                if found in BAD:
                    name = f"{subject.name} {number} {found}".replace(" ", "_").replace(",", "")
                    shutil.copytree(folder, keep / name, dirs_exist_ok=True)
                    print(f"{name}: {seconds:.1f} s, {memory >> 20} MB {what:.200}", flush=True)
            yield found
            number += step
    finally:
        child.close()


def main() -> None:
    """Parse the command line, run and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5, help="all formats together")
    parser.add_argument("--first", type=int, default=0, help="number of the first damage")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--keep", type=Path, default=Path("results/hostile"))
    parser.add_argument("--out", default="benchmarks/results", help="folder of the table")
    given = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.formats:
            ending, write = FORMATS[name]
            path = Path(folder) / name.replace(" ", "_") / ending
            path.parent.mkdir(parents=True)
            write(path)
            subject = Subject(name, path, read_all(path if path.suffix else path / "0.dcm"))
            until = time.monotonic() + 60 * given.minutes / len(given.formats)

            def run(first: int, subject: Subject = subject, until: float = until) -> Counter[str]:
                return Counter(trials(subject, first, given.processes, until, given.keep))

            with ThreadPoolExecutor(given.processes) as pool:
                firsts = range(given.first, given.first + given.processes)
                counts[name] = sum(pool.map(run, firsts), Counter())
            print(name, dict(counts[name]), flush=True)
    columns: dict[str, list[object]] = {"format": list(counts)}
    columns["damaged"] = [each.total() for each in counts.values()]
    columns |= {name: [each[name] for each in counts.values()] for name in OUTCOMES}
    report("damaged slides", "hostile", columns, given.out)
    sys.exit(any(each[name] for each in counts.values() for name in BAD))


if __name__ == "__main__":
    main()
