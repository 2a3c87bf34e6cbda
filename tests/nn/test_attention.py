"""The attention network: one logit for each cell, and invariance to colour and borders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsi_ats.nn.attention import (
    FeatureMapAttention,
    SmallAttention,
    candidate_logits,
    relative_colour,
    score_turned,
)
from wsi_ats.nn.backbone import Backbone, batch_norms, create_backbone

CELL = 8
GRIDS = [(1, 1), (1, 9), (5, 2)]
BACKBONES = ["test_resnet", "test_convnext", "test_vit"]


def small(*, trained: bool = True) -> SmallAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallAttention(CELL, width=6)
        if trained:
            nn.init.normal_(network.logit.weight)
    return network


def from_maps(name: str, *, trained: bool = True) -> FeatureMapAttention:
    """With weights at which every layer has an effect, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FeatureMapAttention(create_backbone(name, pretrained=False, maps=True))
        if trained:
            nn.init.normal_(network.logit.weight)
            for parameter_name, parameter in network.named_parameters():
                if parameter_name.endswith("gamma"):  # of layer scale, which is born as 1e-6
                    nn.init.ones_(parameter)
            for layer in batch_norms(network):
                nn.init.normal_(layer.bias, std=0.1)
    return network


def everything(name: str) -> nn.Module:
    return small() if name == "small" else from_maps(name)


def image(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    size = (shape[0] * CELL, shape[1] * CELL, 3)
    return torch.randint(40, 200, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def whole(shape: tuple[int, int]) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


class Places(nn.Module):
    """Scores each cell by the red of its first pixel, and outside the tissue by -1."""

    def forward(self, thumbnail: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, thumbnail[::CELL, ::CELL, 0].float(), -1.0)


@pytest.mark.parametrize("shape", GRIDS)
def test_logits_follow_cells_when_a_slide_is_turned(shape):
    rows, columns = shape
    cells = torch.arange(rows * columns, dtype=torch.uint8).reshape(shape)
    thumbnail = cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)[..., None].expand(-1, -1, 3)
    mask = cells % 3 > 0
    for turn in range(8):
        found = score_turned(Places(), thumbnail, mask, turn)
        assert torch.equal(found, torch.where(mask, cells.float(), -1.0))


def test_all_eight_orientations_of_a_slide_occur():
    seen = []

    def network(thumbnail, mask):
        seen.append(thumbnail[:, :, 0].tolist())
        return mask.float()

    thumbnail = torch.arange(4, dtype=torch.uint8).reshape(2, 2, 1).expand(-1, -1, 3)
    for turn in range(8):
        score_turned(network, thumbnail, torch.ones(2, 2, dtype=torch.bool), turn)
    assert len({str(each) for each in seen}) == 8


@pytest.mark.parametrize("name", ["small", *BACKBONES])
@pytest.mark.parametrize("shape", GRIDS)
def test_every_grid_gets_one_finite_logit_per_cell_and_gradients(name, shape):
    network = everything(name)
    logits = network(image(shape), whole(shape))
    assert logits.shape == shape
    assert logits.isfinite().all()
    logits.square().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(each.isfinite().all() for each in gradients)
    assert any(each.abs().max() > 0 for each in gradients)


@pytest.mark.parametrize("name", ["small", *BACKBONES])
def test_attention_is_uniform_at_the_start(name):
    network = small(trained=False) if name == "small" else from_maps(name, trained=False)
    attention = torch.softmax(candidate_logits(network(image((3, 5)), whole((3, 5))), torch.arange(15)), 0)
    assert torch.equal(attention, torch.full((15,), 1 / 15))


def test_attention_can_be_learned_from_where_it_starts():
    network = small(trained=False)
    attention = torch.softmax(candidate_logits(network(image((3, 5)), whole((3, 5))), torch.arange(15)), 0)
    attention[4].backward()
    assert network.logit.weight.grad.abs().max() > 0


# Softmax over the tissue


def test_attention_sums_to_one_over_the_candidates_alone():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cells = torch.tensor([1, 3, 7, 19])
    attention = torch.softmax(candidate_logits(logits, cells), 0)
    assert attention.sum().item() == pytest.approx(1)
    torch.testing.assert_close(attention, torch.softmax(logits.flatten()[cells], 0))
    (attention @ torch.arange(4.0)).backward()
    outside = torch.ones(20, dtype=torch.bool)
    outside[cells] = False
    assert (logits.grad.flatten()[outside] == 0).all()
    assert (logits.grad.flatten()[cells] != 0).all()


def test_logits_outside_the_tissue_are_ignored_even_if_nan():
    logits = torch.zeros(2, 2)
    logits[0, 0], logits[0, 1] = torch.nan, torch.inf
    assert torch.softmax(candidate_logits(logits, torch.tensor([2, 3])), 0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_softmax_has_at_least_single_precision_and_keeps_double(given, kept):
    assert candidate_logits(torch.zeros(2, 2, dtype=given), torch.arange(4)).dtype == kept


def test_logits_of_ten_thousand_either_way_give_finite_attention_and_gradients():
    logits = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    attention = torch.softmax(candidate_logits(logits, torch.arange(3)), 0)
    assert attention.tolist() == [0.5, 0, 0.5]
    attention[0].backward()
    assert logits.grad.isfinite().all()


# Colour


def test_a_constant_shift_of_colour_changes_nothing_that_small_attention_sees():
    thumbnail, mask = image((4, 6)), whole((4, 6))
    mask[0, 0] = False
    network = small()
    for shift in ([13, -20, 7], [-40, -40, -40], [55, 0, 3]):
        shifted = (thumbnail.int() + torch.tensor(shift)).to(torch.uint8)
        torch.testing.assert_close(relative_colour(shifted, mask), relative_colour(thumbnail, mask))
        torch.testing.assert_close(network(shifted, mask), network(thumbnail, mask), rtol=0, atol=1e-5)


def test_colour_is_relative_to_the_tissue_and_glass_has_no_part_in_it():
    thumbnail = torch.full((2 * CELL, 2 * CELL, 3), 240, dtype=torch.uint8)
    thumbnail[:CELL] = torch.tensor([160, 96, 128], dtype=torch.uint8)
    mask = torch.tensor([[True, True], [False, False]])
    colour = relative_colour(thumbnail, mask)
    assert colour[:, :CELL].abs().max() == 0
    assert colour[:, -1, -1].tolist() == [80 / 32, 144 / 32, 112 / 32]


# Borders


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (7, 9)])
def test_small_attention_cannot_see_where_the_border_of_a_constant_image_is(shape):
    thumbnail = torch.full((shape[0] * CELL, shape[1] * CELL, 3), 137, dtype=torch.uint8)
    mask = whole(shape)
    logits = small()(thumbnail, mask)
    assert (logits.max() - logits.min()).item() <= 1e-6


