"""What a survey finds, and how far attention is trusted by slides that it did not learn from."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from test_training import SETTINGS, TRAINING, slide_of, unreadable
from test_training_phases import Recorded, start_of

from wsi_ats.batches import TileReader
from wsi_ats.distilling import SCALES, Trust, loss, recall, survey, trust
from wsi_ats.geometry import Grid
from wsi_ats.methods import method_for
from wsi_ats.methods.base import WeightedTiles
from wsi_ats.methods.sampling import Chosen, Evidence
from wsi_ats.nn.distillation import influence, target
from wsi_ats.phases import Phase

CELLS = 60
UNIFORM = torch.full((CELLS,), 1 / CELLS, dtype=torch.float64)
DRAWS = {"tiles": 4, "exploration": 0.1, "seed": 7}


def normal(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(size or (CELLS,), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Attention(torch.nn.Module):
    """Stands for a network: its scale is all that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("attention_scale", torch.ones(()))


def judge(model: Attention, logits: torch.Tensor, said: torch.Tensor) -> Evidence:
    """Evidence of a slide of which all cells are known."""

    def weigh() -> Chosen:
        attention = torch.softmax(model.attention_scale * logits, 0)
        tiles = WeightedTiles(
            grid=Grid(CELLS * 16, 16, cell=16, tile_size=16),
            cells=np.arange(CELLS),
            attention=attention,
            inclusion=UNIFORM,
            weight=attention,
        )
        return Chosen(tiles, torch.zeros(()), torch.zeros(()), 0.0)

    return Evidence(weigh, UNIFORM, UNIFORM, said, classes=True)


def lesion(number: int) -> torch.Tensor:
    """Which cells of a slide have what makes its class; slides of odd numbers have some."""
    return (normal(number).argsort().argsort() < 3) & (number % 2 == 1)


def said_of(number: int) -> torch.Tensor:
    """A gate and two outputs of each tile: those of a lesion speak loudly, the others for the other class."""
    found = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).expand(CELLS, -1).clone()
    found[lesion(number)] = torch.tensor([4.0, -6.0, 6.0], dtype=torch.float64)
    return found + 0.1 * normal(900 + number, CELLS, 3)


SLIDES = range(16)
LABELS = torch.tensor([number % 2 for number in SLIDES])


def figure(outputs: torch.Tensor) -> float:
    """The larger the better, as those of all tasks that choose."""
    return -torch.nn.functional.cross_entropy(outputs, LABELS[: len(outputs)]).item()


def judges_of(model: Attention, logits) -> list[Evidence]:
    return [judge(model, logits(number), said_of(number)) for number in SLIDES]


def figure_at(model: Attention, judges: list[Evidence], scale: float) -> float:
    """Mean figure over many draws at a scale of attention."""
    model.attention_scale.fill_(scale)
    outputs = [
        each.simulate(4, exploration=0.1, draws=400, generator=torch.Generator().manual_seed(number))
        for number, each in enumerate(judges)
    ]
    return fmean(figure(each) for each in torch.stack(outputs, 1))


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_attention_that_finds_what_tells_the_classes_apart_is_trusted(noise):
    model = Attention()
    judges = judges_of(model, lambda number: 3.0 * lesion(number) + noise * normal(500 + number))
    found = trust(model, judges, figure, **DRAWS)
    assert found.scale in SCALES
    assert model.attention_scale == found.scale
    assert found.foresight > 2 * found.error > 0
    assert found.slides == len(SLIDES)
    # By other draws than those that chose: it is better by far, and hardly worse than any other scale.
    figures = {scale: figure_at(model, judges, scale) for scale in (0.0, *SCALES)}
    assert figures[found.scale] > 0.8 * figures[0.0]  # of negative losses
    assert figures[found.scale] > 1.1 * max(figures.values())


def test_attention_that_has_nothing_to_do_with_the_classes_is_hardly_ever_trusted():
    model = Attention()
    found = [
        trust(model, judges_of(model, lambda number, shift=shift: normal(shift + number)), figure, **DRAWS)
        for shift in range(5000, 205_000, 1000)
    ]
    # Student's t with 15 degrees of freedom is above 2.5 in 1.2 % of cases: 200 times that, and chance.
    assert sum(each.scale > 0 for each in found) <= 8
    assert all(each.scale == 0 for each in found if each.foresight < 2 * each.error)


def test_attention_that_looks_away_is_not_trusted():
    model = Attention()
    found = trust(model, judges_of(model, lambda number: -3.0 * lesion(number)), figure, **DRAWS)
    assert found.scale == model.attention_scale == 0
    assert found.foresight < 0


def test_attention_that_is_flat_is_as_good_as_none():
    model = Attention()
    found = trust(model, judges_of(model, lambda number: 0 * UNIFORM), figure, **DRAWS)
    assert (found.scale, found.slides) == (0.0, len(SLIDES))
    assert found.foresight == pytest.approx(0, abs=1e-12)


def test_judges_say_the_same_whenever_they_are_asked_with_the_same_seed():
    model = Attention()
    judges = judges_of(model, lambda number: 3.0 * lesion(number))
    assert trust(model, judges, figure, **DRAWS) == trust(model, judges, figure, **DRAWS)


