"""Train again, from other weights and by other draws, and keep the best run."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_ats.training import Trained


def is_worth_another(runs: Sequence[Trained], *, restarts: int, retries: int) -> bool:
    """Whether to train once more.

    Classifiers that are equally good on all tiles of a slide differ in what they look for, and attention
    learns from some better than from others: with one seed of twenty it found nothing where with four other
    seeds it did (``docs/training.md``).

    Parameters
    ----------
    runs
        What has been trained so far.
    restarts
        How many are wanted in any case.
    retries
        How many more to train as long as attention does not foretell, in any of them, which tiles are worth
        reading. Where it could not be judged it counts as if it did.
    """
    found = any(each.trust is None or each.trust.foretells is not False for each in runs)
    return len(runs) < restarts or (not found and len(runs) <= retries)


def best_of(runs: Sequence[Trained]) -> int:
    """Return the number of the run with the least validation loss, the first of equals."""
    return min(range(len(runs)), key=lambda number: runs[number].validation_loss)
