"""Backbones by name, their weights from files, and advice where that fails."""

from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from wsi_ats.errors import ModelError
from wsi_ats.nn import backbone as module
from wsi_ats.nn.backbone import create_backbone, last_blocks

NAMES = ["test_resnet", "test_convnext", "test_vit"]


def images(size: int = 32) -> torch.Tensor:
    return torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def refused(monkeypatch):
    """The function ``refused(error)``: timm.create_model then raises it."""

    def fail(error):
        def create_model(*args, **options):
            raise error

        monkeypatch.setattr(timm, "create_model", create_model)

    return fail


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_knows_the_width_of_its_features(name):
    made = create_backbone(name, pretrained=False, size=32)
    with torch.inference_mode():
        assert made.network.eval()(images()).shape == (2, made.width)


def test_width_is_that_of_the_output_where_a_network_ends_in_a_wider_layer():
    made = create_backbone("test_efficientnet", pretrained=False)
    assert made.network.num_features == made.width
    with torch.inference_mode():
        assert made.network.eval()(images()).shape == (2, made.width)


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_stated_widths_and_strides(name):
    made = create_backbone(name, pretrained=False, maps=True)
    assert made.map_widths
    with torch.inference_mode():
        maps = made.network.eval()(images(64))
    assert [each.shape[1] for each in maps] == list(made.map_widths)
    assert [64 // each.shape[2] for each in maps] == list(made.map_strides)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("maps", [False, True])
def test_colours_are_normalised_as_the_networks_own_training_did(name, maps):
    made = create_backbone(name, pretrained=False, maps=maps)
    config = timm.get_pretrained_cfg(name)
    assert (made.mean, made.std) == (config.mean, config.std)


def test_encoder_and_attention_use_the_colours_of_their_backbone():
    from wsi_ats.nn.attention import FeatureMapAttention
    from wsi_ats.nn.encoder import TileEncoder

    class Through(torch.nn.Module):
        def forward(self, x):
            self.seen = x
            return x.mean((2, 3))

    network = Through()
    of = module.Backbone(network, 3, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    TileEncoder(of, trained=True)(torch.full((1, 4, 4, 3), 51, dtype=torch.uint8))
    torch.testing.assert_close(network.seen[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.8]))

    class Maps(Through):
        def forward(self, x):
            self.seen = x
            return [x]

    network = Maps()
    of = module.Backbone(network, 3, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125), (3,), (1,))
    FeatureMapAttention(of)(torch.full((4, 4, 3), 51, dtype=torch.uint8), torch.ones(1, 1).bool())
    torch.testing.assert_close(network.seen[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.8]))


# Weights from files


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_local_weights_file_is_really_loaded(tmp_path, name, suffix):
    """Of the whole network with its classifier, as weights are published."""
    options = {"img_size": 32} if "vit" in name else {}
    stored = timm.create_model(name, pretrained=False, num_classes=7, **options)
    for parameter in stored.parameters():
        torch.nn.init.normal_(parameter)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(stored.state_dict(), path)
    else:
        torch.save(stored.state_dict(), path)
    made = create_backbone(name, pretrained=False, checkpoint=str(path), size=32)
    loaded = made.network.state_dict()
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, stored.state_dict()[key]), key


