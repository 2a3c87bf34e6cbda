"""Density fields and colours of synthetic H&E tiles.

A tile is drawn from three fields: tissue cover, eosin (fibres) and haematoxylin (nuclei). Its colour is
a *linear* mix of them, so tiles with equal block means of their fields look the same in any area-averaged
thumbnail. `alike` builds on this: it makes two haematoxylin fields that differ in the shape of their
nuclei equal in every block mean and in the standard deviation of the tile.

All fields are float64 arrays of shape (size, size), indexed [y, x], one entry per level-0 pixel.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float64]

CAMERA_NOISE = 2.0  # standard deviation in each channel, grey levels
OPTICAL_BLUR = 0.7  # pixels; JPEG then loses little, and the same from both shapes of nuclei
BLOCKS = 8  # blocks along one side of a tile: the finest thumbnail in which kinds must look alike


@dataclass(frozen=True)
class Palette:
    """Colours of one staining batch, RGB in 0..255.

    Examples
    --------
    >>> Palette().nuclei
    (92.0, 62.0, 132.0)
    """

    glass: tuple[float, float, float] = (243.0, 242.0, 244.0)
    stroma: tuple[float, float, float] = (216.0, 164.0, 194.0)  # leaves room for paler fibres below 255
    fibres: tuple[float, float, float] = (-14.0, -36.0, -20.0)  # added per unit of eosin
    nuclei: tuple[float, float, float] = (92.0, 62.0, 132.0)

    def vary(
        self, rng: np.random.Generator, *, stroma: float = 0.0, fibres: float = 0.0, nuclei: float = 0.0
    ) -> Palette:
        """Shift colours at random, with these standard deviations of each channel.

        Examples
        --------
        >>> Palette().vary(np.random.default_rng(0), nuclei=5.0).stroma
        (216.0, 164.0, 194.0)
        """

        def shifted(colour: tuple[float, float, float], deviation: float) -> tuple[float, float, float]:
            red, green, blue = colour + rng.normal(0, deviation, size=3)
            return float(red), float(green), float(blue)

        return Palette(
            self.glass,
            shifted(self.stroma, stroma),
            shifted(self.fibres, fibres),
            shifted(self.nuclei, nuclei),
        )


def colourise(
    tissue: Field, eosin: Field, haematoxylin: Field, palette: Palette, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Mix three fields into an RGB tile of shape (size, size, 3), with camera noise where tissue is.

    The noise also decides at random how values are rounded, by JPEG above all. Without it, rounding
    differs a little between flat and busy nuclei, enough for a classifier of thumbnails.
    """
    glass, stroma, fibres, nuclei = (
        np.asarray(colour, dtype=np.float32)
        for colour in (palette.glass, palette.stroma, palette.fibres, palette.nuclei)
    )
    cover, fibrous, nuclear = (field.astype(np.float32) for field in (tissue, eosin, haematoxylin))
    grain = CAMERA_NOISE * rng.standard_normal((*tissue.shape, 3), dtype=np.float32)
    pixels = np.empty(grain.shape, dtype=np.uint8)
    for channel in range(3):  # one at a time: numpy is slow where the last of the axes is short
        dyed = nuclei[channel] - stroma[channel]
        stained = stroma[channel] + fibrous * fibres[channel] + nuclear * dyed + grain[..., channel]
        mixed = glass[channel] + cover * (stained - glass[channel])
        pixels[..., channel] = np.clip(np.rint(mixed), 0, 255)
    return pixels


def noise(shape: tuple[int, int], amplitude: Field, rng: np.random.Generator) -> Field:
    """Draw periodic Gaussian noise of zero mean and unit variance with a spectrum (see `frequencies`)."""
    spectrum = np.fft.fft2(rng.standard_normal(shape)) * amplitude
    spectrum[0, 0] = 0.0
    field = np.fft.ifft2(spectrum).real
    normed: Field = field / field.std()
    return normed


