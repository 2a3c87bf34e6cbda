"""Tiles that an older attention drew estimate the present one without bias; so do those of cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from wsi_ats.models import drawing
from wsi_ats.models.base import Finish
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.nn.cases import pool_slides
from wsi_ats.nn.expectation import effective_size
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.enumeration import enumerate_draws

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another

TARGET = Target("classification", ("benign", "malignant"))
EXACT = {"rtol": 1e-12, "atol": 1e-12}
SETTINGS = Settings().with_values(
    [
        *("tile.size=16", "thumbnail.pixels_per_cell=4", "thumbnail.tissue=none"),
        *("thumbnail.cells_per_region=2", "thumbnail.pixels_per_region=8", "model.backbone=test_resnet"),
        *("model.pretrained=false", "model.pool=linear", "sampling.tiles=2", "sampling.regions=1"),
        *("sampling.exploration=0.0", "training.precision=float32", "training.feature_dropout=0.0"),
        "augmentation.turns=false",
    ]
)
# Of which systematic draws are exact, whatever was drawn by before.
ALL = ["sampling.design=systematic", "sampling.tiles=100", "sampling.regions=100"]
CONTRAST = torch.tensor([1.0, -0.4], dtype=torch.float64)


def slide_of(ref: SlideRef) -> MemorySlide:
    """As many columns of two cells as the id says, after its first letter."""
    generator = np.random.default_rng(ord(ref.id[0]))
    pixels = generator.integers(0, 255, (32, 16 * int(ref.id[1:]), 3), dtype=np.uint8)
    return MemorySlide([pixels], mpp=0.5, path=ref.id)


def examples(settings: Settings, *names: str) -> list[Example]:
    refs = [SlideRef(name, name, "case") for name in names]
    return [Example(ref, read_overview(slide_of(ref), settings), (1.0,)) for ref in refs]


def network(settings: Settings):
    """In double precision, with attention that is not uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_for(settings, TARGET)
        model.encoder.calibrate(torch.randint(0, 255, (16, 16, 16, 3), dtype=torch.uint8))
    change_attention(model, 1, 0.1)
    if getattr(model, "gate", None) is not None:
        with torch.no_grad():
            model.gate.weight.copy_(0.1 * torch.randn(model.gate.weight.shape, generator=generator(3)))
    return model.double().train()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def change_attention(model, seed: int, size: float) -> None:
    with torch.no_grad():
        for part in (getattr(model, "attention", None), getattr(model, "regions", None)):
            if part is not None:
                for each in part.parameters():
                    noise = torch.randn(each.shape, generator=generator(seed), dtype=torch.float64)
                    each.add_(size * noise.to(each.dtype))


def every_outcome(monkeypatch, begin: Callable[[], Finish]) -> list[tuple[float, Finish]]:
    """Begin once with every outcome of the draws, which may follow on one another; each with its chance."""

    def follow(path: list[int], others: list[list[int]]) -> tuple[float, Finish]:
        taken: list[int] = []
        chance = 1.0

        def scripted(design, proposal, *, cells, shape, n, generator):
            nonlocal chance
            outcomes = enumerate_draws(design, proposal, cells=cells, shape=shape, n=n)
            if len(taken) >= len(path):
                others.extend([*taken, other] for other in range(1, len(outcomes)))
                taken.append(0)
            else:
                taken.append(path[len(taken)])
            p, drawn = outcomes[taken[-1]]
            chance *= p
            return drawn

        with monkeypatch.context() as patch:
            patch.setattr(drawing, "draw", scripted)
            begun = begin()
        return chance, begun

    def walk() -> Iterator[tuple[float, Finish]]:
        todo: list[list[int]] = [[]]
        while todo:
            yield follow(todo.pop(), todo)

    found = list(walk())
    assert sum(p for p, _ in found) == pytest.approx(1, abs=1e-12)
    return found


