"""When to train again, and which run to keep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wsi_ats.training.distillation import Trust
from wsi_ats.training.fit import Trained
from wsi_ats.training.restarts import Outcome, best_of, repeat


def run(*, foretells: bool | None = False, judged: bool = True, loss: float = 1.0) -> Trained:
    found = Trust(0.0, foretells, 0.0, 1.0, 6) if judged else None
    return Trained(SimpleNamespace(), [], found, validation_loss=loss)  # the network is not used


@pytest.mark.parametrize(
    ("foretold", "restarts", "retries", "runs"),
    [
        ([True], 1, 1, 1),
        ([None], 1, 1, 1),  # too few slides to judge by
        ([False, True], 1, 1, 2),
        ([False], 1, 0, 1),
        ([False, False], 1, 1, 2),
        ([False, False, True], 1, 2, 3),
        ([False, True], 1, 2, 2),
        ([True, False], 2, 0, 2),
        ([True, False], 2, 3, 2),
        ([False, False], 2, 1, 2),  # the second was wanted, and is the retry as well
        ([False, False, False], 2, 2, 3),
    ],
)
def test_a_run_is_repeated_as_often_as_wanted_and_while_attention_finds_nothing(
    foretold, restarts, retries, runs
):
    numbers, retried = [], []

    def fit_once(number):
        numbers.append(number)
        return run(foretells=foretold[number])

    _, outcomes = repeat(
        fit_once, restarts=restarts, retries=retries, on_retry=lambda: retried.append(len(numbers))
    )
    assert numbers == list(range(runs))
    assert retried == numbers[restarts:]
    assert [each.found for each in outcomes] == [each is not False for each in foretold[:runs]]


def test_a_network_without_attention_is_trained_once():
    kept, outcomes = repeat(lambda _: run(judged=False), restarts=1, retries=3)
    assert outcomes == [Outcome(True, 1.0)]
    assert kept.trust is None


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ([(False, 0.7), (False, 0.5), (False, 0.5)], 1),
        ([(True, 0.7), (True, 0.6)], 1),
        ([(False, 0.5), (True, 0.6)], 1),  # by few slides, a loss is not much of a reason
        ([(True, 0.6), (False, 0.5)], 0),
        ([(True, float("inf")), (True, float("inf"))], 0),
    ],
)
def test_among_runs_with_signal_the_least_loss_wins(outcomes, best):
    runs = [run(foretells=found, loss=loss) for found, loss in outcomes]
    assert best_of([Outcome.of(each) for each in runs]) == best
    kept, _ = repeat(runs.__getitem__, restarts=len(runs), retries=0)
    assert kept is runs[best]