def test_small_attention_cannot_see_the_border_of_an_image_that_differs_from_its_tissue():
    """The colours relative to tissue are far from zero here, so zero padding would show."""
    network = small()
    colours = torch.full((1, 3, 7 * CELL, 9 * CELL), 2.5)
    cells = nn.functional.gelu(network.cell(colours))
    logits = network.logit(nn.functional.gelu(network.around(cells)))
    assert (logits.max() - logits.min()).item() <= 1e-5
    narrow = network.logit(nn.functional.gelu(network._narrow(cells[:, :, :1])))
    torch.testing.assert_close(narrow, logits[:, :, :1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "share"),
    # A share of what random colours do: exact only where the receptive field stays within the margin.
    [("test_resnet", 1e-4), ("test_convnext", 0.01)],
)
def test_border_of_a_constant_image_hardly_shows_in_feature_maps(name, share):
    network, shape = from_maps(name).eval(), (24, 24)
    constant = torch.full((shape[0] * CELL, shape[1] * CELL, 3), 137, dtype=torch.uint8)
    random = image(shape)[::CELL, ::CELL].repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    with torch.inference_mode():
        border = network(constant, whole(shape))
        texture = network(random, whole(shape)).std().item()
        network.MARGIN = 1
        thin = network(constant, whole(shape))
    assert texture > 0.01
    assert (border.max() - border.min()).item() < share * texture
    assert (thin.max() - thin.min()).item() > 10 * share * texture  # so the test can see a thin margin


class Averages(nn.Module):
    """Feature maps that can be foretold: brightness, at two strides."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        bright = images.mean(1, keepdim=True)
        return [nn.functional.avg_pool2d(bright, stride) for stride in (2, 16)]


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 7), (30, 30)])
def test_cells_get_the_average_of_their_own_pixels_from_fine_maps(shape):
    network = FeatureMapAttention(
        Backbone(Averages(), 1, (0.0,) * 3, (1 / 255,) * 3, map_widths=(1, 1), map_strides=(2, 16))
    )
    network.logit.weight.data[0, 0] = 1
    thumbnail = image(shape)
    cells = thumbnail.float().mean(2).reshape(shape[0], CELL, shape[1], CELL).mean((1, 3))
    with torch.inference_mode():
        torch.testing.assert_close(network(thumbnail, whole(shape)), cells)


def test_coarse_maps_are_laid_over_the_same_place_as_fine_ones():
    """Where brightness rises evenly, averages over more pixels around a cell are equal."""
    network = FeatureMapAttention(
        Backbone(Averages(), 1, (0.0,) * 3, (1 / 255,) * 3, map_widths=(1, 1), map_strides=(2, 16))
    )
    network.logit.weight.data[0, 1] = 1
    ramp = torch.arange(20 * CELL)[:, None] + torch.arange(10 * CELL)[None] // 2
    thumbnail = ramp[..., None].expand(-1, -1, 3).to(torch.uint8)
    with torch.inference_mode():
        logits = network(thumbnail, whole((20, 10)))
    cells = thumbnail.float().mean(2).reshape(20, CELL, 10, CELL).mean((1, 3))
    torch.testing.assert_close(logits[2:-2, 2:-2], cells[2:-2, 2:-2], rtol=0, atol=0.1)


def test_normalisation_is_constant_in_training_so_training_and_scoring_see_the_same():
    network = from_maps("test_resnet")
    before = {name: value.clone() for name, value in network.named_buffers()}
    train = network.train()(image((3, 4)), whole((3, 4)))
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name
    torch.testing.assert_close(network.eval()(image((3, 4)), whole((3, 4))), train)


@pytest.mark.parametrize("pixels_per_cell", [5, 8, 24])
def test_any_number_of_pixels_per_cell_fits_the_strides_of_the_backbone(pixels_per_cell):
    network = from_maps("test_resnet").eval()
    thumbnail = torch.zeros(2 * pixels_per_cell, 3 * pixels_per_cell, 3, dtype=torch.uint8)
    assert network(thumbnail, whole((2, 3))).shape == (2, 3)