def assert_same_value_and_gradients(mean, exact, model) -> None:
    torch.testing.assert_close(mean, exact, **EXACT)
    names, weights = zip(*(each for each in model.named_parameters() if "gate" not in each[0]), strict=True)
    found = torch.autograd.grad(mean, weights, retain_graph=True)
    true = torch.autograd.grad(exact, weights)
    for name, one, other in zip(names, found, true, strict=True):
        torch.testing.assert_close(one, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
    assert max(g.abs().max() for n, g in zip(names, true, strict=True) if "attention" in n) > 1e-4


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (["sampling.design=systematic"], "a3"),
        (["sampling.design=systematic", "sampling.exploration=0.3"], "a3"),
        (["sampling.design=multinomial"], "a2"),
        (["sampling.design=multinomial", "sampling.exploration=0.3"], "a2"),
        (["sampling.design=sequential"], "a2"),
        (["sampling.design=sequential", "sampling.exploration=0.3"], "a2"),
        (["sampling.design=uniform"], "a3"),
        (["thumbnail.levels=2"], "a4"),
        (["thumbnail.levels=2", "sampling.exploration=0.3"], "a4"),
    ],
    ids=" ".join,
)
def test_draws_by_older_attention_estimate_newer_attention_exactly(monkeypatch, changes, name):
    """Value and gradients of all weights, through the method that training uses."""
    settings = SETTINGS.with_values(changes)
    model, slides = network(settings), examples(settings, name)
    with TileReader(1, slide_of) as reader:
        method = method_for(model, settings)
        begun = every_outcome(monkeypatch, lambda: method.begin(slides, reader, [0]))
        assert len(begun) > 3
        with torch.no_grad():
            stale = method_for(model, settings.with_values(ALL)).begin(slides, reader, [0])().outputs
        change_attention(model, 2, 0.1)
        mean = sum(p * finish().outputs[0] @ CONTRAST for p, finish in begun)
        exact = (
            method_for(model, settings.with_values(ALL)).begin(slides, reader, [0])().outputs[0] @ CONTRAST
        )
    assert abs(exact - stale[0] @ CONTRAST) > 1e-4  # attention has changed
    assert_same_value_and_gradients(mean, exact, model)


def test_effective_sample_size():
    def effective(*weights: float) -> float:
        return effective_size(torch.tensor(weights))

    assert effective(0.25, 0.25, 0.25, 0.25) == 4
    assert effective(1, 0, 0) == 1
    assert effective(0.5, 0.25, 0.25) == pytest.approx(1 / 0.375)
    assert effective(3, 1) == pytest.approx(effective(30, 10)) == pytest.approx(1.6)
    assert effective(1e-30, 1e-30) == 2
    assert effective(0, 0) == 0


def test_fresh_tiles_of_equal_attention_are_all_effective_and_those_of_a_newer_one_are_fewer():
    settings = SETTINGS.with_values(["sampling.tiles=4"])
    model = network(settings)
    torch.nn.init.zeros_(model.attention.logit.weight)
    slides = examples(settings, "a6")
    with TileReader(1, slide_of) as reader:
        method = method_for(model, settings)
        fresh, stale = (method.begin(slides, reader, [0]) for _ in range(2))
        assert effective_size(fresh().drawn[0].weight) == pytest.approx(4)
        change_attention(model, 2, 0.3)
        weight = stale().drawn[0].weight.detach()
    assert effective_size(weight) == pytest.approx(float(weight.sum() ** 2 / (weight**2).sum()))
    assert 1 <= effective_size(weight) < 3.9


# Several slides of a case

NAMES = ("a3", "b2", "c4")


def union_by_hand(model, slides: list[Example]) -> torch.Tensor:
    """Attention over the cells of all slides together."""
    logits, features = [], []
    for each in slides:
        tissue = each.overview.tissue
        cells = torch.from_numpy(tissue.cells)
        tiles = torch.from_numpy(read_tiles(slide_of(each.ref), tissue.grid, tissue.cells))
        features.append(model.embed(tiles))
        if hasattr(model, "score_cells"):
            thumbnail = torch.from_numpy(each.overview.thumbnail)
            logits.append(model.score_cells(thumbnail, cells, tissue.grid.shape))
        else:
            logits.append(model.score_tiles(features[-1]))
    together, of_all = torch.cat(logits), torch.cat(features)
    if hasattr(model, "score_cells") and model.gate is not None:
        together = together + model.gate(of_all)[:, 0]
    return model.classify(torch.softmax(together, 0) @ of_all)


@pytest.mark.parametrize(
    "changes",
    [
        ["model.pool=linear"],
        ["model.pool=gated"],
        ["model.kind=mil"],
        ["model.kind=mil", "model.mil_attention=plain"],
    ],
    ids=" ".join,
)
def test_the_union_of_slides_is_one_attention_over_all_their_cells(changes):
    base = SETTINGS.with_values(["model.pool=gated"])  # which all kinds can begin with
    settings = base.with_values([*ALL, "model.cases=union", *changes])
    model = network(settings)
    slides = examples(settings, *NAMES)
    with TileReader(1, slide_of) as reader:
        found = method_for(model, settings).begin(slides, reader, [0, 1, 2])()
        pooled, cases = pool_slides(found.outputs, found.log_weight, [7, 7, 7])
        assert cases == [7]
        expected = union_by_hand(model, slides)
        torch.testing.assert_close(pooled[0], expected, **EXACT)
        weights = [each for each in model.parameters() if each.requires_grad]
        gradients = (
            torch.autograd.grad(output @ CONTRAST, weights, allow_unused=True)
            for output in (pooled[0], expected)
        )
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(
                torch.zeros(()) if one is None else one, torch.zeros(()) if other is None else other, **EXACT
            )


