"""Scoring reads the thumbnail and the drawn tiles, draw by draw, until the error is small."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tifffile
import torch

from models.scored import SETTINGS, TARGET, draws_of, score, tissue_slide
from wsi_ats.errors import SettingsError, SlideReadError
from wsi_ats.models import scoring as inference
from wsi_ats.models.base import DrawLogits, WeightedTiles, draw_seed
from wsi_ats.models.evidence import TileAttention
from wsi_ats.models.kinds import method_for
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.models.stopping import MOST_DRAWS
from wsi_ats.nn.sampling import BIASED, DESIGNS
from wsi_ats.overview.overview import read_overview
from wsi_ats.results.records import Stop
from wsi_ats.settings import LEAST_DRAWS
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.testing.recording import RecordingSlide

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another


# Reads


@pytest.mark.parametrize(
    ("design", "draws"),
    [(name, draws) for name in DESIGNS for draws in (1, 3) if draws == 1 or name != "top"],
)
def test_only_the_thumbnail_and_drawn_tiles_are_read_each_once(model, design, draws):
    slide = tissue_slide(RecordingSlide)
    scored = score(model, slide, changes=[f"sampling.design={design}", f"sampling.draws={draws}"])
    thumbnail = [box for box in slide.boxes if box[0] != 0]
    tiles = [box for box in slide.boxes if box[0] == 0]
    assert thumbnail == [(3, 0, 0, 52, 40)]  # of level 3, whose pixels are those of the thumbnail
    grid = scored.selection.grid
    drawn = [grid.region(cell) for cell in np.unique(scored.selection.cells)]
    assert sorted(tiles) == sorted((0, *region) for region in drawn)
    assert scored.prediction.tiles_read == len(drawn) <= 5 * draws
    assert slide.boxes[0] == thumbnail[0]  # the tiles are chosen by it


def test_pixels_outside_thumbnail_and_drawn_tiles_are_never_needed(model):
    """All other pixels of level 0 may be unreadable."""
    wanted = np.unique(score(model).selection.cells)
    grid = score(model).selection.grid

    class Damaged(MemorySlide):
        def read_regions(self, level, corners, width, height):
            good = {tuple(box[:2]) for box in grid.boxes(wanted).tolist()}
            if level == 0 and not {tuple(c) for c in corners.tolist()} <= good:
                raise SlideReadError(self.path, "damaged")
            return super().read_regions(level, corners, width, height)

    again = score(model, tissue_slide(Damaged))
    assert again.prediction.scores == score(model).prediction.scores
    with pytest.raises(SlideReadError):  # and a tile that cannot be read is never made up
        score(model, tissue_slide(Damaged), seed=1)


def test_bytes_read_are_those_of_the_files_tiles(model):
    class Stored(MemorySlide):
        def stored_bytes(self, level, corners, width, height):
            return 1000 * len(corners) + level

    assert score(model, tissue_slide(Stored)).prediction.bytes_read == (1000 + 3) + 5 * 1000
    assert score(model).prediction.bytes_read is None


def test_a_path_a_reference_and_an_open_slide_give_the_same(model, tmp_path):
    path = tmp_path / "case7.tif"
    tifffile.imwrite(
        path,
        tissue_slide().read_regions(0, np.array([[0, 0]]), 400, 320)[0],
        photometric="rgb",
        tile=(32, 32),
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    loaded = LoadedModel(model, SETTINGS, TARGET, "abc")
    ref = SlideRef.from_path(path)
    with open_slide(ref) as slide:
        scored = [loaded.score(each) for each in (str(path), path, ref, slide)]
        assert slide.levels[0].width == 400  # it is still open
    assert all(each.prediction.scores == scored[0].prediction.scores for each in scored)
    assert {each.prediction.slide_id for each in scored} == {"case7"}
    with pytest.raises(SettingsError, match="is for a slide that is open"):
        loaded.score(path, ref=ref)


def test_settings_that_the_model_was_not_trained_with_are_refused(model):
    loaded = LoadedModel(model, SETTINGS, TARGET, "abc")
    more = loaded.score(tissue_slide(), settings=SETTINGS.with_values(["sampling.draws=2"]))
    assert more.prediction.draws == 2
    for change in ("tile.size=64", "training.epochs=3", "model.kind=uniform"):
        with pytest.raises(SettingsError, match=change.split("=")[0]):
            loaded.score(tissue_slide(), settings=SETTINGS.with_values([change]))


# Number of draws


def chosen_draws(model, slide):
    """The iterator that scoring takes its draws from, and the tissue."""
    overview = read_overview(slide, SETTINGS)
    tissue = overview.tissue
    seeds = (draw_seed(0, "case7", number) for number in itertools.count())
    return draws_of(method_for(model, SETTINGS), slide, overview, seeds), tissue


def test_a_draw_reads_lazily_and_skips_tiles_read_before(model):
    slide = tissue_slide(RecordingSlide)
    draws, tissue = chosen_draws(model, slide)
    known: set[int] = set()
    for each in itertools.islice(draws, 12):
        before, new = len(slide.boxes), set(each.tiles.cells.tolist()) - known
        assert each.new_tiles == len(new)
        known |= new
        boxes = [box for box in slide.boxes if box[0] == 0]
        assert sorted(boxes) == sorted((0, *tissue.grid.region(cell)) for cell in known)
        assert len(slide.boxes) == before
    assert len(known) < 12 * 5  # some were drawn again


def test_draws_ask_for_no_more_seeds_than_they_need(model):
    asked = []
    overview = read_overview(tissue_slide(), SETTINGS)
    seeds = (asked.append(number) or number for number in itertools.count())
    draws = draws_of(method_for(model, SETTINGS), tissue_slide(), overview, seeds)
    assert asked == []
    next(draws)
    next(draws)
    assert asked == [0, 1]
    assert not torch.is_inference_mode_enabled()  # what goes on inside stays there


class Scripted:
    """A method with scripted draws; it counts those taken."""

    def __init__(self, log_odds, new_tiles):
        self.log_odds, self.new_tiles, self.taken = log_odds, new_tiles, 0

    def score(self, slide, overview, seeds, encoder):
        tissue = overview.tissue
        attention = torch.full((len(tissue.cells),), 1 / len(tissue.cells))
        one = torch.ones(1)
        attended = TileAttention(one, one[0], one[0], 1.0)
        tiles = WeightedTiles(tissue.grid, tissue.cells[:1], attention[:1], one, one, attended)
        for _, odds, new in zip(seeds, self.log_odds, self.new_tiles, strict=False):
            self.taken += 1
            # Two classes of equal weight beside the first: its log-odds are `odds`.
            logits = torch.tensor([odds + math.log(2), 0.0, 0.0])
            yield DrawLogits(logits, tiles, new, attention)


def scripted(monkeypatch, model, log_odds, new_tiles, *changes):
    method = Scripted(log_odds, new_tiles)
    monkeypatch.setattr(inference, "method_for", lambda *_: method)
    found = score(model, changes=changes).prediction
    assert found.draws == method.taken  # none is drawn and then left
    return found


def test_scoring_ends_when_the_error_is_within_the_tolerance(monkeypatch, model):
    # Standard errors of 1, 2, 1, 2 ... are 0.5 * sqrt(R / (R - 1)) / sqrt(R) = 0.5 / sqrt(R - 1) for even R.
    odds = [1.0, 2.0] * 100
    found = scripted(monkeypatch, model, odds, [1] * 200, "sampling.tolerance=0.126")
    assert (found.draws, found.stopped_by) == (17, Stop.TOLERANCE)
    assert found.logit_se <= 0.126
    loose = scripted(monkeypatch, model, odds, [1] * 200, "sampling.tolerance=10")
    assert (loose.draws, loose.stopped_by) == (LEAST_DRAWS, Stop.TOLERANCE)
    never = scripted(monkeypatch, model, odds, [1] * 200, "sampling.tolerance=0.001")
    assert (never.draws, never.stopped_by) == (MOST_DRAWS, Stop.MAX_DRAWS)
    assert never.logit_se > 0.001


def test_a_model_that_does_not_sample_has_one_draw(monkeypatch, model):
    found = scripted(monkeypatch, model, [1.0], [3], "sampling.tolerance=0.1")
    assert (found.draws, found.stopped_by, found.logit_se) == (1, Stop.DRAWS, None)


@pytest.mark.parametrize("design", [name for name in DESIGNS if name not in BIASED])
@pytest.mark.parametrize("most", [5, 9, 20, 44, 1000])
def test_the_budget_is_never_passed_and_larger_ones_append_draws(model, design, most):
    changes = [f"sampling.design={design}", f"sampling.max_tiles={most}"]
    scored, more = (
        score(model, changes=changes),
        score(model, changes=[*changes[:1], "sampling.max_tiles=50"]),
    )
    assert scored.prediction.tiles_read <= most
    assert scored.prediction.stopped_by in {Stop.MAX_TILES, Stop.MAX_DRAWS}
    if scored.prediction.stopped_by is Stop.MAX_TILES:
        assert scored.prediction.tiles_read + 5 > most
    both = min(len(scored.selection.cells), len(more.selection.cells))
    assert scored.selection.cells[:both].tolist() == more.selection.cells[:both].tolist()


def test_a_slide_that_ends_above_the_tolerance_says_so(model):
    changes = ["sampling.tolerance=1e-6", f"sampling.max_tiles={5 * LEAST_DRAWS}"]
    found = score(model, changes=changes).prediction
    assert found.stopped_by is Stop.MAX_TILES
    assert found.row(TARGET.columns)["stopped_by"] == "max_tiles"
    assert found.logit_se > 1e-6


@pytest.mark.parametrize("limit", ["sampling.tolerance=1e-9", "sampling.max_tiles=100000"])
def test_no_draw_is_added_where_each_takes_all_tiles(model, limit):
    found = score(model, changes=["sampling.tiles=500", limit]).prediction
    least = LEAST_DRAWS if "tolerance" in limit else 2
    assert (found.draws, found.stopped_by, found.logit_se) == (least, Stop.TOLERANCE, 0)
    assert found.tiles_read == found.tiles_total


# Which tiles


def test_seed_of_a_draw_is_the_same_everywhere():
    """Written down, so that another version or computer that differed would be noticed."""
    assert draw_seed(0, "case7", 0) == 3010077927805812
    seeds = {draw_seed(s, n, d) for s in (0, 1) for n in ("a", "a1") for d in (0, 1, 11)}
    assert len(seeds) == 12
    assert draw_seed(1, "1", 1) != draw_seed(11, "", 1)


def test_a_slide_gets_the_same_tiles_in_any_order_of_slides_and_others_by_another_seed(model):
    names = ["a", "b", "c"]
    there = {name: score(model, name=name).selection.cells.tolist() for name in names}
    torch.manual_seed(5)
    torch.rand(3)
    back = {name: score(model, name=name).selection.cells.tolist() for name in reversed(names)}
    assert there == back
    assert there["a"] != there["b"]
    assert there["a"] != score(model, name="a", seed=1).selection.cells.tolist()


def test_more_draws_begin_with_the_same_tiles(model):
    one, three = score(model).selection, score(model, changes=["sampling.draws=3"]).selection
    assert three.cells[three.draw == 0].tolist() == one.cells.tolist()
    assert np.bincount(three.draw).tolist() == [5, 5, 5]
    assert three.order.tolist() == [*range(5)] * 3
