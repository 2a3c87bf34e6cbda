"""Pictures of scored slides show what was scored: tiles to the pixel, in order, with their numbers."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from defusedxml.ElementTree import parse
from PIL import Image

from wsi_ats.errors import ArtifactError, SettingsError
from wsi_ats.geometry import Grid, Region
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.results import captions, page, pictures
from wsi_ats.results.pictures import figure_of_slide, figure_of_tiles, write_pictures_of
from wsi_ats.results.records import AttentionMap, Selection, Status
from wsi_ats.results.shown import KINDS, MOST_TILES, DrawnTiles, ShownSlide
from wsi_ats.tasks.targets import Target

TARGET = Target("classification", ("normal", "tumour"))
RISK = Target("survival", ("risk",))


def selection(grid, cells, *, draws=1, target=TARGET, seed=0):
    """The cells in the order given, split into draws."""
    generator = np.random.default_rng(seed)
    number = len(cells)
    draw = np.sort(np.arange(number) % draws)
    evidence = generator.normal(size=number)
    return Selection(
        slide_id="a",
        path="a.svs",
        grid=grid,
        level=0,
        mpp=0.5,
        bounds=Region(0, 0, grid.width, grid.height),
        cells=np.asarray(cells),
        attention=np.full(number, 0.01),
        inclusion=np.ones(number),
        weight=generator.random(number) + 0.1,
        draw=draw,
        order=np.concatenate([np.arange((draw == each).sum()) for each in range(draws)]),
        scores={},
        evidence={name: evidence * (1 if i else -1) for i, name in enumerate(target.names)},
    )


def slide(shape=(6, 8), drawn=5, *, target=TARGET, draws=1, side=32, seed=0, **changes):
    """A slide with random tissue, attention and tiles."""
    generator = np.random.default_rng(seed)
    grid = Grid(shape[1] * 64 - 5, shape[0] * 64 - 9, cell=64, tile_size=side)
    tissue = generator.random(shape) < 0.8
    tissue.flat[0] = True
    attention = generator.random(shape) * tissue
    cells = generator.permutation(np.flatnonzero(tissue))[:drawn]
    thumbnail = generator.integers(150, 255, (shape[0] * 8, shape[1] * 8, 3), dtype=np.uint8)
    scores = dict(zip(target.columns, (0.25, 0.75) if len(target.columns) == 2 else (1.5,), strict=True))
    row = {
        "slide_id": "a",
        "status": Status.DONE,
        "predicted": "tumour",
        "logit_se": 0.125 if draws > 1 else None,
        "draws": draws,
        "tiles_read": len(cells),
        "tiles_total": int(tissue.sum()),
        **scores,
    }
    chosen = selection(grid, cells, draws=draws, target=target, seed=seed)
    shown = ShownSlide(
        row | changes,
        target,
        Overview(thumbnail, TissueMask(grid, tissue.astype(np.float32), tissue)),
        0.5,
        Region(0, 0, grid.width, grid.height),
        AttentionMap(grid, attention / attention.sum(), tissue),
        DrawnTiles.of(chosen, tissue_tiles=int(tissue.sum())),
    )
    ascending = np.sort(cells)
    return shown.with_tiles(ascending, tiles_of(ascending, side))


def tiles_of(cells, side=32):
    """Noise of its own for each cell."""
    each = [np.random.default_rng(cell).integers(0, 255, (side, side, 3), dtype=np.uint8) for cell in cells]
    return np.array(each, dtype=np.uint8).reshape(-1, side, side, 3)


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def places_of(tile, picture):
    """Corners (row, column) where a picture has the inner pixels of a tile, each repeated as often."""
    inner = tile[8:-8, 8:-8]
    times = round(240 / len(tile))
    first = (picture == inner[0, 0]).all(-1)
    for row, column in np.argwhere(first):
        part = picture[row : row + len(inner) * times : times, column : column + len(inner) * times : times]
        if part.shape == inner.shape and (part == inner).all():
            return [(int(row), int(column))]
    return []


def test_tiles_are_numbered_in_the_order_in_which_they_were_first_drawn():
    grid = Grid(640, 640, 64, 32)
    chosen = selection(grid, [7, 3, 5, 3, 9], draws=2)
    drawn = DrawnTiles.of(chosen, tissue_tiles=100)
    assert drawn.cells.tolist() == [7, 3, 5, 9]
    assert drawn.attention.tolist() == [1.0] * 4
    assert drawn.weight[1] == pytest.approx((chosen.weight[1] + chosen.weight[3]) / 2)
    assert drawn.weight.sum() == pytest.approx(chosen.weight.sum() / 2)
    assert drawn.centres[0].tolist() == [7 * 64 + 32, 32]


def test_the_contact_sheet_has_the_tiles_of_most_evidence_for_the_predicted_class_at_full_resolution(
    tmp_path,
):
    shown = slide(drawn=7)
    figure_of_tiles(tmp_path / "a.png", shown)
    picture = pixels_of(tmp_path / "a.png")
    evidence = np.abs(shown.drawn.evidence["tumour"])
    assert evidence[shown.sheet].tolist() == sorted(evidence.tolist(), reverse=True)
    places = [places_of(tile, picture) for tile in tiles_of(shown.drawn.cells[shown.sheet])]
    assert all(len(each) == 1 for each in places)
    assert places == sorted(places), "from left to right, then down"


def test_without_evidence_tiles_are_sorted_by_weight():
    shown = slide()
    unknown = {name: np.full(5, np.nan) for name in TARGET.names}
    for evidence in ({}, unknown):
        bare = replace(shown, pixels=None, drawn=replace(shown.drawn, evidence=evidence))
        assert bare.sheet.tolist() == np.argsort(-shown.drawn.weight).tolist()
        assert bare.order_of_sheet == "weight"


def test_a_large_selection_is_shown_in_part_and_the_rest_is_counted(tmp_path):
    shown = slide((20, 30), 90, draws=3)
    assert len(shown.sheet) == MOST_TILES
    assert captions.about_sheet(shown) == (
        "25 of 90 tiles, by evidence for tumour; 65 more are in the table of selected tiles"
    )
    assert "dots: other tiles read" in " ".join(captions.legend(shown, 8))
    assert len(write_pictures_of(tmp_path, shown)) == 2


@pytest.mark.parametrize(
    ("shape", "drawn"), [((1, 1), 1), ((1, 40), 8), ((60, 2), 30), ((200, 200), 64), ((3, 5), 1)]
)
def test_slides_of_every_shape_are_drawn(tmp_path, shape, drawn):
    shown = slide(shape, drawn)
    figure_of_slide(tmp_path / "a.png", shown)
    picture = pixels_of(tmp_path / "a.png")
    assert min(picture.shape[:2]) > 200
    assert max(picture.shape[:2]) < 2000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_the_thumbnail_is_in_the_picture_and_attention_beside_it_has_its_own_colours(tmp_path):
    shown = slide()
    red = np.full_like(shown.overview.thumbnail, (200, 10, 10))
    shown = replace(shown, overview=replace(shown.overview, thumbnail=red))
    figure_of_slide(tmp_path / "a.png", shown)
    picture = pixels_of(tmp_path / "a.png").astype(int)
    is_red = (np.abs(picture - (200, 10, 10)) < 3).all(-1)
    columns = np.flatnonzero(is_red.any(0))
    assert columns.max() < picture.shape[1] * 0.55, "the attention panel is over grey"
    assert is_red.mean() > 0.2
    uniform = replace(shown.attention, attention=shown.tissue / shown.tissue.sum())
    figure_of_slide(tmp_path / "b.png", replace(shown, attention=uniform))
    alone = (np.abs(pixels_of(tmp_path / "b.png").astype(int) - (200, 10, 10)) < 3).all(-1)
    assert alone.mean() > 1.3 * is_red.mean(), "uniform attention has no panel"


def test_outlines_are_drawn_along_the_edges_of_cells():
    shown = slide((2, 3))
    mask = np.array([[True, True, False], [False, False, False]])
    points = pictures._outline(shown, mask).reshape(-1, 3, 2)
    assert np.isnan(points[:, 2]).all(), "a gap after each edge"
    edges = {tuple(sorted(map(tuple, each[:2].tolist()))) for each in points}
    assert edges == {
        ((0.0, 0.0), (128.0, 0.0)),
        ((0.0, 64.0), (128.0, 64.0)),
        ((0.0, 0.0), (0.0, 64.0)),
        ((128.0, 0.0), (128.0, 64.0)),
    }


@pytest.mark.parametrize("bounds", [None, Region(64, 128, 256, 192)])
def test_attention_has_the_colour_of_its_cell_in_the_part_that_is_shown(bounds):
    shown = slide((6, 8))
    grid = shown.overview.tissue.grid
    shown = replace(shown, bounds=bounds or Region(0, 0, grid.width, grid.height))
    attention = shown.relative_attention
    colours = pictures._Colours.of(attention)
    x, y, width, height = shown.bounds
    picture = colours.over(np.full((height, width, 3), 100, np.uint8), shown, attention)
    number = np.minimum(255, 256 * colours.place(np.nan_to_num(attention))).astype(int)
    shade = (0.85 * page.COLOURS[number] + 15).astype(np.uint8)
    expected = np.where(shown.tissue[..., None], shade, 100)
    for row, column in np.ndindex(grid.shape):
        inside = picture[max(0, row * 64 - y) : max(0, row * 64 + 64 - y)]
        inside = inside[:, max(0, column * 64 - x) : max(0, column * 64 + 64 - x)]
        assert (np.abs(inside.astype(int) - expected[row, column]) <= 1).all(), (row, column)


def test_further_outlines_have_colours_that_the_legend_names(tmp_path):
    shown = slide()
    figure_of_slide(tmp_path / "a.png", shown)
    marked = replace(shown, outlines={"lesion": shown.tissue})
    figure_of_slide(tmp_path / "b.png", marked)
    orange = [
        (np.abs(pixels_of(tmp_path / f"{name}.png").astype(int) - (0xD5, 0x5E, 0x00)) < 30).all(-1).sum()
        for name in "ab"
    ]
    assert orange[0] < 20 < orange[1]
    assert "orange: lesion" in " ".join(captions.legend(marked, 8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "sampling error not known from a single draw"),
        ({"draws": 2}, "sampling standard error of the log-odds of tumour: 0.12 (2 draws)"),
        ({"draws": 2, "target": RISK}, "sampling standard error of risk: 0.12 (2 draws)"),
        ({"drawn": 99}, "tissue tiles were read, so there is no sampling error"),
    ],
)
def test_the_heading_says_what_the_sampling_error_is(changes, said):
    shown = slide(**changes)
    text = " ".join(captions.heading(shown, 9, shown.counts))
    assert said in text
    assert ("risk 1.5" if "target" in changes else "tumour 0.750, normal 0.250") in text
    read = f"{len(shown.drawn.cells)} of {shown.row['tiles_total']} tissue tiles read"
    assert (read in text) != shown.reads_all


def test_captions_have_evidence_for_each_class_and_no_line_is_longer_than_its_tile():
    many = Target("classification", tuple(f"class number {i}" for i in range(9)))
    grid = Grid(640, 640, 64, 32)
    shown = replace(
        slide(),
        target=many,
        row=slide().row | {f"prob_class number {i}": i / 36 for i in range(9)},
        pixels=None,
    )
    shown = replace(shown, drawn=DrawnTiles.of(selection(grid, [1, 2], target=many), tissue_tiles=4))
    for own, lines in ((slide(), 2), (shown, 7)):
        texts = captions.captions_of(own, 28)
        assert {len(each) for each in texts} == {lines}
        assert max(len(line) for each in texts for line in each) <= 31
    assert texts[0][1].startswith("class number 8 ")
    assert "3 more names" in " ".join(captions.legend_of_sheet(shown, 9))


def test_a_slide_without_tissue_is_drawn_with_the_reason(tmp_path):
    shown = slide(status=Status.NO_TISSUE, error="all 4 tissue cells were left out", tumour=None)
    bare = replace(shown, attention=None, drawn=None, pixels=None)
    assert captions.heading(bare, 9, bare.counts)[1:] == ["no score: all 4 tissue cells were left out"]
    assert write_pictures_of(tmp_path, bare) == [tmp_path / "a.png"]


def test_an_old_contact_sheet_goes_with_its_tiles(tmp_path):
    shown = slide()
    write_pictures_of(tmp_path, shown)
    write_pictures_of(tmp_path, replace(shown, pixels=None))
    assert [path.name for path in tmp_path.rglob("*.png")] == ["a.png"]
    with pytest.raises(SettingsError, match="no tiles to draw"):
        figure_of_tiles(tmp_path / "b.png", replace(shown, pixels=None))


def test_no_slide_has_the_name_of_a_contact_sheet(tmp_path):
    shown = [slide(slide_id=name) for name in ("a", "a_tiles", "tiles")]
    written = [path for each in shown for path in write_pictures_of(tmp_path, each)]
    assert len(set(written)) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_file_is_written_and_the_same_slide_gives_the_same_file(tmp_path, kind):
    shown = slide(slide_id="case $7$_{x} & <b>")
    first, second = (write_pictures_of(tmp_path / name, shown, kind=kind) for name in "ab")
    for one, other in zip(first, second, strict=True):
        data = one.read_bytes()
        assert data == other.read_bytes()
        assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])


def test_an_svg_holds_the_tiles_to_the_pixel(tmp_path):
    shown = slide(drawn=2)
    figure_of_tiles(tmp_path / "a.svg", shown)
    images = re.findall(r"data:image/png;base64,\s*([^\"]+)", (tmp_path / "a.svg").read_text())
    found = []
    for each in images:
        with Image.open(io.BytesIO(base64.b64decode(each))) as image:
            found.append(np.asarray(image.convert("RGB")))
    times = len(found[0]) / 32
    for tile, image in zip(tiles_of(shown.drawn.cells[shown.sheet]), found, strict=True):
        picked = (np.arange(32) * times + times / 2).astype(int)
        # matplotlib's images in SVG are upside down, with a transform that turns them.
        np.testing.assert_array_equal(image[::-1][picked[:, None], picked], tile)


def test_words_in_an_svg_are_text_and_stand_where_those_of_a_png_do(tmp_path):
    shown = slide(slide_id="case $7$ & <b>")
    for kind in ("svg", "png"):
        figure_of_slide(tmp_path / f"a.{kind}", shown, dpi=288)
    svg = parse(tmp_path / "a.svg")
    words = {each.text: each for each in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"case $7$ & <b>", "tiles read", "attention (1 = uniform)"} <= words.keys()
    dark = (pixels_of(tmp_path / "a.png") < 128).all(-1)
    heading = words["case $7$ & <b>"]
    x, baseline = (round(4 * float(heading.get(name))) for name in ("x", "y"))
    assert dark[baseline - 20 : baseline, x : x + 200].mean() > 0.1
    assert not dark[baseline + 14 : baseline + 20, x : x + 200].any()


def test_a_pdf_has_fonts_that_stay_text(tmp_path):
    figure_of_slide(tmp_path / "a.pdf", slide())
    data = (tmp_path / "a.pdf").read_bytes()
    assert b"/FontFile2" in data, "TrueType"
    assert b"/Type3" not in data


def test_more_dots_per_inch_give_more_pixels(tmp_path):
    for dpi in (100, 300):
        figure_of_slide(tmp_path / f"{dpi}.png", slide(), dpi=dpi)
    few, many = (pixels_of(tmp_path / f"{dpi}.png").shape for dpi in (100, 300))
    assert many[0] == pytest.approx(3 * few[0], abs=3)
    with Image.open(tmp_path / "300.png") as picture:
        assert picture.info["dpi"][0] == pytest.approx(300, abs=1)


def test_wrong_values_are_refused(tmp_path):
    shown = slide()
    for path, dpi in ((tmp_path / "a.jpg", 150), (tmp_path / "a.png", 9)):
        with pytest.raises(SettingsError, match=r"a picture is one of|pixels per inch"):
            figure_of_slide(path, shown, dpi=dpi)
    with pytest.raises(SettingsError, match="tiles are shown, not"):
        replace(shown, pixels=shown.pixels[:2])
    with pytest.raises(SettingsError, match="but lesion 2 x 2; score the slide again"):
        replace(shown, outlines={"lesion": np.ones((2, 2), bool)})
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"a\.png"):
        figure_of_slide(tmp_path / "file" / "a.png", shown)


def test_drawing_needs_no_display_and_leaves_pyplot_alone():
    code = "import sys, wsi_ats.results.pictures; print('matplotlib.pyplot' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
