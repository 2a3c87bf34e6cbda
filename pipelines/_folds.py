"""The folds of a cross-validation: which slides are trained on, validated and tested in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines._records import absolute
from pipelines._runs import Execution
from wsi_ats.errors import ManifestError
from wsi_ats.files import digest_of
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.labels import check_labels, unlabelled
from wsi_ats.tables.split_table import match_splits

FOLDS = 5

Folds = Mapping[str, Sequence[SlideRef]]
"""Slides of each fold, each with its split, by the name of the fold."""


def with_labels(refs: Sequence[SlideRef], execution: Execution) -> list[SlideRef]:
    """Return the slides with labels, by absolute paths, and report how many have none."""
    without = {ref.id for ref in unlabelled(refs)}
    if without and len(without) < len(refs):
        execution.reporter.message(f"{len(without)} of {len(refs)} slides have no label and are left out")
    return [ref for ref in absolute(refs) if ref.id not in without]


def plan_folds(
    refs: Sequence[SlideRef],
    settings: Settings,
    folds: int | None,
    splits: str | Path | None,
    execution: Execution,
    *,
    known: Sequence[str],
) -> dict[str, list[SlideRef]]:
    """Plan the splits of each fold, by the name of its folder; raise errors before any work."""
    from wsi_ats.tables.splits import (
        check_leakage,
        check_tested_once,
        folds_by_case,
        untrained,
        with_validation,
    )

    task, seed = settings.model.task, settings.training.seed
    if splits is None:
        made = folds_by_case(refs, FOLDS if folds is None else folds, seed=seed, task=task)
        plan = {f"fold_{number}": fold for number, fold in enumerate(made)}
    else:
        plan = _read_plan(refs, splits, folds, execution, known)
    for name, fold in plan.items():
        source = f"{splits}, {split_file(name)}" if splits is not None else name
        check_leakage(fold, source)
        try:
            if not any(ref.split == "val" for ref in fold):
                plan[name] = with_validation(fold, settings.training.validation, seed=seed, task=task)
            # A model that never saw a class has no score for it, so scores could not be pooled.
            missing = untrained(refs, [ref for ref in plan[name] if ref.split == "train"], task=task)
            if missing:
                raise ManifestError(f"there is no training slide of {', '.join(map(repr, missing))}")
            check_labels([ref for ref in plan[name] if ref.split != "test"], task)
        except ManifestError as error:
            raise ManifestError(f"{source}: {error}") from error
    check_tested_once(plan)
    return plan


def _read_plan(
    refs: Sequence[SlideRef],
    splits: str | Path,
    folds: int | None,
    execution: Execution,
    known: Sequence[str],
) -> dict[str, list[SlideRef]]:
    from wsi_ats.tables.splits import read_folds

    files = read_folds(splits)
    if folds is not None and folds != len(files):
        raise ManifestError(f"{splits} holds {len(files)} folds, not {folds}; leave --folds out")
    plan = {}
    for file, named in files.items():
        split_of = match_splits(named, known, f"{splits}, {file}")
        fold = [replace(ref, split=split_of[ref.id]) for ref in refs if ref.id in split_of]
        numbers = count_splits(fold)
        empty = [split for split in ("train", "test") if not numbers[split]]
        if empty:
            raise ManifestError(
                f"{splits}, {file}: {len(fold)} of its {len(split_of)} slides have labels, and none of these "
                f"is for {' or '.join(empty)}"
            )
        if len(fold) < max(len(split_of), len(refs)):
            execution.reporter.message(
                f"{file}: {len(split_of) - len(fold)} of its slides have no label, and "
                f"{len(refs) - len(fold)} with labels are not in it; they are not used in this fold"
            )
        plan[file.replace("splits_", "fold_").removesuffix(".csv")] = fold
    return plan


def count_splits(fold: Sequence[SlideRef]) -> dict[str, int]:
    return {split: sum(ref.split == split for ref in fold) for split in ("train", "val", "test")}


def sizes(plan: Folds) -> dict[str, str]:
    return {
        name: ", ".join(f"{n} {split}" for split, n in count_splits(f).items()) for name, f in plan.items()
    }


def split_file(name: str) -> str:
    return f"{name.replace('fold_', 'splits_')}.csv"


def _files(ref: SlideRef) -> tuple[str, ...]:
    return (*ref.features, *((ref.regions, *ref.region_classes) if ref.regions else ()))


def digest_of_folds(plan: Folds) -> str:
    """Return a fingerprint of the slides of each fold, with their labels, splits and options.

    It has no contents of files, so that a cross-validation can be continued when a slide has been repaired.
    """
    return digest_of(
        *(
            f"{name}:{(r.id, r.case, r.label, r.split, r.mpp, r.reader, r.downsample, *_files(r))}"
            for name, fold in plan.items()
            for r in fold
        )
    )
