"""Seeds of the random numbers that layers draw."""

from __future__ import annotations

import pytest
import torch

from wsi_ats.nn.seeding import seed_layers


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_dropout_is_that_of_torch_with_the_same_seed(seed):
    layer, ones = torch.nn.Dropout(0.5), torch.ones(64)
    torch.manual_seed(seed)
    expected = layer(ones)
    seed_layers(seed, torch.device("cpu"))
    assert torch.equal(layer(ones), expected)
    assert not torch.equal(layer(ones), expected)


@pytest.mark.gpu
def test_so_it_is_on_a_gpu():
    layer, ones = torch.nn.Dropout(0.5), torch.ones(64, device="cuda")
    torch.manual_seed(7)
    expected = layer(ones)
    seed_layers(7, ones.device)
    assert torch.equal(layer(ones), expected)
