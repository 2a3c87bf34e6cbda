"""Attention pooling of all tiles, after Ilse et al. (2018)."""

from __future__ import annotations

import pytest
import torch

from wsi_ats.nn.encoder import build_encoder
from wsi_ats.nn.network import AttentionMIL


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("test_resnet", pretrained=False)


@pytest.mark.parametrize("gated", [False, True])
def test_attention_follows_equation_8_or_9_of_the_paper(encoder, gated):
    torch.manual_seed(0)
    model = AttentionMIL(encoder, classes=3, gated=gated, width=5).double()
    features = torch.randn(7, encoder.width, dtype=torch.float64)
    scores = []
    for h in features:
        hidden = torch.tanh(model.value.weight @ h + model.value.bias)
        if gated:
            hidden = hidden * torch.sigmoid(model.gate.weight @ h + model.gate.bias)
        scores.append((model.score.weight[0] * hidden).sum().exp())
    expected = torch.stack(scores) / sum(scores)
    found = model.attend(features)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    pooled = sum(a * h for a, h in zip(expected, features, strict=True))
    torch.testing.assert_close(model.pool(found, features), pooled, rtol=0, atol=1e-12)
    assert model.classify(pooled).shape == (3,)


def test_every_weight_learns_in_one_part(encoder):
    for gated in (False, True):
        model = AttentionMIL(encoder, classes=2, gated=gated)
        parts = [w for modules in model.parts().values() for m in modules for w in m.parameters()]
        assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
