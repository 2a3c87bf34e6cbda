"""Checks of labels before training: they must fit the task, and there must be enough of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wsi_ats.errors import ManifestError
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.folders import listed
from wsi_ats.tasks.base import FEWEST_CASES
from wsi_ats.tasks.registry import task_named
from wsi_ats.tasks.targets import Target


def unlabelled(refs: Iterable[SlideRef]) -> list[SlideRef]:
    """Return the slides without a label: they can be scored, but not trained on."""
    return [ref for ref in refs if ref.label is None]


def check_cases(refs: Sequence[SlideRef], labels: Sequence[object] | None = None) -> None:
    """Check that each case has one label, for models that take the slides of a case together.

    Parameters
    ----------
    refs
        The slides.
    labels
        The value of each slide that must be the same within a case; the slides' labels by default.

    Raises
    ------
    ManifestError
        When slides of one case have different labels.

    Examples
    --------
    >>> check_cases([SlideRef("a", "a", "patient 1", "x"), SlideRef("b", "b", "patient 1", "x")])
    """
    first: dict[str, tuple[SlideRef, object]] = {}
    for ref, label in zip(refs, [ref.label for ref in refs] if labels is None else labels, strict=True):
        other, known = first.setdefault(ref.case, (ref, label))
        if label != known:
            raise ManifestError(
                f"the slides of case {ref.case!r} have different labels ({other.id} {other.label}, {ref.id} "
                f"{ref.label}); with model.cases=mean or union a case needs one label; correct the labels or "
                "set model.cases=separate"
            )


def check_labels(refs: Sequence[SlideRef], task: str) -> Target:
    """Check that a task can be trained on slides, and derive the target from their labels.

    Parameters
    ----------
    refs
        Slides; those without a label are ignored.
    task
        ``model.task`` of the settings.

    Raises
    ------
    ManifestError
        When a label has the wrong type; when there are fewer than two cases (for classification, of any
        class); or when there is nothing to learn: only one class, one value, no event, or a label that all
        slides or no slides have.

    Examples
    --------
    >>> refs = [SlideRef(n, n, n, label) for n, label in zip("ab", ["1.5", "2.5"], strict=True)]
    >>> check_labels(refs, "regression")
    Target(task='regression', names=('value',), centre=2.0, scale=0.5)
    """
    definition = task_named(task)
    labelled = [(ref, ref.label) for ref in refs if ref.label is not None]
    if not labelled:
        raise ManifestError(
            f"none of {len(refs)} slides has a label; give a table of slide_id,label with --labels"
        )
    for ref, label in labelled:
        try:
            definition.must_learn(label)
        except ManifestError as error:
            raise ManifestError(f"slide {ref.id!r}: {error}") from error
    labels, cases = [label for _, label in labelled], [ref.case for ref, _ in labelled]
    try:
        if len(set(cases)) < FEWEST_CASES:
            raise ManifestError(
                f"slides of {FEWEST_CASES} patients or more are needed, but there are {len(set(cases))}"
            )
        target = Target.of(task, labels)
        definition.check_enough(labels, cases)
    except ManifestError as error:
        raise ManifestError(f"{error}{_left_out(unlabelled(refs))}") from error
    return target


def _left_out(refs: Sequence[SlideRef]) -> str:
    if not refs:
        return ""
    return f"; {len(refs)} slides have no label: {listed(ref.id for ref in refs)}"
