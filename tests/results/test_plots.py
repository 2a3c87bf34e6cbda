"""Figures are drawn for every shape of slide, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsi_ats.errors import ArtifactError
from wsi_ats.geometry import Grid, Region
from wsi_ats.results.plots import figure_of_panels, figure_of_slide
from wsi_ats.results.records import AttentionMap, Selection
from wsi_ats.tasks.panels import Calibration, Confusion, Lines, Scatter


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def colours(picture):
    """The number of colours of a picture."""
    return len(np.unique(picture[..., :3] @ np.array([1, 256, 256**2])))


def slide(shape, drawn, seed):
    """A slide's thumbnail, attention, selection and tiles."""
    generator = np.random.default_rng(seed)
    grid = Grid(shape[1] * 64, shape[0] * 64, cell=64, tile_size=64)
    tissue = np.ones(shape, dtype=bool)
    tissue[0, 0] = shape == (1, 1)
    attention = generator.random(shape) * tissue
    attention /= attention.sum()
    cells = generator.choice(np.flatnonzero(tissue), min(drawn, tissue.sum()), replace=False)
    values = np.ones(len(cells))
    selection = Selection(
        slide_id="a",
        path="a.svs",
        grid=grid,
        level=0,
        mpp=0.25,
        bounds=Region(0, 0, grid.width, grid.height),
        cells=cells,
        attention=values,
        inclusion=values,
        weight=values,
        draw=np.zeros(len(cells), int),
        order=np.arange(len(cells)),
        scores={},
        evidence={},
    )
    thumbnail = generator.integers(0, 255, (shape[0] * 8, shape[1] * 8, 3), dtype=np.uint8)
    tiles = generator.integers(0, 255, (len(cells), 64, 64, 3), dtype=np.uint8)
    truth = generator.integers(0, 4, shape, dtype=np.uint8)
    return thumbnail, AttentionMap(grid, attention, tissue), selection, tiles, truth


def figure(path, shape=(4, 6), drawn=3, *, truth=True, seed=0):
    thumbnail, attention, selection, tiles, kinds = slide(shape, drawn, seed)
    figure_of_slide(
        path,
        thumbnail=thumbnail,
        attention=attention,
        selection=selection,
        tiles=tiles,
        title="case µ7: 0.93",
        truth=kinds if truth else None,
    )


@pytest.mark.parametrize(
    ("shape", "drawn", "truth"),
    [((4, 6), 3, False), ((1, 1), 1, True), ((1, 9), 8, False), ((9, 1), 0, True), ((6, 6), 30, True)],
)
def test_a_figure_is_drawn_for_every_shape_of_slide_and_number_of_tiles(tmp_path, shape, drawn, truth):
    figure(tmp_path / "a.png", shape, drawn, truth=truth)
    picture = pixels_of(tmp_path / "a.png")
    assert min(picture.shape[:2]) > 300
    assert colours(picture) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_same_input_gives_the_same_picture_and_other_input_another(tmp_path):
    figure(tmp_path / "a.png")
    figure(tmp_path / "b.png")
    figure(tmp_path / "c.png", seed=1)
    a, b, c = (pixels_of(tmp_path / f"{name}.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_drawing_needs_no_display_and_leaves_pyplot_alone():
    code = "import sys, wsi_ats.results.plots; print('matplotlib.pyplot' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_figure_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"a\.png"):
        figure(tmp_path / "file" / "a.png")


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
