"""Figures are the textbook's, intervals honest, and what is not defined is not given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.evaluation import auc


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=30))
def test_area_is_the_chance_that_a_positive_outranks_a_negative(pairs):
    true, score = np.array(pairs).T
    if len(set(true)) < 2:
        return
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in score[true == 1] for n in score[true == 0]]
    probabilities = np.stack([5 - score, score], axis=1) / 5
    assert auc(true, probabilities) == pytest.approx(np.mean(wins))


def test_area_of_several_classes_is_the_mean_of_each_against_the_rest():
    true = np.array([0, 0, 1, 1, 2, 2])
    probabilities = np.random.default_rng(0).dirichlet((1, 1, 1), 6)
    each = [auc(true == k, np.stack([1 - probabilities[:, k], probabilities[:, k]], 1)) for k in range(3)]
    assert auc(true, probabilities) == pytest.approx(np.mean(each))


def test_area_is_not_defined_where_a_class_is_absent():
    assert auc([1, 1], [[0.2, 0.8], [0.5, 0.5]]) is None
    assert auc([0, 1, 1], [[0.2, 0.4, 0.4]] * 3) is None


def test_probabilities_in_single_precision_need_not_sum_to_exactly_one():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 5, (30, 3)).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert 0 <= auc(np.arange(30) % 3, probabilities) <= 1
