"""The phases of a training: which there are, and what learns in each."""

from __future__ import annotations

import pytest
import torch

from training.phase_runs import CLASSIFIER, PHASES, start_of
from training.runs import SETTINGS, assert_same_weights, metrics_in, run, trained
from wsi_ats.models import drawing
from wsi_ats.settings import Settings
from wsi_ats.training import distillation as distilling
from wsi_ats.training.phases import Phase, phases_of

pytestmark = pytest.mark.usefixtures("trusted")

# Which there are


def test_phases_are_those_that_have_epochs():
    def names(*changes: str) -> list[tuple[str, int, int]]:
        return [(each.name, each.epochs, each.tiles) for each in phases_of(SETTINGS.with_values(changes))]

    assert names(*PHASES) == [("classifier", 2, 5), ("attention", 3, 10), ("joint", 2, 3)]
    assert names(*PHASES, "training.epochs=0") == [("attention", 3, 10), ("joint", 2, 3)]
    for kind in ("uniform", "mil", "image"):
        assert names(*PHASES, f"model.kind={kind}") == [("classifier", 2, 5)]
        assert names(*PHASES, f"model.kind={kind}", "training.epochs=0") == []


def test_a_phase_draws_its_own_number_of_tiles_and_as_many_in_each_region_as_ever():
    settings = Settings().with_values(["sampling.tiles=64", "sampling.regions=8", "sampling.max_tiles=640"])
    for tiles, regions in ((64, 8), (256, 32), (8, 1), (9, 2), (1, 1)):
        found = Phase("attention", 1, ("attention",), tiles).settings(settings).sampling
        assert (found.tiles, found.regions, found.max_tiles) == (tiles, regions, 0)


def test_every_epoch_names_its_phase_and_has_the_same_columns(whole):
    found, folder = whole
    table = metrics_in(folder)
    assert table["phase"] == ["classifier"] * 2 + ["attention"] * 3 + ["joint"] * 2
    assert [int(float(value)) for value in table["epoch"]] == list(range(7))
    assert [row["phase"] for row in found.rows] == table["phase"]
    tiles = [int(float(value)) for value in table["tiles"]]
    assert tiles == [8 * 5, 8 * 5, (8 + 4) * 10, 0, 0, 8 * 3, 8 * 3]
    assert [value == "" for value in table["gain"]] == [False] * 2 + [True] * 3 + [False] * 2
    assert [value == "" for value in table["staleness"]] == [False] * 2 + [True] * 3 + [False] * 2
    for value in table["effective_cells"][:2]:
        assert float(value) == pytest.approx(20)  # uniform
    for name in ("loss", "gain", "auc"):
        assert table[f"uniform_{name}"][:2] == table[f"validation_{name}"][:2]
        assert len(set(table[f"uniform_{name}"][2:5])) == 1  # the classifier is fixed
    assert found.by_attention.keys() == found.by_uniform.keys() >= {"loss", "auc"}


# The classifier


def test_the_classifier_learns_from_uniform_draws_and_attention_stays_as_it_is(tmp_path, monkeypatch):
    logits, real = [], drawing.draw_cells

    def draw_cells(given, tissue, settings, seed):
        logits.append((given.clone(), settings.tiles))
        return real(given, tissue, settings, seed)

    monkeypatch.setattr(drawing, "draw_cells", draw_cells)
    start = start_of(*CLASSIFIER)
    found = trained(tmp_path, *CLASSIFIER, network=lambda: start_of(*CLASSIFIER), validation=[])
    assert {tiles for _, tiles in logits} == {5}
    assert len(logits) == 2 * 8
    assert not any(each.any() for each, _ in logits)
    assert_same_weights(found.model.attention, start.attention)  # it does not decay either
    assert not torch.equal(found.model.head.weight, start.head.weight)
    assert not torch.equal(found.model.gate.weight, start.gate.weight)
    backbones = zip(found.model.encoder.network.parameters(), start.encoder.network.parameters(), strict=True)
    assert all(not torch.equal(one, other) for one, other in backbones)
    assert found.model.attention_scale == 0  # nothing is known of it
    assert found.trust == distilling.Trust(0.0, None, None, None, 0)


def test_a_classifier_of_uniform_draws_is_that_of_the_kind_without_attention(tmp_path):
    """The same slides, draws and rates, and so the same weights, if it starts as the other."""

    def without():
        model = start_of(*CLASSIFIER)
        model.attention = None
        return model

    one = run(tmp_path / "sampling", *CLASSIFIER, network=lambda: start_of(*CLASSIFIER))
    other = run(tmp_path / "uniform", *CLASSIFIER, "model.kind=uniform", network=without)
    for name in ("encoder", "head", "gate"):
        assert_same_weights(getattr(one, name), getattr(other, name))
    rows = [metrics_in(tmp_path / name) for name in ("sampling", "uniform")]
    assert rows[0] == rows[1]
