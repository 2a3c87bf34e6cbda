"""Synthetic whole-slide images with known truth, for tests, examples and benchmarks.

Every slide shows pink stroma on glass and, within it, a few regions that are darker in the thumbnail.
Look-alike regions occur in all slides, lesions only in positive slides. Both are equally dark: they differ in
the shape of their nuclei, which only the full resolution shows. Only tiles can show that a slide is positive,
and the thumbnail shows which tiles are informative.

The full-resolution image is never in memory. A `TileBank` holds encoded JPEG tiles, among them one for every
way in which an outline can cross a tile, and a slide is a grid of references to them.

    layout (outlines on the grid of tiles) -> references to bank tiles -> level 0, then its area averages
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import special

from wsi_ats.errors import SettingsError
from wsi_ats.testing.bank import LEVEL_FACTOR, TileBank, encode, make_tile_bank, shrink
from wsi_ats.testing.layout import Kind, Layout, choose_lesions, draw_layout
from wsi_ats.testing.outlines import EDGE_UNITS, OUTSIDE, areas, rings

SMALLEST_LEVEL = 1024  # the pyramid ends when its longer side is at most this, pixels
LEVEL_QUALITY = 99  # of lower levels: averages of them should be averages of level 0


@dataclass(frozen=True)
class SyntheticSlide:
    """A slide that was written, with its ground truth.

    Attributes
    ----------
    slide_id, path, label
        Name, file, and "positive" or "negative".
    width, height
        Size of level 0 in pixels.
    mpp
        Micrometres per pixel of level 0.
    tile_size
        Side of a tile of level 0, pixels.
    kinds
        `Kind` of every tile, uint8 (rows, columns): that of the larger part of its area.
    shows_lesion
        Tiles that show any lesion, however small, bool (rows, columns).
    regions
        Kind and outline of every region; outlines are float64 (points, 2), (x, y) in level-0 pixels,
        first point repeated last.
    """

    slide_id: str
    path: Path
    label: Literal["negative", "positive"]
    width: int
    height: int
    mpp: float
    tile_size: int
    kinds: NDArray[np.uint8]
    shows_lesion: NDArray[np.bool_]
    regions: tuple[tuple[Kind, NDArray[np.float64]], ...]

    @property
    def tissue_tiles(self) -> int:
        """Number of tiles that are tissue of any kind."""
        return int(np.count_nonzero(self.kinds))

    @property
    def lesion_fraction(self) -> float:
        """Share of the tissue tiles that are lesion."""
        return float(np.count_nonzero(self.kinds == Kind.LESION) / self.tissue_tiles)

    def truth_geojson(self) -> dict[str, Any]:
        """Return the regions as annotations in QuPath's GeoJSON, in level-0 pixels."""
        names = {Kind.LOOKALIKE: ("Look-alike", [60, 120, 220]), Kind.LESION: ("Lesion", [220, 40, 40])}
        return {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.slide_id}/{number}")),
                    "geometry": {"type": "Polygon", "coordinates": [outline.tolist()]},
                    "properties": {
                        "objectType": "annotation",
                        "classification": {"name": names[kind][0], "color": names[kind][1]},
                        "isLocked": True,
                    },
                }
                for number, (kind, outline) in enumerate(self.regions)
            ],
        }

    def write_truth(self, folder: Path) -> None:
        """Write `<slide_id>.geojson` and `<slide_id>.npz` (arrays `kinds` and `shows_lesion`)."""
        text = json.dumps(self.truth_geojson())
        (folder / f"{self.slide_id}.geojson").write_text(text, encoding="utf-8")
        np.savez_compressed(folder / f"{self.slide_id}.npz", kinds=self.kinds, shows_lesion=self.shows_lesion)


