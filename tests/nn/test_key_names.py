"""Weights under the names of transformers and CONCH: the network computes what theirs would."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nn.test_backbone import images
from wsi_ats.encoders import ENCODERS
from wsi_ats.nn import backbone as module
from wsi_ats.nn.backbone import create_backbone

WIDTH, DEPTH, HEADS = 48, 2, 3


def tiny(monkeypatch, name: str, **arguments):
    own = ENCODERS[name]
    arguments = {**own.arguments, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, **arguments}
    width = {"class": WIDTH, "class+mean": 2 * WIDTH, "attention": 32}[own.pooling]
    small = dataclasses.replace(own, arguments=arguments, width=width)
    monkeypatch.setattr(module, "find_encoder", {name: small}.get)
    return small


def load(name, state, tmp_path, size):
    torch.save(state, tmp_path / "published.bin")
    made = create_backbone(name, pretrained=True, checkpoint=str(tmp_path / "published.bin"), size=size)
    with torch.inference_mode():
        return made.network.eval()(images(size))


# A vision transformer by the names of transformers, written down from its equations.


def shapes(patch: int, grid: int, hidden: int, *, style: str, registers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights; the style of layers is ``vit``, ``mlp`` or ``swiglu``."""
    found = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + grid**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "pooler.dense.weight": (WIDTH, WIDTH),
    }
    if registers:
        found["embeddings.register_tokens"] = (1, registers, WIDTH)
    first, second = LAYERS[style]
    for layer in (f"encoder.layer.{i}." for i in range(DEPTH)):
        for name in ("query", "key", "value"):
            found |= linear(f"{layer}attention.attention.{name}", WIDTH, WIDTH)
        found |= linear(f"{layer}attention.output.dense", WIDTH, WIDTH)
        found |= linear(layer + first, (2 if style == "swiglu" else 1) * hidden, WIDTH)
        found |= linear(layer + second, WIDTH, hidden)
        for norm in NORMS[style]:
            found |= {f"{layer}{norm}.weight": (WIDTH,), f"{layer}{norm}.bias": (WIDTH,)}
        if style != "vit":
            found |= {f"{layer}layer_scale{i}.lambda1": (WIDTH,) for i in (1, 2)}
    return found | {"layernorm.weight": (WIDTH,), "layernorm.bias": (WIDTH,)}


