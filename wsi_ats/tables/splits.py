"""Splits into slides for training, validation and testing; all slides of a case stay together."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.files import write_csv
from wsi_ats.tables.split_table import read_splits
from wsi_ats.tasks.registry import DEFAULT_TASK, task_named

# CLAM's file names for the folds of a cross-validation; it also writes splits_0_bool.csv and others.
_FOLD_FILE = re.compile(r"splits_(\d+)\.csv")


def split_by_case(
    refs: Sequence[SlideRef], share: float, *, seed: int, task: str = DEFAULT_TASK
) -> tuple[list[SlideRef], list[SlideRef]]:
    """Set some cases aside for validation.

    Splits in the manifest are kept: ``val`` is set aside, and ``test`` is left out of both results. Without
    them, about ``share`` of the cases are drawn at random from each of the task's strata; all slides of a
    case stay together.

    Parameters
    ----------
    refs
        Labelled slides.
    share
        Fraction of the cases to set aside; may be 0.
    seed
        Seed of the draw.
    task
        Name of the task, as in ``model.task``.

    Returns
    -------
    list of SlideRef, list of SlideRef
        Slides for training, and slides set aside.

    Raises
    ------
    ManifestError
        When a case is in two splits, or a class would be left without slides for training.
    """
    if any(ref.split for ref in refs):
        check_leakage(refs)
        chosen = [r for r in refs if r.split in {None, "train"}]
        missing = untrained(refs, chosen, task=task)
        if missing:
            raise ManifestError(
                f"the split column leaves no slide to train on for class {', '.join(map(repr, missing))}"
            )
        return chosen, [r for r in refs if r.split == "val"]
    if share == 0:
        return list(refs), []
    stratum, cases = _strata(refs, task)
    # Set aside a tenth of the cases at a time, stratified, until the share is reached.
    folds = min(10, _fewest_cases(stratum, cases))
    folds_aside = round(share * folds)
    if not 0 < folds_aside < folds or abs(folds_aside / folds - share) > 0.1:
        raise ManifestError(
            f"a class has only {folds} cases, too few to set {share:.0%} of each class aside; give more "
            "cases, a split column in the manifest, or --set training.validation=0"
        )
    aside: set[int] = set()
    for _, fold in _parts(folds, stratum, cases, seed)[:folds_aside]:
        aside |= set(fold)
    kept = [ref for i, ref in enumerate(refs) if i not in aside]
    return kept, [ref for i, ref in enumerate(refs) if i in aside]


def _parts(
    folds: int, stratum: Sequence[str], cases: Sequence[str], seed: int
) -> list[tuple[list[int], list[int]]]:
    """Return the numbers of the slides outside and inside each fold."""
    # Evaluation imports this module for its checks, and scikit-learn takes longer to import than it computes.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    parts = splitter.split(np.zeros(len(stratum)), stratum, cases)
    return [(outside.tolist(), inside.tolist()) for outside, inside in parts]


def folds_by_case(
    refs: Sequence[SlideRef], folds: int, *, seed: int, task: str = DEFAULT_TASK
) -> list[list[SlideRef]]:
    """Split slides for cross-validation: each slide is tested once, and the slides of a case stay together.

    Parameters
    ----------
    refs
        Labelled slides; their splits are replaced.
    folds
        Number of folds. Slides of each of the task's strata are divided among the folds as evenly as the
        cases allow. A class with fewer cases than folds is absent from some test sets.
    seed
        Seed of the assignment of cases to folds.
    task
        Name of the task, as in ``model.task``.

    Returns
    -------
    list of lists of SlideRef
        All slides once for each fold, with ``split`` set to ``"train"`` or ``"test"``.

    Raises
    ------
    ManifestError
        When there are too few cases, or a class would be left without slides for training.

    Examples
    --------
    >>> refs = [SlideRef(f"{case}{i}", "", case, "xy"[i]) for case in "abc" for i in (0, 1)]
    >>> sorted([ref.id for ref in fold if ref.split == "test"] for fold in folds_by_case(refs, 3, seed=0))
    [['a0', 'a1'], ['b0', 'b1'], ['c0', 'c1']]
    """
    stratum, cases = _strata(refs, task)
    largest = max(Counter(stratum).values())
    most = min(len(set(cases)), largest)
    if not 2 <= folds <= most:
        raise ManifestError(
            f"{folds} folds were requested, but only 2 to {most} are possible: there are "
            f"{len(set(cases))} cases, and {largest} slides of the most frequent class"
        )
    with warnings.catch_warnings():
        # The table of metrics shows which classes are absent from a test set.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = _parts(folds, stratum, cases, seed)
    made = []
    for training, held_out in parts:
        missing = untrained(refs, [refs[i] for i in training], task=task)
        if missing or not len(held_out):
            raise ManifestError(
                f"one of {folds} folds has {len(held_out)} test slides and leaves none to train on of "
                f"{', '.join(map(repr, missing)) or 'no class'}; use fewer folds"
            )
        aside = set(held_out)
        made.append([replace(ref, split="test" if i in aside else "train") for i, ref in enumerate(refs)])
    return made


def with_validation(
    refs: Sequence[SlideRef], share: float, *, seed: int, task: str = DEFAULT_TASK
) -> list[SlideRef]:
    """Change the split of some training cases to ``val``, drawn as in :func:`split_by_case`.

    Parameters
    ----------
    refs
        Labelled slides with splits.
    share, seed, task
        As in :func:`split_by_case`.

    Returns
    -------
    list of SlideRef
        The same slides in the same order.
    """
    training = [replace(ref, split=None) for ref in refs if ref.split == "train"]
    aside = {ref.id for ref in split_by_case(training, share, seed=seed, task=task)[1]}
    return [replace(ref, split="val") if ref.id in aside else ref for ref in refs]


def untrained(refs: Sequence[SlideRef], training: Sequence[SlideRef], *, task: str) -> list[str]:
    """Return the classes, labels or events of ``refs`` that no training slide has.

    Parameters
    ----------
    refs, training
        All slides, and the slides for training; all have labels.
    task
        Name of the task; see :meth:`wsi_ats.tasks.base.Task.must_learn`.
    """
    definition = task_named(task)
    there, here = (
        {name for ref in part for name in definition.must_learn(str(ref.label))} for part in (refs, training)
    )
    return sorted(there - here)


def check_leakage(refs: Sequence[SlideRef], source: str | None = None) -> None:
    """Refuse splits that divide a case; a slide without a split counts as a training slide.

    Parameters
    ----------
    refs
        Slides with splits.
    source
        Name of the table in the message.

    Raises
    ------
    ManifestError
        When a case is in two splits; the message names both.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for ref in refs:
        splits[ref.case].add(ref.split or "train")
    for case, found in splits.items():
        if len(found) > 1:
            raise ManifestError(
                f"{f'{source}: ' if source else ''}case {case!r} is in splits {', '.join(sorted(found))}: "
                "information would leak between them; put all slides of a case into one split"
            )


