"""Banks of encoded tiles, from which synthetic slides are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from imagecodecs import jpeg8_decode, jpeg8_encode
from numpy.typing import NDArray

from wsi_ats.errors import SettingsError
from wsi_ats.testing import textures
from wsi_ats.testing.outlines import INSIDE, crossings
from wsi_ats.testing.textures import Field, Palette

LEVEL_FACTOR = 4  # from one level of the pyramid to the next
JPEG_QUALITY = 92
CYTOPLASM = 0.12  # haematoxylin between the nuclei of a region
LOBES = 4  # of a lesion's nuclei: twice the spatial frequency of a whole nucleus


@dataclass(frozen=True)
class TileBank:
    """Encoded JPEG tiles, created by `make_tile_bank`.

    Attributes
    ----------
    tile_size
        Side of a tile in pixels.
    variants
        Number of different tiles of each kind without an outline.
    palettes
        Number of stain variants, each with its own copy of all tiles.
    visibility
        Darkness of the regions against stroma in a thumbnail, from 0 (invisible) to 1 (plainly visible).
    encoded
        JPEG of every tile; number 0 is glass.
    averages
        The decoded tiles averaged over 4 x 4 and 16 x 16 pixels, (tiles, size / 4, size / 4, 3) uint8
        and (tiles, size / 16, size / 16, 3) float32.
    """

    tile_size: int
    variants: int
    palettes: int
    visibility: float
    encoded: tuple[bytes, ...]
    averages: tuple[NDArray[np.uint8], NDArray[np.float32]]

    def number(self, palette: Any, kind: Any, form: Any, variant: Any) -> Any:
        """Return the number of the tile of a kind and a form (of tissue on glass, or a region in stroma).

        Arguments may be arrays. Tiles with an outline have one variant only.
        """
        texture = np.where(form == INSIDE, variant, self.variants + form - 2)
        return 1 + (3 * texture + kind - 1) * self.palettes + palette

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """Decode one tile, shape (tile_size, tile_size, 3)."""
        pixels: NDArray[np.uint8] = jpeg8_decode(self.encoded[number])
        return pixels


def make_tile_bank(
    tile_size: int, seed: int, *, variants: int = 32, palettes: int = 3, visibility: float = 1.0
) -> TileBank:
    """Draw and encode the tiles from which slides are made.

    Look-alike and lesion tiles come in pairs of equal number: same fibres, same places of nuclei, same
    means over each of 8 x 8 blocks and same standard deviation. Nuclei are round in the look-alike and
    fall into lobes in the lesion, with the same area.

    Parameters
    ----------
    tile_size
        Side in pixels, a multiple of 16 from 64 to 512.
    seed
        Seed of all randomness.
    variants, palettes, visibility
        See `TileBank`.

    Raises
    ------
    SettingsError
        If an argument is out of range.

    Examples
    --------
    >>> from wsi_ats.testing.layout import Kind
    >>> bank = make_tile_bank(64, seed=0, variants=2, palettes=1)
    >>> bank.pixels(bank.number(palette=0, kind=Kind.LESION, form=1, variant=0)).shape
    (64, 64, 3)
    """
    if tile_size % 16 or not 64 <= tile_size <= 512:
        raise SettingsError(f"tile_size is {tile_size}; expected a multiple of 16 from 64 to 512")
    if variants < 1 or palettes < 1:
        raise SettingsError(f"expected at least 1 variant and palette, not {variants} and {palettes}")
    if not 0 <= visibility <= 1:
        raise SettingsError(f"visibility is {visibility}; expected 0 to 1")
    rng = np.random.default_rng(seed)
    batches = [Palette().vary(rng, stroma=5.0, fibres=5.0, nuclei=7.0) for _ in range(palettes)]
    nothing = np.zeros((tile_size, tile_size))
    encoded = [encode(textures.colourise(nothing, nothing, nothing, Palette(), rng))]
    for tiles in _draw_tiles(tile_size, variants, visibility, rng):
        # The pair shares its stain, which differs from tile to tile by more than JPEG changes it.
        stains = [batch.vary(rng, fibres=2.0, nuclei=5.0) for batch in batches]
        encoded += [encode(textures.colourise(*tile, stain, rng)) for tile in tiles for stain in stains]
    quarters = [shrink(jpeg8_decode(tile)) for tile in encoded]  # from the pixels that a reader returns
    averages = np.rint(quarters).astype(np.uint8), np.stack([shrink(tile) for tile in quarters])
    return TileBank(tile_size, variants, palettes, visibility, tuple(encoded), averages)


def _draw_tiles(
    size: int, variants: int, visibility: float, rng: np.random.Generator
) -> Iterator[list[tuple[Field, Field, Field]]]:
    """Draw tissue, eosin and haematoxylin of the stroma, look-alike and lesion tile of each texture."""
    fibres = textures.Fibres.prepare(size, rng)
    sparse = textures.NucleusField.prepare(size, 0.04, 5.0, rng)
    dense = textures.NucleusField.prepare(size, 0.08 + 0.18 * visibility, 3.2, rng)
    away_from_border = 1 - textures.border_weight(size, size / 3)
    shades = np.linspace(-0.35, 0.35, variants)
    eosin = [0.55 * fibres.draw(rng) + shade * away_from_border for shade in shades]
    stroma = [sparse.render(sparse.draw(rng), 5.0) for _ in shades]
    places = [dense.draw(rng) for _ in shades]
    disc = [dense.render(place, 1.0) for place in places]
    lobed = [dense.render(place, 1.0, lobes=LOBES) for place in places]

    for v in range(variants):  # a faint region stays slightly dark, so its stroma is darkened
        plain = textures.block_means(stroma[v])
        excess = textures.block_means((disc[v] + lobed[v]) / 2) - plain
        stroma[v] += (1 - visibility) / 2 * textures.smooth_field(excess, size)

    whole = np.ones((size, size))
    ragged = fibres.border * away_from_border * size / 40
    covers = [crossing.cover(size, ragged) for crossing in crossings().values()]
    middle = np.arange(variants)[variants // 4 : variants - variants // 4]  # avoids steps at outlines
    choices = [*range(variants), *rng.choice(middle, size=len(covers))]
    for v, cover in zip(choices, [whole] * variants + covers, strict=True):
        whole_nuclei, lobed_nuclei = (
            stroma[v] * (1 - cover) + cover * np.maximum(nuclei[v], CYTOPLASM * visibility)
            for nuclei in (disc, lobed)
        )
        plain = textures.block_means(stroma[v])
        dark = textures.block_means((whole_nuclei + lobed_nuclei) / 2)
        lookalike, lesion = textures.alike((whole_nuclei, lobed_nuclei), plain + visibility * (dark - plain))
        coarse = textures.smooth_field(textures.block_means(eosin[v]), size)
        fewer_fibres = eosin[v] + 0.6 * cover * (coarse - eosin[v])
        yield [(cover, eosin[v], stroma[v]), (whole, fewer_fibres, lookalike), (whole, fewer_fibres, lesion)]


def shrink(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Average over squares of `LEVEL_FACTOR` pixels; shape (height, width, 3), both divisible."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height // LEVEL_FACTOR, LEVEL_FACTOR, -1).mean(axis=1, dtype=np.float32)
    squares = rows.reshape(len(rows), width // LEVEL_FACTOR, LEVEL_FACTOR, channels)
    averages: NDArray[np.float32] = squares.mean(axis=2)
    return averages


def encode(pixels: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Encode as JPEG."""
    # No subsampling: chroma would leak across the borders of the blocks that must be alike.
    return bytes(jpeg8_encode(pixels, level=quality, subsampling="444"))
