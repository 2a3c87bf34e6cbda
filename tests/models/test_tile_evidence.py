"""Evidence of each tile: compared with scoring without it, and kept pixels with the slide."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tasks.examples import OTHERS

from models.scored import SETTINGS, TARGET, score, tissue_slide
from wsi_ats.models.kinds import model_for
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another


def made_model(settings, target):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = model_for(settings, target).eval()
        for part in (made.attention.logit, made.gate, made.head):
            if part is not None:
                torch.nn.init.normal_(part.weight, std=0.5)
    return made


def by_hand(made, selection, target):
    """Difference of the scores with all rows of a selection and without those of each cell, one by one."""
    features = made.embed(torch.from_numpy(read_tiles(tissue_slide(), selection.grid, selection.cells)))
    weight = torch.from_numpy(selection.weight).float() / (selection.draw.max() + 1)

    def linked(rows):
        rows = torch.from_numpy(rows)
        scores = target.definition.activate(made.classify(made.pool(weight[rows], features[rows])))
        if target.task in ("classification", "multilabel"):
            return (scores / (1 - scores)).log().double().numpy()
        return scores.double().numpy() * target.scale

    with torch.inference_mode():
        whole = linked(np.ones(len(selection.cells), bool))
        return np.stack([whole - linked(selection.cells != cell) for cell in selection.cells])


@pytest.mark.parametrize("pool", ["linear", "gated"])
@pytest.mark.parametrize("target", [TARGET, *OTHERS], ids=lambda target: target.task)
def test_evidence_is_the_change_of_the_score_without_the_tile(target, pool):
    settings = SETTINGS.with_values(
        [f"model.task={target.task}", f"model.pool={pool}", "sampling.draws=4", "sampling.tiles=7"]
    )
    made = made_model(settings, target)
    selection = LoadedModel(made, settings, target, "abc").score(tissue_slide()).selection
    assert len(np.unique(selection.cells)) < len(selection.cells), "some tile is drawn twice"
    assert tuple(selection.evidence) == target.names
    found = np.stack(list(selection.evidence.values()), 1)
    expected = by_hand(made, selection, target)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 1e-3


def test_with_linear_pooling_evidence_adds_up_to_the_log_odds_less_those_without_any_tile():
    target = Target("classification", ("no", "yes"))
    settings = SETTINGS.with_values(["model.pool=linear", "sampling.draws=3"])
    made = made_model(settings, target)
    scored = LoadedModel(made, settings, target, "abc").score(tissue_slide())
    _, first = np.unique(scored.selection.cells, return_index=True)
    no, yes = scored.prediction.scores.values()
    bias = made.head.bias.detach().double().numpy()
    total = scored.selection.evidence["yes"][first].sum()
    assert total == pytest.approx(np.log(yes / no) - (bias[1] - bias[0]), abs=1e-4)
    np.testing.assert_allclose(scored.selection.evidence["no"], -scored.selection.evidence["yes"], atol=1e-5)


def test_a_single_tile_has_no_evidence_if_the_estimate_divides_by_the_weights(model):
    only = score(model, changes=["sampling.tiles=1"]).selection
    assert all(np.isnan(values).all() for values in only.evidence.values())
    assert only.columns()["evidence_benign"] == [None]


def test_kept_tiles_are_those_of_the_selection_and_nothing_is_read_for_them(model):
    loaded = LoadedModel(model, SETTINGS.with_values(["sampling.draws=3"]), TARGET, "abc")
    plain, kept = (loaded.score(tissue_slide(), keep_tiles=keep) for keep in (False, True))
    assert plain.tiles is None
    assert plain.overview is None
    assert kept.prediction.scores == plain.prediction.scores
    tiles, selection = kept.tiles, kept.selection
    assert tiles.cells.tolist() == sorted(set(selection.cells.tolist()))
    assert all(one < other for one, other in pairwise(tiles.cells))
    np.testing.assert_array_equal(tiles.pixels, read_tiles(tissue_slide(), selection.grid, tiles.cells))
    with torch.inference_mode():
        features = model.embed(torch.from_numpy(tiles.pixels))
    np.testing.assert_allclose(tiles.features, features, atol=1e-5)
    assert kept.overview.thumbnail.shape[:2] == tuple(4 * side for side in kept.attention.grid.shape)


def test_a_notebook_shows_numbers_and_pictures_of_kept_tiles(model):
    loaded = LoadedModel(model, SETTINGS, TARGET, "abc")
    ref = SlideRef("<b>&", "memory.svs", "patient")
    plain, kept = (loaded.score(tissue_slide(), ref=ref, keep_tiles=keep) for keep in (False, True))
    assert "&lt;b&gt;&amp;" in plain._repr_html_()
    assert "<b>" not in plain._repr_html_()
    assert f"{plain.prediction.scores['prob_benign']:.4g}" in plain._repr_html_()
    assert "keep_tiles=True" in plain._repr_html_()
    assert kept._repr_html_().count("src='data:image/png;base64,") == 2
