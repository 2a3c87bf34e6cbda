"""Scoring reads the thumbnail and the drawn tiles, and says what it did."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tifffile
import torch

from wsi_ats.errors import MppError, SettingsError, SlideReadError
from wsi_ats.models import scoring as inference
from wsi_ats.models.base import DrawLogits, WeightedTiles, draw_seed
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.models.stopping import MOST_DRAWS
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import BIASED, DESIGNS, draw
from wsi_ats.overview.overview import look
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.records import Status, Stop
from wsi_ats.settings import LEAST_DRAWS, Settings
from wsi_ats.slides import open_slide
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.recording import RecordingSlide

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another

TARGET = Target("classification", ("benign", "malignant", "other"))
SETTINGS = Settings().with_values(
    [
        "tile.size=32",
        "thumbnail.pixels_per_cell=4",
        "model.backbone=test_resnet",
        "model.pretrained=false",
        "sampling.tiles=5",
        "sampling.exploration=0.0",  # draws by hand are by attention alone
    ]
)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model_for(SETTINGS, TARGET)
        made.encoder.calibrate(torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8))
        for part in (made.attention.logit, made.gate, made.head):
            torch.nn.init.normal_(part.weight, std=0.5)
    return made.eval()


def tissue_slide(kind=MemorySlide, **options) -> MemorySlide:
    """Tissue in the middle of glass, four levels; 10 x 13 cells of which about half are tissue."""
    generator = np.random.default_rng(0)
    pixels = generator.normal(240, 2, (320, 400, 3))
    pixels[64:256, 48:352] = generator.normal((190, 110, 170), 30, (192, 304, 3))
    full = pixels.clip(0, 255).astype(np.uint8)
    levels = [
        full.reshape(320 // factor, factor, 400 // factor, factor, 3).mean((1, 3)).astype(np.uint8)
        for factor in (1, 2, 4, 8)
    ]
    return kind(levels, mpp=0.5, path="memory.svs", **options)


def score(model, slide=None, *, changes=(), seed=0, name="case7"):
    loaded = LoadedModel(model, SETTINGS.with_values(changes), TARGET, "abc")
    return loaded.score(slide or tissue_slide(), ref=SlideRef(name, "memory.svs", "patient"), seed=seed)


# What is read


@pytest.mark.parametrize(
    ("design", "draws"),
    [(name, draws) for name in DESIGNS for draws in (1, 3) if draws == 1 or name != "top"],
)
def test_nothing_is_read_but_the_thumbnail_and_each_drawn_tile_once(model, design, draws):
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


def test_a_slide_that_reads_no_pixel_outside_what_is_drawn_would_do(model):
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


# How many draws


def chosen_draws(model, slide):
    """The iterator that scoring takes its draws from, and the tissue."""
    thumbnail, tissue = look(slide, SETTINGS)
    seeds = (draw_seed(0, "case7", number) for number in itertools.count())
    return method_for(model, SETTINGS).score(slide, thumbnail, tissue, seeds), tissue


def test_a_draw_reads_when_it_is_asked_for_and_only_what_none_before_it_has_read(model):
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
    thumbnail, tissue = look(tissue_slide(), SETTINGS)
    seeds = (asked.append(number) or number for number in itertools.count())
    draws = method_for(model, SETTINGS).score(tissue_slide(), thumbnail, tissue, seeds)
    assert asked == []
    next(draws)
    next(draws)
    assert asked == [0, 1]
    assert not torch.is_inference_mode_enabled()  # what goes on inside stays there


class Scripted:
    """A method whose draws say what they are told to; it notes how many were taken."""

    def __init__(self, log_odds, new_tiles):
        self.log_odds, self.new_tiles, self.taken = log_odds, new_tiles, 0

    def score(self, slide, thumbnail, tissue, seeds, encoder):
        attention = torch.full((len(tissue.cells),), 1 / len(tissue.cells))
        one = torch.ones(1)
        tiles = WeightedTiles(tissue.grid, tissue.cells[:1], attention[:1], one, one)
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
def test_where_every_draw_takes_all_tiles_no_draw_is_added(model, limit):
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


# What is computed


def by_hand(model, settings, *, seed=0, name="case7"):
    """Logits of every draw, and the probabilities of all together, step by step."""
    slide = tissue_slide()
    thumbnail, tissue = look(slide, settings)
    cells = torch.from_numpy(tissue.cells)
    with torch.inference_mode():
        attention = model.attend(torch.from_numpy(thumbnail), cells, tissue.grid.shape)
        logits, weights, drawn = [], [], []
        for number in range(settings.sampling.draws):
            one = draw(
                settings.sampling.design,
                attention,
                cells=cells,
                shape=tissue.grid.shape,
                n=settings.sampling.tiles,
                generator=torch.Generator().manual_seed(draw_seed(seed, name, number)),
            )
            tiles = read_tiles(slide, tissue.grid, tissue.cells[one.indices.numpy()])
            features = model.embed(torch.from_numpy(tiles))
            weights.append(expectation.weights(attention, one))
            drawn.append(features)
            logits.append(model.classify(model.pool(weights[-1], features)))
        share = torch.cat(weights) / len(weights)
        together = torch.softmax(model.classify(model.pool(share, torch.cat(drawn))), 0)
    return torch.stack(logits).double().numpy(), together.numpy(), attention, tissue


@pytest.mark.parametrize("design", [name for name in DESIGNS if name not in BIASED])
def test_probability_is_of_all_draws_together_and_its_error_that_of_their_log_odds(model, design):
    changes = [f"sampling.design={design}", "sampling.draws=4"]
    logits, together, _, _ = by_hand(model, SETTINGS.with_values(changes))
    found = score(model, changes=changes).prediction
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert tuple(found.scores) == TARGET.columns
    np.testing.assert_allclose(list(found.scores.values()), together, atol=1e-6)
    best = together.argmax()
    assert found.predicted == TARGET.names[best]
    odds = np.log(shares[:, best] / (1 - shares[:, best]))
    assert found.logit_se == pytest.approx(odds.std(ddof=1) / math.sqrt(4), rel=1e-4)
    assert found.logit_se > 0.001


OTHER_TARGETS = [
    Target("multilabel", ("er", "her2", "pr")),
    Target("regression", ("value",), 100.0, 7.0),
    Target("survival", ("risk",)),
]


@pytest.mark.parametrize("target", OTHER_TARGETS, ids=lambda target: target.task)
def test_other_tasks_have_scores_and_errors_in_their_own_units(model, target):
    logits = torch.tensor([[0.1, -2.0, 3.0], [0.3, -1.0, 3.5], [0.2, -3.0, 2.5]])[:, : target.outputs]
    together = torch.tensor([0.25, -2.5, 3.0])[: target.outputs]
    draws = [DrawLogits(each, together=together) for each in logits]
    scores, error = inference._scores(draws, target), inference._sampling_error(draws, target)
    expected = {
        "multilabel": (1 / (1 + np.exp([-0.25, 2.5, -3.0])), 1.0),  # of her2, the most uncertain
        "regression": ([101.75], 0.7),
        "survival": ([0.25], 0.1),
    }
    values, spread = expected[target.task]
    np.testing.assert_allclose(scores, values, rtol=1e-6)
    assert error == pytest.approx(spread / math.sqrt(3), rel=1e-5)
    assert inference._sampling_error(draws[:1], target) is None


@pytest.mark.parametrize("target", OTHER_TARGETS, ids=lambda target: target.task)
def test_a_model_of_another_task_gives_its_columns(target):
    settings = SETTINGS.with_values([f"model.task={target.task}"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model_for(settings, target).eval()
    changes = settings.with_values(["sampling.draws=3"])
    scored = LoadedModel(made, settings, target, "abc").score(tissue_slide(), settings=changes)
    found = scored.prediction
    assert tuple(found.scores) == target.columns == tuple(scored.selection.scores)
    assert found.predicted == target.decide(found.scores)
    assert found.logit_se >= 0


def test_one_draw_has_no_sampling_error(model):
    assert score(model).prediction.logit_se is None


@pytest.mark.parametrize("design", ["systematic", "uniform"])
def test_as_many_tiles_as_there_is_tissue_give_the_exact_model(model, design):
    _, _, attention, tissue = by_hand(model, SETTINGS)
    with torch.inference_mode():
        features = model.embed(torch.from_numpy(read_tiles(tissue_slide(), tissue.grid, tissue.cells)))
        pooled = expectation.exact(attention, features, model.gate(features)[:, 0])
        exact = torch.softmax(model.classify(pooled), 0)
    changes = ["sampling.tiles=500", "sampling.draws=2", f"sampling.design={design}"]
    found = score(model, changes=changes).prediction
    np.testing.assert_allclose(list(found.scores.values()), exact, atol=1e-6)
    assert found.logit_se == pytest.approx(0, abs=1e-6)
    assert found.tiles_read == found.tiles_total == len(tissue.cells)


def test_attention_and_selection_say_why_each_tile_was_read(model):
    scored = score(model, changes=["sampling.draws=2"])
    _, _, attention, tissue = by_hand(model, SETTINGS)
    shown, chosen = scored.attention, scored.selection
    assert shown.grid == chosen.grid == tissue.grid
    assert shown.attention.sum() == pytest.approx(1, abs=1e-6)
    assert (shown.attention[~tissue.mask] == 0).all()
    np.testing.assert_allclose(shown.attention[tissue.mask], attention, atol=1e-7)
    np.testing.assert_allclose(chosen.attention, shown.attention.flat[chosen.cells], atol=1e-12)
    np.testing.assert_allclose(chosen.weight, chosen.attention / chosen.inclusion, rtol=1e-5)
    np.testing.assert_allclose([chosen.weight[chosen.draw == i].sum() for i in (0, 1)], 1, atol=1e-5)
    assert set(chosen.cells) <= set(tissue.cells)
    assert chosen.level == 0
    assert chosen.scores == scored.prediction.scores


# Rows


def test_a_row_has_the_columns_that_users_were_promised(model):
    row = score(model).prediction.row(TARGET.columns)
    assert list(row) == [
        "slide_id",
        "case_id",
        "path",
        "status",
        "prob_benign",
        "prob_malignant",
        "prob_other",
        "predicted",
        "logit_se",
        "stopped_by",
        "draws",
        "tiles_read",
        "tiles_total",
        "tiles_empty",
        "bytes_read",
        "seconds",
        "model_digest",
        "seed",
        "error",
        "log_weight",
    ]
    assert row["status"] == "done"
    assert (row["slide_id"], row["case_id"], row["path"]) == ("case7", "patient", "memory.svs")
    assert (row["draws"], row["seed"], row["model_digest"], row["error"]) == (1, 0, "abc", None)
    assert sum(row[name] for name in TARGET.columns) == pytest.approx(1, abs=1e-6)
    assert row["seconds"] > 0


def test_no_tissue_is_a_state_and_not_a_score(model, no_tissue):
    scored = score(model, no_tissue)
    assert scored.attention is scored.selection is None
    row = scored.prediction.row(TARGET.columns)
    assert row["status"] == scored.prediction.status == Status.NO_TISSUE == "no_tissue"
    assert [row[name] for name in TARGET.columns] == [None] * 3
    assert (row["predicted"], row["draws"], row["tiles_read"], row["tiles_total"]) == (None, 0, 0, 0)


def test_a_slide_in_other_colours_than_the_model_s_is_refused(model):
    with pytest.raises(SettingsError, match=r"its colour is 'stored', but tile\.colour is 'srgb'"):
        score(model, changes=["tile.colour=srgb"])


def test_a_model_in_training_mode_is_refused(model):
    model.train()
    try:
        with pytest.raises(SettingsError, match=r"model\.eval\(\)"):
            score(model)
    finally:
        model.eval()


def test_scoring_leaves_model_and_global_generator_as_they_were(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    score(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_a_slide_without_resolution_is_an_error_before_anything_is_read(model):
    slide = RecordingSlide([np.zeros((64, 64, 3), np.uint8)], mpp=None)
    with pytest.raises(MppError):
        score(model, slide)
    assert slide.boxes == []


def test_a_slide_of_one_cell_can_be_scored(model):
    small = MemorySlide([np.full((20, 30, 3), 120, np.uint8)], mpp=0.5)
    found = score(model, small, changes=["thumbnail.tissue=none", "sampling.draws=2"]).prediction
    assert (found.tiles_total, found.tiles_read) == (1, 1)
    assert found.logit_se == pytest.approx(0, abs=1e-6)


def test_half_precision_reads_the_same_tiles_and_nearly_gives_the_same_score(model):
    changes = ("tile.size=64", "sampling.tiles=3")  # of smaller tiles processors compute wrong numbers
    full, half = (
        score(model, changes=[*changes, f"scoring.precision={name}"]) for name in ("float32", "bfloat16")
    )
    assert np.array_equal(half.selection.cells, full.selection.cells)
    assert np.array_equal(half.attention.attention, full.attention.attention)
    for name, value in full.prediction.scores.items():
        assert half.prediction.scores[name] == pytest.approx(value, abs=0.02)
        assert half.prediction.scores[name] != value
