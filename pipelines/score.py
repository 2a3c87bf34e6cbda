"""Score slides: predictions of a trained model, and the tiles they are based on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines._batches import tile_batches
from pipelines._features import check_features
from pipelines._records import Row, SlideTask, own_cores, settled
from pipelines._runs import Execution, Identity, Summary, rooted
from pipelines._stage import run_stage
from pipelines._watch import Arrivals
from wsi_ats.errors import ModelError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.models.card import read_card
from wsi_ats.overview.annotated import check_regions
from wsi_ats.results.records import Status, Stop
from wsi_ats.results.selections import VERSION as SELECTIONS
from wsi_ats.results.selections import save_attention, save_features, write_selection
from wsi_ats.results.shown import SHEETS, ShownSlide
from wsi_ats.settings import Fixes, ScoringSettings, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import Slide, SlideRef
from wsi_ats.slides.fingerprint import contents_digest
from wsi_ats.tasks.cases import case_scores
from wsi_ats.tasks.targets import Target

if TYPE_CHECKING:  # torch takes seconds to import, and a worker needs it, not a command line
    from wsi_ats.models.encoding import TileBatches
    from wsi_ats.models.scoring import LoadedModel, Scored


def score(
    refs: Sequence[SlideRef] | Arrivals,
    model: str | Path,
    out: str | Path,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    keep_features: bool = False,
    pictures: bool = False,
    execution: Execution | None = None,
) -> Summary:
    """Score slides, and write scores, attention and selected tiles of each.

    Parameters
    ----------
    refs
        The slides; or arrivals, which are scored as they are completed until ``execution.stop`` returns true.
        Slides that name features are scored by these; of slides that name regions, only tiles in them are
        drawn.
    model
        Folder of a trained model.
    out
        Folder for ``predictions.parquet`` and ``.csv``, ``selections/``, ``attention/``, ``run.json``, and,
        if the model pools the slides of a case, ``cases.parquet`` and ``.csv``.
    settings
        Settings of the model by default. Draws, number of tiles, resolution and tissue may differ from
        them; settings that the network depends on may not.
    seed
        Random seed, which decides, together with a slide's id, which tiles are drawn.
    keep_features
        Whether to write the features of the drawn tiles to ``features/``, for export to programs that use
        features.
    pictures
        Whether to draw each slide, ``pictures/<slide_id>.png``, and a contact sheet of the tiles that were
        drawn, ``pictures/tiles/<slide_id>.png``. Slides that an earlier run scored without are scored again.
    execution
        Where and how; on all cores of this machine by default.

    Returns
    -------
    Summary

    Raises
    ------
    SettingsError
        When settings do not suit the model, no scheduler answers, for a dry run of arrivals, or when
        matplotlib, which pictures need, is not installed.
    ManifestError
        When a source of arrivals does not exist.
    ModelError, ArtifactError
        When there is no usable model, or the output folder cannot be used.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> summary = score(read_manifest("slides"), "run", "scores")  # doctest: +SKIP
    >>> summary.exit_code  # doctest: +SKIP
    0
    """
    execution, model, out = execution or Execution(), rooted(model), rooted(out)
    card = read_card(model)
    settings = settings or card.settings
    settings.check_scoring(card.settings)
    known = [ref for each in refs.sources for ref in refs.find(each)] if isinstance(refs, Arrivals) else refs
    if keep_features and not settings.model.draws:
        raise SettingsError(
            "--keep-features keeps the features of drawn tiles, but a model of kind "
            f"{settings.model.kind} draws none; leave it out"
        )
    if pictures:
        _check_pictures()
    # Scores of an older version of selections, or without features, are not enough.
    kept = {"selections": str(SELECTIONS)} | ({"kept": "features"} if keep_features else {})
    fixed = Fixes.THUMBNAILS | Fixes.SCORING
    identity = Identity.of("score", settings, fixed, seed=seed, model=card.digest, **kept)
    if card.settings.model.cases != "separate" and all(ref.case == ref.id for ref in known):
        execution.reporter.message(
            "warning: the model pools the slides of a case, but each of these slides is its own case; "
            "give a table of slides with the column case_id to score cases"
        )
    if any(ref.regions for ref in known):
        check_regions(settings)
    by_features = bool(known) and all(ref.features for ref in known)
    _check_source(card.settings, settings.scoring.encoder_checkpoint, by_features=by_features)
    task = ScoreTask(
        *(out, identity.digest, model, card.digest, card.target, settings, seed),
        by_pixels=not by_features,
        keep_features=keep_features,
        pictures=pictures,
    )
    return run_stage(
        task,
        refs,
        identity,
        execution,
        refer=partial(settled, settings=settings),
        record={"target": asdict(card.target)},
    )


def _check_pictures() -> None:
    """Refuse pictures where matplotlib is missing."""
    from wsi_ats.results import pictures  # noqa: F401


def _check_source(trained: Settings, encoder_checkpoint: str, *, by_features: bool) -> None:
    """Refuse features that do not suit the model, and pixels that it cannot encode."""
    if encoder_checkpoint and (by_features or not trained.model.encoder):
        raise SettingsError(
            f"scoring.encoder_checkpoint is {encoder_checkpoint!r}, which is only for slides that are scored "
            "by pixels with a model that was trained on features of a named encoder; leave it out"
        )
    if by_features:
        check_features(trained)
    elif trained.model.takes_features and not trained.model.encoder:
        raise SettingsError(
            "the model was trained on features of an unknown encoder, so it cannot score pixels; give the "
            "folder of the slides' features with --features, or train with --set model.encoder=NAME"
        )


def _columns_of_cases(target: Target) -> dict[str, str]:
    return {
        **dict.fromkeys(("case_id", "status"), "string"),
        **dict.fromkeys(target.columns, "double"),
        "predicted": "string",
        "slides": "int64",
        "slides_left_out": "string",
    }


def _cases(rows: Sequence[Row], target: Target) -> list[Row]:
    """Pool the slides of each case; those without a score are left out and listed."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case_id"], []).append(row)
    pooled: list[Row] = []
    for case_id, own in sorted(cases.items()):
        scored = [row for row in own if row["status"] == Status.DONE]
        left_out = [str(row["slide_id"]) for row in own if row["status"] != Status.DONE]
        made: Row = {"case_id": case_id, "slides": len(scored), "slides_left_out": ";".join(left_out)}
        if scored:
            each = [[row[column] for column in target.columns] for row in scored]
            values = case_scores(target.definition, each, [row["log_weight"] for row in scored])
            scores = dict(zip(target.columns, values.tolist(), strict=True))
            made |= {"status": Status.DONE.value, **scores, "predicted": target.decide(scores)}
        else:
            failed = any(row["status"] == Status.FAILED for row in own)
            made["status"] = (Status.FAILED if failed else Status.NO_TISSUE).value
        pooled.append(made)
    return pooled


