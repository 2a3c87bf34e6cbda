"""Learning from all tiles: a few in memory at a time, with the gradients of all at once."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.scored import draws_of
from wsi_ats.errors import SlideReadError
from wsi_ats.models import mil
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.kinds import model_for
from wsi_ats.models.mil import MultipleInstanceLearning
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target

SETTINGS = Settings().with_values(
    [
        *("tile.size=32", "augmentation.turns=false", "thumbnail.pixels_per_cell=4"),
        *("thumbnail.tissue=none", "model.kind=mil", "model.backbone=test_resnet", "model.pretrained=false"),
        *("training.calibration_tiles=12", "training.feature_dropout=0.0"),
    ]
)
TARGET = Target("classification", ("benign", "malignant", "other"))


class Watched(MemorySlide):
    """Counts the tiles that are read, and those in memory at once."""

    read = alive = most = 0

    def read_regions(self, level, corners, width, height):
        tiles = super().read_regions(level, corners, width, height)
        self.read += len(tiles)
        self.alive += len(tiles)
        self.most = max(self.most, self.alive)
        weakref.finalize(tiles, self._freed, len(tiles))
        return tiles

    def close(self):
        """It is used again."""

    def _freed(self, number):
        self.alive -= number


def slide_of(columns: int = 6) -> Watched:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32 * columns, 3), dtype=np.uint8)
    return Watched([pixels], mpp=0.5, path="memory.svs")


def example_of(slide: MemorySlide, target: float = 1) -> Example:
    return Example(SlideRef("case7", "memory.svs", "patient"), read_overview(slide, SETTINGS), (target,))


def network(kind: str = "gated", dtype: torch.dtype = torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_for(SETTINGS.with_values([f"model.mil_attention={kind}"]), TARGET)
        model.encoder.calibrate(torch.randint(0, 255, (16, 32, 32, 3), dtype=torch.uint8))
    return model.to(dtype)


def loss_and_gradients(model, slide: Watched, example: Example, at_a_time: int, *, frozen: bool = False):
    """By the method, which reads tiles again in the backward pass."""
    model.train().zero_grad(set_to_none=True)
    method = MultipleInstanceLearning(model, SETTINGS, at_a_time=at_a_time)
    slide.read = slide.most = 0
    with TileReader(1, lambda ref: slide) as reader:
        found = method.begin([example], reader, [0])()
        loss = F.cross_entropy(found.outputs, torch.tensor([int(example.target[0])]))
        loss.backward()
    learned = {name: w.grad for name, w in model.named_parameters() if w.grad is not None or not frozen}
    return loss.item(), {name: gradient.clone() for name, gradient in learned.items()}, found


@pytest.mark.parametrize("kind", ["gated", "plain"])
@pytest.mark.parametrize("at_a_time", [1, 5, 12])
def test_tiles_in_parts_give_the_loss_and_gradients_of_all_tiles_at_once(kind, at_a_time):
    slide, model = slide_of(), network(kind)
    example = example_of(slide)
    tiles = torch.from_numpy(read_tiles(slide, example.overview.tissue.grid, example.overview.tissue.cells))
    features = model.train().embed(tiles)  # all twelve, kept for one backward pass
    attention = model.attend(features)
    expected = F.cross_entropy(model.classify(attention @ features)[None], torch.tensor([1]))
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    for part in (model.value, model.score, model.head, model.encoder.network.conv1[0]):
        assert part.weight.grad.abs().max() > 0

    loss, found, _ = loss_and_gradients(model, slide, example, at_a_time)
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12, msg=name)


def test_tiles_are_varied_in_the_same_way_when_they_are_read_again(monkeypatch):
    """Or gradients would be of other tiles than the loss."""
    settings = SETTINGS.with_values(
        ["augmentation.turns=true", "augmentation.stain=0.2", "augmentation.colour=0.1"]
    )
    slide, model = slide_of(), network().train()
    example, real = example_of(slide), mil.embed_in_parts

    def gradients(seed: int, *, again: bool):
        monkeypatch.setattr(
            mil, "embed_in_parts", lambda *args, twice, **rest: real(*args, twice=again, **rest)
        )
        model.zero_grad(set_to_none=True)
        method = MultipleInstanceLearning(model, settings, at_a_time=5)
        with TileReader(1, lambda ref: slide) as reader:
            outputs = method.begin([example], reader, [seed])().outputs
            outputs[0, 0].backward()
        return outputs.detach(), [
            weight.grad.clone() for weight in model.parameters() if weight.grad is not None
        ]

    twice, found = gradients(3, again=True)
    once, expected = gradients(3, again=False)
    assert torch.equal(twice, once)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert not torch.equal(gradients(4, again=False)[0], once)
    model.eval()
    assert torch.equal(gradients(3, again=False)[0], gradients(4, again=False)[0])  # only in training


@pytest.mark.parametrize("columns", [6, 24])
def test_no_more_tiles_are_in_memory_than_asked_for_however_large_the_slide(columns):
    slide, model = slide_of(columns), network(dtype=torch.float32)
    example = example_of(slide)
    _, _, found = loss_and_gradients(model, slide, example, at_a_time=4)
    assert slide.most <= 4
    assert slide.alive == 0
    assert slide.read == found.tiles == 2 * 2 * columns  # two rows; once forward, once backward


def test_validation_reads_each_tile_once():
    slide, model = slide_of(), network(dtype=torch.float32)
    example = example_of(slide)
    slide.read = 0
    with TileReader(1, lambda ref: slide) as reader, torch.inference_mode():
        found = MultipleInstanceLearning(model, SETTINGS).begin([example], reader, [0])()
    assert slide.read == found.tiles == 12


def test_a_frozen_backbone_reads_each_tile_once_without_gradients():
    slide, model = slide_of(), network(dtype=torch.float32).train()
    example = example_of(slide)
    model.encoder.freeze()
    _, gradients, found = loss_and_gradients(model, slide, example, at_a_time=5, frozen=True)
    assert slide.read == found.tiles == 12
    assert not any(name.startswith("encoder") for name in gradients)
    assert gradients["value.weight"].abs().max() > 0


@pytest.mark.parametrize("most", [1, 5, 11])
def test_training_reads_the_set_number_of_tiles_and_scoring_reads_all(most):
    slide, model = slide_of(), network()
    overview = read_overview(slide, SETTINGS)
    tissue = overview.tissue
    example = example_of(slide)
    asked: list[list[int]] = []

    class Recorded(TileReader):
        def run(self, jobs):
            asked[-1].extend(cell for _, job in jobs for cell in job.keywords["cells"].tolist())
            return super().run(jobs)

    def estimate(seed: int, *, training: bool):
        settings = SETTINGS.with_values([f"model.mil_tiles={most}"])
        asked.append([])
        with Recorded(1, lambda ref: slide) as reader, torch.no_grad():
            method = MultipleInstanceLearning(model.train(training), settings, at_a_time=4)
            return method.begin([example], reader, [seed])()

    found = [estimate(seed, training=True) for seed in (0, 1, 2, 3, 4, 0)]
    for each, cells in zip(found, asked, strict=True):
        assert each.tiles == len(cells) == len(set(cells)) == most
        assert cells == sorted(cells)  # neighbours are read together
        some = torch.from_numpy(read_tiles(slide, tissue.grid, np.array(cells)))
        with torch.no_grad():
            features = model.embed(some)
            expected = model.classify(model.attend(features) @ features)
        torch.testing.assert_close(each.outputs[0], expected, rtol=1e-12, atol=1e-12)
    assert asked[0] == asked[5]
    assert torch.equal(found[0].outputs, found[5].outputs)
    assert len({tuple(each) for each in asked}) > 2  # each time others

    asked.clear()
    watched = [estimate(seed, training=False) for seed in (0, 1)]
    assert asked == [list(range(12))] * 2
    assert [each.tiles for each in watched] == [12, 12]
    learned = MultipleInstanceLearning(model.eval(), SETTINGS.with_values([f"model.mil_tiles={most}"]))
    [scored] = draws_of(learned, slide, overview, iter([0]))
    assert scored.tiles.cells.tolist() == list(range(12))


@pytest.mark.parametrize("most", [0, 12, 100])
def test_slides_with_fewer_tiles_than_set_use_all(most):
    slide, model = slide_of(), network().train()
    method = MultipleInstanceLearning(model, SETTINGS.with_values([f"model.mil_tiles={most}"]))
    with TileReader(1, lambda ref: slide) as reader:
        found = method.begin([example_of(slide)], reader, [0])()
    assert found.tiles == 2 * 12


def test_a_slide_that_cannot_be_read_is_named_and_left_out():
    class Damaged(Watched):
        def read_regions(self, *args):
            raise SlideReadError(self.path, "tile 3 is damaged")

    slide, example = slide_of(), example_of(slide_of())
    method = MultipleInstanceLearning(network(dtype=torch.float32), SETTINGS)
    with TileReader(1, lambda ref: Damaged(slide._pyramid, mpp=0.5, path="memory.svs")) as reader:
        found = method.begin([example], reader, [0])()
    assert found.failed == {"case7": "memory.svs: tile 3 is damaged"}
    assert found.outputs.shape == (0, 3)
    assert (len(found.places), found.tiles) == (0, 0)


def test_scoring_selects_all_tissue_tiles_and_weighs_them_by_attention():
    slide, model = slide_of(), network(dtype=torch.float32).eval()
    overview = read_overview(slide, SETTINGS)
    slide.read = slide.most = 0
    method = MultipleInstanceLearning(model, SETTINGS)
    [found] = draws_of(method, slide, overview, iter([0, 1]), at_a_time=4)
    assert (slide.read, found.new_tiles) == (12, 12)
    assert slide.most <= 8  # four are read while four are encoded
    assert found.tiles.cells.tolist() == list(range(12))
    assert torch.equal(found.tiles.weight, found.attention)
    assert found.attention.sum().item() == pytest.approx(1)
    assert found.attention.std() > 0
    assert set(found.tiles.inclusion.tolist()) == {1}
    assert found.logits.shape == (3,)
