"""The pages for users of a laptop, a workstation, a cluster, a store: their commands are understood, and run.

What is not here has a stand-in: SLURM runs jobs as processes (:mod:`slurm_commands`), a cluster's pods are
processes too, and a store is moto's. Names of folders and machines, and numbers of processes, are replaced by
a table for each page.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import fsspec
import pytest
import slurm_commands
import typer
import yaml
from conftest import ROOT, files, free_port, table
from distributed import Client
from distributed.cli import dask_scheduler, dask_worker

from pipelines.cli import app

PAGES = ("laptop", "workstation", "slurm", "kubernetes", "storage")
TEXTS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}

# Programs of others that the pages name; they are not run here, or only by a stand-in.
ELSEWHERE = {"aws", "awk", "cd", "cp", "export", "kubectl", "ls", "mapfile", "mkdir", "pip", "sbatch"}

DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}


def blocks(page: str, language: str) -> list[str]:
    """Blocks of code in a language: ``sh`` is typed, ``bash`` is a script, ``py`` one in Python."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], re.M | re.S)


@dataclass(frozen=True)
class Command:
    """A command of ours or of Dask, as a page has it."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def replaced(self, table: Mapping[str, str]) -> Command:
        """With other names of folders and machines."""
        return Command(tuple(_replaced(word, table) for word in self.words), self.environment)


def _replaced(text: str, table: Mapping[str, str]) -> str:
    for there, here in table.items():
        text = text.replace(there, here)
    return text


def commands_in(text: str) -> Iterator[Command]:
    """Commands of a script, out of whatever they are wrapped in; one that nobody knows is an error."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts: list[list[str]] = [[]]
        for token in lexer:
            if token in {"&&", "&", "|", "<("}:
                parts.append([])
            else:
                parts[-1].append(token)
        for part in parts:
            yield from _command(part)


def _command(words: list[str]) -> Iterator[Command]:
    environment = []
    while words and re.match(r"\w+=", words[0]):
        name, _, value = words[0].partition("=")
        environment.append((name, value))
        words = words[1:]
    # What follows is where its output goes.
    end = next((i for i, word in enumerate(words) if set(word) & set("<>")), len(words))
    words = words[:end]
    if words[:1] == ["srun"]:
        words = [*dropwhile(lambda word: word.startswith("-"), words[1:])]
    if words[:1] == ["sbatch"]:
        for word in words:
            yield from commands_in(word.partition("=")[2] if word.startswith("--wrap=") else "")
    if words[:2] == ["python", "cluster.py"]:
        words = ["wsi-ats", *words[2:]]
    if words and words[0] not in ELSEWHERE:
        name = Path(words[0]).name
        assert name in {"wsi-ats", "dask"}, f"who knows {words}?"
        yield Command((name, *words[1:]), tuple(environment))


def typed(page: str) -> list[Command]:
    """What a page tells to type."""
    return [each for text in blocks(page, "sh") for each in commands_in(text)]


def containers(page: str) -> dict[str, dict]:
    """Containers of a manifest."""
    (text,) = blocks(page, "yaml")
    found = [each.get("spec", {}).get("template") for each in yaml.safe_load_all(text)]
    return {each["name"]: each for pod in found if pod for each in pod["spec"]["containers"]}


def written(page: str) -> list[Command]:
    """What a page tells to save: scripts, tables of cron, services, containers."""
    texts = [*blocks(page, "bash"), *(line.split(maxsplit=5)[5] for line in blocks(page, "crontab"))]
    texts += re.findall(r"^ExecStart=(.*)$", "\n".join(blocks(page, "ini")), re.M)
    found = [each for text in texts for each in commands_in(text)]
    pods = containers(page).values() if blocks(page, "yaml") else ()
    return found + [Command(tuple(each["args"])) for each in pods]