@dataclass(frozen=True)
class ScoreTask(SlideTask):
    """Scoring of a slide.

    Parameters
    ----------
    model, model_digest, target
        Folder of the model, its fingerprint, and the target that it predicts.
    settings, seed
        See :func:`score`.
    by_pixels
        Whether slides are scored by their pixels; otherwise each names its features.
    keep_features, pictures
        See :func:`score`.
    """

    model: Path
    model_digest: str
    target: Target
    settings: Settings
    seed: int
    by_pixels: bool = True
    keep_features: bool = False
    pictures: bool = False

    stage: ClassVar[str] = "score"
    tables: ClassVar[Sequence[str]] = ("predictions", "cases")
    on_gpu: ClassVar[bool] = True

    @property
    def at_once(self) -> int | None:
        """One for kind ``image``, whose slides may fill the memory, because free memory is checked first."""
        return None if self.settings.model.reads_tiles else 1

    @property
    def columns(self) -> Mapping[str, str]:
        """See :class:`wsi_ats.results.records.Prediction`."""
        return {
            **dict.fromkeys(("slide_id", "case_id", "path", "status"), "string"),
            **dict.fromkeys(self.target.columns, "double"),
            "predicted": "string",
            "logit_se": "double",
            "stopped_by": "string",
            **dict.fromkeys(("draws", "tiles_read", "tiles_total", "tiles_empty", "bytes_read"), "int64"),
            "seconds": "double",
            "model_digest": "string",
            "seed": "int64",
            "error": "string",
            # Needed to pool the slides of a case.
            **({} if self.settings.model.cases == "separate" else {"log_weight": "double"}),
        }

    @property
    def known(self) -> Row:
        """Model and seed, and counts of zero."""
        counts = dict.fromkeys(("draws", "tiles_read", "tiles_total", "tiles_empty"), 0)
        return {**counts, "model_digest": self.model_digest, "seed": self.seed}

    def files(self, slide_id: str) -> tuple[Path, ...]:
        """Return the files of selected tiles, attention, features and pictures; some slides lack some."""
        return (
            self.out / "selections" / f"{slide_id}.parquet",
            self.out / "attention" / f"{slide_id}.npz",
            self.out / "features" / f"{slide_id}.h5",
            self.out / "pictures" / f"{slide_id}.png",
            self.out / "pictures" / SHEETS / f"{slide_id}.png",
        )

    def other_tables(self, rows: Sequence[Row]) -> Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]:
        """Return the table of cases, if the model pools the slides of a case."""
        if self.settings.model.cases == "separate":
            return {}
        return {"cases": (_cases(rows, self.target), _columns_of_cases(self.target))}

    def notes(self, rows: Sequence[Row]) -> Mapping[str, Any]:
        """Count slides above the tolerance, if there is one, and slides without a picture of their tiles."""
        notes: dict[str, Any] = {}
        done = [row for row in rows if row["status"] == Status.DONE]
        if self.settings.sampling.tolerance:
            notes["above_tolerance"] = sum(row["stopped_by"] != Stop.TOLERANCE for row in done)
        bare = sum(not self.files(row["slide_id"])[-1].exists() for row in done) if self.pictures else 0
        if bare:
            notes["without_contact_sheet"] = f"{bare}, because {self._reason}"
        return notes

    @property
    def _reason(self) -> str:
        """Reason why there are no pictures of tiles."""
        kind = self.settings.model.kind
        if not self.settings.model.reads_tiles:
            return f"a model of kind {kind} reads no tiles"
        again = "`wsi-ats export --to pictures` reads them again"
        if not self.settings.model.draws:
            return f"a model of kind {kind} does not keep all tiles in memory; {again}"
        return f"these were scored by features, without the pixels of tiles; {again} if the slides are there"

    def facts(self, ref: SlideRef) -> Row:
        """Return how the slide was opened, for programs that read it again."""
        return {"slide": asdict(ref) | {"digest": contents_digest(ref.path)}}

    def is_whole(self, ref: SlideRef) -> bool:
        """Return whether there is a picture, if there should be one."""
        return not self.pictures or self.files(ref.id)[-2].exists()

    def start(self) -> None:
        """Load the model."""
        if self.pictures:
            _check_pictures()
        self._loaded()

    def work(self, ref: SlideRef) -> tuple[Row, Sequence[Path]]:
        """Score the slide; several threads may score one each."""
        from torch import set_num_threads

        # Sums that are split among threads depend on the number of threads, which differs between workers.
        # The cores are used to encode several batches of tiles at the same time.
        set_num_threads(1)
        loaded, encoder = self._loaded()
        with open_slide(ref, threads=own_cores()) as slide:
            scored = loaded.score(
                slide,
                ref=ref,
                settings=self.settings,
                seed=self.seed,
                encoder=encoder,
                keep_tiles=self.keep_features or self.pictures,
            )
            read = slide.bytes_read
            prediction = scored.prediction if read is None else replace(scored.prediction, bytes_read=read)
            row = prediction.row(self.target.columns)
            shown = self._shown(row, slide, scored) if self.pictures else None
        selections, attention, features, *_ = self.files(ref.id)
        written = []
        if scored.selection is not None:
            written.append(selections)
            with atomic(selections) as path:
                write_selection(path, scored.selection)
        if scored.attention is not None:
            written.append(attention)
            save_attention(attention, scored.attention)
        if self.keep_features and scored.selection is not None and scored.tiles is not None:
            written.append(features)
            save_features(features, scored.selection, scored.tiles, model_digest=self.model_digest)
        if shown is not None:
            from wsi_ats.results.pictures import write_pictures_of

            written += write_pictures_of(self.out / "pictures", shown)
        # Reported when the run ends; the table has no such column.
        warning = {"warning": scored.warning} if scored.warning else {}
        return row | warning, written

    def _shown(self, row: Row, slide: Slide, scored: Scored) -> ShownSlide:
        """Return what pictures of the slide show; nothing is read for them."""
        assert scored.overview is not None
        shown = ShownSlide.of(row, self.target, slide, scored.overview, scored.attention, scored.selection)
        if scored.tiles is None or scored.tiles.pixels is None:
            return shown
        return shown.with_tiles(scored.tiles.cells, scored.tiles.pixels)

    def _loaded(self) -> tuple[LoadedModel, TileBatches]:
        with _LOADING:
            return _once(self.model, self.model_digest, self.settings.scoring, self.by_pixels)


# Threads of a worker that start together wait for the one that loads the model.
_LOADING = Lock()


@lru_cache(maxsize=1)  # a worker scores many slides with one model
def _once(
    folder: Path, digest: str, scoring: ScoringSettings, by_pixels: bool
) -> tuple[LoadedModel, TileBatches]:
    import torch

    from wsi_ats.models.checkpoints import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file = scoring.encoder_checkpoint
    loaded = load_model(folder, device, encoder=by_pixels, encoder_checkpoint=file)
    if loaded.digest != digest:
        raise ModelError(f"the model in {folder} changed while it was in use; score again")
    return loaded, tile_batches(loaded.model.embed, device, scoring.precision)