def test_a_weights_file_takes_precedence_over_a_download(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    asked = {}
    create_model = timm.create_model

    def remember(name, **options):
        asked.update(options)
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", remember)
    create_backbone("test_resnet", pretrained=True, checkpoint=str(path))
    assert asked["pretrained"] is False


@pytest.mark.parametrize("name", [*NAMES, "tf_efficientnet_lite0"])
def test_weights_of_a_whole_network_serve_for_its_maps(tmp_path, name):
    path = tmp_path / "weights.safetensors"
    whole = timm.create_model(name, pretrained=False)
    safetensors.torch.save_file(whole.state_dict(), path)
    made = create_backbone(name, pretrained=False, checkpoint=str(path), maps=True)
    known = [each for each in whole.state_dict().values() if each.ndim > 1]
    for weight in (each for each in made.network.state_dict().values() if each.ndim > 1):
        assert any(weight.shape == each.shape and torch.equal(weight, each) for each in known)


def test_a_weights_file_for_maps_overrides_the_published_weights(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    overlays = []

    def create_model(name, *, pretrained_cfg_overlay=None, **options):
        overlays.append(pretrained_cfg_overlay)
        return real("test_resnet", **{**options, "pretrained": False})

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    create_backbone("hf-hub:owner/model", pretrained=True, checkpoint=str(path), maps=True)
    # timm tries a hub before a file.
    assert overlays == [None, {"file": str(path), "source": "", "custom_load": False}]


def test_weights_of_another_network_are_refused_for_maps(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_convnext", pretrained=False).state_dict(), path)
    with pytest.raises(ModelError, match=r"other\.safetensors do not fit backbone 'test_resnet'"):
        create_backbone("test_resnet", pretrained=False, checkpoint=str(path), maps=True)


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.pth' is not a file"):
        create_backbone("test_resnet", pretrained=False, checkpoint=str(tmp_path / "nowhere.pth"))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_convnext", pretrained=False).state_dict(), path)
    with pytest.raises(ModelError, match=r"other\.safetensors do not fit backbone 'test_resnet'"):
        create_backbone("test_resnet", pretrained=False, checkpoint=str(path))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("content", [b"", b"this is no file of weights" * 100])
def test_a_damaged_weights_file_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        create_backbone("test_resnet", pretrained=False, checkpoint=str(path))


def test_a_weights_file_that_would_run_code_is_refused(tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(ModelError, match=r"evil\.pth"):
        create_backbone("test_resnet", pretrained=False, checkpoint=str(path))
    assert not trace.exists()


# Names and downloads


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("maps", [False, True])
def test_an_unknown_name_is_refused_with_how_to_find_the_known(pretrained, maps):
    with pytest.raises(ModelError, match=r"'resnet_18' cannot be built: Unknown model.*list_models"):
        create_backbone("resnet_18", pretrained=pretrained, maps=maps)


def test_names_on_a_hub_are_passed_through(monkeypatch):
    asked = []

    def create_model(name, **options):
        asked.append((name, options["pretrained"]))
        return real("test_resnet", pretrained=False, num_classes=0)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    assert create_backbone("hf-hub:owner/model", pretrained=True).width == 96
    assert asked == [("hf-hub:owner/model", True)]


def test_no_network_gives_advice_and_no_traceback_of_a_download(refused):
    refused(LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub\nand more"))
    with pytest.raises(ModelError) as caught:
        create_backbone("resnet18", pretrained=True)
    message = str(caught.value)
    assert "backbone 'resnet18' cannot be downloaded: An error happened" in message
    assert "--set model.checkpoint=FILE" in message
    assert "--set model.pretrained=false" in message
    assert "\n" not in message
    with pytest.raises(ModelError, match=r"--set model\.attention_checkpoint=FILE"):
        create_backbone("resnet18", pretrained=True, maps=True)
    assert isinstance(caught.value.__cause__, LocalEntryNotFoundError)


def gated_error() -> GatedRepoError:
    import inspect

    import httpx2

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.invalid/owner/model"))
    assert "response" in inspect.signature(GatedRepoError).parameters
    return GatedRepoError("403 Client Error. Access to model owner/model is restricted", response=response)


def test_a_gated_model_gives_advice_to_accept_its_licence_and_log_in(refused):
    refused(gated_error())
    with pytest.raises(ModelError, match=r"restricted.*accept its licence.*hf auth login"):
        create_backbone("hf-hub:owner/model", pretrained=True)


@pytest.mark.parametrize("error", [OSError("disk"), ConnectionError("reset"), RuntimeError("size mismatch")])
def test_every_download_error_is_a_model_error(refused, error):
    refused(error)
    with pytest.raises(ModelError, match=str(error)):
        create_backbone("resnet18", pretrained=True)


def test_a_network_that_has_no_maps_is_refused(refused):
    refused(RuntimeError("features_only not implemented"))
    with pytest.raises(ModelError, match="features_only not implemented"):
        create_backbone("some_network", pretrained=False, maps=True)


def test_weights_for_another_image_size_are_fitted_as_timm_fits_them(tmp_path):
    stored = timm.create_model("test_vit", pretrained=False, img_size=64)
    torch.nn.init.normal_(stored.pos_embed)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(stored.state_dict(), path)
    made = create_backbone("test_vit", pretrained=False, checkpoint=str(path), size=32)
    assert made.network.pos_embed.shape[1] < stored.pos_embed.shape[1]
    assert torch.equal(made.network.blocks[0].attn.qkv.weight, stored.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("test_vit", "blocks.5.", "norm.bias"),
        ("test_resnet", "layer4.0.", "layer4.0.downsample.2.bias"),
        # None of timm's patterns names the layers after the last block.
        ("test_convnext", "stages.3.blocks.1.", "head.norm.bias"),
        ("mobilenetv3_small_050", "blocks.5.0.", "conv_head.bias"),
    ],
)
def test_layers_after_the_last_block_train_with_it(name, first, last):
    network = create_backbone(name, pretrained=False, size=64).network
    found = {id(weight) for weight in last_blocks(network, 1)}
    names = [each for each, weight in network.named_parameters() if id(weight) in found]
    assert names[0].startswith(first)
    assert names[-1] == last


def test_precomputed_features_need_no_network_and_refuse_pixels():
    found = create_backbone("features:1280", pretrained=True)  # nothing is downloaded
    assert found.width == 1280
    assert list(found.network.parameters()) == []
    with pytest.raises(ModelError, match=r"not pixels of shape \(2, 3, 32, 32\); give it features"):
        found.network(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("name", ["features:0", "features:", "features:-3", "features:12x"])
def test_an_invalid_number_of_features_is_refused(name):
    with pytest.raises(ModelError, match=name):
        create_backbone(name, pretrained=False)
