"""Embed slides: features of their tissue tiles, as files that training and other tools read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pipelines._batches import tile_batches
from pipelines._records import Row, SlideTask, own_cores, settled
from pipelines._runs import Execution, Identity, Summary, rooted
from pipelines._stage import run_stage
from wsi_ats.errors import ModelError, SettingsError
from wsi_ats.files import digest_of
from wsi_ats.overview.annotated import within_regions
from wsi_ats.overview.overview import explain_exclusion, read_overview
from wsi_ats.results.records import Status
from wsi_ats.settings import Fixes, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef

if TYPE_CHECKING:  # torch takes seconds to import, and a worker needs it, not a command line
    from wsi_ats.models.embedding import NamedEncoder
    from wsi_ats.models.encoding import TileBatches

Dtype = Literal["float32", "float16"]

# Settings that decide features, besides those of thumbnails and tissue.
_OF_ENCODERS = {
    "model": ("backbone", "pretrained", "checkpoint"),
    "scoring": ("precision",),
}

# Settings of thumbnails that need two levels of attention.
_OF_REGIONS = ("levels", "cells_per_region", "pixels_per_region")

_COLUMNS = {
    **dict.fromkeys(("slide_id", "case_id", "path", "status"), "string"),
    **dict.fromkeys(("tiles", "tissue_tiles", "features"), "int64"),
    **dict.fromkeys(("encoder", "encoder_digest", "precision", "dtype"), "string"),
    "bytes": "int64",
    "seconds": "double",
    "error": "string",
}


def embed(
    refs: Sequence[SlideRef],
    out: str | Path,
    *,
    settings: Settings | None = None,
    tiles: int | None = None,
    seed: int | None = None,
    dtype: str = "float32",
    execution: Execution | None = None,
) -> Summary:
    """Encode the tissue tiles of slides, and write their features.

    Memory does not grow with the number of tiles: features are written as they are encoded.

    Parameters
    ----------
    refs
        The slides; of those that name regions, only tiles in them are encoded.
    out
        Folder for ``<slide_id>.h5``, which :class:`wsi_ats.bags.writing.BagWriter` describes,
        ``embedded.parquet`` and ``.csv``, ``run.json``. In the table, ``tiles`` is the number of rows in the
        file, ``tissue_tiles`` that of all tissue tiles, ``features`` the number of features of a tile, and
        ``bytes`` the size of the file. A slide without tissue has a file without rows.
    settings
        Sections ``tile`` and ``thumbnail``, the backbone with its weights, and ``scoring.precision``.
    tiles
        Number of tiles of each slide, drawn uniformly; all tissue tiles by default.
    seed
        Random seed of the draw, which decides, together with a slide's id, which tiles are drawn; 0 by
        default.
    dtype
        ``float32``, or ``float16`` for files of half the size, rounded to three digits.
    execution
        Where and how; on all cores or GPUs of this machine by default.

    Returns
    -------
    Summary

    Raises
    ------
    SettingsError
        For a setting that has no effect, weights that nobody has trained, or an impossible option.
    ModelError
        When the encoder is unknown, or its weights cannot be loaded.
    ArtifactError
        When the output folder cannot be used.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> settings = Settings().with_values(["model.backbone=uni"])
    >>> embed(read_manifest("slides"), "features", settings=settings).counts  # doctest: +SKIP
    {'done': 120, 'failed': 1, 'no_tissue': 0}
    """
    execution, out, settings = execution or Execution(), rooted(out), settings or Settings()
    if settings.model.checkpoint:  # a worker on another machine has another current folder
        file = str(rooted(settings.model.checkpoint))
        settings = replace(settings, model=replace(settings.model, checkpoint=file))
    used = _used(settings)
    _check(settings, used, tiles, seed, dtype)
    from wsi_ats.models.embedding import load_encoder

    # Here, so that a wrong name or file is an error before any work, and weights are downloaded once.
    digest = load_encoder(settings).digest
    drawn = {} if tiles is None else {"tiles": tiles}
    seed = seed or 0
    # Weights count, and not where they are.
    decides = {**used, "model": {"backbone": settings.model.backbone}, "features": {"dtype": dtype, **drawn}}
    digests = {"encoder": digest, "settings": digest_of(repr(decides))}
    identity = Identity("embed", decides, digests, seed if drawn else None)
    task = EmbedTask(out, identity.digest, settings, digest, tiles, seed, cast(Dtype, dtype))
    return run_stage(task, refs, identity, execution, refer=partial(settled, settings=settings))


def _used(settings: Settings) -> dict[str, dict[str, object]]:
    """Return nested tables of the settings that decide features."""
    found = settings.tables(Fixes.THUMBNAILS)
    found["thumbnail"] = {
        name: value for name, value in found["thumbnail"].items() if name not in _OF_REGIONS
    }
    everything = settings.tables()
    own = {
        section: {name: everything[section][name] for name in names}
        for section, names in _OF_ENCODERS.items()
    }
    return {"tile": found["tile"], "thumbnail": found["thumbnail"], **own}


def _check(
    settings: Settings,
    used: Mapping[str, Mapping[str, object]],
    tiles: int | None,
    seed: int | None,
    dtype: str,
) -> None:
    """Refuse settings without effect, an untrained encoder, and options that cannot be."""
    usual, model = Settings().tables(), settings.model
    for section, own in settings.tables().items():
        for name, value in own.items():
            if name not in used.get(section, {}) and value != usual[section].get(name):
                raise SettingsError(
                    f"{section}.{name} is {value!r}, but it has no effect on features; leave it out"
                )
    if model.takes_features:
        raise SettingsError(
            f"model.backbone is {model.backbone}, which encodes no pixels; name an encoder with --encoder"
        )
    if not (model.pretrained or model.checkpoint):
        raise SettingsError(
            "model.pretrained is false, but nothing learns from features of random weights; give a weights "
            "file with model.checkpoint, or leave model.pretrained out"
        )
    if dtype not in ("float32", "float16"):
        raise SettingsError(f"--dtype is {dtype!r}, expected float32 or float16")
    if tiles is not None and tiles < 1:
        raise SettingsError(
            f"--tiles is {tiles}, but at least one tile is needed; leave it out for all tiles"
        )
    if seed is not None and tiles is None:
        raise SettingsError("--seed has no effect without --tiles; give both or none")


@dataclass(frozen=True)
class EmbedTask(SlideTask):
    """Embedding of a slide.

    Parameters
    ----------
    settings, tiles, seed, dtype
        See :func:`embed`.
    digest
        Fingerprint of the encoder.
    """

    settings: Settings
    digest: str
    tiles: int | None
    seed: int
    dtype: Dtype

    stage: ClassVar[str] = "embed"
    tables: ClassVar[Sequence[str]] = ("embedded",)
    on_gpu: ClassVar[bool] = True
    # They share one copy of the encoder, and a single slide keeps them busy. Many more would wait for each
    # other's Python code.
    cores: ClassVar[int] = 4

    @property
    def columns(self) -> Mapping[str, str]:
        """See :func:`embed`."""
        return _COLUMNS

    @property
    def known(self) -> Row:
        """The encoder."""
        return {
            "encoder": self.settings.model.backbone,
            "encoder_digest": self.digest,
            "dtype": self.dtype,
        }

    def files(self, slide_id: str) -> tuple[Path, ...]:
        """Return the file of features."""
        return (self.out / f"{slide_id}.h5",)

    @property
    def results(self) -> list[str]:
        """The tables, and the files of the slides that have a record."""
        tables = [f"{table}.{ending}" for table in self.tables for ending in ("parquet", "csv")]
        # The records last: they tell which files are ours.
        return [*(path.name for name in self.recorded() for path in self.files(name)), *tables, "records"]

    def start(self) -> None:
        """Load the encoder."""
        self._loaded()

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Encode the tiles of the slide; several threads may work on one slide each."""
        from wsi_ats.models.embedding import choose_tiles, embed_cells

        begin = time.perf_counter()
        (path,) = self.files(ref.id)
        encoder, batches = self._loaded()
        with open_slide(ref, threads=own_cores()) as slide:
            overview = within_regions(read_overview(slide, self.settings), ref, slide, self.settings)
            tissue, excluded = overview.tissue, explain_exclusion(overview, self.settings)
            warning = overview.outside.warning if overview.outside else ""
            del overview  # its thumbnail is large
            cells = choose_tiles(tissue, self.tiles, seed=self.seed, slide_id=ref.id)
            embed_cells(
                *(path, slide, tissue, cells),
                slide_id=ref.id,
                encoder=encoder,
                batches=batches,
                dtype=self.dtype,
            )
        row = {
            "slide_id": ref.id,
            "case_id": ref.case,
            "path": ref.path,
            "status": Status.DONE.value if len(cells) else Status.NO_TISSUE.value,
            "tiles": len(cells),
            "tissue_tiles": len(tissue.cells),
            "features": encoder.network.width,
            **self.known,
            "precision": encoder.precision,
            "bytes": path.stat().st_size,
            "seconds": time.perf_counter() - begin,
            "warning": warning,  # reported when the run ends; not in the table
            "error": excluded,
        }
        return row, [path]

    def _loaded(self) -> tuple[NamedEncoder, TileBatches]:
        with _LOADING:
            return _once(self.settings, self.digest)


# Threads of a worker that start together wait for the one that loads the encoder.
_LOADING = Lock()


@lru_cache(maxsize=1)  # a worker embeds many slides with one encoder
def _once(settings: Settings, digest: str) -> tuple[NamedEncoder, TileBatches]:
    import torch

    from wsi_ats.models.embedding import load_encoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(settings, device)
    if encoder.digest != digest:
        raise ModelError(
            f"the weights of {encoder.name} have digest {encoder.digest} on this worker, but {digest} where "
            "the command runs; use the same file or version on all machines, and run the command again"
        )
    return encoder, tile_batches(encoder.network.raw, device, settings.scoring.precision)
