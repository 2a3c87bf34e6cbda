"""Train again, from other weights and by other draws, and keep the best run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wsi_ats.training.fit import Trained


@dataclass(frozen=True)
class Outcome:
    """Result of a run, for comparison.

    Parameters
    ----------
    found
        Whether attention foretells which tiles of the validation slides are worth reading; ``True`` also
        where that could not be judged, or there is no attention.
    loss
        Of the validation slides.
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

    Classifiers that are equally good on all tiles of a slide look for different things, and attention learns
    more from some than from others (``docs/training.md`` has an example).

    Parameters
    ----------
    fit_once
        Trains a run, given its number from 0 on.
    restarts
        Least number of runs, at least 1.
    retries
        Most runs beside the first as long as attention has found nothing in any; ``restarts`` count among
        them.
    on_retry
        Called before each of these runs.

    Returns
    -------
    Trained, and list of Outcome
        The best run, see :func:`best_of`, and the outcome of each. Models of the others are not kept.
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
    """Return the number of the run with the least loss among those whose attention found where to look.

    If none did, with the least loss among all; the first of equals.
    """
    return min(range(len(outcomes)), key=lambda number: (not outcomes[number].found, outcomes[number].loss))
