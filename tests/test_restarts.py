"""When to train again, and which run to keep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wsi_ats.distilling import Trust
from wsi_ats.restarts import best_of, is_worth_another
from wsi_ats.training import Trained

NOTHING = SimpleNamespace()  # a network is not looked at


def run(*, foretells: bool | None = False, judged: bool = True, loss: float = 1.0) -> Trained:
    found = Trust(0.0, foretells, 0.0, 1.0, 6) if judged else None
    return Trained(NOTHING, [], found, validation_loss=loss)


@pytest.mark.parametrize(
    ("foretold", "restarts", "retries", "more"),
    [
        ([True], 1, 1, False),
        ([None], 1, 1, False),  # too few slides to judge by
        ([False], 1, 1, True),
        ([False], 1, 0, False),
        ([False, False], 1, 1, False),
        ([False, False], 1, 2, True),
        ([False, True], 1, 2, False),
        ([True], 2, 0, True),
        ([True, False], 2, 1, False),
        ([False, False], 2, 1, False),
        ([False, False], 2, 2, True),
    ],
)
def test_a_run_is_repeated_as_often_as_wanted_and_while_attention_finds_nothing(
    foretold, restarts, retries, more
):
    runs = [run(foretells=each) for each in foretold]
    assert is_worth_another(runs, restarts=restarts, retries=retries) is more


def test_a_network_without_attention_is_trained_once():
    assert not is_worth_another([run(judged=False)], restarts=1, retries=3)


def test_the_least_validation_loss_wins_and_the_first_of_equals():
    assert best_of([run(loss=0.7), run(loss=0.5), run(loss=0.5)]) == 1
    assert best_of([run(loss=float("inf")), run(loss=float("inf"))]) == 0
