"""Figures are drawn, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsi_ats.errors import ArtifactError
from wsi_ats.results.plots import figure_of_panels
from wsi_ats.tasks.panels import Calibration, Confusion, Lines, Scatter


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def colours(picture):
    """The number of colours of a picture."""
    return len(np.unique(picture[..., :3] @ np.array([1, 256, 256**2])))


def test_drawing_needs_no_display_and_leaves_pyplot_alone():
    code = "import sys, wsi_ats.results.plots; print('matplotlib.pyplot' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def panels_of(classes, defined=True):
    names = [f"class number {i} of a long name" for i in range(classes)]
    curves = dict.fromkeys(names, ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])) if defined else {}
    table = {"low": [0.0, 0.5], "n": [0, 4], "probability": [None, 0.7], "frequency": [None, 0.5]}
    counts = np.arange(classes**2).reshape(classes, classes)
    return [
        Lines("x", "y", curves, "some", unit_square=True, diagonal=True),
        Lines("x", "y", curves, steps=True, unit_square=True),
        Calibration(table),
        Confusion(counts, names),
    ]


@pytest.mark.parametrize(("classes", "defined"), [(2, True), (9, True), (3, False)])
def test_classes_are_drawn_with_and_without_what_is_defined(tmp_path, classes, defined):
    panels = panels_of(classes, defined)[: 4 if defined else 3]
    figure_of_panels(tmp_path / "a.png", panels, title="some")
    picture = pixels_of(tmp_path / "a.png")
    assert picture.shape[1] > len(panels) * 300
    assert colours(picture) > 50


@pytest.mark.parametrize(
    "panel", [Scatter([1.0], [1.5]), Lines("time", "share", {"all": ([0.0, 1.0], [1.0, 0.0])}, steps=True)]
)
def test_values_and_survival_are_drawn_even_for_one_slide(tmp_path, panel):
    figure_of_panels(tmp_path / "a.png", [panel], title="one")
    assert min(pixels_of(tmp_path / "a.png").shape[:2]) > 300


def test_the_same_input_gives_the_same_picture_and_other_input_another(tmp_path):
    for name, classes in (("a", 3), ("b", 3), ("c", 4)):
        figure_of_panels(tmp_path / f"{name}.png", panels_of(classes), title="some")
    a, b, c = (pixels_of(tmp_path / f"{name}.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"a\.png"):
        figure_of_panels(tmp_path / "file" / "a.png", panels_of(2), title="some")
