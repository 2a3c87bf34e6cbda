"""Surveys of slides, and trust in attention by slides that it did not learn from."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch

from training.phase_runs import Recorded, start_of
from training.runs import SETTINGS, TRAINING, slide_of, unreadable
from wsi_ats.errors import ModelError
from wsi_ats.models.batches import TileReader
from wsi_ats.models.evidence import Evidence, TileAttention
from wsi_ats.models.kinds import method_for
from wsi_ats.nn.distillation import influence, target
from wsi_ats.nn.expectation import POOLINGS
from wsi_ats.training.distillation import (
    _SCALES,
    FEWEST_TO_JUDGE,
    USUAL,
    HeldOut,
    Trust,
    loss,
    recall,
    survey,
    trust,
)
from wsi_ats.training.phases import Phase

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


def evidence_of(model: Attention, logits: torch.Tensor, said: torch.Tensor) -> Evidence:
    """Evidence of a slide of which all cells are known."""

    def attend(scale: float | torch.Tensor | None = None) -> TileAttention:
        scaled = logits.double() * (model.attention_scale if scale is None else scale)
        attention = torch.softmax(scaled, 0)
        entropy = -(attention * attention.log()).sum()
        return TileAttention(torch.log_softmax(scaled, 0), torch.logsumexp(scaled, 0), entropy, 0.0)

    uniform = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    return Evidence(attend, uniform, attend(0.0), said, zero_outputs=None, classes=True)


def judge(model: Attention, logits: torch.Tensor, said: torch.Tensor, case: str = "") -> HeldOut:
    judge.count += 1
    return HeldOut(case or f"case {judge.count}", [evidence_of(model, logits, said)])


judge.count = 0


def lesion(number: int) -> torch.Tensor:
    """Return the cells of a slide that show its class; slides of odd numbers have some."""
    return (normal(number).argsort().argsort() < 3) & (number % 2 == 1)


def said_of(number: int) -> torch.Tensor:
    """A gate and two outputs of each tile: those of a lesion speak loudly, the others for the other class."""
    found = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64).expand(CELLS, -1).clone()
    found[lesion(number)] = torch.tensor([4.0, -6.0, 6.0], dtype=torch.float64)
    return found + 0.1 * normal(900 + number, CELLS, 3)


SLIDES = range(16)
LABELS = torch.tensor([number % 2 for number in SLIDES])


def figure(outputs: torch.Tensor, places) -> float:
    """The larger the better, as those of all tasks that choose."""
    return -torch.nn.functional.cross_entropy(outputs, LABELS[list(places)]).item()


def judges_of(model: Attention, logits) -> list[HeldOut]:
    return [judge(model, logits(number), said_of(number)) for number in SLIDES]


def figure_at(model: Attention, judges: list[HeldOut], scale: float) -> float:
    """Mean metric over many draws at a scale of attention."""
    model.attention_scale.fill_(scale)
    outputs = [
        torch.cat([each.simulate(4, 0.1, 100 * number + part) for part in range(12)])
        for number, each in enumerate(judges)
    ]
    return fmean(figure(each, SLIDES) for each in torch.stack(outputs, 1))


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_attention_on_the_discriminative_tiles_is_trusted(noise):
    model = Attention()
    judges = judges_of(model, lambda number: 3.0 * lesion(number) + noise * normal(500 + number))
    found = trust(model, judges, figure, **DRAWS)
    assert found.scale in {USUAL, *_SCALES}
    assert model.attention_scale == found.scale
    assert found.foresight > 2 * found.error > 0
    assert (found.foretells, found.cases) == (True, len(SLIDES))
    # By other draws than those that chose: it is better by far, and hardly worse than any other scale.
    figures = {scale: figure_at(model, judges, scale) for scale in (USUAL, *_SCALES)}
    gained, possible = (each - figures[0.0] for each in (figures[found.scale], max(figures.values())))
    assert gained > 0.2 * abs(figures[0.0])
    assert gained > 0.9 * possible


def test_attention_unrelated_to_the_classes_is_rarely_trusted():
    model = Attention()
    found = [
        trust(model, judges_of(model, lambda number, shift=shift: normal(shift + number)), figure, **DRAWS)
        for shift in range(5000, 205_000, 1000)
    ]
    # 5 % of 200, and chance: more than 20 are seen in a run of a thousand.
    assert sum(bool(each.foretells) for each in found) <= 20
    assert all(each.scale == 0 for each in found if not each.foretells)


def test_attention_away_from_the_discriminative_tiles_is_not_trusted():
    model = Attention()
    found = trust(model, judges_of(model, lambda number: -3.0 * lesion(number)), figure, **DRAWS)
    assert found.scale == model.attention_scale == 0
    assert found.foresight < 0


def test_flat_attention_counts_as_none():
    model = Attention()
    found = trust(model, judges_of(model, lambda number: 0 * UNIFORM), figure, **DRAWS)
    assert (found.scale, found.foretells, found.cases) == (0.0, False, len(SLIDES))
    assert found.foresight == pytest.approx(0, abs=1e-12)


def test_trust_is_reproducible_with_the_same_seed():
    model = Attention()
    judges = judges_of(model, lambda number: 3.0 * lesion(number))
    assert trust(model, judges, figure, **DRAWS) == trust(model, judges, figure, **DRAWS)


def test_slides_without_a_metric_still_judge_attention():
    model = Attention()
    for size, scale in ((3.0, USUAL), (-3.0, 0.0)):
        judges = judges_of(model, lambda number, size=size: size * lesion(number))
        assert trust(model, judges, lambda outputs, places: None, **DRAWS).scale == scale


@pytest.mark.parametrize("count", range(4))
def test_attention_with_too_few_validation_slides_is_used_anyway(count):
    model = Attention()
    model.attention_scale.fill_(0.25)
    judges = judges_of(model, lambda number: -3.0 * lesion(number))[:count]
    assert trust(model, judges, figure, **DRAWS) == Trust(USUAL, None, None, None, count)
    assert model.attention_scale == USUAL


def test_slides_of_one_case_count_as_one():
    """They are alike; taken as independent, slides of a few cases would seem to prove anything."""
    wrong = 0
    for shift in range(5000, 105_000, 1000):
        model, judges = Attention(), []
        for case in range(8):
            common = normal(shift + case)
            judges += [
                judge(model, common + normal(shift + 100 + 10 * case + slide), said_of(case), str(case))
                for slide in range(5)
            ]
        found = trust(model, judges, lambda outputs, places: None, **DRAWS)
        assert found.cases == 8
        wrong += bool(found.foretells)
    assert wrong <= 12  # 5 % of 100, and chance; taken as 40 slides it would be some 20


def test_slides_of_too_few_cases_judge_nothing():
    model = Attention()
    judges = [
        judge(model, -3.0 * lesion(number), said_of(number), str(number % (FEWEST_TO_JUDGE - 1)))
        for number in SLIDES
    ]
    assert trust(model, judges, figure, **DRAWS) == Trust(USUAL, None, None, None, FEWEST_TO_JUDGE - 1)


@pytest.mark.parametrize(("size", "scale"), [(1.6, USUAL), (0.2, 0.0)])
def test_attention_that_finds_the_lesions_of_few_slides_is_used_if_labels_show_it(size, scale):
    """Where one slide in eight has a lesion, the mean over slides is small however good attention is."""
    model, judges, labels = Attention(), [], []
    for number in range(1, 65):
        positive = number % 8 == 1
        logits = size * lesion(number) if positive else 0 * UNIFORM
        judges.append(judge(model, logits, said_of(number if positive else 0)))
        labels.append(positive)

    def auc(outputs: torch.Tensor, places) -> float | None:
        truth = torch.tensor(labels)[list(places)]
        score = outputs[:, 1] - outputs[:, 0]
        pairs = score[truth][:, None] - score[~truth]
        return ((pairs > 0).double() + 0.5 * (pairs == 0)).mean().item() if truth.any() else None

    found = trust(model, judges, auc, **DRAWS)
    assert 0 < found.foresight < 0.1
    assert found.foresight > 2 * found.error
    assert (found.scale, found.foretells) == (scale, scale > 0)


def narrow(outputs: torch.Tensor, places) -> float:
    """Best where all outputs are alike, which they are by uniform draws."""
    del places
    return -outputs.var(0).sum().item()


def test_predictive_but_harmful_attention_is_not_used_and_reported():
    model = Attention()
    found = trust(model, judges_of(model, lambda number: 3.0 * lesion(number)), narrow, **DRAWS)
    assert (found.scale, found.foretells) == (0.0, True)


def test_a_metric_better_by_chance_changes_nothing():
    """By chance, on few slides: this metric does not depend on the scale of attention."""

    def luck(outputs: torch.Tensor, places) -> float:
        del places
        return math.sin(1e4 * outputs.sum().item())

    for shift in range(20):
        model = Attention()
        judges = judges_of(model, lambda number, shift=shift: 3.0 * lesion(number) + normal(shift + number))
        assert trust(model, judges, luck, **DRAWS).scale == USUAL


def parts_of(whole: torch.Tensor) -> list[torch.Tensor]:
    return list(whole.split([10, 30, 20]))


def test_pooled_slides_share_one_distillation_target():
    """Cut into three, of any sizes: its target, its attention and all that follows are as before."""
    model, logits, said = Attention(), normal(1), said_of(3)
    model.attention_scale.fill_(0.7)
    whole = evidence_of(model, logits, said)
    parts = [evidence_of(model, *each) for each in zip(parts_of(logits), parts_of(said), strict=True)]
    case = Evidence.of_case(parts)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(case.weight, whole.weight, **exact)
    torch.testing.assert_close(case.target, whole.target, **exact)
    for found, expected in ((case.uniform, whole.uniform), (case.attend(), whole.attend())):
        torch.testing.assert_close(found.log_attention, expected.log_attention, **exact)
        torch.testing.assert_close(found.log_mass, expected.log_mass, **exact)
        torch.testing.assert_close(found.entropy, expected.entropy, **exact)
    torch.testing.assert_close(case.foresight(), whole.foresight(), **exact)
    draws = [
        each.simulate(4, exploration=0.1, draws=9, generator=torch.Generator().manual_seed(0))
        for each in (case, whole)
    ]
    torch.testing.assert_close(*draws, **exact)
    assert Evidence.of_case(parts[:1]) is parts[0]


def test_the_weights_of_slides_within_a_pooled_case_are_distilled():
    model, offset = Attention(), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    logits = [part + own for part, own in zip(parts_of(normal(1)), offset, strict=True)]
    parts = [evidence_of(model, *each) for each in zip(logits, parts_of(said_of(3)), strict=True)]
    case = Evidence.of_case(parts)
    (gradient,) = torch.autograd.grad(loss(case)[0], offset)
    share = torch.stack([each.sum() for each in parts_of(case.attend().log_attention.exp())])
    wanted = torch.stack([each.sum() for each in parts_of(case.target)])
    torch.testing.assert_close(gradient, share.detach() - wanted, rtol=1e-12, atol=1e-12)


def test_underflowed_attention_still_learns_and_is_judged():
    model, logits = Attention(), torch.zeros(CELLS, dtype=torch.float32)
    logits[7] = 2000.0  # all others underflow
    logits.requires_grad_()
    evidence = evidence_of(model, logits, said_of(3))
    (gradient,) = torch.autograd.grad(loss(evidence)[0], logits)
    torch.testing.assert_close(gradient.double(), -(evidence.target - (torch.arange(CELLS) == 7).double()))
    generator = torch.Generator().manual_seed(0)
    assert evidence.simulate(4, exploration=0.1, draws=9, generator=generator).isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("exploration", [0.0, 0.3])
def test_simulated_draws_of_many_tiles_are_close_to_pooling_all_by_attention(scale, exploration):
    model, number = Attention(), 3
    model.attention_scale.fill_(scale)
    logits, said = 2 * normal(1), said_of(number)
    evidence = evidence_of(model, logits, said)
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


@pytest.mark.parametrize("name", POOLINGS)
def test_attention_learns_absolute_outputs_unless_pooling_divides(method, name):
    method.model.pooling = POOLINGS[name]
    with Recorded() as reader:
        found = survey(method, EXAMPLES, reader, 7, read_ahead=0, on_bad=lambda *_: None)
    assert {each.zero_outputs is None for each in found.values()} == {POOLINGS[name].divides}


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_survey_draws_the_set_number_of_tiles_and_reloads_without_reading(method, ahead):
    bad: dict[str, str] = {}
    with Recorded() as reader:
        found = survey(method, EXAMPLES, reader, 7, read_ahead=ahead, on_bad=bad.__setitem__)
        asked = list(reader.asked)
        said = {number: each.tile_outputs for number, each in found.items()}
        evidence = recall(method, EXAMPLES, reader, 7, said, on_bad=bad.__setitem__)
        assert reader.asked == asked
    assert not bad
    assert list(found) == list(evidence) == list(EXAMPLES)
    for number, each in [*found.items(), *evidence.items()]:
        drawn = [cell for slide, cell in asked if slide == EXAMPLES[number].ref.id]
        assert len(set(drawn)) == 10
        torch.testing.assert_close(each.weight, torch.full((10,), 0.1))
        torch.testing.assert_close(each.uniform.log_attention, torch.full((10,), math.log(1 / 20)))
        torch.testing.assert_close(each.uniform.log_mass, torch.tensor(math.log(20)))
        assert torch.equal(each.tile_outputs, said[number])
        assert each.tile_outputs.shape == (10, 3)
        gate, outputs = said[number].split([1, 2], 1)
        expected = target(each.weight, influence(each.weight, gate[:, 0], outputs, classes=True))
        assert torch.equal(each.target, expected)
        assert each.target.sum().item() == pytest.approx(1)
        assert not each.tile_outputs.requires_grad
    # Apart from the run's seed the slide decides, and not its number.
    others = {5: EXAMPLES[2]}
    with TileReader(1, lambda ref: slide_of(ref.id)) as reader:
        alone = survey(method, others, reader, 7, read_ahead=0, on_bad=bad.__setitem__)
        other = survey(method, others, reader, 8, read_ahead=0, on_bad=bad.__setitem__)
    torch.testing.assert_close(alone[5].tile_outputs, said[2])
    assert not torch.equal(other[5].tile_outputs, said[2])


def test_unreadable_slides_are_reported_and_left_out(method):
    bad: dict[str, str] = {}
    with TileReader(2, unreadable("s2p", "s5v")) as reader:
        found = survey(method, EXAMPLES, reader, 7, read_ahead=1, on_bad=bad.__setitem__)
    assert bad == {name: f"{name}: tile 3 is damaged" for name in ("s2p", "s5v")}
    assert list(found) == [number for number in EXAMPLES if number not in {2, 5}]


def test_nan_of_the_classifier_is_reported_and_not_distilled(method):
    with torch.no_grad():
        method.model.head.bias[0] = math.nan
    with (
        TileReader(1, lambda ref: slide_of(ref.id)) as reader,
        pytest.raises(ModelError, match=r"s0p: classifier outputs are NaN .*; try lower learning rates"),
    ):
        survey(method, {0: EXAMPLES[0]}, reader, 7, read_ahead=0, on_bad=lambda *_: None)


def test_attention_learns_by_the_loss_of_the_tiles_as_it_is_now(method):
    with TileReader(1, lambda ref: slide_of(ref.id)) as reader:
        found = survey(method, {0: EXAMPLES[0]}, reader, 7, read_ahead=0, on_bad=lambda *_: None)
    evidence = found[0]
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
