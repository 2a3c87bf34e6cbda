"""Concordance counts pairs as Harrell does; survival curves are Kaplan and Meier's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelines.utils import concordance_index

from wsi_ats.tasks.concordance import concordance, kaplan_meier
from wsi_ats.tasks.evaluation import alone, once

subjects = st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 3))


def by_pairs(rows) -> float | None:
    """Count all pairs with a known order of events."""
    scores = []
    for (t, e, r), (u, f, s) in itertools.permutations(rows, 2):
        if e and (t < u or (t == u and not f)):
            scores.append(1.0 if r > s else 0.5 if r == s else 0.0)
    return float(np.mean(scores)) if scores else None


@given(st.lists(subjects, min_size=1, max_size=12))
def test_concordance_is_the_share_of_pairs_in_the_right_order(rows):
    times, events, risks = (np.array(each, float) for each in zip(*rows, strict=True))
    expected = by_pairs(rows)
    found = alone(concordance(times, events > 0, risks, once(len(rows))))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-12))
    if expected is not None:
        assert found == pytest.approx(concordance_index(times, -risks, events), rel=1e-12)


def test_concordance_of_many_cases_is_counted_in_parts(monkeypatch):
    generator = np.random.default_rng(0)
    times, risks = generator.integers(0, 9, (2, 50)).astype(float)
    events, counts = generator.random(50) < 0.5, generator.integers(0, 3, (4, 50)).astype(float)
    whole = concordance(times, events, risks, counts)
    monkeypatch.setattr("wsi_ats.tasks.concordance._CASES", 7)
    np.testing.assert_allclose(concordance(times, events, risks, counts), whole, rtol=1e-12)


def test_survival_by_hand():
    # Of six, one dies at 1; one is lost at 2; of the four left two die at 3; the last is lost at 5.
    times, shares = kaplan_meier([1, 2, 3, 3, 4, 5], [1, 0, 1, 1, 1, 0])
    assert times.tolist() == [0, 1, 2, 3, 4, 5]
    assert shares == pytest.approx([1, 5 / 6, 5 / 6, 5 / 12, 5 / 24, 5 / 24])
