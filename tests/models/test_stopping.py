"""When scoring a slide ends."""

from __future__ import annotations

import pytest

from wsi_ats.models.stopping import MOST_DRAWS, stop
from wsi_ats.results.records import Stop
from wsi_ats.settings import LEAST_DRAWS, SamplingSettings


def reasons(errors, read=None, **changes) -> list[Stop | None]:
    """Whether to stop, after each draw."""
    sampling = SamplingSettings(**{"tiles": 10, **changes})
    read = read or [10 * number for number in range(1, len(errors) + 1)]
    return [
        stop(sampling, draws=number, error=error, read=tiles)
        for number, (error, tiles) in enumerate(zip(errors, read, strict=True), 1)
    ]


def test_without_tolerance_and_budget_there_are_as_many_draws_as_asked_for():
    assert reasons([None]) == [Stop.DRAWS]
    assert reasons([None, 0.0, 5.0], draws=3) == [None, None, Stop.DRAWS]


def test_the_tolerance_stops_scoring_after_enough_draws_to_judge():
    errors = [None, *[0.1] * (LEAST_DRAWS - 2), 0.3, 0.21, 0.2]
    found = reasons(errors, tolerance=0.2)
    assert found == [*[None] * (LEAST_DRAWS + 1), Stop.TOLERANCE]
    assert reasons([0.1] * LEAST_DRAWS, tolerance=0.2)[-2:] == [None, Stop.TOLERANCE]


def test_more_draws_may_be_asked_for_than_are_needed_to_judge():
    many = LEAST_DRAWS + 5
    assert reasons([0.1] * many, tolerance=0.2, draws=many) == [*[None] * (many - 1), Stop.TOLERANCE]


def test_no_draw_starts_that_might_exceed_the_budget():
    assert reasons([None, 1.0, 1.0], max_tiles=30) == [None, None, Stop.MAX_TILES]
    # 25 tiles were read, another draw may need 10 more; after 20 it would have fitted.
    assert reasons([None, 1.0, 1.0], [10, 20, 25], max_tiles=30) == [None, None, Stop.MAX_TILES]
    assert reasons([None], max_tiles=19) == [Stop.MAX_TILES]


def test_the_tolerance_comes_before_the_budget():
    most = 10 * LEAST_DRAWS
    assert reasons([0.1] * LEAST_DRAWS, tolerance=0.2, max_tiles=most)[-1] is Stop.TOLERANCE
    assert reasons([0.3] * LEAST_DRAWS, tolerance=0.2, max_tiles=most)[-1] is Stop.MAX_TILES


@pytest.mark.parametrize("limits", [{"tolerance": 0.2}, {"max_tiles": 10**9}])
def test_scoring_always_ends(limits):
    found = reasons([1.0] * MOST_DRAWS, **limits)
    assert found == [*[None] * (MOST_DRAWS - 1), Stop.MAX_DRAWS]


def test_a_larger_budget_never_ends_earlier():
    errors = [None, *[1.0] * 30]
    ends = [reasons(errors, max_tiles=most).index(Stop.MAX_TILES) for most in range(10, 200)]
    assert ends == sorted(ends)


def test_draws_that_agree_exactly_need_no_more():
    assert reasons([None, 0.0], max_tiles=1000) == [None, Stop.TOLERANCE]