ALL = [
    pytest.param(each, id=f"{page}-{' '.join(each.words)[:60]}")
    for page in PAGES
    for each in (*typed(page), *written(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_commands_in_blocks_that_are_looked_into(page):
    languages = set(re.findall(r"^```(\w*)\n.*?^```", TEXTS[page], re.M | re.S))
    assert languages <= {"sh", "bash", "py", "crontab", "ini", "yaml", "dockerfile"}
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
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.M | re.S)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) <= ours | others | slurm | soon


def options_of(command) -> Iterator[str]:
    for each in command.params:
        yield from (*each.opts, *each.secondary_opts)


@pytest.fixture
def desk(slides, model, config, tmp_path, monkeypatch) -> Path:
    """What a reader has in the current folder: ``slides/``, ``labels.csv``, a model in ``run/``."""
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


HERE = {"/data/slides": "slides", "/data/run": "run", "/data/scores": "scores"}


def done(out: Path | str, count: int = 6) -> bool:
    """Whether a folder holds scores of all slides."""
    rows = table(Path(out) / "predictions.csv")
    return [row["status"] for row in rows] == ["done"] * count


def carry_out(command: Command, run, scheduler: str | None = "shared") -> None:
    """Run a command of ours in this process; one that trains, as far as it goes in no time."""
    words = [*command.words[1:]]
    if words[0] == "train":
        words[words.index("--out") + 1] = "trained"
        words += ["--config", "ats.toml", "--dry-run"]
    if {"--scheduler", "--workers", "--slides-at-once"} & set(words):
        scheduler = None  # the last two are for a cluster of the command's own
    ran = run(*words, scheduler=scheduler)
    assert ran.exit_code == 0, (words, ran.stdout, ran.stderr)
    if words[0] == "score":
        assert done(words[words.index("--out") + 1])


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


def test_a_manifest_is_of_one_piece():
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


@pytest.fixture
def slurm(desk, tmp_path, monkeypatch) -> Path:
    """SLURM's commands on this machine; gives the folder of jobs."""
    for name, value in slurm_commands.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    yield tmp_path / "slurm" / "jobs"
    left = subprocess.run(["squeue"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["scancel", *left], check=True)
    for name in left:
        wait_for(tmp_path / "slurm" / "jobs" / f"{name}.code")


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} is not there"
        time.sleep(0.05)


def submit(text: str, *replacements: tuple[str, str]) -> None:
    """Save a script under its name, with fewer processes, and submit it."""
    for there, here in (("/data/slides", "slides"), *replacements):
        assert there in text, f"{there!r} is no longer there; replace something else"
        text = text.replace(there, here)
    Path("job.sh").write_text(text)
    subprocess.run(["sbatch", "job.sh"], check=True, stdout=subprocess.DEVNULL)


def script(page: str, having: str) -> str:
    (text,) = (each for each in blocks(page, "bash") if having in each)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prepare", "score"])
def test_slurm_workers_in_one_job(slurm, desk, stage):
    few = (("--nworkers 16", "--nworkers 1"), ("--nodes=4", "--nodes=2"))
    if stage == "prepare":  # without the seconds that each worker takes to load torch
        few += (("score", "prepare"), ("--model run", ""))
    submit(script("slurm", "srun"), *few)
    wait_for(slurm / "1.code")
    assert slurm_commands.ended(slurm) == {"1": 0}, (slurm / "1.out").read_text()
    assert len(re.findall(r"Registered to", (slurm / "1.out").read_text())) == 2
    if stage == "prepare":
        assert len(table(Path("prepares", "slides.csv"))) == 6
    else:
        assert done("scores")


@pytest.mark.slow
def test_slurm_one_node(slurm, desk):
    ((words,),) = ([shlex.split(line)] for line in blocks("slurm", "sh")[0].splitlines())
    subprocess.run([word.replace("/data/slides", "slides") for word in words], check=True)
    wait_for(slurm / "1.code")
    assert slurm_commands.ended(slurm) == {"1": 0}
    assert done("scores")


@pytest.mark.slow
def test_slurm_an_array(slurm, desk):
    submit(script("slurm", "--array"), ("0-7", "0-1"), ("NR % 8", "NR % 2"))
    for name in ("1_0", "1_1"):
        wait_for(slurm / f"{name}.code")
        assert done(f"scores_{name[-1]}", 3)
    together = blocks("slurm", "sh")[1].replace("/data/slides", "slides")
    ran = subprocess.run(["bash", "-e"], input=together, capture_output=True, text=True, check=True)
    assert "6 of 6 slides are finished already" in ran.stdout + ran.stderr
    assert done("scores")
    assert len(files(desk / "scores" / "selections")) == 6


def save_cluster(*replacements: tuple[str, str]) -> None:
    (text,) = blocks("slurm", "py")
    for there, here in replacements:
        assert there in text
        text = text.replace(there, here)
    Path("cluster.py").write_text(text)


def test_slurm_jobs_that_the_script_submits(slurm, desk):
    """What it asks SLURM for, and what it makes of its command; jobs stay in the queue."""
    pytest.importorskip("dask_jobqueue")
    save_cluster()
    Path("wsi-ats").write_text(
        '#!/bin/sh\necho "$@"\nuntil [ -e $SLURM_JOBS/4.job ]; do sleep 0.1; done\nexit 3\n'
    )
    Path("wsi-ats").chmod(0o755)
    environment = {**os.environ, "PATH": f"{desk}{os.pathsep}{os.environ['PATH']}", "SLURM_HELD": "1"}
    (line,) = (line for text in blocks("slurm", "sh") for line in text.splitlines() if "cluster.py" in line)
    ran = subprocess.run(shlex.split(line), env=environment, capture_output=True, text=True)
    assert ran.returncode == 3, ran.stderr
    (address,) = re.findall(
        r"score /data/slides --model run --out scores --scheduler (\S+) --wait 3600", ran.stdout
    )
    jobs = [path.read_text() for path in sorted(slurm.glob("*.job"))]
    assert len(jobs) == 4
    for text in jobs:
        asked = {"-p normal", "-n 1", "--cpus-per-task=16", "--mem=24G", "-t 04:00:00", "--requeue"}
        assert set(re.findall(r"^#SBATCH (.*)$", text, re.M)) == {*asked, "-J dask-worker"}
        assert text.index("export OMP_NUM_THREADS=1") < text.index("dask_worker")
        (words,) = re.findall(r"-m distributed.cli.dask_worker (.*)$", text, re.M)
        parsed = DASK["worker"].make_context("worker", words.split()).params
        assert parsed["scheduler"] == address
        assert (parsed["n_workers"], parsed["nthreads"], parsed["nanny"]) == ("16", 2, True)
        assert parsed["memory_limit"] == "0"
        assert parsed["local_directory"] == "${TMPDIR:-/tmp}"
    assert slurm_commands.ended(slurm).keys() == {"1", "2", "3", "4"}  # cancelled


@pytest.mark.slow
@pytest.mark.parametrize("size", ["cluster.scale(jobs=2)", "cluster.adapt(minimum_jobs=1, maximum_jobs=2)"])
@pytest.mark.parametrize("ended", [signal.SIGTERM, signal.SIGKILL])
def test_slurm_jobs_that_are_ended_cost_no_slide(slurm, desk, size, ended):
    pytest.importorskip("dask_jobqueue")
    few = (
        ('"processes": 16', '"processes": 1'),
        ('"cores": 32', '"cores": 2'),
        ("cluster.scale(jobs=4)", size),
    )
    save_cluster(*few)
    for i in range(48):
        Path("slides", f"more_{i:02d}.tif").symlink_to(Path("slides/slide_000.tif").resolve())
    command = [
        "python",
        "cluster.py",
        "score",
        "slides",
        "--model",
        "run",
        "--out",
        "scores",
        "--draws",
        "30",
    ]
    with Path("log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    records = Path("scores", "records")
    while process.poll() is None and len(list(records.glob("*.json"))) < 3:
        time.sleep(0.05)
    os.killpg(int((slurm / "1.process").read_text()), ended)
    assert process.wait(300) == 0, Path("log").read_text()
    assert (slurm / "2.job").exists()  # with `adapt`, in its place
    assert done("scores", 54)
