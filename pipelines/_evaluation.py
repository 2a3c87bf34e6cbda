"""Evaluation of scores: join them with labels, and write metrics, tables and plots.

:mod:`pipelines.evaluate` does this once, :mod:`pipelines.crossval` for each fold and for all folds together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines._records import Row
from pipelines._runs import Summary
from wsi_ats.errors import ManifestError, SettingsError
from wsi_ats.files import atomic
from wsi_ats.results.plots import figure_of_panels
from wsi_ats.results.records import Status
from wsi_ats.results.scores import Scores
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import write_csv
from wsi_ats.tables.folders import listed
from wsi_ats.tasks.base import Details, Floats
from wsi_ats.tasks.registry import TASKS
from wsi_ats.tasks.targets import Target

BY = ("slide", "case")

# All files that an evaluation may write, whatever the task.
RESULTS = (
    *("metrics.csv", "evaluated.csv", "left_out.csv", "evaluation.png", "localisation.csv", "froc.csv"),
    *sorted({name for task in TASKS.values() for name in task.tables}),
)

_NO_MORE = Details({}, [])

_METRICS = ("metric", "value", "low", "high", "n", "cases", "undefined_resamples", "note")


@dataclass(frozen=True)
class Evaluation(Summary):
    """Result of an evaluation.

    Parameters
    ----------
    metrics
        Rows of ``metrics.csv`` to print.
    """

    metrics: Sequence[Mapping[str, Any]] = ()

    def sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """Return the lines to print."""
        lines = [(str(row["metric"]), _words(row)) for row in self.metrics]
        return [*super().sections(), ("metrics", lines)] if lines else super().sections()


@dataclass(frozen=True)
class LabelledScores:
    """Scores joined with labels, a row for each slide or case.

    Parameters
    ----------
    target
        The target of the model.
    names, cases, labels
        Slide or case, its case, and its label as text.
    targets
        The labels as numbers, shape (N, T); see :mod:`wsi_ats.tasks.targets`.
    scores
        Shape (N, C), in the order of ``target.columns``.
    left_out
        The reasons why slides are left out, by slide.
    folds
        Name of the model that scored each row.
    """

    target: Target
    names: Sequence[str]
    cases: Sequence[str]
    labels: Sequence[str]
    targets: Floats
    scores: Floats
    left_out: Mapping[str, str]
    folds: Sequence[str]


def join(
    scores: Scores, refs: Sequence[SlideRef], *, by: str, split: str | None, fold: str = ""
) -> LabelledScores:
    """Join scores with labels.

    Parameters
    ----------
    scores
        The scores.
    refs
        The same slides with labels, cases and splits.
    by
        ``"slide"`` or ``"case"``; the scores of a case are those of ``cases.csv``, or else the mean of its
        slides.
    split
        Use the slides of this split only; ``None`` for all.
    fold
        Name of the model.

    Raises
    ------
    ManifestError
        When a label does not suit the task or the model, or slides of a case have different labels.
    """
    left_out: dict[str, str] = {}
    usable: list[tuple[SlideRef, Mapping[str, Any]]] = []
    for ref, slide in zip(refs, scores.slides, strict=True):
        row = slide.row
        if split is not None and ref.split != split:
            left_out[ref.id] = f"split is {ref.split or 'not known'}"
        elif ref.label is None:
            left_out[ref.id] = "no label"
        elif row["status"] != Status.DONE:
            left_out[ref.id] = f"{row['status']}: {row['error']}" if row.get("error") else row["status"]
        else:
            usable.append((ref, row))
    table = _by_case(usable, scores) if by == "case" else _by_slide(usable, scores.target)
    values = np.array([row for *_, row in table], dtype=np.float64).reshape(-1, len(scores.target.columns))
    return LabelledScores(
        scores.target,
        [name for name, *_ in table],
        [case for _, case, *_ in table],
        [label for _, _, label, _ in table],
        _encode(table, scores.target),
        values,
        left_out,
        [fold] * len(table),
    )


_Entry = tuple[str, str, str, list[float]]


def _encode(table: Sequence[_Entry], target: Target) -> Floats:
    rows = []
    for name, _, label, _ in table:
        try:
            rows.append(target.encode(label))
        except ManifestError as error:
            raise ManifestError(f"{name}: {error}") from error
    return np.array(rows, dtype=np.float64).reshape(-1, target.width)


def _by_slide(usable: Sequence[tuple[SlideRef, Mapping[str, Any]]], target: Target) -> list[_Entry]:
    return [
        (ref.id, ref.case, str(ref.label), [float(row[name]) for name in target.columns])
        for ref, row in usable
    ]


def _by_case(usable: Sequence[tuple[SlideRef, Mapping[str, Any]]], scores: Scores) -> list[_Entry]:
    of: dict[str, list[_Entry]] = defaultdict(list)
    for entry in _by_slide(usable, scores.target):
        of[entry[1]].append(entry)
    made = []
    for case, entries in of.items():
        labels = sorted({label for _, _, label, _ in entries})
        if len(labels) > 1:
            raise ManifestError(
                f"slides of case {case!r} have labels {', '.join(map(repr, labels))}; give all slides of a "
                "case one label, or evaluate --by slide"
            )
        values = np.mean([values for *_, values in entries], axis=0).tolist()
        if scores.cases is not None:
            if case not in scores.cases:
                raise ManifestError(
                    f"{scores.folder / 'cases.csv'} has no scores of case {case!r}; use the same cases for "
                    "scoring and in the labels, or evaluate --by slide"
                )
            values = [float(scores.cases[case][name]) for name in scores.target.columns]
        made.append((case, case, labels[0], values))
    return made


def pool(parts: Sequence[LabelledScores]) -> LabelledScores:
    """Pool the scores of several models."""
    return LabelledScores(
        parts[0].target,
        [name for part in parts for name in part.names],
        [case for part in parts for case in part.cases],
        [label for part in parts for label in part.labels],
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.scores for part in parts]),
        {slide: why for part in parts for slide, why in part.left_out.items()},
        [fold for part in parts for fold in part.folds],
    )


def check_some(joined: LabelledScores) -> None:
    """Refuse an evaluation without slides."""
    if not joined.names:
        raise ManifestError(
            f"none of {len(joined.left_out)} slides can be evaluated: "
            + "; ".join(f"{why}: {slides}" for why, slides in reasons(joined).items())
        )


def check_by(by: str) -> None:
    """Refuse anything but an evaluation by slides or by cases."""
    if by not in BY:
        raise SettingsError(f"cannot evaluate by {by!r}; choose one of {', '.join(BY)}")


def metrics_of(joined: LabelledScores, *, resamples: int, seed: int) -> list[Row]:
    """Compute metrics with intervals; see :func:`wsi_ats.tasks.evaluation.metrics_table`."""
    from wsi_ats.tasks.evaluation import metrics_table

    target = joined.target
    return metrics_table(
        target.definition,
        target.names,
        joined.targets,
        joined.scores,
        joined.cases,
        resamples=resamples,
        seed=seed,
    )


def write_metrics(out: Path, rows: Sequence[Row], *before: str) -> None:
    """Write ``metrics.csv``, with columns ``before`` first."""
    _write(out / "metrics.csv", {name: [row.get(name) for row in rows] for name in (*before, *_METRICS)})


def write_details(out: Path, joined: LabelledScores, *, title: str, more: Details = _NO_MORE) -> None:
    """Write all files but ``metrics.csv``: slides that were evaluated and left out, curves and plots.

    Files that an earlier evaluation wrote and this one does not are deleted.

    Parameters
    ----------
    out
        The output folder.
    joined
        The scores.
    title
        Title of the picture.
    more
        More tables and plots.
    """
    for name in RESULTS:
        if name != "metrics.csv":
            (out / name).unlink(missing_ok=True)
    target = joined.target
    columns = dict(zip(target.columns, joined.scores.T.tolist(), strict=True))
    same = {"name": joined.names, "case_id": joined.cases, "label": joined.labels}
    folds = {"fold": joined.folds} if any(joined.folds) else {}
    _write(out / "evaluated.csv", folds | same | columns)
    left = joined.left_out
    _write(out / "left_out.csv", {"slide_id": list(left), "reason": list(left.values())})
    details = target.definition.details(joined.targets, joined.scores, target.names, joined.folds)
    for name, table in {**details.tables, **more.tables}.items():
        _write(out / name, table)
    figure_of_panels(out / "evaluation.png", [*details.panels, *more.panels], title=title)


def _write(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    with atomic(path) as temporary:
        write_csv(temporary, columns)


def reasons(joined: LabelledScores) -> dict[str, str]:
    """Return the slides that were left out, by reason, as text; those of other splits are only counted."""
    by: dict[str, list[str]] = defaultdict(list)
    for slide, why in joined.left_out.items():
        by[why.partition(":")[0]].append(slide)
    return {
        why: str(len(slides)) if why.startswith("split") else f"{len(slides)} ({listed(slides)})"
        for why, slides in sorted(by.items())
    }


def _words(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return str(row["note"])
    if row["low"] is None:
        return f"{row['value']:.3f}" + (f" ({row['note']})" if row.get("note") else "")
    undefined = row["undefined_resamples"]
    without = f"; not defined in {undefined} resamples" if undefined else ""
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}{without})"
