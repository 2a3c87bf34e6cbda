"""Train again, with other weights and other draws, and keep the best run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wsi_ats.training.fit import Trained


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run, for comparison.

    Parameters
    ----------
    found
        Whether attention predicts which tiles of the validation slides are informative; ``True`` also if that
        could not be evaluated, or there is no attention.
    loss
        Loss of the validation slides.
    """

    found: bool
    loss: float

    @classmethod
    def of(cls, trained: Trained) -> Outcome:
        """Return the outcome of a run."""
        trust = trained.trust
        return cls(trust is None or trust.foretells is not False, trained.validation_loss)


def repeat(
    fit_once: Callable[[int], Trained],
    *,
    restarts: int,
    retries: int,
    on_retry: Callable[[], None] = lambda: None,
) -> tuple[Trained, list[Outcome]]:
    """Train several times, and keep the best run.

    Classifiers that are equally good on all tiles of a slide use different features, and attention learns
    more from some than from others (``docs/explanation/training.md`` has an example).

    Parameters
    ----------
    fit_once
        Function that trains a run, given its number, from 0.
    restarts
        Smallest number of runs, at least 1.
    retries
        Largest number of runs after the first, including ``restarts``, while attention has found nothing in
        any run.
    on_retry
        Function called before each of these runs.

    Returns
    -------
    Trained, and list of Outcome
        The best run, see :func:`best_of`, and the outcome of each. The models of the others are not kept.
    """
    outcomes: list[Outcome] = []
    kept: Trained | None = None
    while len(outcomes) < restarts or _is_worth_another(outcomes, retries):
        if len(outcomes) >= restarts:
            on_retry()
        trained = fit_once(len(outcomes))
        outcomes.append(Outcome.of(trained))
        if best_of(outcomes) == len(outcomes) - 1:
            kept = trained
    assert kept is not None
    return kept, outcomes


def _is_worth_another(outcomes: Sequence[Outcome], retries: int) -> bool:
    return len(outcomes) <= retries and not any(each.found for each in outcomes)


def best_of(outcomes: Sequence[Outcome]) -> int:
    """Return the number of the run with the least loss among those whose attention found something.

    If none did, all runs are compared. Of equal runs the first is best.
    """
    return min(range(len(outcomes)), key=lambda number: (not outcomes[number].found, outcomes[number].loss))
