"""Errors: one tree, and each can be sent between processes."""

from __future__ import annotations

import pickle

import pytest

from wsi_ats import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_pickling_with_its_message(kind):
    error = kind("a.svs", "a problem") if issubclass(kind, errors.SlideError) else kind("a problem")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_one_root_and_a_place_in_the_drawing(kind):
    assert issubclass(kind, errors.WsiAtsError)
    assert kind.__name__ in str(errors.__doc__)


def test_an_error_of_a_slide_names_it():
    error = errors.MppError("scans/a.svs", "0 micrometres per pixel")
    assert str(error) == "scans/a.svs: 0 micrometres per pixel"
    assert (error.path, error.problem) == ("scans/a.svs", "0 micrometres per pixel")
