"""Half precision where it is fast and right, single where it matters."""

from __future__ import annotations

import pytest
import torch

from wsi_ats.errors import SettingsError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.kinds import method_for, model_for
from wsi_ats.nn.precision import autocast, in_full, resolve
from wsi_ats.overview.overview import read_overview
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target

torch.set_num_threads(1)

CPU = torch.device("cpu")
SETTINGS = Settings().with_values(
    [
        *("tile.size=64", "thumbnail.pixels_per_cell=4", "thumbnail.tissue=none", "sampling.tiles=4"),
        *("model.backbone=test_resnet", "model.pretrained=false", "augmentation.turns=false"),
        "training.feature_dropout=0.0",
    ]
)


@pytest.mark.parametrize("known", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_it_and_tiles_are_not_tiny(monkeypatch, known):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known)
    assert resolve("auto", CPU, 64) == (torch.bfloat16 if known else torch.float32)
    assert resolve("auto", CPU, 63) == resolve("auto", CPU, 16) == torch.float32
    assert resolve("bfloat16", CPU, 64) == torch.bfloat16
    assert resolve("bfloat16", CPU, 63) == torch.float32
    assert resolve("float32", CPU, 256) == torch.float32


def test_bfloat16_is_refused_for_tiny_tiles():
    with pytest.raises(SettingsError, match=r"bfloat16 and tile\.size is 32"):
        SETTINGS.with_values(["tile.size=32", "training.precision=bfloat16"])


def test_full_precision_overrides_an_outer_autocast():
    one = torch.ones(2, 2)
    with autocast("bfloat16", CPU, 64):
        assert (one @ one).dtype == torch.bfloat16
        with in_full():
            assert (one @ one).dtype == torch.float32
        assert (one @ one).dtype == torch.bfloat16
    with in_full(), autocast("float32", CPU, 64):
        assert (one @ one).dtype == torch.float32


@pytest.mark.parametrize("kind", ["sampling", "mil", "image"])
def test_bfloat16_agrees_with_float32_to_its_digits_and_only_the_backbone_computes_in_it(kind):
    """Eight binary digits, a few layers: a hundredth or two of a feature's size."""

    def computed(precision: str):
        changes = [f"model.kind={kind}", f"training.precision={precision}", "training.feature_dropout=0"]
        settings = SETTINGS.with_values([*changes, *(["model.scale=1"] if kind == "image" else [])])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_for(settings, Target("classification", ("a", "b")))
            tiles = torch.randint(0, 255, (300, 64, 64, 3), dtype=torch.uint8)
            colours = torch.rand(300, 1, 1, 3)
        model.encoder.calibrate((tiles * colours).to(torch.uint8))
        seen: dict[str, set] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda module, given, found, name=name: seen.setdefault(name, set()).add(found.dtype)
            )
        slide = MemorySlide([(tiles[:6] * colours[:6]).to(torch.uint8).flatten(0, 1).numpy()], mpp=0.5)
        example = Example(SlideRef("a", "a", "a"), read_overview(slide, settings), (1.0,))
        model.train()
        with TileReader(1, lambda ref: slide) as reader:
            found = method_for(model, settings).begin([example], reader, [0])()
            features = found.features[0].detach() if found.drawn else None
            # Linear, so that the gradient is not that of the outputs' own rounding where these are small.
            (found.outputs[:, 1] - found.outputs[:, 0]).sum().backward()
        return model, seen, found.outputs.detach(), features

    single, _, outputs, features = computed("float32")
    half, seen, rough, rough_features = computed("bfloat16")
    assert seen["encoder.network.conv1.0"] == {torch.bfloat16}
    assert seen["encoder"] == seen["head"] == {torch.float32}  # whitened, and classified
    for name in ("attention", "gate", "score"):
        assert seen.get(name, {torch.float32}) == {torch.float32}
    assert {each.grad.dtype for each in half.parameters() if each.grad is not None} == {torch.float32}
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, outputs)
    torch.testing.assert_close(rough, outputs, rtol=0.05, atol=0.05)
    if features is not None:
        assert (rough_features - features).norm() < 0.1 * features.norm()
    one, other = (
        torch.cat([each.grad.flatten() for each in model.encoder.parameters()]) for model in (single, half)
    )
    assert torch.cosine_similarity(one, other, dim=0) > 0.98
