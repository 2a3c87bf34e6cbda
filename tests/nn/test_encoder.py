"""A feature is a function of its own tile, has one length, and is whitened by constants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wsi_ats.errors import ModelError
from wsi_ats.nn.backbone import Backbone, batch_norms, create_backbone
from wsi_ats.nn.encoder import TileEncoder

BACKBONES = ["test_resnet", "test_convnext", "test_vit"]  # batch normalisation, layer normalisation, tokens


def tiles(number: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    """Tiles of different mean colours and textures."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(40, 200, (number, 1, 1, 3), generator=generator)
    noise = torch.randint(-40, 40, (number, size, size, 3), generator=generator)
    return (base + noise).to(torch.uint8)


def encoder(name: str, *, trained: bool = False) -> TileEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TileEncoder(create_backbone(name, pretrained=False, size=32), trained=trained)


class Fixed(nn.Module):
    """Features that are chosen by hand: the mean colour through a matrix, in float64."""

    def __init__(self, matrix: torch.Tensor, batch_norm: bool = False) -> None:
        super().__init__()
        self.matrix = matrix
        self.norm = nn.BatchNorm2d(3) if batch_norm else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(images).mean((2, 3)) @ self.matrix


def fixed(matrix: torch.Tensor) -> TileEncoder:
    return TileEncoder(
        Backbone(Fixed(matrix.double()), matrix.shape[1], (0.0,) * 3, (1.0,) * 3), trained=True
    ).double()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_feature_is_a_function_of_its_own_tile(name, mode):
    network = encoder(name)
    network.calibrate(tiles(20))
    network.train(mode == "train")
    batch = tiles(5, seed=1)
    with torch.no_grad():
        together = network(batch)
        alone = torch.cat([network(batch[i : i + 1]) for i in range(5)])
        among_others = network(torch.cat([tiles(3, seed=2), batch]))[3:]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(among_others, together, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).norm() > 0.1 * together[0].norm()  # different tiles differ


@pytest.mark.parametrize("name", BACKBONES)
def test_training_and_evaluation_mode_give_the_same_feature(name):
    network = encoder(name)
    network.calibrate(tiles(20))
    with torch.no_grad():
        torch.testing.assert_close(network.train()(tiles(3, seed=1)), network.eval()(tiles(3, seed=1)))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_all_features_are_equally_long(name, calibrated):
    network = encoder(name)
    if calibrated:
        network.calibrate(tiles(20))
    with torch.no_grad():
        lengths = network(tiles(7, seed=1)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((7,), math.sqrt(network.width)))


def test_calibrated_features_have_no_mean_and_vary_alike():
    network = fixed(torch.diag(torch.tensor([1.0, 30.0, 1000.0])))
    sample = tiles(200)
    network.calibrate(sample)
    standard = (network.raw(sample) - network.centre) * network.scale
    torch.testing.assert_close(standard.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(standard.std(0), torch.ones(3).double(), rtol=0, atol=1e-12)
    lengths = standard.norm(dim=1, keepdim=True)
    torch.testing.assert_close(network(sample), standard / lengths * math.sqrt(3), rtol=0, atol=1e-12)


def test_calibration_keeps_one_feature_from_drowning_the_others_of_a_real_network():
    network = encoder("test_resnet")
    sample = tiles(200)
    network.calibrate(sample)
    with torch.no_grad():
        raw, seen = network.eval().raw(sample), network(sample)
        tiny = raw.std(0) < 1e-3 * raw.std(0).max()
    assert (seen.std(0)[~tiny] > 0.3).all()
    assert (seen.std(0) < 3).all()


def test_features_take_the_place_of_tiles():
    """Of a frozen backbone they are computed once, and standardised whenever they are used."""
    network, other = encoder("test_resnet", trained=True), encoder("test_resnet", trained=True)
    sample = tiles(20)
    with torch.no_grad():
        raw = network.eval().raw(sample)
        network.calibrate(sample)
        other.calibrate(raw)
        for constant in ("centre", "scale"):
            torch.testing.assert_close(getattr(other, constant), getattr(network, constant))
        assert torch.equal(network.standardise(raw), network(sample))
    with pytest.raises(
        ModelError, match=rf"got 7 features for each tile, but the model takes {raw.shape[1]}"
    ):
        network.standardise(raw[:, :7])
    with pytest.raises(ModelError, match="got 7 features for each tile"):
        network.calibrate(raw[:, :7])


def test_calibration_is_deterministic_and_does_not_depend_on_what_was_before():
    first, second = encoder("test_resnet"), encoder("test_resnet")
    first.calibrate(tiles(70))
    second.calibrate(tiles(30, seed=5))
    second.calibrate(tiles(70))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if "num_batches" not in name:
            assert torch.equal(one, other), name


@pytest.mark.parametrize("mode", [True, False])
def test_calibration_gives_back_the_mode_it_was_called_in(mode):
    network = encoder("test_resnet").train(mode)
    network.calibrate(tiles(4))
    assert network.training is mode
    assert network.network.training is mode
    assert not any(layer.training for layer in batch_norms(network.network))


def test_calibration_has_no_gradient_and_changes_no_weight():
    network = encoder("test_resnet")
    before = {name: value.clone() for name, value in network.named_parameters()}
    network.calibrate(tiles(4))
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None
    assert not network.scale.requires_grad


def test_constants_are_part_of_the_stored_state():
    network, other = encoder("test_resnet"), encoder("test_resnet")
    network.calibrate(tiles(20))
    assert {"centre", "scale"} <= set(network.state_dict())
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(tiles(3)), network.eval()(tiles(3)))