def write_slide(
    path: str | Path,
    *,
    bank: TileBank,
    width: int,
    height: int,
    positive: bool,
    rng: np.random.Generator,
    mpp: float = 0.5,
    tissue_fraction: float = 0.3,
    region_fraction: float = 0.10,
    lesion_fraction: float = 0.05,
) -> SyntheticSlide:
    """Write one pyramidal TIFF slide.

    Parameters
    ----------
    path
        File to write; its stem is the slide's id. It appears only when it is complete.
    bank
        Bank of its tiles.
    width, height
        Size of level 0 in pixels; need not be multiples of the tile size.
    positive
        Whether some of the regions are lesions.
    rng
        Source of all randomness.
    mpp
        Micrometres per pixel of level 0, stored as the TIFF's resolution.
    tissue_fraction, region_fraction
        See `draw_layout`.
    lesion_fraction
        Share of a positive slide's tissue that is lesion, as nearly as whole regions allow.

    Raises
    ------
    SettingsError
        If an argument is out of range, or the slide is too small for its tiles.
    """
    if not 0 < lesion_fraction <= region_fraction:
        raise SettingsError(
            f"lesion_fraction is {lesion_fraction}; expected more than 0 and at most"
            f" region_fraction, {region_fraction}"
        )
    if mpp <= 0:
        raise SettingsError(f"mpp is {mpp}; expected micrometres per pixel, more than 0")
    path, size = Path(path), bank.tile_size
    layout = draw_layout(
        math.ceil(height / size),
        math.ceil(width / size),
        rng,
        tissue_fraction=tissue_fraction,
        region_fraction=region_fraction,
    )
    lesions = choose_lesions(layout, lesion_fraction) if positive else []
    write_tiff(path, bank, _references(layout, lesions, bank, rng), width, height, mpp)
    return SyntheticSlide(
        path.stem,
        path,
        "positive" if positive else "negative",
        width,
        height,
        mpp,
        size,
        _kinds(layout, lesions),
        (areas(layout.regions) > 0) & (_kind_of_regions(layout, lesions) == Kind.LESION),
        _outlines(layout, lesions, size),
    )


def _kind_of_regions(layout: Layout, lesions: list[int]) -> NDArray[np.int64]:
    return np.where(np.isin(layout.owner, lesions), Kind.LESION, Kind.LOOKALIKE)


def _kinds(layout: Layout, lesions: list[int]) -> NDArray[np.uint8]:
    """Return the kind of every tile, by the larger part of its area."""
    kinds = np.where(areas(layout.tissue) >= 0.5, Kind.STROMA, Kind.BACKGROUND)
    region = areas(layout.regions) >= 0.5
    return np.where(region, _kind_of_regions(layout, lesions), kinds).astype(np.uint8)


def _outlines(
    layout: Layout, lesions: list[int], tile_size: int
) -> tuple[tuple[Kind, NDArray[np.float64]], ...]:
    """Return the kind and outline of every region, outlines in level-0 pixels."""
    return tuple(
        (Kind.LESION if number in lesions else Kind.LOOKALIKE, ring * tile_size / EDGE_UNITS)
        for number in range(layout.owner.max() + 1)
        for ring in rings(np.where(layout.owner == number, layout.regions, OUTSIDE))
    )


