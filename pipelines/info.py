"""Inspect slides before any work: format, resolution, tissue, and the cost of scoring them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wsi_ats.errors import WsiAtsError
from wsi_ats.overview.overview import count_tiles, read_overview, regions_of
from wsi_ats.overview.records import TissueMask
from wsi_ats.overview.tiles import level_for
from wsi_ats.settings import Settings, TileSettings
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.opening import open_chosen
from wsi_ats.slides.storage import file_size
from wsi_ats.slides.wrappers import CountingSlide

# A resolution that differs by less is worth suggesting: cells look much the same, and networks work as well.
_NEAR = 0.25


@dataclass(frozen=True)
class SlideInfo:
    """Facts about a slide.

    Parameters
    ----------
    slide_id, path, vendor
        The slide and its format.
    reader, reader_reason
        The library that reads it, and the reason for this choice.
    colour_profile
        Whether the file has a colour profile; see ``tile.colour``.
    mpp, mpp_source
        Micrometres per level-0 pixel, and the source of this value.
    levels
        ``width``, ``height``, ``downsample`` and ``tile`` (the file's own, where known) of each level.
    level
        The level that tiles are read from.
    native
        Whether tiles are that level's own pixels, so that nothing is resampled.
    aligned
        Whether tiles consist of whole tiles of the file, so that no byte is wasted; ``None`` if unknown.
    advice
        Settings that would make reading cheaper; empty if there are none.
    rows, cols, tissue_tiles
        Shape of the grid, and number of its cells with tissue that are not left out.
    tissue_method, tissue_reason, warning
        The method that found tissue, the reason for this choice, and doubts about its result.
    pen, blur, excluded_tiles
        Shares of the tissue cells with these artefacts, ``None`` if unknown, and number of cells left out.
    tiles, bytes_read, bytes_file, share
        Estimated cost of scoring: tiles, bytes including the thumbnail, size of the file, and the bytes as a
        share of it; bytes are ``None`` if unknown.
    """

    slide_id: str
    path: str
    vendor: str
    reader: str
    reader_reason: str
    colour_profile: bool
    mpp: float
    mpp_source: str
    levels: list[dict[str, Any]]
    level: int
    native: bool
    aligned: bool | None
    advice: str
    rows: int
    cols: int
    tissue_tiles: int
    tissue_method: str
    tissue_reason: str
    warning: str
    pen: float | None
    blur: float | None
    excluded_tiles: int
    tiles: int
    bytes_read: int | None
    bytes_file: int | None
    share: float | None

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the slide's table."""
        sizes = [f"{each['width']} x {each['height']}" for each in self.levels]
        file_tile = self.levels[self.level]["tile"]
        alignment = {None: "alignment unknown", True: "aligned with the file's", False: "not aligned"}
        cost = "" if self.bytes_read is None else f", {_megabytes(self.bytes_read)}"
        if self.share is not None:
            cost += f" ({_share(self.share)})"
        lines = [
            ("format", self.vendor),
            ("reader", f"{self.reader}: {self.reader_reason}"),
            ("levels", "; ".join(sizes)),
            ("mpp", f"{self.mpp:g} ({self.mpp_source})"),
            ("file's tiles", "unknown" if file_tile is None else f"{file_tile[0]} x {file_tile[1]}"),
            (
                "tiles",
                f"level {self.level}, {'native' if self.native else 'resampled'}, {alignment[self.aligned]}",
            ),
            ("grid", f"{self.rows} x {self.cols} cells, {self.tissue_tiles} with tissue"),
            ("tissue", f"{self.tissue_method}: {self.tissue_reason}"),
            ("quality", self._quality()),
            ("scoring reads", f"{self.tiles} tiles{cost}"),
        ]
        remarks = [("warning", self.warning), ("advice", self.advice)]
        return lines + [(name, text) for name, text in remarks if text]

    def _quality(self) -> str:
        found = {"pen": self.pen, "blur": self.blur}
        shares = [
            f"{name} unknown" if share is None else f"{name} in {share:.1%} of tissue"
            for name, share in found.items()
        ]
        return "; ".join([*shares, f"{self.excluded_tiles} tiles left out"])


@dataclass(frozen=True)
class Infos:
    """Facts about slides, and errors of those that cannot be inspected, by slide."""

    slides: Sequence[SlideInfo]
    failed: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 if all slides could be inspected, else 1."""
        return 1 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"slides": [asdict(slide) for slide in self.slides], "failed": self.failed}

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return a table for each slide."""
        known = [(slide.slide_id, slide.lines()) for slide in self.slides]
        return known + [(name, [("failed", error)]) for name, error in self.failed.items()]


def info(refs: Iterable[SlideRef], *, settings: Settings | None = None) -> Infos:
    """Inspect slides; those that cannot be inspected are listed as failed.

    Parameters
    ----------
    refs
        The slides.
    settings
        Sections ``tile``, ``thumbnail`` and ``sampling`` are used; the defaults unless given.

    Examples
    --------
    >>> info([SlideRef.from_path("case7.svs")]).slides[0].tissue_tiles  # doctest: +SKIP
    1832
    """
    slides: list[SlideInfo] = []
    failed: dict[str, str] = {}
    for ref in refs:
        try:
            slides.append(_inspect(ref, settings or Settings()))
        except WsiAtsError as error:
            failed[ref.id] = str(error)
    return Infos(slides, failed)


def _inspect(ref: SlideRef, settings: Settings) -> SlideInfo:
    slide, choice = open_chosen(replace(ref, colour=settings.tile.colour, channel=settings.tile.channel))
    with slide:
        counting = CountingSlide(slide)
        overview = read_overview(counting, settings, measure_quality=True)
        tissue = overview.tissue
        grid, levels, mpp = tissue.grid, slide.levels, slide.mpp
        cells = regions_of(tissue, settings).cells if settings.thumbnail.levels == 2 else grid
        level = level_for(levels, cells.cell / cells.tile_size)
        source = cells.cell / levels[level].downsample
        native = round(source) == cells.tile_size
        file_tile = slide.tile_shape(level)
        aligned = None if file_tile is None else native and _fits(settings.tile, file_tile)
        sampling = settings.sampling
        tissue_tiles = count_tiles(tissue, settings)
        tiles = min(sampling.max_tiles or sampling.tiles * sampling.least_draws, tissue_tiles)
        read = _bytes(slide, tissue, level, tiles / max(1, tissue_tiles), counting.stored_bytes_read)
        if settings.thumbnail.levels == 2:
            closer = level_for(levels, cells.pitch / settings.thumbnail.pixels_per_cell)
            regions = min(sampling.regions * sampling.least_draws, len(tissue.cells))
            read = _bytes(slide, tissue, closer, regions / max(1, len(tissue.cells)), read)
        size = None if choice.reader == "zarr" else file_size(ref.path)  # unknown for a folder of many files
        return SlideInfo(
            slide_id=ref.id,
            path=ref.path,
            vendor=slide.vendor,
            reader=choice.reader,
            reader_reason=choice.reason,
            colour_profile=slide.icc is not None,
            mpp=mpp.value,
            mpp_source=mpp.source,
            levels=[asdict(each) | {"tile": slide.tile_shape(i)} for i, each in enumerate(levels)],
            level=level,
            native=native,
            aligned=aligned,
            advice=_advice(settings.tile, mpp.value * levels[level].downsample, native, file_tile),
            rows=cells.shape[0],
            cols=cells.shape[1],
            tissue_tiles=tissue_tiles,
            tissue_method=overview.background.method,
            tissue_reason=overview.background.reason,
            warning=overview.background.doubt,
            **overview.artefact_shares,
            excluded_tiles=count_tiles(overview.all_tissue, settings) - tissue_tiles,
            tiles=tiles,
            bytes_read=read,
            bytes_file=size,
            share=None if read is None or size is None else read / size,
        )


def _fits(tile: TileSettings, file_tile: tuple[int, int]) -> bool:
    """Return whether adjacent tiles each consist of whole tiles of the file."""
    return tile.stride == 1 and all(tile.size % side == 0 for side in file_tile)


def _advice(tile: TileSettings, level_mpp: float, native: bool, file_tile: tuple[int, int] | None) -> str:
    if not native:
        if not math.isclose(level_mpp, tile.mpp, rel_tol=0, abs_tol=_NEAR * tile.mpp):
            return ""  # the savings do not justify such a change
        return (
            f"tiles of {tile.mpp:g} um per pixel are resampled from a level of {level_mpp:g}; "
            f"--set tile.mpp={level_mpp:.4g} reads fewer bytes"
        )
    if file_tile is None or _fits(tile, file_tile):
        return ""
    if tile.stride != 1:
        return (
            "overlapping tiles read some of the file's tiles more than once; --set tile.stride=1.0 does not"
        )
    wide, high = file_tile
    side = int(np.lcm(wide, high))
    if side > 2 * tile.size:
        return f"the file's tiles of {wide} x {high} pixels are read whole for each tile of {tile.size}"
    return (
        f"tiles of {tile.size} pixels cut the file's tiles of {wide} x {high}; --set tile.size={side} reads "
        "only needed bytes"
    )


def _bytes(slide: Slide, tissue: TissueMask, level: int, share: float, before: int | None) -> int | None:
    """Estimate the bytes read so far plus those of a share of the tissue at a level."""
    if not share:
        return before
    downsample = slide.levels[level].downsample
    corners = np.floor(tissue.grid.boxes(tissue.cells)[:, :2] / downsample + 0.5).astype(np.int64)
    side = round(tissue.grid.cell / downsample)
    stored = slide.stored_bytes(level, corners, side, side)
    if stored is None or before is None:
        return None
    return before + round(stored * share)


def _share(share: float) -> str:
    # In small files, thumbnail and tiles may share bytes.
    twice = "; thumbnail and tiles are counted separately" if share > 1 else ""
    return f"{share:.1%} of the file{twice}"


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:.2f} MB"