def frequencies(shape: tuple[int, int]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the frequencies along y, shape (height, 1), and x, shape (1, width), in cycles per pixel."""
    y, x = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    return y, x


def border_weight(size: int, width: float) -> Field:
    """Return weights that are 1 on the border of the tile and fall to 0 at `width` pixels inside."""
    ramp = np.minimum(np.arange(size) + 0.5, np.arange(size)[::-1] + 0.5)
    depth = np.minimum(ramp[:, None], ramp[None, :])
    weight: Field = np.clip(1 - depth / width, 0, 1) ** 0.5
    return weight


@dataclass(frozen=True)
class Fibres:
    """Wavy collagen: noise stretched along one direction, seamless between any two draws.

    All draws share one periodic field near the border of the tile, so the right border of each
    continues in the left border of every other.
    """

    border: Field
    spectrum: Field

    @classmethod
    def prepare(cls, size: int, rng: np.random.Generator) -> Fibres:
        """Fix direction and border for tiles of `size` pixels."""
        y, x = frequencies((size, size))
        angle = rng.uniform(0.2, 1.2)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        spectrum = np.exp(-((along * 45) ** 2)) * np.exp(-((across * 9) ** 2)) + 0.02 * np.exp(
            -((y**2 + x**2) * 100)
        )
        return cls(noise((size, size), spectrum, rng), spectrum)

    def draw(self, rng: np.random.Generator) -> Field:
        """Draw one eosin field with values in -1..1."""
        size = len(self.border)
        shared = border_weight(size, min(size / 6, 24.0))
        own = noise(self.border.shape, self.spectrum, rng)
        straight = np.tanh(shared * self.border + np.sqrt(1 - shared**2) * own)
        y, x = np.mgrid[:size, :size].astype(float)
        waves = max(1, round(size / 64))
        crimp = 4.0 * np.sin(2 * np.pi * waves * (x + y) / size)  # periodic, hence still seamless
        wavy: Field = ndimage.map_coordinates(straight, (y + crimp, x), order=1, mode="grid-wrap")
        return wavy


@dataclass(frozen=True)
class NucleusField:
    """Nuclei on tiles; those that cross the border are common to all draws, which avoids seams."""

    size: int
    radius: float  # of the circle of a nucleus' area, pixels
    cover: float  # part of the tile under nuclei
    elongation: float  # of the longest shape that will be rendered
    border: NDArray[np.float64]  # (n, 5), see `draw`
    chromatin: Field  # mottles the nuclei; periodic

    @classmethod
    def prepare(cls, size: int, cover: float, elongation: float, rng: np.random.Generator) -> NucleusField:
        """Fix the nuclei on the border of tiles of `size` pixels."""
        radius = min(size / 16, 7.0)  # 7 um across at 0.5 um per pixel; smaller only in small tiles
        y, x = frequencies((size, size))
        chromatin = noise((size, size), np.exp(-((y**2 + x**2) * 60)), rng)
        empty = cls(size, radius, cover, elongation, np.empty((0, 5)), chromatin)
        if cover < 0.1:  # the same few nuclei on every border would be conspicuous
            return empty
        return dataclasses.replace(empty, border=empty._scatter(rng, on_border=True))

    def draw(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw nuclei as an array (n, 5): x, y (pixels), angle (radians), darkness and size (0 to 1)."""
        return self._scatter(rng, on_border=False)

    def _scatter(self, rng: np.random.Generator, *, on_border: bool) -> NDArray[np.float64]:
        wanted = int(self.cover * self.size**2 / (np.pi * self.radius**2))
        scale = np.array([self.size, self.size, np.pi, 1.0, 1.0])
        candidates = rng.uniform(0, 1, size=(20 * wanted, 5)) * scale
        long = 1.2 * self.radius * np.sqrt(self.elongation)
        angles = candidates[:, 2]
        reach = np.abs(np.stack([np.cos(angles), np.sin(angles)], axis=1)) * long
        reach = np.maximum(reach, 1.2 * self.radius) + 1
        inset = np.minimum(candidates[:, :2], self.size - candidates[:, :2])
        crosses = np.any(inset < reach, axis=1)
        placed = np.full((wanted, 5), np.inf)
        count = len(self.border)
        placed[:count] = self.border
        limit = round(wanted * crosses.mean()) if on_border else wanted
        for candidate in candidates[crosses == on_border]:
            if count >= limit:
                break
            offset = np.abs(placed[:count, :2] - candidate[:2])
            offset = np.minimum(offset, self.size - offset)
            if np.all(np.hypot(offset[:, 0], offset[:, 1]) > 1.7 * self.radius):
                placed[count] = candidate
                count += 1
        return placed[:count]

    def render(self, nuclei: NDArray[np.float64], elongation: float, *, lobes: int = 1) -> Field:
        """Paint nuclei of equal area as ellipses, or each as several small discs.

        Parameters
        ----------
        nuclei
            Nuclei from `draw`.
        elongation
            Long over short axis, 1 for discs.
        lobes
            Number of parts of a nucleus, as in a granulocyte; its area stays the same.
        """
        field = np.zeros((self.size, self.size))
        reach = int(1.15 * self.radius * np.sqrt(elongation)) + 2
        span = np.arange(-reach, reach + 1)
        parts = nuclei if lobes == 1 else np.concatenate([self._lobes(each, lobes) for each in nuclei])
        for x, y, angle, darkness, size in parts:
            radius = self.radius * (0.85 + 0.3 * size) / np.sqrt(lobes)
            long, short = radius * np.sqrt(elongation), radius / np.sqrt(elongation)
            rows, columns = span + int(y), span + int(x)
            dy, dx = (rows - y + 0.5)[:, None], (columns - x + 0.5)[None, :]
            u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
            distance = np.sqrt((u / long) ** 2 + (v / short) ** 2)
            cover = np.clip((1 - distance) * short + 0.5, 0, 1)
            rim = 0.8 + 0.2 * np.clip(distance, 0, 1) ** 2  # chromatin gathers at the membrane
            window = np.ix_(rows % self.size, columns % self.size)
            field[window] = np.maximum(field[window], cover * rim * (0.8 + 0.3 * darkness))
        mottled = field * (0.9 + 0.08 * np.tanh(self.chromatin))
        blurred: Field = ndimage.gaussian_filter(mottled, OPTICAL_BLUR, mode="wrap")
        return blurred

    def _lobes(self, nucleus: NDArray[np.float64], lobes: int) -> NDArray[np.float64]:
        """Place the parts of a nucleus on a ring around its middle, shape (lobes, 5)."""
        parts = np.tile(nucleus, (lobes, 1))
        turn = nucleus[2] + 2 * np.pi * np.arange(lobes) / lobes
        parts[:, 0] += 0.8 * self.radius * np.cos(turn)
        parts[:, 1] += 0.8 * self.radius * np.sin(turn)
        return parts


def block_means(field: Field) -> Field:
    """Return the means over `BLOCKS` x `BLOCKS` equal blocks of a field of shape (size, size)."""
    size = len(field) // BLOCKS
    means: Field = field.reshape(BLOCKS, size, BLOCKS, size).mean(axis=(1, 3))
    return means


@functools.cache
def _smooth_steps(size: int) -> Field:
    """Return functions of a coordinate, a column for each block: mean 1 over that block, 0 over any other.

    Linear interpolation between block centres blurs the means; inverting that blur first makes them exact.
    """
    centres = (np.arange(BLOCKS) + 0.5) * size / BLOCKS
    columns = [np.interp(np.arange(size) + 0.5, centres, unit) for unit in np.eye(BLOCKS)]
    interpolation = np.stack(columns, axis=1)
    blur = interpolation.reshape(BLOCKS, -1, BLOCKS).mean(axis=1)
    steps: Field = interpolation @ np.linalg.inv(blur)
    return steps


def smooth_field(means: Field, size: int) -> Field:
    """Return a continuous field of shape (size, size) whose block means are exactly `means`."""
    steps = _smooth_steps(size)
    field: Field = np.einsum("yb,xb->yx", steps @ means, steps)
    return field


def alike(fields: tuple[Field, Field], means: Field) -> tuple[Field, Field]:
    """Give two fields the same block means and the same standard deviation.

    Parameters
    ----------
    fields
        The two fields.
    means
        Their block means afterwards, shape (BLOCKS, BLOCKS).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> one, other = alike((rng.random((64, 64)), rng.random((64, 64))), np.zeros((8, 8)))
    >>> bool(np.allclose(block_means(one), block_means(other)) and np.isclose(one.std(), other.std()))
    True
    """
    size = len(fields[0])
    base = smooth_field(means, size)
    details = [field - smooth_field(block_means(field), size) for field in fields]
    deviation = np.mean([(base + detail).std() for detail in details])

    def scaled(detail: Field) -> Field:
        # Its variance is a s^2 + 2 b s + var(base) where the detail is scaled by s.
        a, b = detail.var(), np.mean((base - base.mean()) * detail)
        c = base.var() - deviation**2
        field: Field = base + detail * ((-b + np.sqrt(b**2 - a * c)) / a)
        return field

    return scaled(details[0]), scaled(details[1])
