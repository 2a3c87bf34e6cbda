"""Networks of known encoders: as large as published; weights from files, folders and the cache of the hub.

Networks of full size are built on torch's meta device, without memory; weights are those of tiny ones.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from nn.test_backbone import gated_error, images
from wsi_ats.encoders import ENCODERS
from wsi_ats.errors import ModelError
from wsi_ats.nn import backbone as module
from wsi_ats.nn.backbone import create_backbone, last_blocks
from wsi_ats.nn.encoder import build_encoder

ROOT = Path(__file__).parents[2]


def build(name: str, size: int | None = None):
    with torch.device("meta"):
        return create_backbone(name, pretrained=False, size=size)


def weights(network) -> int:
    return sum(each.numel() for each in network.parameters())


def published(text: str) -> tuple[float, float]:
    """A published number, and half a unit of its last digit."""
    number, unit = float(text[:-1]), {"M": 1e6, "B": 1e9}[text[-1]]
    digits = len(text[:-1].partition(".")[2])
    return number * unit, 0.5 * unit * 10**-digits


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_the_published_weights_and_features(name):
    encoder, made = ENCODERS[name], build(name)
    with torch.device("meta"), torch.inference_mode():
        features = made.network.eval()(torch.empty(1, 3, encoder.tile, encoder.tile))
    assert features.shape == (1, made.width) == (1, encoder.width)
    assert (made.mean, made.std) == (encoder.mean, encoder.std)
    if encoder.parameters and name != "midnight":  # its file has positions of larger images; see below
        number, rounded = published(encoder.parameters)
        assert abs(weights(made.network) - number) <= rounded
    trunk = getattr(made.network, "trunk", made.network)
    assert getattr(trunk, "num_prefix_tokens", 0) == encoder.prefix
    last = {id(each) for each in last_blocks(made.network, 1)}
    kept = [each for each, weight in made.network.named_parameters() if id(weight) in last]
    assert any(each.endswith("norm.bias") for each in kept)
    assert not any("patch_embed" in each for each in kept)


# Numbers that other projects counted in the published files. The last value is what timm's network does not
# need: the mask token of training, and the position of the class token, which timm adds to the token itself.
@pytest.mark.parametrize(
    ("name", "size", "number", "left_out"),
    [
        ("uni", 224, 303_350_784, 0),
        ("uni2-h", 224, 681_394_176, 0),
        ("virchow", 224, 631_229_184, 0),
        ("virchow2", 224, 631_239_424, 0),
        ("prov-gigapath", 224, 1_134_953_984, 0),
        ("h-optimus-0", 224, 1_134_774_272, 0),
        ("phikon", 224, 85_798_656, 0),
        ("phikon-v2", 224, 303_351_808, 1024),
        ("hibou-b", 224, 85_741_056, 2 * 768),
        ("hibou-l", 224, 303_659_264, 2 * 1024),
        ("midnight", 518, 1_136_480_768, 1536),
        ("conch_v1.5", 224, 306_109_184, 0),
    ],
)
def test_the_number_of_weights_is_exact_where_the_exact_number_is_known(name, size, number, left_out):
    assert weights(build(name, size).network) + left_out == number


def test_no_encoder_has_the_name_of_another_network_in_timm():
    assert not set(ENCODERS) & set(timm.list_models()) & set(timm.list_pretrained())


def test_a_mistyped_encoder_is_told_the_nearest_name():
    with pytest.raises(
        ModelError, match=r"'virchow_2' cannot be built: Unknown model.*mean virchow2\?.*wsi-ats enc"
    ):
        create_backbone("virchow_2", pretrained=True)


def test_an_encoder_of_tiles_is_refused_as_attention():
    with pytest.raises(ModelError, match=r"model\.attention is 'uni'.*set model\.attention=small"):
        create_backbone("uni", pretrained=False, maps=True)


# Tiny networks


TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def tiny(monkeypatch):
    """The function ``tiny(name)``: the encoder of that name is tiny from then on."""

    def shrink(name):
        own = ENCODERS[name]
        small = dataclasses.replace(
            own, arguments={**own.arguments, **TINY}, width=96 if own.pooling == "class+mean" else 48
        )
        monkeypatch.setattr(module, "find_encoder", {name: small}.get)
        return small

    return shrink


def random_weights(name: str) -> dict[str, torch.Tensor]:
    """Weights as published, of an encoder that timm can load."""
    torch.manual_seed(0)
    made = create_backbone(name, pretrained=False, size=56).network
    trunk = getattr(made, "trunk", made)
    return {key: torch.randn_like(value) * 0.1 for key, value in trunk.state_dict().items()}


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "folder", "own name in a folder"])
@pytest.mark.parametrize("name", ["uni", "virchow2", "gpfm"])
def test_weights_come_from_a_file_or_a_folder(tmp_path, tiny, name, form):
    encoder, state = tiny(name), random_weights(name)
    path = tmp_path / {"folder": "model.safetensors", "own name in a folder": encoder.file}.get(form, form)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    given = tmp_path if "folder" in form else path
    network = create_backbone(name, pretrained=True, checkpoint=str(given), size=56).network
    loaded = getattr(network, "trunk", network).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_features_are_the_class_token_and_the_mean_of_patches_without_registers(tiny):
    tiny("virchow2")
    network = create_backbone("virchow2", pretrained=False, size=56).network.eval()
    with torch.inference_mode():
        tokens = network.trunk.forward_features(images(56))
        found = network(images(56))
    assert tokens.shape == (2, 1 + 4 + 16, 48)
    torch.testing.assert_close(found, torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1))


def test_the_last_blocks_of_a_wrapped_network_learn_with_all_after_them(tiny):
    tiny("conch_v1")
    encoder = build_encoder("conch_v1", pretrained=False, size=32)
    encoder.freeze(but_last=1)
    learning = {name for name, each in encoder.network.named_parameters() if each.requires_grad}
    assert {re.sub(r"^(trunk\.\w+(\.\d+)?|\w+)\..*", r"\1", name) for name in learning} == {
        "trunk.blocks.1",
        "trunk.norm",
        "pool",
    }
    with pytest.raises(ModelError, match="last 3 blocks, but VisionTransformer has 2"):
        encoder.freeze(but_last=3)


def test_tiles_are_encoded_with_the_encoder_s_own_colours(tiny):
    small = tiny("h0-mini")
    encoder = build_encoder("h0-mini", pretrained=False, size=28)
    torch.testing.assert_close(encoder.mean.flatten(), 255 * torch.tensor(small.mean))
    torch.testing.assert_close(encoder.std.flatten(), 255 * torch.tensor(small.std))
    assert encoder.raw(torch.zeros((2, 28, 28, 3), dtype=torch.uint8)).shape == (2, 96)


def test_ctranspath_takes_files_of_both_versions_of_timm(tmp_path):
    """Stages of the original file end with what timm's begin with now, and it has masks that are computed."""
    network = create_backbone("ctranspath", pretrained=False).network
    state = {key: torch.randn_like(value) for key, value in network.state_dict().items() if value.ndim}
    state |= {key: value for key, value in network.state_dict().items() if not value.ndim}
    older = {
        re.sub(
            r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key
        ): value
        for key, value in state.items()
    }
    older["layers.0.blocks.1.attn_mask"] = torch.zeros(3)
    for number, published in enumerate((state, {"model": older})):
        path = tmp_path / f"{number}.pth"
        torch.save(published, path)
        loaded = create_backbone("ctranspath", pretrained=False, checkpoint=str(path)).network.state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


