"""Slides of 20,000 x 20,000 pixels made of real tissue: a lesion in a few places, and what looks like one.

The tissue is of CRC-VAL-HE-7K (Kather et al. 2018, CC BY 4.0): muscle and stroma, with regions of two more
kinds that are darker in the thumbnail. Lymphocytes are in all slides, tumour in positive slides only. Regions
have the outlines of lesions of Camelyon16 (Apache-2.0), turned and scaled.

What must not tell the classes apart is drawn before it is known which regions are lesions: tissue, number,
outlines and areas of regions. Slides come in pairs, one of each class, with the same stain. Both kinds of
regions have the same mean colour and the same feathered borders.

Images are shared out to training, validation and test before any slide is made. The names of this material
tell images apart, not patients (there are 50): two images of one patient may be on different sides.

The images have 0.5 micrometres a pixel and are magnified twice for level 0; level 1 has 1 micrometre a pixel
and is made of level 0's averages, and it is what tiles are read from.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import jpeg8_decode
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from wsi_ats.errors import ManifestError
from wsi_ats.testing.bank import TileBank, encode, shrink
from wsi_ats.testing.layout import Kind, Layout, choose_lesions, tissue_field
from wsi_ats.testing.outlines import OUTSIDE, areas, crossings, forms
from wsi_ats.testing.synthetic import write_tiff

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

SIDE = 20_480  # of level 0, pixels
MPP = 0.25  # of level 0
TILE = 128  # of the file; four make a cell
CELL = 256  # what one tile of 64 pixels at 1 micrometre a pixel covers, level-0 pixels
SPLITS = {"test": 3, "val": 2, "train": 5}  # images of each class of tissue
# Part of the tissue in regions, anything between two values, by the part that is lesion. Lesions take the
# place of lymphocytes; the wider the range, the less the number of these tells.
REGIONS = {0.01: (0.02, 0.12), 0.05: (0.06, 0.30), 0.20: (0.22, 0.50)}

_CLASSES = {Kind.STROMA: ("MUS", "STR"), Kind.LOOKALIKE: ("LYM",), Kind.LESION: ("TUM",)}
_MAGNIFIED = 2
_TISSUE = 0.2  # of the slide
_VIEWS = 20  # of the images of one kind in a bank, each turned and cut out at random
_QUALITY = 60  # level 0 is only read to be averaged
_GLASS = 243
_FEATHER = 5.0  # pixels of level 0
_STAIN = 0.06  # of the logarithm of optical density: of each colour, and of all
_BLOCK = 32  # whose means are alike where the thumbnail shows nothing: 8 a cell
_ROUNDEST, _LONGEST = 1.0, 2.2  # farthest point of an outline from its middle, in radii of an equal disc


@dataclass(frozen=True)
class Material:
    """Images of one split, by kind, uint8 (height, width, 3), and the outlines of lesions.

    Parameters
    ----------
    images
        Name and pixels of each.
    outlines
        Polygons (points, 2), their middle at 0 and their area pi.
    """

    images: Mapping[Kind, Sequence[tuple[str, Pixels]]]
    outlines: Sequence[Floats]

    def joined(self, other: Material) -> Material:
        """With the images of both."""
        return Material(
            {kind: [*self.images[kind], *other.images[kind]] for kind in self.images}, self.outlines
        )

    def alike(self) -> Material:
        """With both kinds of regions scaled to one mean optical density of each colour."""
        regions = (Kind.LOOKALIKE, Kind.LESION)
        densities = -np.log((np.arange(256, dtype=np.float64) + 1) / 256)
        means = {
            kind: np.mean([densities[pixels].mean((0, 1)) for _, pixels in self.images[kind]], axis=0)
            for kind in regions
        }
        common = np.mean(list(means.values()), axis=0)
        images = dict(self.images)
        for kind in regions:
            scaled = 256 * np.exp(-np.multiply.outer(densities, common / means[kind])) - 1
            images[kind] = [(name, _mapped(pixels, scaled)) for name, pixels in self.images[kind]]
        return Material(images, self.outlines)


def read_material(data: Path, seed: int) -> dict[str, Material]:
    """Read images and outlines, shared out to splits by image.

    Parameters
    ----------
    data
        Folder with ``tiles/crc_val_he_7k`` and ``annotations/camelyon16``.
    seed
        Decides which image goes to which split. Of three seeds, such as 0, 1 and 2, the test images differ.

    Raises
    ------
    ManifestError
        When images or annotations are missing.
    """
    found = sorted((data / "tiles" / "crc_val_he_7k").glob("*.jpg"))
    outlines = read_outlines(data / "annotations" / "camelyon16")
    if not found or not outlines:
        raise ManifestError(f"{data} has no tiles/crc_val_he_7k or no annotations/camelyon16; give --data")
    group, fold = divmod(seed, 3)
    rng = np.random.default_rng([group, 11])
    images: dict[str, dict[Kind, list[tuple[str, Pixels]]]] = {name: {} for name in SPLITS}
    for kind, classes in _CLASSES.items():
        for name in classes:
            paths = [path for path in found if path.name.startswith(f"{name}___")]
            if len(paths) < sum(SPLITS.values()):
                raise ManifestError(f"{len(paths)} images of {name} in {data}; {sum(SPLITS.values())} needed")
            order = iter(np.roll(rng.permutation(len(paths)), -SPLITS["test"] * fold))
            for split, number in SPLITS.items():
                mine = [paths[next(order)] for _ in range(number)]
                images[split].setdefault(kind, []).extend((path.name, _read(path)) for path in mine)
    return {split: Material(images[split], outlines) for split in SPLITS}


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        size = (image.width * _MAGNIFIED, image.height * _MAGNIFIED)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def read_outlines(folder: Path) -> list[Floats]:
    """Read outlines of lesions, their middle at 0 and their area pi; the very long ones are left out."""
    outlines = []
    for path in sorted(folder.glob("*.json")):
        for polygon in json.loads(path.read_text(encoding="utf-8"))["positive"]:
            points = np.array(polygon["vertices"], dtype=np.float64)
            points = points[:: -(-len(points) // 96)]  # one point in a tile's width is enough
            x, y = points.T
            area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
            if area > 0:
                points = (points - points.mean(axis=0)) / np.sqrt(area / np.pi)
                if _ROUNDEST <= np.hypot(*points.T).max() <= _LONGEST:
                    outlines.append(points)
    return outlines


def signed_distance(points: Floats, outline: Floats) -> Floats:
    """Distance of points (N, 2) from a closed outline (V, 2), positive inside."""
    start, end = outline, np.roll(outline, -1, axis=0)
    along, to = end - start, points[:, None] - start
    length = np.maximum((along**2).sum(1), 1e-12)
    place = np.clip((to * along).sum(2) / length, 0, 1)
    distance = np.sqrt(((to - place[..., None] * along) ** 2).sum(2).min(1))
    above = (start[:, 1] > points[:, None, 1]) != (end[:, 1] > points[:, None, 1])
    rise = np.where(along[:, 1] == 0, 1, along[:, 1])
    left = to[..., 0] < along[:, 0] * to[..., 1] / rise
    inside = (above & left).sum(1) % 2 == 1
    signed: Floats = np.where(inside, distance, -distance)
    return signed


def draw_slide(
    outlines: Sequence[Floats], rng: np.random.Generator, *, region_fraction: float, side: int = SIDE
) -> Layout:
    """Draw tissue and regions of a slide; the label has no part in it.

    Parameters
    ----------
    outlines
        Of regions; see :class:`Material`.
    rng
        Source of all randomness.
    region_fraction
        Part of the tissue in regions.
    side
        Of the slide, level-0 pixels.
    """
    shape = (side // TILE + 1,) * 2
    tissue = tissue_field(shape, _TISSUE * rng.uniform(0.85, 1.15), rng)
    total = region_fraction * np.count_nonzero(tissue > 0)
    regions, owner = np.full(shape, -np.inf), np.full(shape, -1)
    room = ndimage.distance_transform_edt(tissue > 0) - 2  # no tile holds two outlines
    for share in -np.sort(-rng.dirichlet(np.full(rng.integers(4, 9), 4.0))):
        radius = min(max(np.sqrt(share * total / np.pi), 1.6), room.max())
        if radius < 1:
            break
        centre = rng.choice(np.argwhere(room >= radius)) + rng.uniform(-0.5, 0.5, 2)
        region = np.minimum(_region(shape, centre, radius, outlines, rng), room)
        owner[region > 0] = owner.max() + 1
        regions = np.maximum(regions, region)
        room = np.minimum(room, ndimage.distance_transform_edt(regions <= 0) - 2)
    corners = (owner[:-1, :-1], owner[:-1, 1:], owner[1:, :-1], owner[1:, 1:])
    return Layout(forms(tissue), forms(regions), np.max(corners, axis=0), np.zeros((side // TILE,) * 2))


def _region(
    shape: tuple[int, int],
    centre: Floats,
    radius: float,
    outlines: Sequence[Floats],
    rng: np.random.Generator,
) -> Floats:
    """Signed distance, in tiles, to one of the outlines, turned, mirrored and scaled."""
    angle, flip = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outline = radius * outlines[rng.integers(len(outlines))] * (1, flip) @ turn
    # Regions are much smaller than slides; what is far away need not be measured.
    reach = np.hypot(*outline.T).max() + 3
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach) + 1, shape).astype(int)
    field = np.full(shape, -reach)
    y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
    points = np.stack([y.ravel() - centre[0], x.ravel() - centre[1]], axis=1)
    field[low[0] : high[0], low[1] : high[1]] = signed_distance(points, outline).reshape(y.shape)
    return field


def _mapped(pixels: Pixels, values: Floats) -> Pixels:
    """Replace each of the 256 values of each colour by another, (256, 3)."""
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.stack([table[:, colour][pixels[..., colour]] for colour in range(3)], axis=-1)


def make_bank(material: Material, rng: np.random.Generator, *, visible: bool = True) -> TileBank:
    """Cut, stain and encode the tiles of a few slides.

    Parameters
    ----------
    material
        Images of one split.
    rng
        Source of all randomness.
    visible
        Whether regions are darker than their surroundings in the thumbnail. Otherwise the mean colour of
        each block of 32 x 32 pixels is that of stroma.
    """
    stain = np.exp(rng.normal(0, _STAIN, 3) + rng.normal(0, _STAIN))
    views = {kind: _views(material.images[kind], rng) for kind in _CLASSES}
    tiles: dict[Kind, list[NDArray[np.float32]]] = {kind: _cut(views[kind]) for kind in _CLASSES}
    stroma = tiles[Kind.STROMA]
    covers = [_cover(crossing.cover(TILE, np.zeros((TILE, TILE)))) for crossing in crossings().values()]
    glass = np.full((TILE, TILE, 3), _GLASS, np.float32)
    encoded = [_encode(glass, np.ones(3))]
    for number in range(len(stroma) + len(covers)):
        inside = number < len(stroma)
        cover = np.ones((TILE, TILE, 1), np.float32) if inside else covers[number - len(stroma)]
        below = stroma[number if inside else rng.integers(len(stroma))]
        for kind in _CLASSES:
            outer = glass if kind == Kind.STROMA else below
            inner = below
            if kind != Kind.STROMA:
                inner = tiles[kind][number if inside else rng.integers(len(stroma))]
                if not visible:
                    inner = _with_means_of(inner, below)
            encoded.append(_encode(outer + cover * (inner - outer), stain))
    quarters = [shrink(jpeg8_decode(tile)) for tile in encoded]  # of what a reader will see
    averages = np.rint(quarters).astype(np.uint8), np.stack([shrink(tile) for tile in quarters])
    return TileBank(TILE, len(stroma), 1, float(visible), tuple(encoded), averages)


def _views(images: Sequence[tuple[str, Pixels]], rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Parts of images, turned and mirrored, three tiles a side."""
    views = []
    for number in range(_VIEWS):
        image = np.rot90(images[number % len(images)][1], rng.integers(4))
        image = image[:, ::-1] if rng.integers(2) else image
        top, left = rng.integers(0, np.subtract(image.shape[:2], 3 * TILE) + 1)
        views.append(image[top : top + 3 * TILE, left : left + 3 * TILE].astype(np.float32))
    return views


