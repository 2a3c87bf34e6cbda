"""Slides, a model that needs no training, and one cluster that all tests share."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines._cluster import connect
from pipelines.cli import app
from wsi_ats.settings import Settings
from wsi_ats.slides.base import SlideRef
from wsi_ats.tables.manifest import read_manifest
from wsi_ats.tasks.targets import Target
from wsi_ats.testing.synthetic import write_collection

ROOT = Path(__file__).parents[2]
SETTINGS = Settings().with_values(
    [
        "tile.size=64",
        "thumbnail.pixels_per_cell=4",
        "model.backbone=test_vit",
        "model.pretrained=false",
        "sampling.tiles=8",
        *("training.epochs=2", "training.tiles=8"),
        *("training.attention_epochs=2", "training.attention_tiles=16"),
        "training.slides_per_step=2",
        "training.validation=0.34",
        "training.calibration_tiles=16",
    ]
)


@pytest.fixture(scope="session")
def slides(tmp_path_factory) -> Path:
    """Six readable slides with ``labels.csv``."""
    folder = tmp_path_factory.mktemp("slides")
    write_collection(folder, slides=6, width=1536, height=1024, tile_size=64, seed=0, variants=4)
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> list[str]:
    """Options for a frozen backbone with weights of its own, the same with all seeds."""
    from safetensors.torch import save_file  # with torch, which takes seconds to import

    from wsi_ats.nn.backbone import create_backbone

    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    save_file(create_backbone("test_vit", pretrained=False, size=64).network.state_dict(), path)
    return ["--set", f"model.checkpoint={path}", "--set", "training.fine_tuning=frozen"]


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
    import torch

    from wsi_ats.models.checkpoints import save_model
    from wsi_ats.models.kinds import model_for

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    target = Target("classification", ("negative", "positive"))
    save_model(folder, model_for(SETTINGS, target), SETTINGS, target)
    return folder


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    with connect("local", workers=2, at_once=2) as client:
        yield client


@pytest.fixture(scope="session")
def address(client) -> str:
    return str(client.scheduler.address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def scheduler(tmp_path):
    """A real scheduler with a worker, started as a user would."""
    address = f"tcp://127.0.0.1:{free_port()}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'pipelines'}"}
    quiet = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    place = f"--local-directory={tmp_path}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *options], **quiet
        )
        for name, *options in (
            ("dask_scheduler", "--host", address),
            ("dask_worker", address, "--nthreads=1", place),
        )
    ]
    yield address, started
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@dataclass(frozen=True)
class Ran:
    """What came of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.stdout))


@pytest.fixture
def run(request) -> Callable[..., Ran]:
    """Run a command; on the shared cluster unless told otherwise."""

    def run(*arguments: object, scheduler: str | None = "shared") -> Ran:
        words = [str(each) for each in arguments]
        if scheduler == "shared" and words[0] in {"prepare", "convert", "train", "score"}:
            scheduler = request.getfixturevalue("address")
        if scheduler not in {None, "shared"}:
            words += ["--scheduler", str(scheduler)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
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


def files(folder: Path) -> list[str]:
    """What a user sees in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
