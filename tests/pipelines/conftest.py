"""Slides, a model that needs no training, and the clusters that tests share.

One is for work that goes well. Two more, one of our own and one started as a user would, are for processes
that die; their workers come back.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from pipelines._cluster import connect
from pipelines._runs import Execution
from pipelines.cli import app
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.synthetic import write_collection

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Seconds after which a test has failed that waits for something: it hangs, however busy the machine is.
LIMIT = 900
# Processes of Dask that mostly wait for the next test.
QUIET = {
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
SETTINGS = Settings().with_values(
    [
        *("tile.size=64", "thumbnail.pixels_per_cell=4", "model.backbone=test_vit"),
        *("model.pretrained=false", "sampling.tiles=8", "training.epochs=2", "training.tiles=8"),
        *("training.attention_epochs=2", "training.attention_tiles=16", "training.slides_per_step=2"),
        *("training.validation=0.34", "training.calibration_tiles=16"),
    ]
)


@pytest.fixture(scope="session", autouse=True)
def built_once() -> Iterator[None]:
    """Typer's runner builds all commands anew for each run, which is most of what a refusal costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def slides(tmp_path_factory) -> Path:
    """Six readable slides with ``labels.csv``."""
    folder = tmp_path_factory.mktemp("slides")
    write_collection(folder, slides=6, width=1536, height=1024, tile_size=64, seed=0, variants=4)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A weights file of the backbone of ``SETTINGS``."""
    from safetensors.torch import save_file  # with torch, which takes seconds to import

    from wsi_ats.nn.backbone import create_backbone

    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    save_file(create_backbone("test_vit", pretrained=False, size=64).network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def published(weights) -> list[str]:
    """Options for a frozen backbone with weights of its own, the same with all seeds."""
    return ["--set", f"model.checkpoint={weights}", "--set", "training.fine_tuning=frozen"]


@pytest.fixture(scope="session")
def some(slides, tmp_path_factory) -> Path:
    """Enough slides that a run can be stopped in the middle."""
    folder = tmp_path_factory.mktemp("some")
    for i in range(24):
        (folder / f"case_{i:02d}.tif").symlink_to(slides / f"slide_{i % 6:03d}.tif")
    return folder


@pytest.fixture(scope="session")
def refs(slides) -> list[SlideRef]:
    return read_manifest(slides)


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "ats.toml"
    path.write_text(SETTINGS.to_toml(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model as it is before training."""

    from wsi_ats.models.checkpoints import save_model
    from wsi_ats.models.kinds import model_for

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    target = Target("classification", ("negative", "positive"))
    save_model(folder, model_for(SETTINGS, target), SETTINGS, target)
    return folder


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """One worker, for each loads torch and the model; tests that are about several have them."""
    with connect("local", workers=1, at_once=2) as client:
        yield client


@pytest.fixture(scope="session")
def address(client) -> str:
    return str(client.scheduler.address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """Processes of a cluster, started as a user would."""

    folder: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.scheduler = self._start("dask_scheduler", "--host", self.address)
        self.workers: list[subprocess.Popen[bytes]] = []

    def work(self, *options: str) -> subprocess.Popen[bytes]:
        place = f"--local-directory={self.folder}"
        process = self._start(
            "dask_worker", self.address, place, "--preload", str(HERE / "count_runs.py"), *options
        )
        self.workers.append(process)
        return process

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()

    def _start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(ROOT), str(HERE)])
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *options],
            cwd=self.folder,
            env={**os.environ, **QUIET, "PYTHONPATH": path, "NOTED_RUNS": str(self.folder / "runs.txt")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.stack.callback(process.wait, LIMIT)
        self.stack.callback(process.terminate)
        return process


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    with ExitStack() as stack:
        yield Cluster(tmp_path, stack)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory) -> Iterator[Cluster]:
    """A scheduler with two workers, of which one offers a GPU."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("elsewhere"), stack)
        cluster.work("--nthreads=2", "--name=plain")
        cluster.work("--nthreads=2", "--name=other", "--resources", "GPU=1")
        with connect(cluster.address, wait=LIMIT) as client:
            client.wait_for_workers(2, timeout=LIMIT)
        yield cluster


@pytest.fixture(scope="session")
def two(elsewhere) -> Iterator[object]:
    with connect(elsewhere.address) as client:
        yield client


@pytest.fixture(scope="session")
def own() -> Iterator[object]:
    with connect("local", workers=2, at_once=2) as client:
        yield client


@pytest.fixture(params=["own", "two"])
def workers(request):
    """Clients of both clusters in turn."""
    client = request.getfixturevalue(request.param)
    client.wait_for_workers(2, timeout=LIMIT)
    return client


@dataclass(frozen=True)
class Ran:
    """Exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.stdout))


@pytest.fixture
def run(request) -> Callable[..., Ran]:
    """Run a command, by default on the shared cluster, and check its exit code."""

    def run(*arguments: object, scheduler: str | None = "shared", code: int = 0) -> Ran:
        words = [str(each) for each in arguments]
        if scheduler == "shared" and words[0] in {"prepare", "convert", "embed", "train", "score"}:
            scheduler = request.getfixturevalue("address")
        if scheduler not in {None, "shared"}:
            words += ["--scheduler", str(scheduler)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == code, (words, result.stdout, result.stderr)
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command as a process with a process group of its own, as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_times(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def embed_settings(weights: Path) -> Settings:
    """Return settings of a small encoder with weights from a file."""
    return Settings().with_values(
        [
            *("tile.size=64", "thumbnail.pixels_per_cell=4", "scoring.precision=float32"),
            *("model.backbone=test_vit", f"model.checkpoint={weights}"),
        ]
    )


def files(folder: Path) -> list[str]:
    """Return the names of visible files in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def all_files(folder: Path) -> list[str]:
    """Return the names of visible files in a folder and below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())


@pytest.fixture
def desk(slides, model, config, tmp_path, monkeypatch) -> Path:
    """A current folder as the pages assume: ``slides/``, ``labels.csv``, a model in ``run/``."""
    folder = tmp_path / "desk"
    (folder / "slides").mkdir(parents=True)
    rows = table(slides / "labels.csv")
    for row in rows:
        path = slides / f"{row['slide_id']}.tif"
        if row["slide_id"] == "slide_001":
            row["slide_id"] = "case_001"
        (folder / "slides" / f"{row['slide_id']}.tif").symlink_to(path)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["slide_id", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    shutil.copytree(model, folder / "run")
    shutil.copy(config, folder / "ats.toml")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    return folder


@pytest.fixture
def train(run, slides, config):
    def train(out, *options, source=slides, labels=slides / "labels.csv", code=0):
        given = ("--labels", labels, "--out", out, "--config", config, "--json")
        return run("train", source, *given, *options, code=code)

    return train


@pytest.fixture(scope="session")
def trained(slides, client, tmp_path_factory):
    from pipelines.train import train
    from wsi_ats.tables.manifest import read_manifest

    out = tmp_path_factory.mktemp("trained")
    refs = read_manifest(slides, labels=slides / "labels.csv")
    assert train(refs, out, settings=SETTINGS, execution=Execution(scheduler=client)).exit_code == 0
    return out
