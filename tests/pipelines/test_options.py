"""Every command takes exactly the options that it uses, and refuses values that cannot be."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pipelines import _runs
from pipelines._console import ConsoleReporter
from pipelines._metrics import MetricsFile
from pipelines._reports import Several
from pipelines._runs import Execution, Summary
from pipelines._slide_log import SlideLog
from pipelines.cli import app
from wsi_ats.errors import SettingsError

COMMANDS = typer.main.get_command(app).commands

# A value of each option that is neither its default nor given otherwise; with those of flags left empty.
OTHER = {
    **dict.fromkeys(("--overwrite", "--dry-run", "--json", "--debug", "--strict", "--watch"), ()),
    "--tensorboard": (),
    "--mpp": ("0.3",),
    "--reader": ("openslide",),
    "--config": ("other.toml",),
    "--set": ("sampling.tiles=5",),
    "--qc": ("pen",),
    "--seed": ("3",),
    "--scheduler": ("tcp://10.0.0.5:8786",),
    "--workers": ("3",),
    "--slides-at-once": ("3",),
    "--timeout": ("9",),
    "--resources": ("GPU=0.5",),
    "--wait": ("9",),
    "--log-json": ("log.jsonl",),
    "--metrics": ("run.prom",),
    "--out": ("elsewhere",),
    "--labels": ("missing.csv",),
    "--label-column": ("unknown",),
    "--splits": ("missing",),
    "--split": ("val",),
    "--by": ("case",),
    "--resamples": ("7",),
    "--folds": ("3",),
    "--restarts": ("2",),
    "--retries": ("2",),
    "--max-bad": ("2",),
    "--readers": ("threads:3",),
    "--model": ("missing",),
    "--draws": ("2",),
    "--tiles": ("3",),
    "--tolerance": ("0.5",),
    "--max-tiles": ("99",),
    **dict.fromkeys(("--every", "--settle"), ("9",)),
    "--marker": (".done",),
    "--features": ("missing",),
    "--regions": ("missing",),
    "--annotations": ("missing",),
    "--annotation-class": ("Tumor",),
    "--region-class": ("Tumor",),
    "--encoder": ("resnet18",),
    "--dtype": ("float16",),
    "--codec": ("jpeg",),
    "--quality": ("50",),
    "--to": ("qupath",),
    "--slides": ("moved",),
    **dict.fromkeys(("--list", "--keep-features", "--pictures", "--no-pictures", "--schema"), ()),
    "--picture-type": ("svg",),
    "--dpi": ("300",),
    "--write": ("written.toml",),
}

# Values that no command may take.
WRONG = {
    "--mpp": ("-3", "0", "nan"),
    "--reader": ("bogus",),
    "--config": ("/nonexistent.toml",),
    "--set": ("nonsense",),
    "--qc": ("zebra",),
    "--seed": ("-1",),
    "--workers": ("0",),
    "--slides-at-once": ("0",),
    "--timeout": ("0", "nan"),
    "--resources": ("GPU", "GPU=0"),
    "--wait": ("-1",),
    "--out": ("s3://bucket/out",),
    "--log-json": ("/nonexistent/log.jsonl",),
    "--metrics": ("/nonexistent/run.prom",),
}


def options_of(name: str) -> set[str]:
    return {option for each in COMMANDS[name].params for option in each.opts if option.startswith("--")}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory) -> Iterator[Path]:
    """The current folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("options")
        patch.chdir(folder)
        (folder / "other.toml").write_text("[sampling]\ntiles = 6\n")
        yield folder


@pytest.fixture(scope="module")
def words(slides, model, weights) -> dict[str, list[str]]:
    """The fewest words of each command."""
    labels, out = ["--labels", str(slides / "labels.csv")], ["--out", "out"]
    changes = ("tile.size=64", f"model.checkpoint={weights}")
    encoder = ["--encoder", "test_vit", *(word for each in changes for word in ("--set", each))]
    shown = {
        "info": [str(slides)],
        "prepare": [str(slides), *out],
        "convert": [str(slides), *out],
        "embed": [str(slides), *encoder, *out],
        "train": [str(slides), *labels, *out],
        "crossval": [str(slides), *labels, *out],
        "plan": [str(slides), *labels, *out],
        "score": [str(slides), "--model", str(model), *out],
        "evaluate": ["scores", *labels, *out],
        "export": ["scores", "--to", "csv", *out],
        "report": ["scores", "--labels", "labels.csv", "--out", "report.html"],
    }
    return {name: [name, *shown.get(name, [])] for name in COMMANDS}


class Stage:
    """Stands in for the function of a stage, and keeps its arguments."""

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.given: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Summary:
        self.given = plain([arguments, named])
        if self.fails:
            raise SettingsError("on purpose")
        return Summary("stage", Path("out"), {"done": 1})


def plain(value: Any) -> Any:
    """Return a value in a form that can be compared."""
    if isinstance(value, Several):
        return plain(value.reporters)
    if isinstance(value, ConsoleReporter):
        return value.verbose
    if isinstance(value, MetricsFile | SlideLog):
        return type(value).__name__, value.path
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return None if callable(value) else value


def invoke(name: str, words: list[str], monkeypatch, *, fails: bool = False) -> tuple[int, str, str, Any]:
    stage = Stage(fails=fails)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"pipelines.{name}"), name, stage)
        ran = CliRunner().invoke(app, words, catch_exceptions=False)
    return ran.exit_code, ran.stdout, ran.stderr, stage.given