def test_slides_of_which_no_figure_can_be_told_still_tell_whether_attention_foresees():
    model = Attention()
    for size, scale in ((3.0, 1.0), (-3.0, 0.0)):
        judges = judges_of(model, lambda number, size=size: size * lesion(number))
        assert trust(model, judges, lambda outputs: None, **DRAWS).scale == scale


@pytest.mark.parametrize("count", range(4))
def test_attention_that_too_few_can_judge_is_taken_as_it_is(count):
    model = Attention()
    model.attention_scale.fill_(0.25)
    judges = judges_of(model, lambda number: -3.0 * lesion(number))[:count]
    assert trust(model, judges, figure, **DRAWS) == Trust(1.0, None, None, count)
    assert model.attention_scale == 1


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("exploration", [0.0, 0.3])
def test_simulated_draws_of_many_tiles_are_close_to_pooling_all_by_attention(scale, exploration):
    model, number = Attention(), 3
    model.attention_scale.fill_(scale)
    logits, said = 2 * normal(1), said_of(number)
    evidence = judge(model, logits, said)
    generator = torch.Generator().manual_seed(0)
    found = evidence.simulate(20_000, exploration=exploration, draws=3, generator=generator)
    share = torch.softmax(scale * logits + said[:, 0], 0)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, (share @ said[:, 1:]).expand(3, -1), rtol=0, atol=0.5)
    assert not torch.equal(found[0], found[1])
    generator.manual_seed(0)
    again = evidence.simulate(20_000, exploration=exploration, draws=3, generator=generator)
    assert torch.equal(found, again)


# The survey


@pytest.fixture
def method():
    model = start_of().eval()
    model.attention_scale.fill_(0.0)
    torch.nn.init.normal_(model.gate.weight, generator=torch.Generator().manual_seed(0))
    return method_for(model, Phase("attention", 1, ("attention",), 10).settings(SETTINGS))


EXAMPLES = dict(enumerate(TRAINING))


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_survey_draws_so_many_tiles_of_each_slide_and_is_remembered_without_reading(method, ahead):
    bad: dict[str, str] = {}
    with Recorded() as reader:
        found = survey(method, EXAMPLES, reader, 7, read_ahead=ahead, on_bad=bad.__setitem__)
        asked = list(reader.asked)
        evidence = recall(method, EXAMPLES, reader, 7, found, on_bad=bad.__setitem__)
        assert reader.asked == asked
    assert not bad
    assert list(found) == list(evidence) == list(EXAMPLES)
    for number, each in evidence.items():
        drawn = [cell for slide, cell in asked if slide == EXAMPLES[number].ref.id]
        chosen = each.weigh().tiles
        assert chosen.cells.tolist() == drawn
        assert len(set(drawn)) == 10
        torch.testing.assert_close(each.weight, torch.full((10,), 0.1))
        torch.testing.assert_close(each.uniform, torch.full((10,), 1 / 20))
        assert torch.equal(each.said, found[number])
        assert each.said.shape == (10, 3)
        gate, outputs = found[number].split([1, 2], 1)
        expected = target(each.weight, influence(each.weight, gate[:, 0], outputs, classes=True))
        assert torch.equal(each.target, expected)
        assert each.target.sum().item() == pytest.approx(1)
        assert not each.said.requires_grad
    # Apart from the run's seed the slide decides, and not its number.
    others = {5: EXAMPLES[2]}
    with TileReader(1, lambda ref: slide_of(ref.id)) as reader:
        alone = survey(method, others, reader, 7, read_ahead=0, on_bad=bad.__setitem__)
        other = survey(method, others, reader, 8, read_ahead=0, on_bad=bad.__setitem__)
    torch.testing.assert_close(alone[5], found[2])
    assert not torch.equal(other[5], found[2])


def test_slides_that_cannot_be_read_are_told_and_left_out(method):
    bad: dict[str, str] = {}
    with TileReader(2, unreadable("s2p", "s5v")) as reader:
        found = survey(method, EXAMPLES, reader, 7, read_ahead=1, on_bad=bad.__setitem__)
    assert bad == {name: f"{name}: tile 3 is damaged" for name in ("s2p", "s5v")}
    assert list(found) == [number for number in EXAMPLES if number not in {2, 5}]


def test_attention_learns_by_the_loss_of_the_tiles_as_it_is_now(method):
    with TileReader(1, lambda ref: slide_of(ref.id)) as reader:
        found = survey(method, {0: EXAMPLES[0]}, reader, 7, read_ahead=0, on_bad=lambda *_: None)
        [evidence] = recall(method, {0: EXAMPLES[0]}, reader, 7, found, on_bad=lambda *_: None).values()
    before, entropy, top = loss(evidence)
    assert before.item() == pytest.approx(math.log(20))  # uniform still
    assert (entropy.item(), top) == (pytest.approx(math.log(20)), pytest.approx(1 / 20))
    method.model.attention_scale.fill_(1.0)
    optimizer = torch.optim.Adam(method.model.attention.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        now, _, _ = loss(evidence)
        now.backward()
        optimizer.step()
    least = -(evidence.target * evidence.target.clamp(min=1e-20).log()).sum().item()
    assert least <= now.item() < before.item() - 0.3 * (before.item() - least)
    assert method.model.head.weight.grad is None
    assert next(method.model.encoder.parameters()).grad is None