def check_tested_once(folds: Mapping[str, Sequence[SlideRef]]) -> None:
    """Refuse folds that test a slide or a case twice: pooled metrics would count it twice.

    Parameters
    ----------
    folds
        Slides with splits, by name of the fold.

    Raises
    ------
    ManifestError
        When a slide or case is tested twice; the message names it and the folds.
    """
    slides: dict[str, str] = {}
    cases: dict[str, str] = {}
    for name, refs in folds.items():
        for ref in refs:
            if ref.split != "test":
                continue
            for what, key, seen in (("slide", ref.id, slides), ("case", ref.case, cases)):
                other = seen.setdefault(key, name)
                if other != name:
                    raise ManifestError(
                        f"{what} {key!r} is in the test sets of {other} and of {name}: metrics of all folds "
                        "would count it twice; test each case in one fold"
                    )


def read_folds(folder: str | Path) -> dict[str, dict[str, str]]:
    """Read a folder of CLAM's ``splits_k.csv``.

    Parameters
    ----------
    folder
        The folder with ``splits_0.csv`` and so on; other files are ignored.

    Returns
    -------
    dict of dict
        Split by slide, for each file by name, in the order of the files' numbers.

    Raises
    ------
    ManifestError
        When there is no such file, or one cannot be understood.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: is not a folder; give the folder that holds splits_0.csv, splits_1.csv ..."
        )
    numbers = sorted(int(m[1]) for path in folder.iterdir() if (m := _FOLD_FILE.fullmatch(path.name)))
    if len(numbers) < 2:
        raise ManifestError(
            f"{folder}: holds {len(numbers)} files splits_k.csv, but at least two are needed (splits_0.csv, "
            "splits_1.csv ...)"
        )
    return {f"splits_{number}.csv": read_splits(folder / f"splits_{number}.csv") for number in numbers}


def write_splits(path: str | Path, refs: Sequence[SlideRef]) -> None:
    """Write CLAM's ``splits_k.csv``: a column of slides for each of ``train``, ``val``, ``test``.

    Parameters
    ----------
    path
        The file to write.
    refs
        Slides with splits.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "splits_0.csv"
    >>> splits = ["train", "train", "test"]
    >>> write_splits(file, [SlideRef(n, "", n, split=s) for n, s in zip("abc", splits, strict=True)])
    >>> read_splits(file)
    {'a': 'train', 'b': 'train', 'c': 'test'}
    """
    columns = {name: [ref.id for ref in refs if ref.split == name] for name in ("train", "val", "test")}
    length = max(map(len, columns.values()))
    write_csv(path, {name: [*ids, *[None] * (length - len(ids))] for name, ids in columns.items()})


def _strata(refs: Sequence[SlideRef], task: str) -> tuple[list[str], list[str]]:
    """Return the stratum and the case of each slide."""
    cases = [ref.case for ref in refs]
    return task_named(task).strata([str(ref.label) for ref in refs], cases), cases


def _fewest_cases(stratum: Sequence[str], cases: Sequence[str]) -> int:
    """Return the number of cases in the smallest stratum."""
    of: dict[str, set[str]] = defaultdict(set)
    for name, case in zip(stratum, cases, strict=True):
        of[name].add(case)
    return min(map(len, of.values()))
