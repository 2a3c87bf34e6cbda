"""Evaluate scores: metrics with confidence intervals, curves and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines._runs import Execution, Identity, Summary, open_run, rooted
from wsi_ats.annotations.folder import AnnotationFolder
from wsi_ats.errors import ManifestError, SettingsError
from wsi_ats.files import digest_of
from wsi_ats.results.scores import read_scores
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import with_tables

if TYPE_CHECKING:  # scikit-learn and matplotlib take seconds to import
    from pipelines._evaluation import Evaluation

RESAMPLES = 1000


def evaluate(
    scores: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    by: str = "slide",
    label_column: str | None = None,
    splits: str | Path | None = None,
    split: str | None = None,
    annotations: str | Path | None = None,
    annotation_class: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    execution: Execution | None = None,
) -> Evaluation | Summary:
    """Compare scores with labels.

    Slides that failed or have no tissue or label are left out, counted, and named in ``left_out.csv``. A
    metric that is undefined because a class is absent is empty and has a note; the exit code is still 0.

    Parameters
    ----------
    scores
        Folder that :func:`pipelines.score.score` wrote.
    labels
        Table of labels, by slide or by case; see :func:`wsi_ats.tables.manifest.read_manifest`.
    out
        Folder for ``metrics.csv``, the curves as tables, ``evaluated.csv``, ``left_out.csv``,
        ``evaluation.png`` and ``run.json``.
    by
        ``"slide"`` or ``"case"``; the scores of a case are those of ``cases.csv``, or else the mean of its
        slides.
    label_column
        The column of the label, if it is not ``label``.
    splits
        CLAM's ``splits_k.csv``; only its test slides are evaluated, unless ``split`` names another.
    split
        Evaluate only slides of this split, which ``splits`` or the table of labels must give.
    annotations
        Folder of annotations, with which drawn tiles and attention are compared; adds ``localisation.csv``,
        ``froc.csv``, metrics and a plot. See :mod:`wsi_ats.results.localisation`.
    annotation_class
        Classes of these annotations; all by default.
    resamples, seed
        Number of bootstrap samples of cases, and their random seed.
    execution
        Scheduler and workers are not used.

    Returns
    -------
    Evaluation

    Raises
    ------
    ManifestError
        When labels do not match the scores or the model's classes, a case is in two splits, nothing is left
        to evaluate, or annotations are of other slides or classes.
    SettingsError
        When ``by`` is neither slide nor case, or classes of annotations have no effect.
    ArtifactError
        When the scores are missing or incomplete, or the output folder cannot be used.

    Examples
    --------
    >>> evaluate("scores", "labels.csv", "evaluation").metrics[0]["value"]  # doctest: +SKIP
    0.93
    """
    from pipelines import _evaluation as shared
    from pipelines._localisation import NOTHING, digest_of_annotations, localise, read_annotated

    shared.check_by(by)
    execution, scores, out = execution or Execution(), rooted(scores), rooted(out)
    found = read_scores(scores)
    task = found.target.task
    found.target.definition.check_installed()
    split = split or ("test" if splits is not None else None)
    refs = with_tables(
        found.refs, labels=labels, label_column=label_column, task=task, splits=splits, split=split
    )
    _check_splits(refs, split, source=str(splits or labels))
    joined = shared.join(found, refs, by=by, split=split)
    shared.check_some(joined)
    folder, classes = _folder(annotations, annotation_class), list(annotation_class)
    options: dict[str, object] = {"by": by, "split": split or "all", "resamples": resamples}
    options |= {"annotation_class": classes} if folder else {}
    digests = {"settings": digest_of(str(options)), "scores": found.digest, "labels": _digest(refs)}
    pairs = zip(refs, found.slides, strict=True)
    used = {ref.id: (slide, ref.case) for ref, slide in pairs if ref.id not in joined.left_out}
    annotated = None
    if folder:  # read before an earlier evaluation is deleted
        annotated = read_annotated(used, folder, classes, execution.reporter)
        digests["annotations"] = digest_of_annotations(folder, used)
    identity = Identity("evaluate", {"evaluate": options}, digests, seed)
    counts = {"evaluated": len(joined.names), "left_out": len(joined.left_out)}
    notes = {"by": by, "task": task} | shared.reasons(joined)
    with open_run(out, identity, execution, results=shared.RESULTS) as run:
        if execution.dry_run:
            return Summary.of_dry_run("evaluate", out, 0, len(joined.names), notes=notes)
        run.begin()
        rows = shared.metrics_of(joined, resamples=resamples, seed=seed)
        localised = localise(annotated, resamples=resamples, seed=seed) if annotated else NOTHING
        rows += localised.metrics
        title = f"{scores.name}: {len(joined.names)} {by}s"
        shared.write_metrics(out, rows)
        shared.write_details(out, joined, title=title, more=localised.details)
        run.finish(counts)
    notes |= localised.notes
    return shared.Evaluation("evaluate", out, counts, localised.failed, notes=notes, metrics=rows)


def _folder(annotations: str | Path | None, classes: Sequence[str]) -> AnnotationFolder | None:
    if annotations is not None:
        return AnnotationFolder.find(rooted(annotations))
    if classes:
        raise SettingsError(
            f"--annotation-class is {classes[0]!r}, which has no effect without --annotations; give both or "
            "none"
        )
    return None


def _check_splits(refs: Sequence[SlideRef], split: str | None, *, source: str) -> None:
    from wsi_ats.tables.splits import check_leakage

    known = [ref for ref in refs if ref.split is not None]
    check_leakage(known, source)
    if split is not None and not any(ref.split == split for ref in known):
        raise ManifestError(
            f"{source}: none of the {len(refs)} slides that were scored is in split {split!r}; there are "
            f"{', '.join(sorted({str(ref.split) for ref in known})) or 'no splits'}"
        )


def _digest(refs: Sequence[SlideRef]) -> str:
    return digest_of(*(str((ref.id, ref.case, ref.label, ref.split)) for ref in refs))
