"""Cross-validate: train and score once for each fold, and evaluate all scores together.

A fold runs the stages ``train`` and ``score`` in its own folders. A stopped run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from pipelines._carry_out import complete
from pipelines._features import check_source
from pipelines._fitting import check_network
from pipelines._folds import (
    Folds,
    count_splits,
    digest_of_folds,
    plan_folds,
    sizes,
    split_file,
    with_labels,
)
from pipelines._records import Row, settled
from pipelines._runs import (
    Execution,
    Identity,
    Summary,
    check_together,
    open_run,
    rooted,
    together,
)
from pipelines.evaluate import RESAMPLES
from pipelines.prepare import Prepared, PrepareTask
from pipelines.score import score
from pipelines.train import train
from wsi_ats.errors import SettingsError
from wsi_ats.files import atomic, read_json
from wsi_ats.results.records import RUN_FILE
from wsi_ats.settings import Fixes, Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.labels import check_labels
from wsi_ats.tasks.trainable import check_trainable

if TYPE_CHECKING:  # scikit-learn and matplotlib take seconds to import
    from pipelines._evaluation import Evaluation, LabelledScores


def crossval(
    refs: Sequence[SlideRef],
    out: str | Path,
    *,
    folds: int | None = None,
    splits: str | Path | None = None,
    by: str = "slide",
    resamples: int = RESAMPLES,
    settings: Settings | None = None,
    execution: Execution | None = None,
) -> Evaluation | Summary:
    """Train on all folds but one and score that one, in turn.

    Parameters
    ----------
    refs
        Slides with labels; their splits are replaced. Slides without a label are left out.
    out
        Folder for ``fold_k/model`` and ``fold_k/scores``, as ``train`` and ``score`` write them;
        ``splits/splits_k.csv``, in CLAM's format; the slides of all folds, as ``prepare`` writes them, and
        ``features/`` of all folds, if the backbone is frozen; ``metrics.csv`` of each fold, pooled and mean;
        and the files of :func:`pipelines.evaluate.evaluate`, for all folds together.
    folds
        Number of folds, 5 by default; cases are divided with stratification, and a share
        ``training.validation`` of the training cases is for validation.
    splits
        Folder of CLAM's ``splits_k.csv`` to use instead. Slides that a file does not name are not used in
        its fold.
    by
        Compute metrics of ``"slide"`` or of ``"case"``.
    resamples
        Number of bootstrap samples of cases.
    settings
        The settings; ``training.seed`` decides folds, weights and draws.
    execution
        Where and how slides are prepared and scored.

    Returns
    -------
    Evaluation
        Metrics of all folds together. A class that is absent from a fold leaves metrics of that fold
        undefined.

    Raises
    ------
    ManifestError
        Before any work: when a case would be in two splits, a slide is tested in two folds, a fold would
        train without a class, or the files of splits cannot be used. After the work: when no slide has a
        score.
    SettingsError, ModelError, ArtifactError
        As in :func:`pipelines.train.train` and :func:`pipelines.score.score`; also when ``torchrun`` has
        started this process.

    Examples
    --------
    >>> from wsi_ats.tables.manifest import read_manifest
    >>> crossval(read_manifest("slides", labels="labels.csv"), "cv", folds=5).exit_code  # doctest: +SKIP
    0
    """
    from pipelines import _evaluation as shared

    shared.check_by(by)
    _check_alone()
    execution, out, settings = execution or Execution(), rooted(out), settings or Settings()
    check_trainable(settings)
    check_source(refs, settings)
    labelled = with_labels(refs, execution)
    target = check_labels(refs, settings.model.task)
    plan = plan_folds(labelled, settings, folds, splits, execution, known=[ref.id for ref in refs])
    seed = settings.training.seed
    identity = Identity.of("crossval", settings, Fixes.EVERYTHING, seed=seed, splits=digest_of_folds(plan))
    task = PrepareTask.of(out, settings)
    folders = ("splits", "features", *task.results, *(path.name for path in out.glob("fold_*")))
    results = [*shared.RESULTS, *folders]
    with open_run(out, identity, execution, results=results) as run:
        finished = sum(_is_finished(out / name / "scores") for name in plan if not execution.overwrite)
        if execution.dry_run or finished < len(plan):
            check_network(settings, target)
        if execution.dry_run:
            return Summary.of_dry_run("crossval", out, finished, len(plan) - finished, notes=sizes(plan))
        run.begin()
        used = {ref.id: ref for fold in plan.values() for ref in fold}
        prepared = Prepared(out, complete(task, settled(list(used.values()), settings), execution))
        if prepared.results.stopped or (prepared.results.failed and execution.strict):
            return Summary("crossval", out, {"folds": 0}, prepared.results.failed)
        task.write_tables(prepared.results.rows)
        parts, failed = _run_folds(plan, prepared, by, settings, execution)
        if failed and execution.strict:
            return Summary("crossval", out, {"folds": len(parts)}, failed)
        pooled = shared.pool(list(parts.values()))
        shared.check_some(pooled)
        rows = _metrics(parts, pooled, resamples, settings.training.seed)
        shared.write_metrics(out, rows, "fold")
        shared.write_details(out, pooled, title=f"{out.name}: {len(plan)} folds, {len(pooled.names)} {by}s")
        counts = {"folds": len(plan), "evaluated": len(pooled.names), "left_out": len(pooled.left_out)}
        run.finish(counts)
    notes = {"by": by, "task": settings.model.task} | shared.reasons(pooled)
    shown = [
        row | {"metric": f"{row['metric']} ({row['fold']})"}
        for row in rows
        if row["fold"] in {"pooled", "mean"} or row["metric"] == rows[0]["metric"]
    ]
    return shared.Evaluation("crossval", out, counts, failed, notes=notes, metrics=shown)


def _check_alone() -> None:
    """Refuse to run in several processes, because each would do all the work."""
    check_together()
    if together():
        raise SettingsError(
            "crossval trains one model after the other in one process; start it without torchrun, which can "
            "train a single fold: `train --splits splits_0.csv`"
        )


def _run_folds(
    plan: Folds, prepared: Prepared, by: str, settings: Settings, execution: Execution
) -> tuple[dict[str, LabelledScores], dict[str, str]]:
    """Train and score fold after fold; return the scores of each fold, and why slides failed.

    If strict, end after the first fold in which a slide failed, without its scores.
    """
    from pipelines._evaluation import join
    from wsi_ats.results.scores import read_scores

    parts: dict[str, LabelledScores] = {}
    failed: dict[str, str] = {}
    out = prepared.out
    for number, (name, fold) in enumerate(plan.items(), 1):
        sizes = ", ".join(f"{n} {split}" for split, n in count_splits(fold).items())
        execution.reporter.message(f"{name} ({number} of {len(plan)}): {sizes}")
        done = _run_fold(fold, name, prepared, settings, execution)
        failed |= {slide: why for summary in done for slide, why in summary.failed.items()}
        if failed and execution.strict:
            break
        tested = {ref.id: ref for ref in fold if ref.split == "test"}
        scores = read_scores(out / name / "scores")
        known = [tested[slide.id] for slide in scores.slides]
        parts[name] = join(scores, known, by=by, split=None, fold=name)
    return parts, failed


def _run_fold(
    fold: Sequence[SlideRef], name: str, prepared: Prepared, settings: Settings, execution: Execution
) -> list[Summary]:
    from wsi_ats.tables.splits import write_splits

    folder = prepared.out / name
    # Results of an earlier run were deleted already if the user asked for that.
    execution = replace(execution, overwrite=False)
    with atomic(prepared.out / "splits" / split_file(name)) as path:
        write_splits(path, fold)
    training = [ref for ref in fold if ref.split != "test"]
    model = folder / "model"
    # Shared, because most slides are in several folds.
    features = prepared.out / "features"
    fitted = train(
        *(training, model),
        settings=settings,
        execution=execution,
        feature_cache=features,
        prepared=prepared,
    )
    done = [fitted]
    if not (done[0].failed and execution.strict):
        tested = [ref for ref in fold if ref.split == "test"]
        seed = settings.training.seed
        done.append(score(tested, model, folder / "scores", seed=seed, execution=execution))
    return done


def _metrics(
    parts: Mapping[str, LabelledScores], pooled: LabelledScores, resamples: int, seed: int
) -> list[Row]:
    """Return the rows of ``metrics.csv``: each fold, all slides together, and the mean over folds."""
    from pipelines._evaluation import metrics_of

    rows: list[Row] = []
    for name, joined in parts.items():
        rows += [{"fold": name} | row for row in metrics_of(joined, resamples=resamples, seed=seed)]
    whole = [{"fold": "pooled"} | row for row in metrics_of(pooled, resamples=resamples, seed=seed)]
    if pooled.target.definition.relative:
        note = "not defined: each fold's model has its own scale of scores; see the mean"
        blank: Row = {"value": None, "low": None, "high": None, "note": note}
        whole = [{**row, **blank} for row in whole]
    return [*rows, *whole, *_means(rows, whole)]


def _means(rows: Sequence[Row], whole: Sequence[Row]) -> list[Row]:
    means = []
    for row in whole:
        each = [r["value"] for r in rows if r["metric"] == row["metric"] and r["value"] is not None]
        spread = f", standard deviation {stdev(each):.4f}" if len(each) > 1 else ""
        means.append(
            {
                "fold": "mean",
                "metric": row["metric"],
                "value": fmean(each) if each else None,
                "low": None,
                "high": None,
                "n": row["n"],
                "cases": row["cases"],
                "note": f"of {len(each)} folds{spread}" if each else "not defined in any fold",
            }
        )
    return means


def _is_finished(folder: Path) -> bool:
    return (folder / RUN_FILE).exists() and read_json(folder / RUN_FILE).get("end") is not None
