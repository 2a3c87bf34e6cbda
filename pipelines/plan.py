"""Plan how many tiles to read: cross-validated accuracy of few tiles and of all, from features and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipelines import prepare
from pipelines._carry_out import complete
from pipelines._features import check_source, report_matched
from pipelines._fitting import Fitting, check_network
from pipelines._folds import Folds, digest_of_folds, plan_folds, sizes, with_labels
from pipelines._records import Row, digest_of_slides, settled
from pipelines._runs import Execution, Identity, Summary, count, open_run, rooted
from pipelines._verdict import verdict
from pipelines._ways import ALL, FoldScores, Way, score_fold
from wsi_ats.errors import ManifestError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.results.records import Status
from wsi_ats.settings import Fixes, Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import write_csv
from wsi_ats.tables.labels import check_labels
from wsi_ats.tasks.base import Floats
from wsi_ats.tasks.registry import task_named
from wsi_ats.tasks.targets import Target
from wsi_ats.tasks.trainable import check_trainable

BUDGETS = (16, 64, 256)

# One draw scatters by several hundredths of AUC; the mean of four by half of that.
_DRAWS = 4

_COLUMNS = (
    "method",
    "tiles",
    "metric",
    "value",
    "low",
    "high",
    "loss",
    "loss_low",
    "loss_high",
    "n",
    "cases",
)


@dataclass(frozen=True)
class Planned(Summary):
    """Result of a plan.

    Parameters
    ----------
    rows
        Rows of ``plan.csv``.
    """

    rows: Sequence[Mapping[str, Any]] = ()

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the lines to print."""
        if not self.rows:
            return super().sections()
        lines = [(f"{row['method']}, {row['tiles'] or 'all'} tiles", _words(row)) for row in self.rows]
        metric = f"{self.rows[0]['metric']} (95 % interval), and loss against {ALL} on all tiles"
        return [*super().sections(), (metric, lines)]


def plan(
    refs: Sequence[SlideRef],
    out: str | Path,
    *,
    budgets: Sequence[int] = BUDGETS,
    folds: int | None = None,
    splits: str | Path | None = None,
    resamples: int = 1000,
    settings: Settings | None = None,
    execution: Execution | None = None,
) -> Planned | Summary:
    """Cross-validate attention sampling, uniform sampling and attention MIL on features.

    In each fold, a model with attention sampling is trained and scores the fold's test slides by several
    numbers of tiles, drawn by its attention and uniformly. Attention MIL (Ilse et al. 2018) is trained on
    random tiles and scores the same slides by all tiles. Each score from few tiles is a mean over independent
    draws.

    Parameters
    ----------
    refs
        Slides with labels that name their features; see :func:`pipelines._features.with_features`. Slides
        without a label are left out.
    out
        Folder for ``plan.csv`` (the main metric of each method and number of tiles, its interval, and the
        loss against all tiles), ``plan.png``, the scores of each fold in ``folds/``, and the prepared slides.
        A stopped run continues where it stopped.
    budgets
        Numbers of tiles to draw from each slide.
    folds, splits, resamples
        As in :func:`pipelines.crossval.crossval`.
    settings
        Settings of attention sampling; ``training.seed`` decides folds, weights and draws.
    execution
        Where and how slides are prepared.

    Returns
    -------
    Planned

    Raises
    ------
    ManifestError
        As in :func:`pipelines.crossval.crossval`.
    SettingsError
        When the settings are not of attention sampling, or slides name no features.
    ArtifactError
        When the output folder cannot be used.

    Examples
    --------
    >>> from pipelines._features import starting_settings, with_features
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> slides = with_features(read_manifest("slides", labels="labels.csv"), "features")  # doctest: +SKIP
    >>> plan(slides, "plan", settings=starting_settings(slides)).notes  # doctest: +SKIP
    {'verdict': 'yes: 64 of 11800 tiles ...'}
    """
    execution, out, settings = execution or Execution(), rooted(out), settings or Settings()
    budgets = sorted(set(budgets))
    _check(refs, settings, budgets)
    labelled = settled(with_labels(refs, execution), settings)
    target = check_labels(refs, settings.model.task)
    parts = plan_folds(labelled, settings, folds, splits, execution, known=[ref.id for ref in refs])
    numbers = ",".join(map(str, budgets))
    seed = settings.training.seed
    identity = Identity.of(
        "plan",
        settings,
        Fixes.EVERYTHING,
        seed=seed,
        splits=digest_of_folds(parts),
        slides=digest_of_slides(labelled),
        tiles=numbers,
    )
    task = prepare.PrepareTask.of(out, settings)
    with open_run(out, identity, execution, results=("plan.csv", "plan.png", "folds", *task.results)) as run:
        if execution.dry_run:
            check_network(settings, target)
            left = sum(not _file(out, name).exists() for name in parts)
            return Summary.of_dry_run("plan", out, len(parts) - left, left, notes=sizes(parts))
        run.begin()
        prepared = complete(task, labelled, execution)
        if prepared.stopped:
            return Summary("plan", out, count(prepared.rows), prepared.failed, prepared.reused)
        task.write_tables(prepared.rows)
        report_matched(prepared.rows, execution.reporter)
        usable = {row["slide_id"] for row in prepared.rows if row["status"] == Status.DONE}
        found = _run_folds(parts, usable, target, budgets, out, settings, execution)
        rows = _compare(found, labelled, target, resamples=resamples, seed=seed)
        tiles = [row["tissue_tiles"] for row in prepared.rows if row["status"] == Status.DONE]
        words = verdict(rows, task_named(target.task), tiles=round(median(tiles)))
        with atomic(out / "plan.csv") as path:
            write_csv(path, {name: [row[name] for row in rows] for name in _COLUMNS})
        _draw(out / "plan.png", rows, tiles=round(median(tiles)))
        counts = {"folds": len(parts), "evaluated": rows[0]["n"]}
        run.finish(counts, verdict=words)
    failed = {
        **prepared.failed,
        **{slide: why for each in found.values() for slide, why in each.failed.items()},
    }
    return Planned("plan", out, counts, failed, notes={"verdict": words}, rows=rows)