@pytest.mark.parametrize("cases", ["mean", "separate"])
def test_without_union_every_slide_has_equal_weight(cases):
    settings = SETTINGS.with_values([f"model.cases={cases}"])
    model, slides = network(settings), examples(settings, *NAMES)
    with TileReader(1, slide_of) as reader:
        found = method_for(model, settings).begin(slides, reader, [0, 1, 2])()
    pooled, _ = pool_slides(found.outputs, found.log_weight, [7, 7, 7])
    torch.testing.assert_close(pooled[0], found.outputs.mean(0), **EXACT)
    alone, numbers = pool_slides(found.outputs, found.log_weight, [5, 1, 3])
    assert numbers == [5, 1, 3]
    assert torch.equal(alone, found.outputs)


def test_drawn_tiles_of_a_case_estimate_the_union_exactly_even_if_attention_has_changed(monkeypatch):
    """Linear pooling: the weight of each slide is known, its value is estimated without bias."""
    settings = SETTINGS.with_values(["model.cases=union", "sampling.tiles=1"])
    model, slides = network(settings), examples(settings, "a2", "b1")
    with TileReader(1, slide_of) as reader:
        method = method_for(model, settings)
        begun = every_outcome(monkeypatch, lambda: method.begin(slides, reader, [0, 1]))
        change_attention(model, 2, 0.1)
        mean = 0
        for p, finish in begun:
            found = finish()
            mean = mean + p * pool_slides(found.outputs, found.log_weight, [0, 0])[0][0] @ CONTRAST
    assert len(begun) > 4
    assert_same_value_and_gradients(mean, union_by_hand(model, slides) @ CONTRAST, model)


def test_pooling_is_within_cases_whatever_their_order():
    outputs, log_weight = torch.randn(5, 2, generator=generator(0)), torch.randn(5, generator=generator(1))
    pooled, cases = pool_slides(outputs, log_weight, [3, 1, 3, 1, 2])
    assert cases == [3, 1, 2]
    for row, places in zip(pooled, ([0, 2], [1, 3], [4]), strict=True):
        expected = torch.softmax(log_weight[places], 0) @ outputs[places]
        torch.testing.assert_close(row, expected)
    shuffled, numbers = pool_slides(outputs.flip(0), log_weight.flip(0), [2, 1, 3, 1, 3])
    order = [numbers.index(case) for case in cases]
    torch.testing.assert_close(shuffled[order], pooled)
    none, numbers = pool_slides(outputs[:0], log_weight[:0], [])
    assert (none.shape, numbers) == ((0, 2), [])


# More tiles than there are


@pytest.mark.parametrize("design", ["systematic", "sequential", "uniform"])
def test_with_fewer_tiles_than_draws_each_is_read_once(design):
    settings = SETTINGS.with_values(["sampling.tiles=500", f"sampling.design={design}"])
    model, [slide] = network(settings), examples(settings, "a3")
    read: list[int] = []

    class Counted(MemorySlide):
        def read_regions(self, level, corners, width, height):
            read.append(len(corners))
            return super().read_regions(level, corners, width, height)

    with TileReader(1, lambda ref: Counted(slide_of(ref)._pyramid, mpp=0.5, path=ref.id)) as reader:
        found = method_for(model, settings).begin([slide], reader, [0])()
    assert sum(read) == found.tiles == len(slide.overview.tissue.cells) == 6
    assert found.drawn[0].weight.sum().item() == pytest.approx(1)


def test_draws_of_a_slide_do_not_depend_on_its_batch():
    settings = SETTINGS.with_values(["augmentation.turns=true", "augmentation.stain=0.2"])
    model, slides = network(settings), examples(settings, *NAMES)
    seeds = dict(zip(NAMES, (11, 12, 13), strict=True))
    with TileReader(2, slide_of) as reader:
        method = method_for(model, settings)
        alone = {
            each.ref.id: method.begin([each], reader, [seeds[each.ref.id]])().outputs[0] for each in slides
        }
        for some in itertools.permutations(slides):
            found = method.begin(some, reader, [seeds[each.ref.id] for each in some])()
            for each, output in zip(some, found.outputs, strict=True):
                torch.testing.assert_close(output, alone[each.ref.id], **EXACT)