@pytest.mark.parametrize("trained", [True, False])
def test_a_trained_backbone_keeps_its_statistics_and_an_untrained_one_measures_them(trained):
    network = encoder("test_resnet", trained=trained)
    before = [layer.running_mean.clone() for layer in batch_norms(network.network)]
    network.calibrate(tiles(8))
    after = [layer.running_mean for layer in batch_norms(network.network)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is trained


def test_training_steps_leave_the_constants_alone():
    network = encoder("test_resnet").train()
    network.calibrate(tiles(8))
    before = {name: value.clone() for name, value in network.named_buffers()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(tiles(4))[:, 0].sum().backward()
    optimizer.step()
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("number", [0, 1])
def test_calibration_on_less_than_two_tiles_is_refused(number):
    network = encoder("test_resnet")
    with pytest.raises(ModelError, match=f"at least 2 tiles, not {number}"):
        network.calibrate(tiles(number))


def test_a_last_batch_of_one_tile_is_calibrated():
    """A 32-pixel tile ends in one pixel, of which batch normalisation has no statistics by itself."""
    network = encoder("test_resnet")
    network.calibrate(tiles(65))
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_a_feature_that_never_varies_gives_no_nan_and_does_not_drown_the_others_when_it_does():
    matrix = torch.tensor([[1.0, 0.3, 0, 0], [0.2, 1.0, 0, 0], [0.1, 0.5, 0, 1.0]])
    network = fixed(matrix)
    sample = tiles(50)
    sample[..., 2] = 120  # the fourth feature varies by the third colour alone; the third never
    network.calibrate(sample)
    alive = network(tiles(6, seed=3)).square()
    assert alive.isfinite().all()
    assert alive[:, :2].sum() > 0.5 * alive.sum()
    torch.testing.assert_close(alive.sum(1), torch.full((6,), 4.0).double())


def test_tiles_that_are_all_the_same_give_no_nan():
    network = encoder("test_resnet")
    network.calibrate(tiles(1).expand(8, -1, -1, -1))
    with torch.no_grad():
        assert network.eval()(tiles(4)).isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_a_frozen_network_has_no_gradients_and_no_dropout(name):
    network = encoder(name)
    network.network.add_module("dropout", nn.Dropout(0.5))
    network.train().freeze()
    for mode in (True, False):
        assert network.train(mode).training is mode
        assert not any(part.training for part in network.network.modules())
    assert not network(tiles(2)).requires_grad


def test_layers_of_normalisation_are_constant_from_the_start():
    assert not any(layer.training for layer in batch_norms(encoder("test_resnet").network))


def test_images_of_different_sizes_calibrate_one_at_a_time():
    images = [tiles(1, seed=i, size=40 + 8 * i) for i in range(6)]
    network, calls = encoder("test_resnet"), []

    def parts():
        calls.append(1)
        return iter(images)

    network.calibrate_on(parts)
    assert len(calls) == 2  # once for the normalisation layers, once for the features
    with torch.no_grad():
        raw = torch.cat([network.raw(image) for image in images])
    torch.testing.assert_close(network.centre, raw.mean(0), rtol=1e-4, atol=1e-5)
    alive = network.scale > 0
    torch.testing.assert_close(1 / network.scale[alive], raw.std(0)[alive], rtol=1e-3, atol=1e-6)
    with pytest.raises(ModelError, match=r"an image of 16 x 16 pixels is too small"):
        encoder("test_resnet").calibrate_on(lambda: [tiles(1, size=16)])
    with pytest.raises(ModelError, match="at least 2 images, not 1"):
        encoder("test_resnet", trained=True).calibrate_on(lambda: images[:1])
