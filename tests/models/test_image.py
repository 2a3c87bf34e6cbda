"""A CNN on the whole slide, and the refusal of images that do not fit into memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.scored import draws_of
from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.image import WholeImage
from wsi_ats.models.kinds import model_for
from wsi_ats.overview.overview import read_overview
from wsi_ats.overview.tiles import read_thumbnail
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target

SETTINGS = Settings().with_values(
    [
        "tile.size=32",
        "thumbnail.pixels_per_cell=4",
        "thumbnail.tissue=none",
        "model.kind=image",
        "model.backbone=test_resnet",
        "model.pretrained=false",
    ]
)
TARGET = Target("classification", ("benign", "malignant"))


def slide_of(name: str, columns: int = 6) -> MemorySlide:
    pixels = np.random.default_rng(ord(name)).integers(0, 255, (128, 32 * columns, 3), dtype=np.uint8)
    return MemorySlide([pixels], mpp=0.5, path=name)


def example_of(name: str, columns: int = 6) -> Example:
    return Example(
        SlideRef(name, name, name), read_overview(slide_of(name, columns), SETTINGS), (float(ord(name) % 2),)
    )


def method(*changes: str, free: int = 1 << 40) -> WholeImage:
    settings = SETTINGS.with_values(changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_for(settings, TARGET)
    return WholeImage(model, settings, free=lambda device: free)


@pytest.mark.parametrize(("scale", "side"), [(0.25, 8), (0.5, 16), (1.0, 32)])
def test_the_image_is_the_slide_at_the_scale(scale, side):
    way, slide = method(f"model.scale={scale}"), slide_of("a")
    overview = read_overview(slide, SETTINGS)
    tissue = overview.tissue
    seen = []
    way.model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    way.model.eval()
    [found] = draws_of(way, slide, overview, iter([0, 1]))
    image = seen[-1]  # before it, one without contents, to count the memory
    assert image.shape == (1, 4 * side, 6 * side, 3)
    np.testing.assert_array_equal(image[0], read_thumbnail(slide, tissue.grid, side))
    assert found.tiles is found.attention is None
    assert found.new_tiles == 0
    assert found.logits.shape == (2,)


def test_slides_of_any_size_are_learned_from_and_bad_ones_named():
    def opener(ref):
        if ref.id == "c":
            raise SlideReadError("c", "it is damaged")
        return slide_of(ref.id, columns=len(ref.case) + 3)

    way, examples = method(), [example_of(name, columns) for name, columns in (("a", 4), ("b", 6), ("c", 4))]
    with TileReader(2, opener) as reader:
        way.calibrate(examples, reader)
        found = way.begin(examples, reader, [0] * 3)()
        found.outputs.sum().backward()
    assert found.outputs.shape == (2, 2)
    assert found.places == [0, 1]
    assert found.failed == {"c": "c: it is damaged"}
    assert found.tiles == 0
    assert all(weight.grad is not None for weight in way.model.parameters())


def test_fewer_than_two_readable_slides_are_an_error_with_the_reasons():
    def opener(ref):
        raise SlideReadError(ref.id, "it is damaged")

    with TileReader(2, opener) as reader, pytest.raises(ModelError, match="a: it is damaged; b: it is"):
        method().calibrate([example_of("a"), example_of("b")], reader)


def test_features_of_training_slides_are_centred_and_scaled():
    way, examples = method(), [example_of(name) for name in "abcdef"]
    with TileReader(2, lambda ref: slide_of(ref.id)) as reader:
        way.calibrate(examples, reader)
    encoder = way.model.encoder
    with torch.no_grad():
        halves = [read_thumbnail(slide_of(n), example_of(n).overview.tissue.grid, 16) for n in "abcdef"]
        raw = torch.stack([encoder.raw(torch.from_numpy(each)[None])[0] for each in halves])
    scaled = (raw - encoder.centre) * encoder.scale
    torch.testing.assert_close(scaled.mean(0), torch.zeros(encoder.width), rtol=0, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_an_image_too_large_for_memory_is_refused_with_the_largest_scale_that_fits(training):
    whole = method("model.scale=1.0")
    small, large = example_of("a", 4), example_of("b", 8)
    needed = whole.needed(large.overview.tissue.grid, 32, training=training)
    free = whole.needed(large.overview.tissue.grid, 20, training=training)
    both = ([small, large], []) if training else ([], [small, large])
    method("model.scale=1.0", free=needed).check(*both)
    way = method("model.scale=1.0", free=free)
    with pytest.raises(ModelError) as caught:
        way.check(*both)
    text = str(caught.value)
    assert "b: the image is 256 x 128 pixels at model.scale 1.0" in text
    assert f"would need {needed / 1e9:.3g} GB on cpu, and {free / 1e9:.3g} GB are free" in text
    assert "model.scale of at most 0.625" in text
    method("model.scale=0.625", free=free).check(*both)
    with pytest.raises(ModelError):
        method("model.scale=0.65625", free=free).check(*both)


def test_where_no_scale_fits_the_error_says_so_before_any_read():
    class Unreadable(MemorySlide):
        def read_regions(self, *args):
            raise AssertionError

    slide = slide_of("a")
    overview = read_overview(slide, SETTINGS)
    with pytest.raises(ModelError, match=r"scoring would need .* no model\.scale would fit"):
        next(draws_of(method(free=1000), Unreadable(slide._pyramid, mpp=0.5), overview, iter([0])))


def test_training_counts_gradients_and_the_optimisers_moments():
    way, grid = method(), example_of("a").overview.tissue.grid
    weights = sum(weight.nbytes for weight in way.model.parameters())
    learning = way.needed(grid, 4, training=True)
    assert learning > way.needed(grid, 4, training=False) + 2 * weights
    way.model.encoder.freeze()
    assert way.needed(grid, 4, training=True) < learning - 2 * weights * 0.9