# What goes wrong


def test_weights_of_another_encoder_are_refused(tmp_path, tiny):
    tiny("uni")
    path = tmp_path / "other.pth"
    torch.save({**random_weights("uni"), "blocks.0.attn.proj.bias": torch.zeros(7)}, path)
    with pytest.raises(ModelError, match=r"other\.pth do not fit backbone 'uni'"):
        create_backbone("uni", pretrained=True, checkpoint=str(path), size=32)


def test_a_file_that_lacks_the_pooling_is_refused(tmp_path, tiny):
    tiny("conch_v1")
    path = tmp_path / "trunk.pth"
    torch.save({f"visual.trunk.{key}": value for key, value in random_weights("conch_v1").items()}, path)
    with pytest.raises(ModelError, match=r"11 of its weights are not in the file.*'pool\.query'"):
        create_backbone("conch_v1", pretrained=True, checkpoint=str(path), size=32)


def test_a_folder_without_weights_names_the_files_that_are_looked_for(tmp_path):
    files = r"a folder without model\.safetensors, GPFM\.pth, pytorch_model\.bin"
    with pytest.raises(ModelError, match=files):
        create_backbone("gpfm", pretrained=True, checkpoint=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "advice"),
    [
        (
            "uni",
            gated_error(),
            r"restricted.*accept its licence on https://huggingface\.co/MahmoodLab/uni, and log in with "
            r"`hf auth login` or set HF_TOKEN; or give a local pytorch_model\.bin, or its folder, with --set "
            r"model\.checkpoint=PATH; or start from random weights with --set model\.pretrained=false",
        ),
        (
            "phikon-v2",
            LocalEntryNotFoundError("Cannot find the file in the cache\nand more"),
            r"Cannot find the file in the cache\. .*check the network and https://huggingface\.co/owkin/"
            r"phikon-v2; or give a local model\.safetensors",
        ),
    ],
    ids=["gated", "missing"],
)
def test_weights_that_cannot_be_downloaded_give_advice(monkeypatch, tiny, name, error, advice):
    def download(*args, **options):
        raise error

    tiny(name)
    monkeypatch.setattr(timm.models, "load_state_dict_from_hf", download)
    with pytest.raises(ModelError, match=advice) as caught:
        create_backbone(name, pretrained=True, size=32)
    assert "\n" not in str(caught.value)


OFFLINE = f"""
import dataclasses
from wsi_ats.encoders import ENCODERS
from wsi_ats.errors import ModelError
from wsi_ats.nn import backbone

for name in ("uni", "phikon-v2", "virchow"):
    tiny = dataclasses.replace(ENCODERS[name], arguments={{**ENCODERS[name].arguments, **{TINY}}})
    backbone.find_encoder = {{name: tiny}}.get
    try:
        network = backbone.create_backbone(name, pretrained=True, size=56).network
        print(name, float(network.norm.weight.sum()))
    except ModelError as error:
        print(error)
"""


def test_published_weights_come_from_the_hub_s_cache_without_a_network(tmp_path, tiny):
    """With the layout, the variables and the fallback from safetensors of huggingface_hub."""
    sums = []
    for name in ("uni", "phikon-v2"):
        encoder = tiny(name)
        state = random_weights(name)
        folder = tmp_path / "hub" / f"models--{encoder.hub.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0123abc")
        (folder / "snapshots" / "0123abc").mkdir(parents=True)
        path = folder / "snapshots" / "0123abc" / encoder.file
        if path.suffix == ".bin":
            torch.save(state, path)
        else:
            safetensors.torch.save_file(state, path)
        sums.append(f"{name} {float(state['norm.weight'].sum())}")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, check=True
    )
    *loaded, refused = ran.stdout.splitlines()
    assert loaded == sums
    assert "encoder 'virchow' cannot be downloaded" in refused
    assert "https://huggingface.co/paige-ai/Virchow," in refused
