"""Features of a small slide, by our stage and by a plain loop."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from benchmarks import embedding, scoring
from benchmarks.synthetic import slide_of
from wsi_ats.models.embedding import load_encoder
from wsi_ats.models.encoding import TileBatches
from wsi_ats.slides import open_slide
from wsi_ats.tables.files import read_csv


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Later tests of this process would keep the threads that the benchmark asks for."""
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return slide_of(tmp_path_factory.mktemp("slides"), 4096)


def test_the_table_is_written_and_its_ratios_are_of_the_numbers_beside_them(slide, tmp_path):
    embedding.main(
        [
            *("--sides", "4096", "--slides", str(slide.parent), "--out", str(tmp_path)),
            *("--rounds", "1", "--networks", "test_resnet:256"),
        ]
    )
    row = {name: values[0] for name, values in read_csv(tmp_path / "embedding.csv").items()}
    seconds = {name: float(row[f"{name}_s"]) for name in ("embed", "loop", "embed_floor", "loop_floor")}
    assert min(seconds.values()) > 0
    for name, each in seconds.items():
        assert float(row[f"{name}_tiles_per_s"]) == pytest.approx(int(row["tiles"]) / each)
    assert float(row["times"]) == pytest.approx(seconds["loop"] / seconds["embed"])
    floor = min(seconds["embed_floor"], seconds["loop_floor"])
    assert float(row["by_floor"]) == pytest.approx(seconds["embed"] / floor)


def test_one_side_named_twice_is_refused_because_it_would_be_one_slide(slide, capsys):
    with pytest.raises(SystemExit):
        embedding.main(["--sides", "4096", "4096", "--slides", str(slide.parent)])
    assert "--sides must be different numbers, not [4096, 4096]" in capsys.readouterr().err


def test_sides_that_encode_other_numbers_of_tiles_are_not_compared(slide, tmp_path, monkeypatch):
    @contextmanager
    def in_this_process(*each, **named):
        with (
            LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client, None

    real = scoring.all_tissue
    monkeypatch.setattr(embedding, "workers_for", in_this_process)
    monkeypatch.setattr(embedding, "all_tissue", lambda *each: (real(*each)[0][1:], 0))
    settings = embedding.settings_of("test_resnet", 256, tmp_path, [])
    with pytest.raises(ValueError, match="tiles were encoded, not"):
        embedding.measured([slide], settings, tmp_path, rounds=1)


def test_the_loop_computes_the_features_that_we_compute(slide, tmp_path):
    settings = embedding.settings_of("test_resnet", 256, tmp_path, ["scoring.precision=float32"])
    corners, _ = scoring.all_tissue(slide, settings)
    encoder = load_encoder(settings)
    tiles = embedding.Tiles([(slide, *corner) for corner in corners[:5].tolist()], 256, encoder)
    loader = torch.utils.data.DataLoader(tiles, batch_size=2)
    found = embedding.loop(loader, encoder, "float32", torch.device("cpu"))
    with open_slide(slide) as opened, TileBatches(encoder.network.raw) as batches:
        pixels = opened.read_regions(0, corners[:5], 256, 256)
        expected = batches.encode(pixels).result()
    assert np.allclose(found.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)
