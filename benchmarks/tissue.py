"""Bags of features of real tissue, from which attention learns in seconds, and the same slides as files.

A slide is a grid of 40 x 40 cells, about 1,150 of them tissue. Each tissue cell shows a crop of a real image
(:mod:`benchmarks.tissue_features`) whose features are known; the thumbnail is made of the crops' own means.
Half of the slides are positive: some of their regions are lesions, which make up a given part of the tissue.
All other regions, and all regions of negative slides, are look-alikes.

Properties that must not separate the classes (tissue; number, places and areas of regions) are drawn before
the lesions are chosen. Slides come in pairs, one of each class, with the same stain.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.engine import ready
from benchmarks.tissue_features import FOLDS, GLASS, SIDE, STAINS, THUMBNAIL, CropTable, crop_table
from wsi_ats.bags.writing import BagWriter
from wsi_ats.errors import SettingsError
from wsi_ats.geometry import Grid, IntArray
from wsi_ats.models.batches import Example, Reader
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.resample import write_png
from wsi_ats.tables.files import write_csv
from wsi_ats.tables.splits import write_splits
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.bank import TileBank, encode, shrink
from wsi_ats.testing.layout import Kind, tissue_field
from wsi_ats.testing.synthetic import write_tiff

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

CELLS = 40  # a side of a slide
MPP = 0.5
# Range of the share of tissue in regions that are never lesions, by the share that is lesion in positive
# slides and look-alike in negative ones.
OTHERS = {0.01: (0.01, 0.11), 0.05: (0.03, 0.25), 0.20: (0.05, 0.30)}

_GRID = Grid(CELLS * SIDE, CELLS * SIDE, SIDE, SIDE)
_TISSUE = (0.70, 0.80)  # of the slide
_WAVY = 0.5  # how uneven a region's outline is, in radii


@dataclass(frozen=True)
class Bag:
    """A slide with known features of its tiles.

    Parameters
    ----------
    ref
        Name, label (``positive`` or ``negative``) and split of the slide; there is no file at its path.
    thumbnail
        RGB, uint8, (40 p, 40 p, 3) with p pixels a side of a cell, eight by default.
    tissue
        The K tissue cells and their grid.
    crops, kinds
        Row in the collection's features, and :class:`~wsi_ats.testing.layout.Kind`, of each cell, shape (K,).
    """

    ref: SlideRef
    thumbnail: Pixels
    tissue: TissueMask
    crops: NDArray[np.int64]
    kinds: NDArray[np.int64]

    @property
    def positive(self) -> bool:
        """Return whether it has lesions."""
        return self.ref.label == "positive"

    def example(self, target: Target) -> Example:
        """Return the slide as an example for training."""
        return Example(self.ref, Overview(self.thumbnail, self.tissue), target.encode(self.ref.label or ""))


@dataclass(frozen=True)
class Collection:
    """Slides of three splits that share no image, and the crops that they are made of."""

    train: Sequence[Bag]
    validation: Sequence[Bag]
    test: Sequence[Bag]
    table: CropTable

    @property
    def bags(self) -> list[Bag]:
        """All slides."""
        return [*self.train, *self.validation, *self.test]

    def examples(self, target: Target) -> list[list[Example]]:
        """Return the slides of each split as examples for training."""
        return [[bag.example(target) for bag in bags] for bags in (self.train, self.validation, self.test)]

    @property
    def features(self) -> NDArray[np.float32]:
        """Features of all crops, shape (N, D)."""
        return self.table.features


class BagReader(Reader):
    """A reader of a collection that returns features instead of pixels, and counts the tiles."""

    def __init__(self, collection: Collection) -> None:
        self._features = collection.features
        self._bags = {bag.ref.id: bag for bag in collection.bags}
        self._asked = {name: np.zeros(len(bag.crops), dtype=bool) for name, bag in self._bags.items()}

    @property
    def tiles_read(self) -> dict[str, int]:
        """Distinct tiles that were requested, by slide."""
        return {name: int(asked.sum()) for name, asked in self._asked.items()}

    def read(self, wanted: Sequence[tuple[SlideRef, Grid, IntArray]]) -> list[Future[NDArray[np.float32]]]:
        """Return features (N, D) of tissue cells; see :meth:`wsi_ats.models.batches.Reader.read`."""
        return [self._done(ref, np.asarray(cells, dtype=np.int64)) for ref, _, cells in wanted]

    def _done(self, ref: SlideRef, cells: IntArray) -> Future[NDArray[np.float32]]:
        bag = self._bags[ref.id]
        places = np.full(bag.tissue.grid.size, -1)
        places[bag.tissue.cells] = np.arange(len(bag.crops))
        found = places[cells]
        if (found < 0).any():
            raise SettingsError(f"{ref.id}: cell {cells[found < 0][0]} has no tissue; read others")
        self._asked[ref.id][found] = True
        return ready(self._features[bag.crops[found]])


def make_collection(
    material: str,
    *,
    lesion: float,
    visible: bool,
    slides: tuple[int, int, int],
    seed: int,
    cache: Path = Path("results/tissue"),
    data: Path = Path("../shared/data"),
) -> Collection:
    """Make slides of one material.

    Parameters
    ----------
    material, cache, data
        See :func:`benchmarks.tissue_features.crop_table`.
    lesion
        Share of lesions in the tissue of positive slides; one of :data:`OTHERS`.
    visible
        If true, regions differ from background in the thumbnail. Otherwise each of its pixels is that of some
        crop of background.
    slides
        Number for training, validation and test, each even.
    seed
        Random seed. Seeds 5 apart split the images in the same way, but share no slide.
    """
    table = crop_table(material, seed % FOLDS, cache=cache, data=data)
    return collect(table, lesion=lesion, visible=visible, slides=slides, seed=seed)


def collect(
    table: CropTable, *, lesion: float, visible: bool, slides: tuple[int, int, int], seed: int
) -> Collection:
    """Make slides of given crops; see :func:`make_collection`."""
    if lesion not in OTHERS or any(number % 2 for number in slides):
        raise SettingsError(
            f"lesion is {lesion} and slides {slides}; expected one of {', '.join(map(str, OTHERS))}, and "
            "even numbers, because half of the slides are positive"
        )
    made: list[list[Bag]] = []
    for place, (split, number) in enumerate(zip(("train", "val", "test"), slides, strict=True)):
        rng = np.random.default_rng([seed, place])
        bags: list[Bag] = []
        for pair in range(number // 2):
            for positive in rng.permutation([False, True]):
                layout = Layout.draw(lesion, rng)
                name, label = f"{split}_{len(bags):03d}", "positive" if positive else "negative"
                ref = SlideRef(name, f"{name}.tif", name, label, split)
                bags.append(_bag(ref, layout, table, pair % STAINS, visible=visible, rng=rng))
        made.append(bags)
    return Collection(made[0], made[1], made[2], table)


@dataclass(frozen=True)
class Layout:
    """The layout of a slide: tissue (40, 40), the region of each cell (-1 for none), and the chosen regions.

    Chosen regions are lesions in a positive slide; the others are always look-alikes.
    """

    tissue: Mask
    owner: NDArray[np.int64]
    chosen: tuple[bool, ...]

    @classmethod
    def draw(cls, lesion: float, rng: np.random.Generator) -> Layout:
        """Draw tissue, and regions that fit into it."""
        while True:
            tissue = ndimage.binary_fill_holes(tissue_field((CELLS,) * 2, rng.uniform(*_TISSUE), rng) > 0)
            area = np.count_nonzero(tissue)
            parts = [
                (size, chosen)
                for share, chosen in ((lesion, True), (rng.uniform(*OTHERS[lesion]), False))
                for size in _areas(round(share * area), rng)
            ]
            parts.sort(reverse=True)
            owner, free = np.full(tissue.shape, -1), tissue.copy()
            for number, (size, _) in enumerate(parts):
                region = grown(free, size, rng)
                if region is None:
                    break
                owner[region] = number
                free &= ~ndimage.binary_dilation(region, np.ones((3, 3)))
            else:
                return cls(tissue, owner, tuple(chosen for _, chosen in parts))

    @cached_property
    def lesion(self) -> Mask:
        """Cells that are lesion if the slide is positive, (40, 40)."""
        return np.isin(self.owner, np.flatnonzero(self.chosen))


def _areas(total: int, rng: np.random.Generator) -> list[int]:
    """Divide so many cells among a few regions, none empty, of four cells or more on average."""
    number = min(int(rng.integers(1, 6)), max(total // 4, 1))
    shares = 1 + rng.multinomial(total - number, rng.dirichlet(np.full(number, 4.0)))
    return [int(each) for each in shares]


def grown(free: Mask, size: int, rng: np.random.Generator) -> Mask | None:
    """Draw a connected, roughly round region of so many free cells; return ``None`` if there is no room."""
    pieces, _ = ndimage.label(free)
    large = np.bincount(pieces.ravel()) >= size
    large[0] = False
    places = np.argwhere(large[pieces])
    if not len(places):
        return None
    centre = tuple(int(each) for each in rng.choice(places))
    y, x = np.indices(free.shape)
    waves = ndimage.gaussian_filter(rng.normal(size=free.shape), 2)
    cost = np.hypot(y - centre[0], x - centre[1]) / np.sqrt(size / np.pi) + _WAVY * waves / waves.std()
    region, seen = np.zeros_like(free), ~free
    seen[centre] = True
    front = [(0.0, centre)]
    for _ in range(size):
        _, (row, column) = heapq.heappop(front)
        region[row, column] = True
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= near[0] < len(free) and 0 <= near[1] < free.shape[1] and not seen[near]:
                seen[near] = True
                heapq.heappush(front, (float(cost[near]), near))
    return region


def _bag(
    ref: SlideRef,
    layout: Layout,
    table: CropTable,
    stain: int,
    *,
    visible: bool,
    rng: np.random.Generator,
) -> Bag:
    """Show a crop in every tissue cell."""
    assert ref.split
    kinds = np.where(layout.owner >= 0, Kind.LOOKALIKE, Kind.STROMA)
    if ref.label == "positive":
        kinds[layout.lesion] = Kind.LESION
    kinds = kinds[layout.tissue]
    crops = np.empty(len(kinds), dtype=np.int64)
    for kind in (Kind.STROMA, Kind.LOOKALIKE, Kind.LESION):
        rows = table.rows(ref.split, stain, kind, hidden=not visible and kind != Kind.STROMA)
        here = kinds == kind
        crops[here] = rng.choice(rows, np.count_nonzero(here))
    tissue = TissueMask(_GRID, layout.tissue.astype(np.float32), layout.tissue)
    return Bag(ref, _thumbnail(layout.tissue, table.thumbnails[crops]), tissue, crops, kinds)


def _thumbnail(tissue: Mask, views: Pixels) -> Pixels:
    """Place the views of tissue cells, (K, p, p, 3), in the thumbnail; the rest is glass."""
    pixels = views.shape[1]
    shown = np.full((CELLS, CELLS, pixels, pixels, 3), GLASS, dtype=np.uint8)
    shown[tissue] = views
    return shown.transpose(0, 2, 1, 3, 4).reshape(CELLS * pixels, CELLS * pixels, 3)


def seen_at(collection: Collection, pixels: int) -> Collection:
    """Return the same slides with thumbnails of other ``pixels`` a side of a cell, which divide :data:`SIDE`.

    Thumbnails hide or show the same as at eight pixels; finer ones show more.
    """
    if pixels == THUMBNAIL:
        return collection
    used = np.unique(np.concatenate([bag.crops for bag in collection.bags]))
    views = collection.table.views(used, pixels)

    def seen(bags: Sequence[Bag]) -> list[Bag]:
        shown = [_thumbnail(bag.tissue.mask, views[np.searchsorted(used, bag.crops)]) for bag in bags]
        return [replace(bag, thumbnail=each) for bag, each in zip(bags, shown, strict=True)]

    parts = {name: seen(getattr(collection, name)) for name in ("train", "validation", "test")}
    return replace(collection, **parts)


def write_slides(collection: Collection, folder: Path) -> None:
    """Write the slides as tiled TIFF, and ``labels.csv`` last; tiles are the unchanged JPEGs of crops."""
    folder.mkdir(parents=True, exist_ok=True)
    used = np.unique(np.concatenate([bag.crops for bag in collection.bags]))
    jpegs = [encode(np.full((SIDE, SIDE, 3), GLASS, dtype=np.uint8))]
    jpegs += [collection.table.jpeg(int(row)) for row in used]
    quarters = [shrink(jpeg8_decode(each)) for each in jpegs]
    averages = np.rint(quarters).astype(np.uint8), np.stack([shrink(each) for each in quarters])
    bank = TileBank(SIDE, len(used), 1, 1.0, tuple(jpegs), averages)
    for bag in collection.bags:
        references = np.zeros(bag.tissue.mask.shape, dtype=np.int64)
        references[bag.tissue.mask] = 1 + np.searchsorted(used, bag.crops)
        write_tiff(folder / bag.ref.path, bank, references, _GRID.width, _GRID.height, MPP)
    refs = [bag.ref for bag in collection.bags]
    columns = {"slide_id": [ref.id for ref in refs], "case_id": [ref.case for ref in refs]}
    columns |= {name: [getattr(ref, name) for ref in refs] for name in ("path", "label", "split")}
    write_csv(folder / "labels.csv", columns)


def write_features(collection: Collection, folder: Path) -> None:
    """Write thumbnails, files of features, ``slides.csv``, and ``splits/``: each tests half of the slides."""
    for name in ("thumbnails", "features", "splits"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    about = {"size": (_GRID.width, _GRID.height), "mpp": MPP, "side": SIDE, "tile_size": SIDE}
    rows = []
    for bag in collection.bags:
        name, image = bag.ref.id, f"thumbnails/{bag.ref.id}.png"
        write_png(folder / image, bag.thumbnail)
        features = collection.features[bag.crops]
        path = folder / "features" / f"{name}.h5"
        with BagWriter(path, name=name, width=features.shape[1], **about) as writer:
            writer.append(_GRID.boxes(bag.tissue.cells)[:, :2], features)
        rows.append((name, image, MPP, _GRID.width / bag.thumbnail.shape[1], bag.ref.label))
    names = ("slide_id", "path", "mpp", "downsample", "label")
    write_csv(folder / "slides.csv", dict(zip(names, zip(*rows, strict=True), strict=True)))
    learned = [bag.ref for bag in (*collection.train, *collection.validation)]
    for number in range(2):  # a cross-validation has two folds or more
        tested = [bag.ref for bag in collection.test[number::2]]
        write_splits(folder / "splits" / f"splits_{number}.csv", [*learned, *tested])