LAYERS = {
    "vit": ("intermediate.dense", "output.dense"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "swiglu": ("mlp.weights_in", "mlp.weights_out"),
}
NORMS = {
    "vit": ("layernorm_before", "layernorm_after"),
    "mlp": ("norm1", "norm2"),
    "swiglu": ("norm1", "norm2"),
}


def linear(name: str, to: int, of: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (to, of), f"{name}.bias": (to,)}


def tokens(state: dict[str, torch.Tensor], x: torch.Tensor, patch: int, style: str) -> torch.Tensor:
    def apply(name, values):
        return F.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, values):
        return F.layer_norm(values, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    name = "embeddings.patch_embeddings.projection"
    x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=patch).flatten(2).mT
    x = torch.cat([state["embeddings.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in state:
        registers = state["embeddings.register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    (before, after), (first, second) = NORMS[style], LAYERS[style]
    for layer in (f"encoder.layer.{i}." for i in range(DEPTH)):
        y = norm(layer + before, x)
        parts = [apply(f"{layer}attention.attention.{each}", y) for each in ("query", "key", "value")]
        query, key, value = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in parts)
        mixed = (query @ key.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ value
        y = apply(f"{layer}attention.output.dense", mixed.transpose(1, 2).flatten(2))
        x = x + y * state.get(f"{layer}layer_scale1.lambda1", 1)
        y = apply(layer + first, norm(layer + after, x))
        y = F.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1] if style == "swiglu" else F.gelu(y)
        x = x + apply(layer + second, y) * state.get(f"{layer}layer_scale2.lambda1", 1)
    return norm("layernorm", x)


def random(wanted: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in wanted.items()}


@pytest.mark.parametrize(
    ("name", "style", "patch", "registers", "arguments"),
    [
        ("phikon", "vit", 16, 0, {}),
        ("phikon-v2", "mlp", 16, 0, {}),
        ("hibou-b", "swiglu", 14, 4, {"mlp_ratio": 4}),
        ("midnight", "swiglu", 14, 0, {"mlp_ratio": 4}),
    ],
)
def test_networks_of_transformers_compute_the_same(
    tmp_path, monkeypatch, name, style, patch, registers, arguments
):
    encoder = tiny(monkeypatch, name, **arguments)
    hidden = 2 * WIDTH if style == "swiglu" else 4 * WIDTH
    state = random(shapes(patch, 3, hidden, style=style, registers=registers))
    found = load(name, state, tmp_path, 3 * patch)
    all_tokens = tokens(state, images(3 * patch), patch, style)
    wanted = all_tokens[:, 0]
    if encoder.pooling == "class+mean":
        wanted = torch.cat([wanted, all_tokens[:, encoder.prefix :].mean(1)], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_positions_of_larger_images_shrink_as_in_transformers(tmp_path, monkeypatch):
    """Midnight's are those of 518 pixels; transformers does not smooth them."""
    tiny(monkeypatch, "midnight", mlp_ratio=4)
    state = random(shapes(14, 7, 2 * WIDTH, style="swiglu", registers=0))
    found = load("midnight", state, tmp_path, 42)
    position = state["embeddings.position_embeddings"]
    grid = position[:, 1:].mT.unflatten(-1, (7, 7))
    smaller = F.interpolate(grid, size=(3, 3), mode="bicubic", align_corners=False).flatten(2).mT
    state["embeddings.position_embeddings"] = torch.cat([position[:, :1], smaller], 1)
    wanted = tokens(state, images(42), 14, "swiglu")
    torch.testing.assert_close(found[:, :WIDTH], wanted[:, 0], rtol=1e-4, atol=1e-5)


def test_a_file_that_has_timm_s_names_is_loaded_unchanged(tmp_path, monkeypatch):
    tiny(monkeypatch, "phikon")
    state = create_backbone("phikon", pretrained=False, size=32).network.state_dict()
    torch.save(state, tmp_path / "timm.pth")
    made = create_backbone("phikon", pretrained=True, checkpoint=str(tmp_path / "timm.pth"), size=32)
    assert all(torch.equal(value, state[name]) for name, value in made.network.state_dict().items())


# CONCH


def pooled(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Attention of one query by its equations, with the names of version 1.5."""
    query = F.layer_norm(state["query"], (32,), state["ln_q.weight"], state["ln_q.bias"])
    keys = F.layer_norm(x, (WIDTH,), state["ln_k.weight"], state["ln_k.bias"])
    key, value = (keys @ state["to_kv.weight"].T).chunk(2, -1)
    query, key, value = (
        each.unflatten(-1, (8, 4)).transpose(-3, -2) for each in (query @ state["to_q.weight"].T, key, value)
    )
    mixed = (query @ key.mT / 2).softmax(-1) @ value
    return mixed.transpose(-3, -2).flatten(-2)[:, 0] @ state["to_out.weight"].T


@pytest.mark.parametrize("name", ["conch_v1", "conch_v1.5"])
def test_networks_of_conch_compute_the_same(tmp_path, monkeypatch, name):
    tiny(monkeypatch, name)
    trunk = create_backbone(name, pretrained=False, size=32).network.trunk.eval()
    own = random({key: tuple(value.shape) for key, value in trunk.state_dict().items()})
    trunk.load_state_dict(own)
    pool = random(
        {
            "query": (1, 32),
            "ln_q.weight": (32,),
            "ln_q.bias": (32,),
            "ln_k.weight": (WIDTH,),
            "ln_k.bias": (WIDTH,),
            "to_q.weight": (32, 32),
            "to_kv.weight": (64, WIDTH),
            "to_out.weight": (32, 32),
        }
    )
    norm = random({"weight": (32,), "bias": (32,)})
    with torch.inference_mode():
        wanted = pooled(pool, trunk.forward_features(images()))
        wanted = F.layer_norm(wanted, (32,), norm["weight"], norm["bias"])
    prefix = ""
    if name == "conch_v1":  # text beside, attention under torch's names, and constants, here zero
        prefix = "visual."
        key, value = pool.pop("to_kv.weight").chunk(2)
        pool |= {"attn.k_proj_weight": key, "attn.v_proj_weight": value}
        pool |= {"attn.q_proj_weight": pool.pop("to_q.weight"), "attn.in_proj_bias": torch.zeros(96)}
        pool |= {"attn.out_proj.weight": pool.pop("to_out.weight"), "attn.out_proj.bias": torch.zeros(32)}
    state = {f"{prefix}trunk.{key}": value for key, value in own.items()}
    state |= {f"{prefix}attn_pool_contrast.{key}": value for key, value in pool.items()}
    state |= {f"{prefix}ln_contrast.{key}": value for key, value in norm.items()}
    if name == "conch_v1":
        unused = ("text.cls_emb", "text_decoder.ln.bias", "logit_scale", "visual.proj_contrast")
        state |= dict.fromkeys(
            (*unused, "visual.attn_pool_caption.query", "visual.ln_caption.bias"), norm["bias"]
        )
    torch.testing.assert_close(load(name, state, tmp_path, 32), wanted, rtol=1e-4, atol=1e-5)