def cases(table: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(name, option, id=f"{name} {option}")
        for name in COMMANDS
        for option in sorted(options_of(name) & table.keys())
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_another_value_to_try(name):
    assert options_of(name) <= OTHER.keys()


@pytest.fixture(scope="module")
def without(words) -> dict[tuple[str, bool], Any]:
    """What comes of each command without further options: where its stage succeeds, and where it fails."""
    with pytest.MonkeyPatch.context() as patch:
        return {
            (name, fails): invoke(name, words[name], patch, fails=fails)
            for name in COMMANDS
            for fails in (False, True)
        }


@pytest.mark.parametrize(("name", "option"), cases(OTHER))
def test_every_option_has_an_effect(name, option, words, without, monkeypatch):
    fails = option == "--debug"  # shows where an error comes from
    before = without[name, fails]
    assert before[0] == (2 if fails else 0), before
    given = words[name]
    if option in given:
        place = given.index(option)
        given = given[:place] + given[place + 2 :]
    after = invoke(name, [*given, option, *OTHER[option]], monkeypatch, fails=fails)
    assert after != before
    assert after[0] in {0, 2}


@pytest.mark.parametrize(("name", "option"), cases(WRONG))
def test_wrong_values_are_refused_before_any_work(name, option, words, monkeypatch):
    # A dry run writes neither file, and does not try to.
    looks = "--dry-run" in options_of(name) and option not in {"--log-json", "--metrics"}
    for value in WRONG[option]:
        given = [*words[name], option, value, *(["--dry-run"] if looks else [])]
        code, stdout, stderr, received = invoke(name, given, monkeypatch)
        assert (code, stdout, received) == (2, "", None), value
        assert value in stderr or option in stderr


@pytest.mark.parametrize(
    "option",
    [
        *(("--config", "/nonexistent.toml"), ("--qc", "zebra"), ("--mpp", "-3"), ("--reader", "bogus")),
        *(("--set", "tile.size=3"), ("--scheduler", "local"), ("--workers", "2"), ("--seed", "1")),
        *(("--log-json", "log"), ("--metrics", "run.prom"), ("--timeout", "3"), ("--wait", "3")),
    ],
)
def test_export_takes_no_option_that_it_does_not_use(option, words, monkeypatch):
    code, _, stderr, given = invoke("export", [*words["export"], *option], monkeypatch)
    assert (code, given) == (2, None)
    assert "No such option" in stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--scheduler", "tcp://10.0.0.5:8786", "--workers", "2"), "--workers is 2"),
        (("--scheduler", "tcp://10.0.0.5:8786", "--slides-at-once", "2"), "--slides-at-once is 2"),
    ],
)
def test_a_cluster_of_its_own_decides_on_its_workers(run, slides, tmp_path, words, said):
    ran = run("prepare", slides, "--out", tmp_path / "out", *words, scheduler=None, code=2)
    assert said in ran.stderr


# Fields of the execution that no option sets, but a watch, a test or the command's frame.
FROM_ELSEWHERE = {"command", "reporter", "clock", "timer", "stop"}


@pytest.fixture(scope="module")
def scores(tmp_path_factory, slides, model, address) -> Path:
    out = tmp_path_factory.mktemp("scored") / "scores"
    words = ["score", slides, "--model", model, "--out", out, "--scheduler", address]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    return out


@pytest.mark.parametrize("name", ["prepare", "convert", "embed", "score", "evaluate", "export"])
def test_a_stage_reads_what_its_options_set_and_nothing_else(
    name, words, scores, address, tmp_path, monkeypatch
):
    """All of what is in :class:`Execution` is given to every stage; each has options for what it reads."""
    read: set[str] = set()

    class Recorded(Execution):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_"):
                read.add(name)
            return super().__getattribute__(name)

    module = importlib.import_module(f"pipelines.{name}")
    stage = getattr(module, name)

    def recorded(*arguments: Any, **named: Any) -> Any:
        read.clear()  # of what was read to put it together
        return stage(*arguments, **named)

    monkeypatch.setattr(_runs, "Execution", Recorded)
    monkeypatch.setattr(module, name, recorded)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(scores, tmp_path / "scores")
    cluster = ["--scheduler", address] if "--scheduler" in options_of(name) else []
    ran = CliRunner().invoke(app, [*words[name], *cluster], catch_exceptions=False)
    assert ran.exit_code == 0, ran.stderr
    set_by_options = {each.name for each in fields(Execution)} & {
        option.removeprefix("--").replace("-", "_") for option in options_of(name)
    }
    if name == "export":  # which reads it where a slide fails, and none does here
        read.add("strict")
    assert read & {each.name for each in fields(Execution)} - FROM_ELSEWHERE == set_by_options


HELP = (None, *COMMANDS)


@pytest.mark.parametrize("name", HELP)
def test_help_pages_have_panels_and_no_type_of_flags(name, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run(*([] if name is None else [name]), "--help").stdout
    assert "<bool>" not in text
    panels = {line.split("─ ")[1].split(" ─")[0] for line in text.splitlines() if line.startswith("╭")}
    allowed = (
        {"Options", "Commands"} if name is None else {"Arguments", "Input", "Model", "Output", "Execution"}
    )
    assert panels <= allowed
