"""Scores of a slide: compared with a computation by hand, for every task, and in special cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tasks.examples import OTHERS

from models.scored import SETTINGS, TARGET, score, tissue_slide
from wsi_ats.errors import MppError, SettingsError
from wsi_ats.models import scoring as inference
from wsi_ats.models.base import DrawLogits, draw_seed
from wsi_ats.models.kinds import model_for
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.nn import expectation
from wsi_ats.nn.sampling import BIASED, DESIGNS, draw
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.results.records import Status
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.testing.recording import RecordingSlide

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another


# Values


def by_hand(model, settings, *, seed=0, name="case7"):
    """Logits of every draw, and the probabilities of all together, step by step."""
    slide = tissue_slide()
    overview = read_overview(slide, settings)
    thumbnail, tissue = overview.thumbnail, overview.tissue
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


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.task)
def test_other_tasks_have_scores_and_errors_in_their_own_units(model, target):
    logits = torch.tensor([[0.1, -2.0, 3.0], [0.3, -1.0, 3.5], [0.2, -3.0, 2.5]])[:, : target.outputs]
    together = torch.tensor([0.25, -2.5, 3.0])[: target.outputs]
    draws = [DrawLogits(each, pooled_logits=together) for each in logits]
    scores, error = inference._scores(draws, target), inference._sampling_error(draws, target)
    expected = {
        "multilabel": (1 / (1 + np.exp([-0.25, 2.5, -3.0])), 1.0),  # of her2, the most uncertain
        "regression": ([108.75], 0.7),
        "survival": ([0.25], 0.1),
    }
    values, spread = expected[target.task]
    np.testing.assert_allclose(scores, values, rtol=1e-6)
    assert error == pytest.approx(spread / math.sqrt(3), rel=1e-5)
    assert inference._sampling_error(draws[:1], target) is None


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.task)
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


def test_a_row_has_the_documented_columns(model):
    row = score(model).prediction.row(TARGET.columns)
    assert list(row) == [
        *("slide_id", "case_id", "path", "status", "prob_benign", "prob_malignant", "prob_other"),
        *("predicted", "logit_se", "stopped_by", "draws", "tiles_read", "tiles_total", "tiles_empty"),
        *("bytes_read", "seconds", "model_digest", "seed", "error", "log_weight"),
    ]
    assert row["status"] == "done"
    assert (row["slide_id"], row["case_id"], row["path"]) == ("case7", "patient", "memory.svs")
    assert (row["draws"], row["seed"], row["model_digest"], row["error"]) == (1, 0, "abc", None)
    assert sum(row[name] for name in TARGET.columns) == pytest.approx(1, abs=1e-6)
    assert row["seconds"] > 0


def test_a_slide_without_tissue_has_a_status_and_no_score(model, no_tissue):
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
