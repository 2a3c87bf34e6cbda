"""Splits and figures of merit: the only import of scikit-learn."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef


def split_by_case(
    refs: Sequence[SlideRef], share: float, *, seed: int
) -> tuple[list[SlideRef], list[SlideRef]]:
    """Set some cases aside for validation.

    Where the manifest prescribes splits, they are kept: ``val`` is set aside, ``test`` is left out of
    both. Else about ``share`` of the cases are drawn, stratified by class; all slides of a case go together.

    Parameters
    ----------
    refs
        Labelled slides.
    share
        Share of the cases to set aside; 0 sets none aside.
    seed
        Decides which.

    Returns
    -------
    list of SlideRef, list of SlideRef
        For training, and set aside.

    Raises
    ------
    ManifestError
        When a case is in two splits, or a class would be left without slides for training.
    """
    if any(ref.split for ref in refs):
        _check_leakage(refs)
        chosen = [r for r in refs if r.split in {None, "train"}]
        missing = {str(r.label) for r in refs} - {str(r.label) for r in chosen}
        if missing:
            raise ManifestError(
                "the split column leaves no slide to train on of class "
                f"{', '.join(map(repr, sorted(missing)))}"
            )
        return chosen, [r for r in refs if r.split == "val"]
    if share == 0:
        return list(refs), []
    labels, cases = [str(ref.label) for ref in refs], [ref.case for ref in refs]
    # A tenth of the cases at a time, stratified, until the share is reached.
    folds = min(10, fewest_cases(refs))
    folds_aside = round(share * folds)
    if not 0 < folds_aside < folds or abs(folds_aside / folds - share) > 0.1:
        raise ManifestError(
            f"a class has only {folds} cases, too few to set {share:.0%} of each class aside; give more "
            "cases, a split column in the manifest, or --set training.validation=0"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    aside: set[int] = set()
    for _, fold in list(splitter.split(np.zeros(len(refs)), labels, cases))[:folds_aside]:
        aside |= set(fold.tolist())
    kept = [ref for i, ref in enumerate(refs) if i not in aside]
    return kept, [ref for i, ref in enumerate(refs) if i in aside]


def folds_by_case(refs: Sequence[SlideRef], folds: int, *, seed: int) -> list[list[SlideRef]]:
    """Prescribe the splits of a cross-validation: every slide is tested once, all of a case together.

    Parameters
    ----------
    refs
        Labelled slides; splits that they have are replaced.
    folds
        How often to train; classes are shared out among the folds as evenly as the cases allow.
    seed
        Decides which cases go together.

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
    labels, cases = [str(ref.label) for ref in refs], [ref.case for ref in refs]
    most = min(len(set(cases)), *Counter(labels).values())
    if not 2 <= folds <= most:
        raise ManifestError(
            f"{folds} folds are asked for; there must be at least 2, and at most {most}: there are "
            f"{len(set(cases))} cases, and the rarest class has {min(Counter(labels).values())} slides"
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    made = []
    for training, held_out in splitter.split(np.zeros(len(refs)), labels, cases):
        missing = set(labels) - {labels[i] for i in training}
        if missing or not len(held_out):
            raise ManifestError(
                f"a fold of {folds} has {len(held_out)} slides to test on and leaves none to train on of "
                f"{', '.join(map(repr, sorted(missing))) or 'no class'}; ask for fewer folds"
            )
        aside = set(held_out.tolist())
        made.append([replace(ref, split="test" if i in aside else "train") for i, ref in enumerate(refs)])
    return made


def fewest_cases(refs: Sequence[SlideRef]) -> int:
    """Number of cases of the class that has fewest."""
    cases: dict[str, set[str]] = defaultdict(set)
    for ref in refs:
        cases[str(ref.label)].add(ref.case)
    return min(len(of_class) for of_class in cases.values())


def _check_leakage(refs: Sequence[SlideRef]) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for ref in refs:
        splits[ref.case].add(ref.split or "train")
    for case, found in splits.items():
        if len(found) > 1:
            raise ManifestError(
                f"case {case!r} is in splits {', '.join(sorted(found))}: its slides would leak from one "
                "into the other; put all slides of a case into one split"
            )


def auc(targets: npt.ArrayLike, probabilities: npt.ArrayLike) -> float | None:
    """Area under the ROC curve; for more than two classes the mean of each class against the rest.

    Parameters
    ----------
    targets
        Numbers of the true classes, shape (N,).
    probabilities
        Shape (N, classes).

    Returns
    -------
    float or None
        ``None`` where a class is absent and the area is not defined.

    Examples
    --------
    >>> auc([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    1.0
    """
    true, scores = np.asarray(targets), np.asarray(probabilities, dtype=np.float64)
    if len(np.unique(true)) < scores.shape[1]:
        return None
    if scores.shape[1] == 2:
        return float(roc_auc_score(true, scores[:, 1]))
    return float(roc_auc_score(true, scores, multi_class="ovr", labels=np.arange(scores.shape[1])))
