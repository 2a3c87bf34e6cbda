"""The page as files, which any web server can serve to others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from wsi_ats.errors import ArtifactError, WsiAtsError
from wsi_ats.viewer.collection import TILE_URL, Collection, pyramid_of
from wsi_ats.viewer.tiles import Pyramid

# Tiles that are read to foresee the size of all: of so many slides, so many each.
_SLIDES_TRIED, _TILES_TRIED = 8, 16

# Only a folder with this file is an export, which may be replaced: other folders have `slides`, too.
_MARK = ".wsi-ats-view"

Place = tuple[int, int, int]


def write_static(
    collection: Collection,
    out: Path,
    *,
    overwrite: bool,
    say: Callable[[str], None],
    done: Callable[[str], None],
) -> dict[str, str]:
    """Write the page with all tiles of all slides. ``index.html`` comes last, when all else is there.

    Parameters
    ----------
    collection
        What is shown.
    out
        The folder.
    overwrite
        Whether to replace an earlier export in it.
    say
        Receives the expected size before anything is written.
    done
        Receives each slide's name when it is written.

    Returns
    -------
    dict
        Reasons why slides cannot be seen, by slide; their pages say so, too.

    Raises
    ------
    ArtifactError
        When the folder holds other files, cannot be written, or its disk has too little room.
    """
    names = [slide.id for slide in collection.scores.slides]
    failed: dict[str, str] = {}
    try:
        _prepare(out, {*collection.files(), "slides.json", "slides"}, overwrite=overwrite)
        _announce(collection, out, say)
        for number, name in enumerate(names):
            page = collection.slide(number)
            try:
                if page["plot"] is None:
                    failed[name] = page["error"]
                else:
                    _write_tiles(collection, number, out)
            except WsiAtsError as error:
                failed[name] = str(error)
                page |= {"plot": None, "overlays": [], "error": f"it cannot be shown: {error}"}
            _write_json(out / "slides" / f"{number}.json", page)
            done(name)
        _write_json(out / "slides.json", collection.table())
        for name, path in sorted(collection.files().items(), key=lambda each: each[0] == "index.html"):
            shutil.copyfile(path, out / name)
    except OSError as error:
        raise ArtifactError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        collection.close()
    return failed


def _prepare(out: Path, own: set[str], *, overwrite: bool) -> None:
    """Make an empty folder; delete nothing but an earlier export, and only if asked to."""
    out.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in out.iterdir()}
    if there and not overwrite:
        raise ArtifactError(
            f"{out} is not empty; choose another folder, or replace an earlier export with --overwrite"
        )
    strange = there - own - {_MARK} or (there if _MARK not in there else set())
    if strange:
        raise ArtifactError(
            f"{out} has other files than those of an export ({', '.join(sorted(strange)[:5])}); choose "
            "another folder"
        )
    for name in there:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    (out / _MARK).touch()


def _announce(collection: Collection, out: Path, say: Callable[[str], None]) -> None:
    """Say the expected size; refuse if the disk has less room."""
    count, tried = 0, []
    slides = len(collection.scores.slides)
    for number in range(slides):
        try:
            with collection.slides.use(number) as slide:
                pyramid = pyramid_of(slide)
            count += pyramid.count
            if number % -(-slides // _SLIDES_TRIED) == 0:
                places = list(_places(pyramid, pyramid.top))
                places = places[:: -(-len(places) // _TILES_TRIED)]
                tried += [len(collection.tile(number, *place)) for place in places]
        except WsiAtsError:
            continue  # reported when it is written
    size = count * sum(tried) / max(1, len(tried))
    free = shutil.disk_usage(out).free
    say(f"about {size / 1e6:,.0f} MB in {count:,} tiles of {slides} slides, in {out}")
    if size > free:
        raise ArtifactError(
            f"{out} has room for {free / 1e6:,.0f} MB only; make room, or choose another folder"
        )


def _places(pyramid: Pyramid, zoom: int) -> Iterator[Place]:
    rows, columns = pyramid.shape(zoom)
    return ((zoom, column, row) for row, column in product(range(rows), range(columns)))


def _write_tiles(collection: Collection, number: int, out: Path) -> None:
    with collection.slides.use(number) as slide:  # stays open until all tiles are written
        pyramid = pyramid_of(slide)

        def write(place: Place) -> None:
            zoom, column, row = place
            url = TILE_URL.format(number=number, Z=zoom, X=column, Y=row)
            (out / url).write_bytes(collection.tile(number, *place))

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for zoom in range(pyramid.top + 1):
                (out / "slides" / str(number) / str(zoom)).mkdir(parents=True, exist_ok=True)
                for _ in threads.map(write, _places(pyramid, zoom)):
                    pass


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
