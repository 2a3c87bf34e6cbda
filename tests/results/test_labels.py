"""Labels beside marks never collide, and are as near as they can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.results.labels import place_labels

ROOM = np.array([0.0, 0.0, 300.0, 300.0])
PLACES = st.lists(st.tuples(st.floats(40, 260), st.floats(40, 260)), min_size=1, max_size=25)


def boxes(middles, sizes):
    return np.concatenate([middles - sizes / 2, middles + sizes / 2], axis=1)


def meet(one, other):
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())


@given(PLACES)
def test_no_two_labels_meet_and_all_are_in_the_room(places):
    anchors = np.array(places)
    sizes = np.tile([15.0, 8.0], (len(anchors), 1))
    marks = np.concatenate([anchors - 5, anchors + 5], axis=1)
    placed = place_labels(anchors, np.full(len(anchors), 6.0), sizes, marks, ROOM)
    assert np.isfinite(placed).all()
    found = boxes(placed, sizes)
    assert not any(meet(found[i], found[j]) for i in range(len(found)) for j in range(i))
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= 300).all()


def test_a_mark_with_space_around_it_has_its_label_beside_it_and_clear_of_other_marks():
    anchors = np.array([[100.0, 100.0], [112.0, 100.0]])
    sizes = np.tile([10.0, 8.0], (2, 1))
    marks = np.concatenate([anchors - 5, anchors + 5], axis=1)
    found = boxes(place_labels(anchors, np.full(2, 6.0), sizes, marks, ROOM), sizes)
    assert not any(meet(label, mark) for label in found for mark in marks)
    assert np.abs(found.reshape(2, 2, 2).mean(1) - anchors).max() < 16


def test_a_label_without_room_is_left_out():
    small = np.array([0.0, 0.0, 8.0, 8.0])
    placed = place_labels(
        np.array([[4.0, 4.0]]), np.ones(1), np.array([[10.0, 8.0]]), np.zeros((0, 4)), small
    )
    assert np.isnan(placed).all()
