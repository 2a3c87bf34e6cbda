"""Batches of one size, shared by all requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsi_ats.errors import SettingsError, SlideReadError
from wsi_ats.models.encoding import TileBatches, encode_cells
from wsi_ats.nn.encoder import build_encoder


def tiles_of(*counts: int, side: int = 4) -> list[np.ndarray]:
    generator = np.random.default_rng(sum(counts))
    return [generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8) for count in counts]


def means(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.float().mean((1, 2))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 3))
def test_each_request_gets_its_own_features_in_order(counts, size, lanes):
    tiles = tiles_of(*counts)
    with TileBatches(means, size=size, lanes=lanes) as batches:
        found = [future.result(600) for future in [batches.encode(each) for each in tiles]]
    for mine, each in zip(found, tiles, strict=True):
        assert torch.equal(mine, means(torch.from_numpy(each)))


def test_all_batches_have_one_size():
    sizes = []

    def embed(tiles):
        sizes.append(len(tiles))
        return means(tiles)

    with TileBatches(embed, size=8) as batches:
        batches.encode(tiles_of(21)[0]).result(600)
        batches.encode(tiles_of(1)[0]).result(600)
    assert sizes == [8, 8, 8, 8]


def test_waiting_requests_share_the_next_batch():
    begun, go, seen = Event(), Event(), []

    def embed(tiles):
        begun.set()
        go.wait(600)
        seen.append(int((tiles.flatten(1).sum(1) > 0).sum()))
        return means(tiles)

    with TileBatches(embed, size=8) as batches:
        first = batches.encode(tiles_of(8)[0])
        begun.wait(600)
        others = [batches.encode(each) for each in tiles_of(3, 4, 2)]
        go.set()
        for each in (first, *others):
            each.result(600)
    assert seen == [8, 8, 1]  # not 8, 3, 4, 2


def test_an_error_reaches_only_requests_of_its_batch():
    def embed(tiles):
        if (tiles == 7).all(-1).any():
            raise RuntimeError("out of memory")
        return means(tiles)

    with TileBatches(embed, size=2) as batches:
        bad = batches.encode(np.full((4, 4, 4, 3), 7, np.uint8))
        good = batches.encode(np.full((2, 4, 4, 3), 9, np.uint8))
        with pytest.raises(RuntimeError, match="out of memory"):
            bad.result(600)
        with TileBatches(embed, size=2) as own:
            assert torch.equal(good.result(600), own.encode(np.full((2, 4, 4, 3), 9, np.uint8)).result(600))


def test_an_error_after_computing_leaves_no_request_waiting():
    """As of a GPU, which reports an error at the next call."""
    widths = iter((3, 4))

    def embed(tiles):
        return torch.zeros(len(tiles), next(widths))  # the two cannot be put together

    with TileBatches(embed, size=2) as batches, pytest.raises(RuntimeError, match="Sizes of tensors"):
        batches.encode(tiles_of(4)[0]).result(600)


def test_closing_the_encoder_leaves_no_request_waiting():
    go = Event()

    def embed(tiles):
        go.wait(600)
        return means(tiles)

    batches = TileBatches(embed, size=1)
    waiting = batches.encode(tiles_of(5)[0])
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(batches.close)
        go.set()
        closing.result(600)
    assert waiting.done()


def test_cells_are_read_a_few_at_a_time_while_others_are_encoded():
    read: list[int] = []

    def job(cells):
        read.append(len(cells))
        return np.repeat(cells.astype(np.uint8), 48).reshape(-1, 4, 4, 3)

    with TileBatches(means, size=8) as batches:
        found, empty = encode_cells(batches, job, np.arange(50), at_a_time=20)
    assert found[:, 0].tolist() == list(range(50))
    assert empty == 50
    assert max(read) <= 20


def test_an_unreadable_tile_is_reported():
    def job(cells):
        raise SlideReadError("a.svs", "is torn")

    with TileBatches(means) as batches, pytest.raises(SlideReadError, match="torn"):
        encode_cells(batches, job, np.arange(3))


def test_zero_lanes_threads_or_tiles_are_refused():
    with pytest.raises(SettingsError):
        TileBatches(means, lanes=0)
    with pytest.raises(SettingsError):
        TileBatches(means, threads=0)
    with TileBatches(means) as batches, pytest.raises(SettingsError):
        batches.encode(tiles_of(0)[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet", "resnet18", "vit_tiny_patch16_224"])
def test_features_of_a_tile_do_not_depend_on_its_batch_or_the_number_of_cores(backbone, precision):
    torch.manual_seed(0)
    encoder = build_encoder(backbone, pretrained=False, size=64).eval()
    tiles = tiles_of(19, side=64)[0]
    found = []
    for lanes, cuts in ((1, []), (2, [3, 10]), (3, [1, 3, 6, 10, 15])):
        with TileBatches(encoder, precision=precision, lanes=lanes, threads=1) as batches:
            futures = [batches.encode(part) for part in np.split(tiles, cuts)]
            found.append(torch.cat([each.result(60) for each in futures]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