def _references(
    layout: Layout, lesions: list[int], bank: TileBank, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the number of the bank's tile at each place of the grid."""
    palette = rng.integers(bank.palettes)
    shade = (layout.shade + 0.5 * rng.standard_normal(layout.shade.shape)) / math.hypot(1, 0.5)
    variant = np.minimum(special.ndtr(shade) * bank.variants, bank.variants - 1).astype(np.int64)
    stroma = bank.number(palette, Kind.STROMA, layout.tissue, variant)
    region = bank.number(palette, _kind_of_regions(layout, lesions), layout.regions, variant)
    references: NDArray[np.int64] = np.where(layout.regions == OUTSIDE, stroma, region)
    references[layout.tissue == OUTSIDE] = 0
    return references


def write_tiff(
    path: Path, bank: TileBank, references: NDArray[np.int64], width: int, height: int, mpp: float
) -> None:
    """Write level 0 from encoded tiles and the lower levels from their averages, tile by tile.

    Parameters
    ----------
    path
        File to write; it appears only when it is complete.
    bank
        Bank of the tiles.
    references
        Number of the bank's tile at each place of the grid, (rows, columns); 0 is glass.
    width, height
        Size of level 0 in pixels.
    mpp
        Micrometres per pixel of level 0, stored as the TIFF's resolution.
    """
    size = bank.tile_size
    total = np.array([len(tile) for tile in bank.encoded])[references].sum()
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with tifffile.TiffWriter(unfinished, bigtiff=total > 3e9) as tiff:
            level = 0
            while True:
                scale = LEVEL_FACTOR**level
                shape = (height // scale, width // scale, 3)
                tiff.write(
                    _level_tiles(bank, references, level, shape),
                    shape=shape,
                    dtype=np.uint8,
                    tile=(size, size),
                    photometric="ycbcr",
                    subsampling=(1, 1),
                    compression="jpeg",
                    subfiletype=1 if level else 0,
                    metadata=None,
                    software=False,
                    resolution=(1e4 / mpp / scale, 1e4 / mpp / scale),
                    resolutionunit="CENTIMETER",
                )
                if max(shape) <= SMALLEST_LEVEL:
                    break
                level += 1
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _level_tiles(
    bank: TileBank, references: NDArray[np.int64], level: int, shape: tuple[int, int, int]
) -> Iterator[bytes]:
    """Yield the encoded tiles of one level, row by row."""
    rows, columns = (math.ceil(side / bank.tile_size) for side in shape[:2])
    for row, column in itertools.product(range(rows), range(columns)):
        if level == 0:
            yield bank.encoded[references[row, column]]
        else:
            pixels = _average(bank, references, level, row, column)
            if pixels is None:
                yield bank.encoded[0]
            else:
                yield encode(np.rint(pixels).astype(np.uint8), LEVEL_QUALITY)


def _average(
    bank: TileBank, references: NDArray[np.int64], level: int, row: int, column: int
) -> NDArray[Any] | None:
    """Return one tile of a lower level, (size, size, 3); `None` where it is glass."""
    size, span = bank.tile_size, LEVEL_FACTOR**level
    covered = references[row * span : (row + 1) * span, column * span : (column + 1) * span]
    if not covered.any():
        return None
    if level <= len(bank.averages):
        averages = bank.averages[level - 1]
        numbers = np.zeros((span, span), dtype=np.int64)  # beyond the slide is glass
        numbers[: covered.shape[0], : covered.shape[1]] = covered
        return averages[numbers].transpose(0, 2, 1, 3, 4).reshape(size, size, 3)
    pixels = np.empty((size, size, 3), dtype=np.float32)
    pixels[:] = bank.averages[-1][0, 0, 0]
    part = size // LEVEL_FACTOR
    for y, x in itertools.product(range(LEVEL_FACTOR), repeat=2):
        finer = _average(bank, references, level - 1, LEVEL_FACTOR * row + y, LEVEL_FACTOR * column + x)
        if finer is not None:
            pixels[y * part : (y + 1) * part, x * part : (x + 1) * part] = shrink(finer)
    return pixels


def write_collection(
    folder: str | Path,
    *,
    slides: int,
    width: int,
    height: int,
    tile_size: int,
    seed: int,
    mpp: float = 0.5,
    tissue_fraction: float = 0.3,
    region_fraction: float = 0.10,
    lesion_fraction: float = 0.05,
    visibility: float = 1.0,
    variants: int = 32,
    palettes: int = 3,
    banks: int = 1,
) -> list[SyntheticSlide]:
    """Write slides, one positive and one negative in every two, with labels and truth.

    The folder then holds `slide_000.tif` ..., `labels.csv` (slide_id, case_id, path, label; one case per
    slide, paths relative to the folder) and `truth/<slide_id>.geojson` and `.npz`.

    Parameters
    ----------
    folder
        Created if it is missing.
    slides
        Number of slides.
    seed
        Seed of all randomness: the same seed writes the same slides.
    width, height, mpp, tissue_fraction, region_fraction, lesion_fraction
        See `write_slide`.
    tile_size, visibility, variants, palettes
        See `make_tile_bank`.
    banks
        Number of banks of tiles that share the slides. Tiles of one bank have their fibres, stains and
        borders in common: a model trained on a single bank learns these, and fails on the next.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> written = write_collection(mkdtemp(), slides=2, width=2048, height=2048, tile_size=64, seed=0)
    >>> sorted(slide.label for slide in written)
    ['negative', 'positive']
    """
    folder = Path(folder)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 1])  # the banks have their own random streams
    written: list[SyntheticSlide] = []
    pairs = -(-slides // 2)
    used = -1
    for number in range(slides):
        pair, second = divmod(number, 2)
        if pair * banks // pairs != used:  # one bank in memory at a time, shared by both classes
            used = pair * banks // pairs
            stream = int(np.random.SeedSequence([seed, used]).generate_state(1)[0])
            bank = make_tile_bank(
                tile_size, stream, variants=variants, palettes=palettes, visibility=visibility
            )
        if not second:
            first_is_positive = bool(rng.integers(2))
        slide = write_slide(
            folder / f"slide_{number:03d}.tif",
            bank=bank,
            width=width,
            height=height,
            positive=first_is_positive != bool(second),
            rng=rng,
            mpp=mpp,
            tissue_fraction=tissue_fraction,
            region_fraction=region_fraction,
            lesion_fraction=lesion_fraction,
        )
        slide.write_truth(folder / "truth")
        written.append(slide)
    _write_labels(folder / "labels.csv", written)
    return written


def _write_labels(path: Path, slides: Sequence[SyntheticSlide]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["slide_id", "case_id", "path", "label"])
        for number, slide in enumerate(slides):
            table.writerow([slide.slide_id, f"case_{number:03d}", slide.path.name, slide.label])
