"""Tiles are laid in eight ways, and coloured as elsewhere; or left exactly as they are."""

from __future__ import annotations

import pytest
import torch

from wsi_ats.nn.augmentation import Variation, draw_variation, join, vary

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiles(n: int, side: int = 6, *, low: int = 0, high: int = 256) -> torch.Tensor:
    return torch.randint(low, high, (n, side, side, 3), generator=generator(9), dtype=torch.uint8)


def drawn(
    n: int, *, turns: bool = False, colour: float = 0.0, stain: float = 0.0, seed: int = 0
) -> Variation:
    return draw_variation(n, generator(seed), turns=turns, colour=colour, stain=stain)


def test_turns_are_the_eight_symmetries_of_a_square_each_as_often():
    [tile] = tiles(1)
    expected = [tile.rot90(k, (0, 1)) for k in range(4)]
    expected += [each.flip(1) for each in expected]
    found = vary(tile.expand(8, -1, -1, -1), drawn(8)._replace(turn=torch.arange(8)))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert len({bytes(each.flatten().tolist()) for each in found}) == 8
    assert torch.equal(found[0], tile)
    counts = drawn(8000, turns=True).turn.bincount(minlength=8)
    assert len(counts) == 8
    assert (counts - 1000).abs().max() < 5 * (1000 * 7 / 8) ** 0.5


def test_without_any_variation_every_value_of_every_colour_stays():
    every = (
        torch.arange(256, dtype=torch.uint8).repeat(3, 3, 1).permute(2, 0, 1)[..., None].expand(-1, -1, -1, 3)
    )
    none = drawn(256)
    assert torch.equal(none.stain, torch.eye(3).expand(256, 3, 3))  # so that no logarithm is taken
    assert torch.equal(vary(every, none), every)
    assert torch.equal(vary(tiles(50), drawn(50)), tiles(50))
    turned = drawn(50, turns=True)
    found = vary(tiles(50), turned)
    for one, other in zip(found, tiles(50), strict=True):
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)  # no pixel changed


def test_the_tiles_given_are_not_changed():
    some = tiles(20)
    before = some.clone()
    vary(some, drawn(20, turns=True, colour=0.2, stain=0.2))
    assert torch.equal(some, before)


def test_contrast_and_brightness_vary_as_much_as_asked_for_each_colour_by_itself():
    grey = torch.full(
        (4000, 1, 1, 3), 127, dtype=torch.uint8
    )  # the middle of the range: contrast is not seen
    change = (vary(grey, drawn(4000, colour=0.05)).float()[:, 0, 0] - 127.5) / 255
    assert change.mean(0).abs().max() < 5 * 0.05 / 4000**0.5 + 0.002
    assert change.std(0).tolist() == pytest.approx([0.05] * 3, rel=0.06)
    assert torch.corrcoef(change.T).triu(1).abs().max() < 0.08
    two = torch.tensor([100, 150], dtype=torch.uint8).reshape(1, 1, 2, 1).expand(4000, 2, 2, 3)
    seen = vary(two, drawn(4000, colour=0.05)).float()
    gain = (seen[:, 0, 1] - seen[:, 0, 0]) / 50
    assert gain.std(0).tolist() == pytest.approx([0.05] * 3, rel=0.1)
    assert gain.mean(0).tolist() == pytest.approx([1] * 3, abs=0.005)


def test_stains_vary_as_much_as_asked():
    """A tile of haematoxylin alone keeps its hue, and has more or less of it."""
    haematoxylin = torch.tensor([0.65, 0.70, 0.29])
    pixel = ((-0.8 * haematoxylin).exp() * 256 - 1).round().to(torch.uint8)
    how = drawn(4000, stain=0.1)
    how = how._replace(density=torch.zeros_like(how.density))
    found = vary(pixel.expand(4000, 1, 1, 3), how).float()[:, 0, 0]
    density = -((found + 1) / 256).log()
    share = density / (0.8 * haematoxylin)
    assert share.std(0).tolist() == pytest.approx([0.1] * 3, rel=0.15)
    assert share.mean(0).tolist() == pytest.approx([1] * 3, abs=0.02)
    assert torch.corrcoef(share.T).min() > 0.95


def test_glass_stays_nearly_white_and_nothing_leaves_the_range():
    white = torch.full((500, 2, 2, 3), 255, dtype=torch.uint8)
    assert (vary(white, drawn(500, stain=0.1)).float().mean() - 255).abs() < 5
    wild = vary(tiles(500), drawn(500, turns=True, colour=1.0, stain=1.0))
    assert wild.dtype == torch.uint8
    assert wild.shape == (500, 6, 6, 3)


def test_the_same_generator_varies_in_the_same_way_and_parts_are_those_of_the_whole():
    first, again, other = (drawn(7, turns=True, colour=0.1, stain=0.1, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(*each) for each in zip(first, again, strict=True))
    assert not torch.equal(first.gain, other.gain)
    some = tiles(14)
    both = vary(some, join([first, other]))
    assert torch.equal(both, torch.cat([vary(some[:7], first), vary(some[7:], other)]))
