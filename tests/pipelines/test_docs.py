"""The pages for users of a laptop, a workstation, a cluster, a store: their commands are understood, and run.

Clusters and stores have stand-ins: SLURM runs jobs as processes (:mod:`slurm_commands`), a cluster's pods are
processes too, and a store is moto's. Names of folders and machines, and numbers of processes, are replaced by
a table for each page."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import pytest
import typer
import yaml
from bag_files import clam_features, clam_patches, clam_tensor, numbers, stamp, trident, trident_attributes
from conftest import files, free_port, table
from distributed import Client
from documented import DASK, FILES, PAGES, TEXTS, Command, blocks, carry_out, containers, done, typed, written

from pipelines.cli import app
from wsi_ats.files import read_json
from wsi_ats.overview.overview import read_overview
from wsi_ats.results.exports.registry import FORMATS
from wsi_ats.settings import Settings
from wsi_ats.slides import open_slide
from wsi_ats.tables.files import read_parquet

LABS = ("clam", "trident", "stamp")

ALL = [
    pytest.param(each, id=f"{page}-{' '.join(each.words)[:60]}")
    for page in PAGES
    for each in (*typed(page), *written(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_commands_in_checked_blocks(page):
    languages = set(re.findall(r"^```(\w*)\n.*?^```", TEXTS[page], re.M | re.S))
    assert languages <= {"sh", "bash", "py", "crontab", "ini", "yaml", "dockerfile", "text"}
    assert {each.words[0] for each in (*typed(page), *written(page))} >= {"wsi-ats"}
    assert not re.search(r"^    (wsi-ats|dask|sbatch) ", TEXTS[page], re.M)


@pytest.mark.parametrize("command", ALL)
def test_commands_are_understood(command):
    name, stage, *rest = command.words
    known = typer.main.get_command(app).commands if name == "wsi-ats" else DASK
    assert known[stage].make_context(stage, rest).params


@pytest.mark.parametrize("page", PAGES)
def test_options_that_the_text_names_exist(page):
    ours = {option for each in typer.main.get_command(app).commands.values() for option in options_of(each)}
    others = {option for each in DASK.values() for option in options_of(each)}
    slurm = {"--cpus-per-task", "--gpus", "--gpus-per-task", "--mem", "--requeue", "--wrap"}
    soon = {"--log-json", "--metrics", "--watch"}
    of_others = {"--help", "--install-completion", "--constraint"}  # of typer and pip
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.M | re.S)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) <= ours | others | slurm | soon | of_others


def options_of(command) -> Iterator[str]:
    for each in command.params:
        yield from (*each.opts, *each.secondary_opts)


HERE = {"/data/slides": "slides", "/data/run": "run", "/data/scores": "scores"}


@contextmanager
def started(command: Command, replaced: Mapping[str, str]) -> Iterator[None]:
    """A process of Dask, until the context ends."""
    here = command.replaced(replaced)
    environment = {**os.environ, **dict(here.environment)}
    process = subprocess.Popen(
        here.words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def allowed_failures(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return int(client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.allowed_failures))


def test_laptop(desk, run):
    for command in typed("laptop"):
        carry_out(command, run)
    assert len(files(desk / "scores" / "records")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("page", ["laptop", "workstation"])
def test_workers_of_this_machine(desk, run, page, monkeypatch):
    commands = [each for each in typed(page) if each.words[1] == "score" and "--scheduler" not in each.words]
    assert len(commands) >= 3
    for command in commands:
        with monkeypatch.context() as patch:
            for name, value in command.environment:
                patch.setenv(name, value)
            carry_out(command, run, scheduler=None)
        shutil.rmtree(command.words[command.words.index("--out") + 1])


@pytest.mark.slow
def test_workstation(desk, run, tmp_path):
    port, dashboard = free_port(), free_port()
    replaced = {"127.0.0.1:8786": f"127.0.0.1:{port}", "8786": str(port), "8787": str(dashboard)}
    replaced["/tmp"] = str(tmp_path)
    with ExitStack() as stack:
        for command in typed("workstation"):
            here = command.replaced(replaced)
            if command.words[0] == "dask":
                stack.enter_context(started(command, replaced))
                continue
            if "--scheduler" in command.words:
                shutil.rmtree("scores")
            carry_out(here, run)
        address = f"tcp://127.0.0.1:{port}"
        assert allowed_failures(address) == 0
        with Client(address, set_as_default=False) as client:
            workers = client.scheduler_info()["workers"].values()
            assert [(each["nthreads"], each["resources"]) for each in workers] == [(4, {"GPU": 1})] * 2
            seen = client.run(lambda: (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]))
            assert sorted(seen.values()) == [("0", "4"), ("1", "4")]


@pytest.mark.slow
def test_kubernetes(desk, run, tmp_path):
    """The containers, with the variables that a cluster sets for the services that it has."""
    port = free_port()
    replaced = {**HERE, "dask-scheduler:8786": f"127.0.0.1:{port}", "8786": str(port), "/tmp": str(tmp_path)}
    pods = containers("kubernetes")
    pods["worker"]["args"][pods["worker"]["args"].index("--nworkers") + 1] = "1"
    (service,) = (
        each for each in yaml.safe_load_all(blocks("kubernetes", "yaml")[0]) if each["kind"] == "Service"
    )
    name = service["metadata"]["name"].replace("-", "_").upper()
    told = [(f"{name}_SERVICE_HOST", "10.0.0.1"), (f"{name}_PORT", "tcp://10.0.0.1:8786")]
    with ExitStack() as stack:
        for pod in ("scheduler", "worker"):
            extra = [(each["name"], each["value"]) for each in pods[pod].get("env", ())]
            command = Command(tuple(pods[pod]["args"]), (*told, *extra))
            stack.enter_context(started(command, replaced))
        carry_out(Command(tuple(pods["score"]["args"])).replaced(replaced), run)
        assert allowed_failures(f"tcp://127.0.0.1:{port}") == 0


def test_a_kubernetes_manifest_is_consistent():
    (text,) = blocks("kubernetes", "yaml")
    documents = list(yaml.safe_load_all(text))
    assert [each["kind"] for each in documents] == ["Service", "Deployment", "Deployment", "Job"]
    service, scheduler, worker, job = documents
    assert service["spec"]["selector"] == scheduler["spec"]["template"]["metadata"]["labels"]
    for each in (scheduler, worker):
        assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]
    for each in (worker, job):
        volumes = {volume["name"] for volume in each["spec"]["template"]["spec"]["volumes"]}
        (container,) = each["spec"]["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert all(isinstance(word, str) for word in container["args"])
    ports = [port["port"] for port in service["spec"]["ports"]]
    address = f"tcp://{service['metadata']['name']}:{ports[0]}"
    assert all(address in containers("kubernetes")[name]["args"] for name in ("worker", "score"))


def test_storage(desk, run, s3, client, address):
    store, bucket = fsspec.filesystem("s3"), f"{s3}-of-the-page"
    store.mkdir(bucket)
    for path in sorted((desk / "slides").iterdir()):
        store.pipe_file(f"{bucket}/scans/{path.name}", path.read_bytes())

    def know(names):
        os.environ.update(names)
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    client.run(know, {name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
    replaced = {"s3://bucket": bucket, "/data/mirax": "slides", "tcp://10.0.0.5:8786": address}
    for command in typed("storage"):
        if command.words[0] == "wsi-ats":
            carry_out(command.replaced(replaced), run)
    assert {row["path"] for row in table(Path("scores_of_pyramids/predictions.csv"))} == {
        f"{bucket}/pyramids/{path.stem}.ome.zarr" for path in (desk / "slides").iterdir()
    }


def test_the_page_of_files_has_every_column(desk, run):
    run("prepare", "slides", "--out", "prepared", "--config", "ats.toml")
    run("score", "slides", "--model", "run", "--out", "scores")
    run("evaluate", "scores", "--labels", "labels.csv", "--out", "evaluation")
    selections, _ = read_parquet(desk / "scores" / "selections" / "case_001.parquet")
    columns = {
        "predictions.csv": table(desk / "scores" / "predictions.csv")[0],
        "selections": selections,
        "slides.csv": table(desk / "prepared" / "slides.csv")[0],
        "metrics.csv of evaluate": table(desk / "evaluation" / "metrics.csv")[0],
    }
    page = FILES["files"].read_text("utf-8")
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    for name, found in columns.items():
        documented = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", sections[name], re.M)))
        general = [re.sub(r"^(prob|evidence)_.*", r"\1_<class>", each) for each in found]
        assert list(dict.fromkeys(general)) == documented


def test_exports(desk, run):
    for command in typed("exports"):
        carry_out(command.replaced({"/archive/slides": "slides"}), run)
    assert files(Path("exported")) == ["anndata", "asap", "png", "qupath", "run.json"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_page_of_exports_has_files_and_coordinates_of_every_format(name):
    first = [line.split("|")[1] for line in TEXTS["exports"].splitlines() if line.startswith("| `")]
    assert [f"`{name}`" in cell for cell in first].count(True) == 2


def write_features_of_others(path: Path) -> None:
    """Write features of a slide as CLAM, TRIDENT and STAMP lay them out, in the current folder."""
    with open_slide(path) as slide:
        tissue = read_overview(slide, Settings()).tissue
    corners = tissue.grid.boxes(tissue.cells)[:, :2]
    values, name = numbers(len(corners), 32), path.stem
    clam_patches(Path("clam"), name, corners, level=0, downsample=1.0)
    clam_features(Path("clam/features"), name, corners, values)
    clam_tensor(Path("clam/features"), name, values)
    scanned = trident_attributes(name, patch_size_level0=256, level0_magnification=20)
    trident(Path("trident"), name, corners, values, attributes=scanned)
    stamp(Path(f"stamp/mahmood-uni2-1a2b3c4d/{name}.h5"), corners, values, mpp=0.5)


def test_features(desk, run, weights):
    for path in sorted((desk / "slides").iterdir()):
        write_features_of_others(path)
    (encoding,) = (each for each in typed("features") if each.words[1] == "embed")
    quick = {
        "embed": ("tile.size=256", f"model.checkpoint={weights}"),
        "train": (
            *("sampling.tiles=4", "training.epochs=1", "training.tiles=4", "training.attention_epochs=1"),
            *("training.attention_tiles=8", "training.slides_per_step=2", "training.calibration_tiles=8"),
            "training.validation=0.34",
        ),
    }
    for command in (encoding, *typed("features")):
        words = ["test_vit" if word == "uni" else word for word in command.words[1:]]
        changes = quick["train" if words[0] == "plan" else words[0]] if words[0] != "score" else ()
        words += [word for change in changes for word in ("--set", change)]
        if words[0] == "plan":
            words += ["--folds", "3", "--resamples", "20", "--set", "training.validation=0"]
        ran = run(*words)
        assert ran.exit_code == 0, (words, ran.stdout, ran.stderr)
    used = {
        out: read_json(Path(out) / "model.json")["settings"]
        for out in ("run", *map("run_on_{}".format, LABS))
    }
    assert [each["model"]["backbone"] for each in used.values()] == ["features:64", *["features:32"] * 3]
    assert [each["model"]["encoder"] for each in used.values()] == ["test_vit", "", "uni", "uni2-h"]
    assert done("scores")
    assert done("scores_on_trident")


def test_annotations(desk, run, weights, slides):
    """Of lesions and look-alikes, under the names of classes that the page has."""
    Path("annotations").mkdir()
    for path in sorted((desk / "slides").iterdir()):
        text = (slides / "truth" / f"{path.resolve().stem}.geojson").read_text()
        text = text.replace("Look-alike", "Stroma").replace("Lesion", "Tumor")
        (Path("annotations") / f"{path.stem}.geojson").write_text(text)
    for command in typed("annotations"):
        here = Command(tuple("test_vit" if word == "uni" else word for word in command.words))
        if command.words[1] == "embed":
            changes = ("tile.size=64", f"model.checkpoint={weights}")
            here = Command((*here.words, *(word for each in changes for word in ("--set", each))))
        carry_out(here, run)
    rows = {row["slide_id"]: row for row in table(Path("work/slides.csv"))}
    assert {row["status"] for row in rows.values()} == {"done", "no_tissue"}
    located = {row["slide_id"]: row for row in table(Path("evaluation/localisation.csv"))}
    assert {name for name, row in located.items() if row["areas"] == "0"} == {
        row["slide_id"] for row in table(Path("labels.csv")) if row["label"] == "negative"
    }
