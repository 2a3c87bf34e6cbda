"""Two-level sampling reads a coarse thumbnail, the regions drawn and their tiles, and nothing else."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.scored import draws_of
from wsi_ats.errors import ModelError, SlideReadError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.checkpoints import load_model, save_model
from wsi_ats.models.kinds import model_for
from wsi_ats.models.sampling import AttentionSampling
from wsi_ats.models.scoring import LoadedModel
from wsi_ats.models.two_level import allocate
from wsi_ats.nn import expectation
from wsi_ats.overview.overview import count_tiles, read_overview, read_region_overview, regions_of
from wsi_ats.overview.tiles import read_tiles
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.recording import RecordingSlide
from wsi_ats.training.fit import fit

torch.set_num_threads(1)  # tiny networks: on busy cores, threads would only wait for one another

TARGET = Target("classification", ("benign", "malignant"))
# 16 x 16 pixel tiles in regions of 4 x 4; the slide has 5 x 6 regions, the last of each cut.
SETTINGS = Settings().with_values(
    [
        *("tile.size=16", "thumbnail.levels=2", "thumbnail.pixels_per_cell=4"),
        *("thumbnail.cells_per_region=4", "thumbnail.pixels_per_region=8", "thumbnail.tissue=brightfield"),
        *("model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=9", "sampling.regions=3"),
        *("sampling.exploration=0.0", "training.epochs=0", "training.attention_epochs=0"),
        *("training.joint_epochs=2", "training.validation=0", "training.calibration_tiles=32"),
    ]
)
WIDTH, HEIGHT = 344, 288


def pyramid(seed: int) -> list[np.ndarray]:
    """Tissue on glass, at 1, 2, 4 and 8 level-0 pixels per pixel."""
    generator = np.random.default_rng(seed)
    pixels = generator.normal(240, 2, (HEIGHT, WIDTH, 3))
    pixels[40:230, 70:300] = generator.normal((190, 110, 170), 30, (190, 230, 3))
    full = pixels.clip(0, 255).astype(np.uint8)
    return [
        full.reshape(HEIGHT // f, f, WIDTH // f, f, 3).mean((1, 3)).astype(np.uint8) for f in (1, 2, 4, 8)
    ]


def slide(seed: int = 0, kind=RecordingSlide) -> RecordingSlide:
    return kind(pyramid(seed), mpp=0.5, path=f"memory{seed}")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model_for(SETTINGS, TARGET)
        made.encoder.calibrate(torch.randint(0, 255, (16, 16, 16, 3), dtype=torch.uint8))
        for part in (made.attention.logit, made.regions.logit, made.gate, made.head):
            torch.nn.init.normal_(part.weight, std=0.5)
    return made.eval()


def score(model, of=None, *, changes=(), seed=0):
    loaded = LoadedModel(model, SETTINGS.with_values(changes), TARGET, "abc")
    return loaded.score(of or slide(), ref=SlideRef("case7", "memory", "patient"), seed=seed)


def everything(model, of) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """The exact model by hand: logits, all cells that have attention, and how much."""
    overview = read_overview(of, SETTINGS)
    thumbnail, tissue = overview.thumbnail, overview.tissue
    regions = regions_of(tissue, SETTINGS)
    with torch.inference_mode():
        outer = torch.softmax(
            model.score_regions(
                torch.from_numpy(thumbnail), torch.from_numpy(tissue.cells), tissue.grid.shape
            ),
            0,
        )
        numbers, weights = [], []
        for number, share in zip(tissue.cells.tolist(), outer, strict=True):
            window = regions.window(number)
            found = read_region_overview(of, overview, regions, window, SETTINGS)
            mask = found.tissue
            inner = model.attend(
                torch.from_numpy(found.thumbnail), torch.from_numpy(mask.cells), mask.grid.shape
            )
            numbers.append(regions.numbers(window, mask.cells))
            weights.append(share * inner)
        cells, weight = np.concatenate(numbers), torch.cat(weights)
        features = model.embed(torch.from_numpy(read_tiles(of, regions.cells, cells)))
        pooled = expectation.exact(weight, features, model.gate(features)[:, 0])
        return model.classify(pooled), cells, weight


# Thumbnails


def test_the_coarse_thumbnail_finds_the_regions_with_tissue():
    overview = read_overview(slide(), SETTINGS)
    thumbnail, tissue = overview.thumbnail, overview.tissue
    assert thumbnail.shape == (5 * 8, 6 * 8, 3)
    assert tissue.grid.shape == (5, 6)
    boxes = tissue.grid.boxes(tissue.cells)
    assert boxes[:, :2].min(0).tolist() == [64, 0]  # a few pixels of tissue are in it
    assert boxes[:, :2].max(0).tolist() == [256, 192]
    # 190 x 230 pixels of tissue are 14.8 x 12 tiles of 16; found at 8 pixels a region
    assert count_tiles(tissue, SETTINGS) == pytest.approx(190 * 230 / 256, rel=0.15)
    one_level = read_overview(slide(), SETTINGS.with_values(["thumbnail.levels=1"]))
    assert count_tiles(one_level.tissue, Settings()) > 150


def test_the_fine_thumbnail_shows_the_cells_of_a_region_in_place():
    of = slide()
    overview = read_overview(of, SETTINGS)
    regions = regions_of(overview.tissue, SETTINGS)
    one_level = read_overview(of, SETTINGS.with_values(["thumbnail.levels=1"]))
    whole, mask = one_level.thumbnail, one_level.tissue
    for number in (7, 10, 29):
        row, column, rows, columns = window = regions.window(number)
        closer = read_region_overview(of, overview, regions, window, SETTINGS)
        view, found = closer.thumbnail, closer.tissue
        part = whole[4 * row : 4 * (row + rows), 4 * column : 4 * (column + columns)]
        np.testing.assert_array_equal(view, part)
        if number != 29:  # all glass: there, every cell counts
            seen = mask.mask[row : row + rows, column : column + columns]
            np.testing.assert_array_equal(found.mask, seen)
        else:
            assert found.mask.all()


def test_only_the_coarse_thumbnail_drawn_regions_and_drawn_tiles_are_read(model):
    of = slide()
    scored = score(model, of, changes=["sampling.draws=2"])
    selection, grid = scored.selection, scored.selection.grid
    regions = regions_of(read_overview(slide(), SETTINGS).tissue, SETTINGS)
    # A region of 64 pixels has 8 in the coarse thumbnail, as in level 3; a cell of 16 has 4, as in level 2.
    coarse, closer, tiles = ([box[1:] for box in of.boxes if box[0] == level] for level in (3, 2, 0))
    assert coarse == [(0, 0, 48, 40)]
    assert len(closer) == len(set(closer)) <= 6
    assert all(width <= 16 and height <= 16 for _, _, width, height in closer)
    assert sorted(tiles) == sorted(grid.regions(np.unique(selection.cells)))
    assert {box[0] for box in of.boxes} == {0, 2, 3}
    owners = {(x // 64, y // 64) for x, y, _, _ in tiles}
    assert owners <= {(x // 16, y // 16) for x, y, _, _ in closer}
    assert grid == regions.cells
    assert len(np.unique(selection.cells)) == scored.prediction.tiles_read <= 18
    assert scored.attention.grid == regions.grid
    assert scored.attention.attention.sum() == pytest.approx(1)


def test_records_give_joint_attention_inclusion_and_weight(model):
    _, cells, weight = everything(model, slide())
    attention = dict(zip(cells.tolist(), weight.tolist(), strict=True))
    selection = score(model).selection
    assert selection.attention == pytest.approx(
        [attention[cell] for cell in selection.cells.tolist()], rel=1e-4
    )
    np.testing.assert_allclose(selection.weight, selection.attention / selection.inclusion, rtol=1e-5)
    assert selection.weight.sum() == pytest.approx(1, abs=1e-5)
    assert (selection.inclusion <= 1 + 1e-12).all()


# That it estimates the exact model


@pytest.mark.parametrize("design", ["systematic", "sequential", "uniform", "top"])
def test_all_regions_and_tiles_drawn_are_the_exact_model(model, design):
    exact, cells, _ = everything(model, slide())
    changes = [f"sampling.design={design}", "sampling.tiles=2000", "sampling.regions=100"]
    scored = score(model, changes=changes)
    assert sorted(scored.selection.cells.tolist()) == sorted(cells.tolist())
    assert list(scored.prediction.scores.values()) == pytest.approx(
        torch.softmax(exact, 0).tolist(), abs=1e-5
    )


def test_more_tiles_come_nearer_to_the_exact_model(model):
    exact, _, _ = everything(model, slide())
    method = partial(AttentionSampling, model)

    def error(tiles, regions):
        settings = SETTINGS.with_values([f"sampling.tiles={tiles}", f"sampling.regions={regions}"])
        draws = draws_of(method(settings), slide(), read_overview(slide(), settings), range(30))
        logits = torch.stack([each.logits for each in draws])
        return (logits - exact).square().sum(1).mean().item()

    assert error(120, 12) < error(24, 6) / 2 < error(6, 3)


# Through training and files


def opened(ref: SlideRef, kind=RecordingSlide) -> RecordingSlide:
    return slide(int(ref.id), kind)


def examples(count: int = 6) -> list[Example]:
    refs = [SlideRef(str(i), f"memory{i}", str(i), TARGET.names[i % 2]) for i in range(count)]
    return [Example(ref, read_overview(opened(ref), SETTINGS), (float(i % 2),)) for i, ref in enumerate(refs)]


def trained(folder, opener=opened, settings=SETTINGS, rows=None):
    with TileReader(2, opener) as reader:
        return fit(
            examples(),
            [],
            settings,
            target=TARGET,
            folder=folder,
            device=torch.device("cpu"),
            on_epoch=(lambda row: None) if rows is None else rows.append,
            reader=reader,
        )


PHASES = [
    "training.epochs=1",
    "training.tiles=6",
    "training.attention_epochs=2",
    "training.attention_tiles=20",
]


@pytest.mark.parametrize("changes", [[], [*PHASES, "training.joint_epochs=0"], PHASES], ids=" ".join)
def test_both_attention_networks_learn_and_come_back_from_a_file(tmp_path, changes):
    model = trained(tmp_path, settings=SETTINGS.with_values(changes)).model
    assert model.regions.logit.weight.abs().max() > 0
    assert model.attention.logit.weight.abs().max() > 0
    save_model(tmp_path, model, SETTINGS, TARGET)
    again = load_model(tmp_path).model
    assert score(again).prediction.scores == score(model).prediction.scores


def test_a_slide_whose_region_cannot_be_read_is_left_out_of_the_step(tmp_path):
    class Broken(RecordingSlide):
        def read_regions(self, level, corners, width, height):
            if level == 2 and self.path == "memory3":
                raise SlideReadError(self.path, "damaged")
            return super().read_regions(level, corners, width, height)

    rows: list = []
    trained(tmp_path, partial(opened, kind=Broken), rows=rows)
    assert [row["failed"] for row in rows] == [1, 1]


def test_attention_learns_without_a_slide_whose_region_cannot_be_read(tmp_path):
    class Broken(RecordingSlide):
        def read_regions(self, level, corners, width, height):
            if level == 2 and self.path == "memory3":
                raise SlideReadError(self.path, "damaged")
            return super().read_regions(level, corners, width, height)

    rows: list = []
    settings = SETTINGS.with_values([*PHASES, "training.joint_epochs=0"])
    found = trained(tmp_path, partial(opened, kind=Broken), settings, rows)
    assert [(row["phase"], row["failed"]) for row in rows] == [
        ("classifier", 1), ("attention", 0), ("attention", 0)
    ]  # fmt: skip
    assert found.model.regions.logit.weight.abs().max() > 0


def test_a_run_of_all_phases_stopped_after_every_epoch_ends_the_same(tmp_path):
    class Stops(list):
        def append(self, row):
            super().append(row["epoch"])
            raise KeyboardInterrupt

    settings, rows = SETTINGS.with_values([*PHASES, "training.joint_epochs=1"]), Stops()
    whole = trained(tmp_path / "whole", settings=settings).model
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "stopped", settings=settings, rows=rows)
    assert rows == [0, 1, 2, 3]
    again = trained(tmp_path / "stopped", settings=settings).model
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_nothing_is_trained_where_no_region_can_be_read(tmp_path):
    class Broken(RecordingSlide):
        def read_regions(self, level, corners, width, height):
            if level == 2:
                raise SlideReadError(self.path, "damaged")
            return super().read_regions(level, corners, width, height)

    with pytest.raises(ModelError, match=r"no slide could be read for calibration: memory\d: damaged"):
        trained(tmp_path, partial(opened, kind=Broken))


def test_entropy_is_that_of_the_product_of_both_attentions(model):
    """All regions drawn, so that nothing of it is estimated."""
    settings = SETTINGS.with_values(["sampling.tiles=2000", "sampling.regions=100"])
    _, _, weight = everything(model, opened(examples(1)[0].ref))
    with TileReader(1, opened) as reader, torch.inference_mode():
        found = AttentionSampling(model, settings).begin(examples(1), reader, [0])()
    assert found.drawn[0].attended.entropy.item() == pytest.approx(
        expectation.entropy(weight.double()).item(), rel=1e-4
    )


def test_a_model_of_one_level_refuses_two_level_use(model):
    one = model_for(SETTINGS.with_values(["thumbnail.levels=1"]), TARGET)
    with pytest.raises(ModelError, match=r"one level.*thumbnail\.levels=2"):
        one.score_regions(torch.zeros(8, 8, 3, dtype=torch.uint8), torch.arange(1), (1, 1))


# Sharing tiles among regions


REGIONS = st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 50)), min_size=1, max_size=20)


@given(REGIONS.flatmap(lambda each: st.tuples(st.just(each), st.integers(len(each), 1200))))
def test_all_draws_are_allocated_while_regions_have_room(drawn):
    regions, n = drawn
    weights, room = zip(*regions, strict=True)
    counts = allocate(weights, room, n)
    assert sum(counts) == min(n, sum(room))
    assert all(1 <= count <= most for count, most in zip(counts, room, strict=True))


@given(REGIONS.flatmap(lambda each: st.tuples(st.just(each), st.integers(len(each), 1200))))
def test_each_region_gets_tiles_in_proportion_where_room_allows(drawn):
    regions, n = drawn
    weights = [weight for weight, _ in regions]
    total = sum(weights)
    for weight, count in zip(weights, allocate(weights, [n] * len(weights), n), strict=True):
        share = weight / total if total else 1 / len(weights)
        assert abs(count - 1 - share * (n - len(weights))) < 1 + 1e-9


def test_a_small_region_leaves_its_share_to_the_others(model):
    """130 pixels are 9 x 9 tiles in 3 x 3 regions, the last of which have few."""
    small = MemorySlide([np.full((130, 130, 3), 120, np.uint8)], mpp=0.5)
    for seed in range(5):
        scored = score(
            model,
            small,
            seed=seed,
            changes=["thumbnail.tissue=none", "sampling.tiles=17", "sampling.regions=2"],
        )
        counts = np.unique_counts(scored.selection.cells).counts
        assert counts.max() == 1
        assert len(counts) == scored.prediction.tiles_read
        owners = scored.selection.cells // 9 // 4 * 3 + scored.selection.cells % 9 // 4
        room = sum({0: 16, 1: 16, 3: 16, 4: 16, 8: 1}.get(owner, 4) for owner in set(owners.tolist()))
        assert len(counts) == min(17, room)


@pytest.mark.parametrize("tissue", ["auto", "brightfield", "fluorescence"])
@pytest.mark.parametrize("shade", [0, 250])
def test_a_slide_without_tissue_has_no_regions_whatever_lies_past_its_edge(tissue, shade):
    bare = MemorySlide([np.full((500, 500, 3), shade, np.uint8)], mpp=0.5)
    settings = SETTINGS.with_values([f"thumbnail.tissue={tissue}"])
    if (tissue, shade) != ("fluorescence", 250):  # there, all of it shines
        assert not len(read_overview(bare, settings).tissue.cells)


@pytest.mark.parametrize(
    ("width", "height", "cells"), [(16, 16, 1), (40, 40, 7), (130, 130, 64), (64, 64, 16)]
)
def test_tiles_are_not_counted_past_the_edge(width, height, cells):
    small = MemorySlide([np.full((height, width, 3), 120, np.uint8)], mpp=0.5)
    settings = SETTINGS.with_values(["thumbnail.tissue=none"])
    assert count_tiles(read_overview(small, settings).tissue, settings) == cells


def test_a_model_refuses_settings_of_another_number_of_levels(model):
    with pytest.raises(ModelError, match=r"2 levels, but thumbnail\.levels is 1"):
        score(model, changes=["thumbnail.levels=1"])
