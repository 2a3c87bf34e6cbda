"""Tiles read by Dask workers are those that threads read, but for what JPEG loses."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import LIMIT, SETTINGS
from reader_jobs import GRID, grey_slide, greys_of, look, open_slides, tiles_at

from pipelines import _readers
from pipelines._cluster import connect
from pipelines._readers import DaskReader, check_readers, open_reader
from wsi_ats.errors import SettingsError, SlideOpenError, WsiAtsError
from wsi_ats.models.batches import Example, TileReader, outcomes
from wsi_ats.overview.records import Overview, TissueMask
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target
from wsi_ats.training.fit import fit

CELLS = np.array([7, 0, 19, 7])


def example(name: str, target: float = 0.0) -> Example:
    mask = np.ones(GRID.shape, dtype=bool)
    greys = greys_of(name)[..., None].repeat(3, 2)
    thumbnail = np.kron(greys, np.ones((4, 4, 1), np.uint8))
    tissue = TissueMask(GRID, mask.astype(np.float32), mask)
    return Example(SlideRef(name, name, name), Overview(thumbnail, tissue), (target,))


@pytest.fixture
def reader(client):
    with DaskReader(client, grey_slide) as reader:
        yield reader


def tiles_of(reader, names, cells=CELLS):
    examples = [example(name) for name in names]
    return outcomes(
        reader.read([(each.ref, each.overview.tissue.grid, cells) for each in examples]), examples
    )


def test_tiles_of_plain_grey_are_the_same_to_the_last_bit(reader):
    names = [*"abcdefgh", "slow", "i"]
    with TileReader(2, grey_slide) as local:
        expected, _ = tiles_of(local, names)
    found, failed = tiles_of(reader, names)
    assert not failed
    for there, here in zip(found, expected, strict=True):
        np.testing.assert_array_equal(there, here)


def test_training_on_plain_grey_ends_in_the_same_weights(client, tmp_path):
    training = [example(name, i % 2) for i, name in enumerate("abcdef")]

    def train(reader, name):
        changes = ["tile.size=16", "training.precision=float32", "sampling.tiles=3"]
        changes += ["training.epochs=1", "training.attention_epochs=1", "training.joint_epochs=1"]
        found = fit(
            training,
            training[:2],
            SETTINGS.with_values([*changes, "model.backbone=test_resnet"]),
            target=Target("classification", ("a", "b")),
            folder=tmp_path / name,
            device=torch.device("cpu"),
            on_epoch=lambda row: None,
            reader=reader,
        )
        return found.model.state_dict()

    with TileReader(1, grey_slide) as local:
        expected = train(local, "threads")
    with DaskReader(client, grey_slide, threads=3) as reader:
        found = train(reader, "dask")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_tiles_of_slides_lose_little_and_do_not_depend_on_workers(client, refs):
    def read(reader):
        return np.concatenate([each.result() for each in reader.run(jobs)])

    jobs = [(ref, partial(tiles_at, cells=[40, 41, 100 + i])) for i, ref in enumerate(refs)]
    with open_reader("threads:2") as local, DaskReader(client) as one, DaskReader(client, threads=1) as other:
        exact, found = read(local), read(one)
        np.testing.assert_array_equal(read(other), found)
    wrong = np.abs(found.astype(int) - exact)
    assert 0 < wrong.max() < 24
    assert wrong.mean() < 2


def test_jobs_other_than_tile_batches_are_sent_unchanged(reader):
    refs = [example(name).ref for name in "ab"]
    for ref, read in zip(refs, reader.run([(ref, look) for ref in refs]), strict=True):
        path, pixels = read.result()
        assert path == ref.id
        np.testing.assert_array_equal(pixels, look(grey_slide(ref))[1])


def test_a_slide_that_cannot_be_read_is_a_message_and_leaves_the_others(reader):
    tiles, failed = tiles_of(reader, ["a", "bad", "absent", "b"])
    assert [each is None for each in tiles] == [False, True, True, False]
    assert failed == {"bad": "bad: tile 3 is damaged", "absent": "absent: no such file"}
    (read,) = reader.run([(example("absent").ref, look)])
    with pytest.raises(SlideOpenError):
        read.result()


def test_an_error_that_is_not_of_a_slide_is_not_swallowed(reader):
    with pytest.raises(ZeroDivisionError):
        tiles_of(reader, ["bug"])


def test_only_the_slide_that_kills_its_workers_fails(reader):
    names = ["a", "slow1", "deadly", "slow2", *"bcdefg"]
    tiles, failed = tiles_of(reader, names)
    assert list(failed) == ["deadly"]
    assert "3 Dask workers that read it died" in failed["deadly"]
    assert [name for name, each in zip(names, tiles, strict=True) if each is None] == ["deadly"]
    assert not tiles_of(reader, ["a", "b"])[1]  # on workers that were started since


def test_reads_without_workers_end(monkeypatch):
    monkeypatch.setattr(_readers, "_ASK_SECONDS", 0.1)
    with connect("local", workers=1) as client, DaskReader(client, grey_slide, wait=0.3) as reader:
        client.cluster.scale(0)
        while client.nthreads():
            time.sleep(0.05)
        with pytest.raises(WsiAtsError, match=r"the Dask workers that read tiles have been gone for 0\.3 s"):
            tiles_of(reader, ["a"])


def test_reads_without_a_scheduler_end(cluster):
    cluster.work("--nthreads=1")
    with connect(cluster.address, wait=LIMIT) as client, DaskReader(client, grey_slide) as reader:
        assert not tiles_of(reader, ["a"])[1]
        futures = reader.read([(example(f"slow{i}").ref, GRID, CELLS) for i in range(20)])
        cluster.stop()
        with pytest.raises(WsiAtsError, match="connection to the Dask scheduler was lost"):
            futures[-1].result(LIMIT)


def test_slides_stay_open_while_the_reader_does(client):
    with DaskReader(client, grey_slide) as reader:
        for _ in range(3):
            tiles_of(reader, "abc")
        assert sum(client.run(open_slides).values()) == 3
    assert sum(client.run(open_slides).values()) == 0


def test_closing_does_not_wait_for_reads(client):
    with DaskReader(client, grey_slide, threads=2) as reader:
        futures = reader.read([(example(f"slow{i}").ref, GRID, CELLS) for i in range(200)])
    assert sum(future.cancelled() for future in futures) > 100
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("wrong", ["thread", "threads:0", "threads:", "threads:x", "Dask", ""])
def test_an_invalid_readers_option_is_refused(wrong):
    with pytest.raises(SettingsError, match="--readers must be threads, threads:N or dask"):
        check_readers(wrong)