def _cut(views: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Nine tiles of each view, row by row."""
    return [
        view[TILE * y : TILE * (y + 1), TILE * x : TILE * (x + 1)]
        for view in views
        for y in range(3)
        for x in range(3)
    ]


def _cover(sharp: Floats) -> NDArray[np.float32]:
    soft: NDArray[np.float32] = ndimage.gaussian_filter(sharp, _FEATHER, mode="nearest")[..., None]
    return soft.astype(np.float32)


def _with_means_of(tile: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give a tile the other's mean colour in each block; what is within a block stays."""
    zoom = (_BLOCK, _BLOCK, 1)
    for step in range(4):
        difference = _blocks(other) - _blocks(tile)
        # First smoothly, then, for what is left or is cut off by black and white, block by block.
        order = 1 if step < 2 else 0
        change = ndimage.zoom(difference, zoom, order=order, mode="nearest", grid_mode=True)
        tile = np.clip(tile + change, 0, 255)
    return tile


def _blocks(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    n = TILE // _BLOCK
    means: NDArray[np.float32] = tile.reshape(n, _BLOCK, n, _BLOCK, 3).mean((1, 3))
    return means


def _encode(tile: NDArray[np.float32], stain: Floats) -> bytes:
    pixels = np.clip(np.rint(tile), 0, 255).astype(np.uint8)
    values = np.maximum(np.arange(256, dtype=np.float64), 1) / 255
    return encode(_mapped(pixels, 255 * values[:, None] ** stain), _QUALITY)


def references(
    layout: Layout, lesions: Sequence[int], bank: TileBank, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Number of the bank's tile at each place; the tiles of a cell are neighbours in their image, too."""
    rows, columns = layout.tissue.shape
    per_cell = CELL // TILE
    cells = (rows // per_cell, columns // per_cell)
    view = rng.integers(bank.variants // 9, size=cells)
    top, left = rng.integers(2, size=(2, *cells))
    y, x = np.indices((rows, columns))
    cell = (y // per_cell, x // per_cell)
    variant = 9 * view[cell] + 3 * (top[cell] + y % per_cell) + left[cell] + x % per_cell
    kind = np.where(np.isin(layout.owner, lesions), Kind.LESION, Kind.LOOKALIKE)
    stroma = bank.number(0, Kind.STROMA, layout.tissue, variant)
    region = bank.number(0, kind, layout.regions, variant)
    numbers: NDArray[np.int64] = np.where(layout.regions == OUTSIDE, stroma, region)
    numbers[layout.tissue == OUTSIDE] = 0
    return numbers


@dataclass(frozen=True)
class Truth:
    """What is where on a slide, as shares of each cell's area, (rows, columns) of cells.

    Parameters
    ----------
    tissue, region, lesion
        Each within the one before.
    """

    tissue: Floats
    region: Floats
    lesion: Floats

    @classmethod
    def of(cls, layout: Layout, lesions: Sequence[int]) -> Truth:
        """Average what is known of a file's tiles."""
        region = areas(layout.regions)
        lesion = np.where(np.isin(layout.owner, lesions), region, 0.0)
        return cls(*(_cell_means(part) for part in (areas(layout.tissue), region, lesion)))

    @property
    def lesion_fraction(self) -> float:
        """Part of the tissue that is lesion."""
        return float(self.lesion.sum() / self.tissue.sum())


def _cell_means(field: Floats) -> Floats:
    n = CELL // TILE
    means: Floats = field.reshape(field.shape[0] // n, n, field.shape[1] // n, n).mean((1, 3))
    return means


def write_slides(
    folder: Path,
    material: Material,
    *,
    pairs: int,
    lesion_fraction: float,
    rng: np.random.Generator,
    visible: bool = True,
    pairs_per_bank: int = 3,
    side: int = SIDE,
) -> None:
    """Write pairs of slides, one positive and one negative, unless they are there.

    The folder then holds ``slide_000.tif`` ..., ``truth/slide_000.npz`` and, written last, ``labels.csv``.

    Parameters
    ----------
    folder
        Made if it is missing.
    material
        Images of one split.
    pairs
        How many.
    lesion_fraction
        Of the tissue of positive slides; one of :data:`REGIONS`.
    rng
        Source of all randomness.
    visible
        See :func:`make_bank`.
    pairs_per_bank
        Pairs with one stain and the same cuts from the images.
    side
        Of a slide, level-0 pixels, a multiple of a cell's.
    """
    if (folder / "labels.csv").exists():
        return
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    material = material.alike()
    for pair in range(pairs):
        if pair % pairs_per_bank == 0:
            bank = make_bank(material, rng, visible=visible)
        for label in rng.permutation(["negative", "positive"]):
            name = f"slide_{len(rows):03d}"
            share = rng.uniform(*REGIONS[lesion_fraction])
            layout = draw_slide(material.outlines, rng, region_fraction=share, side=side)
            lesions = choose_lesions(layout, lesion_fraction) if label == "positive" else []
            write_tiff(folder / f"{name}.tif", bank, references(layout, lesions, bank, rng), side, side, MPP)
            truth = Truth.of(layout, lesions)
            np.savez_compressed(folder / "truth" / f"{name}.npz", **vars(truth))
            rows.append({"slide_id": name, "case_id": name, "path": f"{name}.tif", "label": str(label)})
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read_truth(folder: Path, slide_id: str) -> Truth:
    """Read what :func:`write_slides` wrote of one slide."""
    with np.load(folder / "truth" / f"{slide_id}.npz") as file:
        return Truth(**file)
