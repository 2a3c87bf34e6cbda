"""The three steps of the model, and models built from settings."""

from __future__ import annotations

import pytest
import torch

from wsi_ats.errors import ModelError
from wsi_ats.nn.model import AttentionSampler, build_model


def built(**changes) -> AttentionSampler:
    options = {
        "classes": 3,
        "backbone": "test_vit",
        "pretrained": False,
        "attention": "small",
        "pool": "linear",
        "tile_size": 48,
        "pixels_per_cell": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(**(options | changes))


def thumbnail(rows: int, columns: int, pixels_per_cell: int = 4) -> torch.Tensor:
    size = (rows * pixels_per_cell, columns * pixels_per_cell, 3)
    return torch.randint(0, 255, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("attention", ["small", "test_resnet", "test_vit"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_vit"])
def test_any_backbone_can_encode_and_attend(backbone, attention):
    model = built(backbone=backbone, attention=attention, pool="gated")
    cells = torch.tensor([0, 2, 3])
    weight = model.attend(thumbnail(2, 3), cells, (2, 3))
    assert weight.tolist() == pytest.approx([1 / 3] * 3)
    features = model.embed(torch.randint(0, 255, (3, 48, 48, 3), dtype=torch.uint8))
    logits = model.classify(model.pool(weight, features))
    assert logits.shape == (3,)
    assert logits.isfinite().all()


def test_attention_is_over_the_given_cells_in_their_order():
    model = built()
    torch.nn.init.normal_(model.attention.logit.weight)
    view = thumbnail(3, 4)
    cells = torch.tensor([1, 5, 6, 11])
    there, back = model.attend(view, cells, (3, 4)), model.attend(view, cells.flip(0), (3, 4))
    torch.testing.assert_close(back, there.flip(0))
    assert there.sum().item() == pytest.approx(1)
    assert there.std() > 0


@pytest.mark.parametrize("pool", ["linear", "gated"])
def test_the_gate_is_optional_and_starts_neutral(pool):
    model = built(pool=pool)
    assert (model.gate is None) is (pool == "linear")
    weight, features = torch.tensor([0.2, 0.3, 0.5]), torch.randn(3, model.encoder.width)
    torch.testing.assert_close(model.pool(weight, features), weight @ features)


def test_a_gate_weighs_tiles_by_what_they_show():
    model = built(pool="gated")
    features = torch.eye(model.encoder.width)[:3] * 8
    model.gate.weight.data[0, 1] = 1.0
    pooled = model.pool(torch.full((3,), 1 / 3), features)
    assert pooled[1] > 0.99 * 8


def test_gradients_reach_every_part():
    model = built(pool="gated").train()
    torch.nn.init.normal_(model.attention.logit.weight, std=0.1)
    torch.nn.init.normal_(model.gate.weight, std=0.1)
    weight = model.attend(thumbnail(2, 2), torch.arange(4), (2, 2))
    features = model.embed(torch.randint(0, 255, (4, 48, 48, 3), dtype=torch.uint8))
    model.classify(model.pool(weight, features)).square().sum().backward()
    for part in (model.attention, model.encoder, model.gate, model.head):
        assert max(p.grad.abs().max() for p in part.parameters() if p.grad is not None) > 0


def test_training_mode_reaches_the_parts_and_keeps_normalisation_constant():
    from wsi_ats.nn.backbone import batch_norms

    model = built(backbone="test_resnet", attention="test_resnet").train()
    assert model.encoder.training
    assert model.attention.training
    assert list(batch_norms(model))
    assert not any(layer.training for layer in batch_norms(model))


def test_the_same_seed_builds_the_same_weights():
    for (name, one), other in zip(built().state_dict().items(), built().state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_network_that_cannot_be_built_is_a_model_error():
    with pytest.raises(ModelError, match="no_such_net"):
        built(attention="no_such_net")
    with pytest.raises(ModelError, match="no_such_net"):
        built(backbone="no_such_net")


@pytest.mark.parametrize("attention", ["small", "test_resnet", None])
def test_every_weight_learns_in_one_part(attention):
    model = built(attention=attention, pool="gated")
    parts = [w for modules in model.parts().values() for m in modules for w in m.parameters()]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))


def test_without_an_attention_network_all_cells_weigh_the_same():
    weight = built(attention=None).attend(thumbnail(2, 3), torch.tensor([0, 2, 3]), (2, 3))
    assert weight.tolist() == pytest.approx([1 / 3] * 3)
    assert not weight.requires_grad
