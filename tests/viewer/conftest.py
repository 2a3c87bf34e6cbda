from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from viewer.folder import HOSTILE, write_scores
from wsi_ats.results.scores import read_scores
from wsi_ats.viewer.collection import Collection


@pytest.fixture(scope="session")
def scored(tmp_path_factory) -> Path:
    return write_scores(tmp_path_factory.mktemp("viewed"))


@pytest.fixture
def collection(scored) -> Iterator[Collection]:
    annotations = {HOSTILE: scored.parent / "annotations" / f"{HOSTILE}.geojson"}
    collection = Collection(read_scores(scored), annotations)
    yield collection
    collection.close()
