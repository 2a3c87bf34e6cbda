"""Slides that are small and awkward, in memory and as real files."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import settings
from web import WebServer, web_server

from wsi_ats.slides.memory import MemorySlide

# A shell starts its background jobs with Ctrl-C ignored, and the processes that tests interrupt would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Networks are tiny, and processes several: further threads of torch would only wait for one another, busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Its failed assertions then show both values, as those of tests do.
pytest.register_assert_rewrite("wsi_ats.testing.contract")

# Torch, timm and thousands of tests are millions of objects that stay. To look through them again and again
# for unused cycles takes a tenth of the time.
gc.set_threshold(10_000)


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


# A slow or busy computer is no failure.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides; see their README. They are not part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real slides are not there: {folder}")
    return folder


def _pattern(width: int, height: int, seed: int = 0) -> np.ndarray:
    """An image in which every pixel encodes its position; levels of other seeds differ."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, (x // 251 * 16 + y // 241 + 97 * seed) % 256], axis=-1).astype(
        np.uint8
    )


# name -> sizes (width, height) of the levels; each is awkward in its own way
AWKWARD = {
    "not square, not divisible by the tile": [(331, 217), (83, 54)],
    "downsample 3.9997": [(3999, 1200), (1000, 300), (250, 75)],
    "one level": [(300, 200)],
    "down to one pixel": [(256, 256), (32, 32), (1, 1)],
    "smaller than a tile": [(40, 25)],
}


def _write_tiff(
    path: Path,
    pyramid: Sequence[np.ndarray],
    *,
    resolution: tuple[float, float] | None = None,
    unit: str | None = None,
    tile: tuple[int, int] = (64, 48),
    compression: str | None = "zlib",
) -> Path:
    """Write a generic tiled TIFF: ``tile`` is (rows, columns), ``resolution`` is pixels per unit."""
    with tifffile.TiffWriter(path) as file:
        for number, pixels in enumerate(pyramid):
            file.write(
                pixels,
                tile=tile,
                photometric="rgb",
                compression=compression,
                resolution=resolution,
                resolutionunit=unit,
                subfiletype=1 if number else 0,
                metadata=None,
                extrasamples=["unassalpha"] if pixels.shape[2] == 4 else None,
            )
    return path


@pytest.fixture(scope="session")
def pattern():
    """The function ``pattern(width, height, seed=0)``."""
    return _pattern


@pytest.fixture(scope="session")
def write_tiff():
    """The function ``write_tiff(path, pyramid, ...)``."""
    return _write_tiff


@pytest.fixture(scope="session", params=AWKWARD, ids=str)
def awkward_pyramid(request) -> list[np.ndarray]:
    """Pixels of each level of an awkward slide."""
    return [_pattern(*size, seed) for seed, size in enumerate(AWKWARD[request.param])]


@pytest.fixture(scope="session")
def awkward_tiff(awkward_pyramid, tmp_path_factory) -> Path:
    """The same as a file with a resolution of 0.5 micrometres per pixel."""
    path = tmp_path_factory.mktemp("awkward") / "awkward.tif"
    return _write_tiff(path, awkward_pyramid, resolution=(20_000, 20_000), unit="CENTIMETER")


@pytest.fixture(scope="module")  # its event loop would be in the way of that of other modules
def browser() -> Iterator[object]:
    """A real browser, which shows our pages."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


# The optional libraries, and our modules that import them.
OPTIONAL = {
    "bokeh": [f"wsi_ats.viewer.{name}" for name in ("plot", "collection", "server", "static")],
    "lifelines": ["wsi_ats.tasks.concordance"],
    "matplotlib": [
        *("wsi_ats.results.plots", "wsi_ats.results.pictures", "wsi_ats.results.page"),
        *("pipelines._evaluation", "pipelines.demo"),
    ],
    "prometheus_client": ["pipelines._metrics"],
}


@pytest.fixture
def without(monkeypatch):
    """The function ``without(library)``: until the test ends, as if an optional library were missing."""

    def without(library: str) -> None:
        for name in {library} | {name for name in sys.modules if name.startswith(f"{library}.")}:
            monkeypatch.setitem(sys.modules, name, None)
        for module in OPTIONAL[library]:
            package, _, name = module.rpartition(".")
            monkeypatch.delitem(sys.modules, module, raising=False)
            monkeypatch.delattr(importlib.import_module(package), name, raising=False)

    return without


@pytest.fixture
def no_tissue() -> MemorySlide:
    """Glass with a little noise."""
    glass = np.random.default_rng(0).normal(240, 2, (600, 900, 3))
    return MemorySlide([glass.astype(np.uint8)], mpp=0.5)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real S3 endpoint, which processes find by their environment; gives the URL of a bucket in it."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        files = fsspec.filesystem("s3")
        files.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("slides")
        yield "s3://slides"
    server.stop()


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A real web server."""
    with web_server() as server:
        yield server