def _check(refs: Sequence[SlideRef], settings: Settings, budgets: Sequence[int]) -> None:
    """Refuse what cannot be planned, before any work."""
    from wsi_ats.results import plots  # noqa: F401  (matplotlib may be missing)

    check_source(refs, settings)
    if not settings.model.takes_features:
        raise SettingsError(
            "a plan compares with all tiles of every slide, which takes features; give their folder with "
            "--features, or make it with `wsi-ats embed`"
        )
    if settings.model.cases != "separate":
        raise SettingsError(
            f"model.cases is {settings.model.cases}, but a plan scores single slides; leave it out"
        )
    sampling, file = settings.sampling, settings.scoring.encoder_checkpoint
    if sampling.draws != 1 or sampling.anytime or file:
        raise SettingsError(
            "sampling.draws, sampling.tolerance, sampling.max_tiles and scoring.encoder_checkpoint have no "
            "effect on a plan; leave them out"
        )
    if not settings.model.attends:
        raise SettingsError(f"model.kind is {settings.model.kind}, but a plan is for sampling; leave it out")
    check_trainable(settings)
    if not budgets or budgets[0] < 1:
        raise SettingsError(f"--tiles must name numbers of at least 1, not {list(budgets)}")


def _file(out: Path, fold: str) -> Path:
    return out / "folds" / f"{fold}.json"


def _run_folds(
    parts: Folds,
    usable: set[str],
    target: Target,
    budgets: Sequence[int],
    out: Path,
    settings: Settings,
    execution: Execution,
) -> dict[str, FoldScores]:
    """Train and score fold after fold; folds that an earlier run finished are read."""
    found: dict[str, FoldScores] = {}
    for number, (name, fold) in enumerate(parts.items(), 1):
        if not _file(out, name).exists():
            execution.reporter.message(f"{name} ({number} of {len(parts)}): {sizes({name: fold})[name]}")
            folder = out / "folds" / name
            fitting = Fitting(folder, settings, execution, "threads", None, False, prepared=out)
            kept = [ref for ref in fold if ref.id in usable]
            score_fold(fitting, kept, target, budgets=budgets, draws=_DRAWS).save(_file(out, name))
        found[name] = FoldScores.load(_file(out, name))
    return found


def _compare(
    found: Mapping[str, FoldScores],
    refs: Sequence[SlideRef],
    target: Target,
    *,
    resamples: int,
    seed: int,
) -> list[Row]:
    """Return the rows of ``plan.csv``, all slides of all folds together."""
    from wsi_ats.tasks.comparison import compare

    known = {ref.id: ref for ref in refs}
    found = {name: each for name, each in found.items() if each.ids}
    tested = [(known[slide], fold) for fold, each in found.items() for slide in each.ids]
    if not tested:
        raise ManifestError("no test slide could be scored; the reasons are in folds/*.json")
    scores: dict[Way, Floats] = {
        way: np.concatenate([each.scores[way] for each in found.values()], axis=1)
        for way in next(iter(found.values())).scores
    }
    cases = [ref.case for ref, _ in tested]
    compared = compare(
        target.definition,
        np.array([target.encode(str(ref.label)) for ref, _ in tested]),
        cases,
        [fold for _, fold in tested],
        {repr(way): each for way, each in scores.items()},
        reference=repr(Way(ALL)),
        resamples=resamples,
        seed=seed,
    )
    about = {"metric": target.definition.main_metric, "n": len(tested), "cases": len(set(cases))}
    return [
        {"method": way.method, "tiles": way.tiles, **about, **vars(compared[repr(way)])} for way in scores
    ]


def _words(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "not defined"
    text = f"{row['value']:.3f} ({_number(row['low'])} to {_number(row['high'])})"
    if row["method"] == ALL:
        return text
    return f"{text}; {row['loss']:+.3f} ({_number(row['loss_low'])} to {_number(row['loss_high'])})"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _draw(path: Path, rows: Sequence[Row], *, tiles: int) -> None:
    from wsi_ats.results.plots import figure_of_budgets

    figure_of_budgets(path, rows, all_tiles=tiles)
