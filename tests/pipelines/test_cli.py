"""The command line itself, and the commands that only read."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import tifffile

from pipelines import doctor as doctor_module
from pipelines._options import SettingsOptions
from pipelines.info import info
from wsi_ats.settings import Settings, json_schema
from wsi_ats.slides.base import SlideRef


@pytest.mark.parametrize("words", ["prepare", "nonsense", "prepare x", "prepare x --out y --workers 0"])
def test_wrong_usage(run, words):
    ran = run(*words.split(), scheduler=None, code=2)
    assert ran.stdout == ""


def test_results_are_not_written_to_a_store(run, slides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("prepare", slides, "--out", "s3://bucket/prepared", scheduler=None, code=2)
    assert "looks like a URL" in " ".join(ran.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_scheduler(run, slides, config, tmp_path):
    there = "tcp://127.0.0.1:1"
    words = ("prepare", slides, "--out", tmp_path / "out", "--config", config, "--wait", 1)
    ran = run(*words, scheduler=there, code=2)
    assert there in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_info(run, slides, config):
    ran = run("info", slides / "slide_000.tif", slides / "slide_001.tif", "--config", config, "--json")
    one, other = ran.json["slides"]
    assert (one["slide_id"], other["slide_id"]) == ("slide_000", "slide_001")
    assert (one["vendor"], one["mpp"], one["level"]) == ("generic-tiff", 0.5, 0)
    assert one["native"]
    assert one["tissue_tiles"] > one["tiles"] == 8
    assert 0 < one["bytes_read"] < one["bytes_file"]
    assert one["share"] == one["bytes_read"] / one["bytes_file"]
    assert one["levels"][0]["downsample"] == 1
    for text in ("scoring reads", "tiles", "mpp"):
        assert text in run("info", slides / "slide_000.tif", "--config", config).stdout


def test_info_of_a_file_that_is_not_a_slide(run, slides, tmp_path):
    (tmp_path / "text.svs").write_text("no slide")
    ran = run(
        "info", slides / "slide_000.tif", tmp_path / "text.svs", "--set", "tile.size=64", "--json", code=1
    )
    assert ran.json["failed"].keys() == {"text"}
    assert len(ran.json["slides"]) == 1
    run("info", tmp_path / "none", code=2)


@pytest.mark.parametrize(
    ("file_tile", "mpp", "native", "aligned", "advice"),
    [
        (128, 0.5, True, True, ""),
        (240, 0.5, True, False, "file's tiles of 240 x 240"),
        (128, 0.4, False, False, "--set tile.mpp="),
        (128, 0.35, False, False, ""),
    ],
)
def test_info_advises_tiles_that_suit_the_file(tmp_path, file_tile, mpp, native, aligned, advice):
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    tile = (file_tile, file_tile)
    tifffile.imwrite(path, pixels, tile=tile, photometric="rgb", compression="zlib")
    [found] = info([SlideRef.from_path(path, mpp=mpp)]).slides
    assert (found.native, found.aligned) == (native, aligned)
    assert advice in found.advice
    assert bool(advice) == bool(found.advice)
    lines = dict(found.lines())
    assert ("counted separately" in lines["scoring reads"]) == (found.share > 1)


def test_an_unexpected_error_is_one_line(run, monkeypatch):
    def broken():
        raise TypeError("of ours")

    monkeypatch.setattr(doctor_module, "doctor", broken)
    ran = run("doctor", code=70)
    assert (ran.exit_code, ran.stdout) == (70, "")
    assert ran.stderr == ("unexpected TypeError: of ours; run again with --debug and please report it\n")
    traced = run("doctor", "--debug", code=70)
    assert "Traceback" in traced.stderr
    assert "unexpected TypeError: of ours; please report it" in traced.stderr
    assert "70" in run("--help").stdout


def test_doctor(run):
    ran = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert {"python", "torch", "OpenSlide library", "GPU"} <= checks.keys()
    assert not checks["Dask's dashboard"]["needed"]
    assert ".svs" in checks["reader OpenSlide"]["found"]


def test_doctor_needs_no_extra(run, monkeypatch):
    monkeypatch.setattr(doctor_module, "versions", lambda: {"lifelines": "not installed"})
    for name in ("lifelines", "matplotlib", "prometheus_client", "s3fs", "aiohttp"):
        monkeypatch.setitem(sys.modules, name, None)
    ran = run("doctor", "--json")
    advice = {check["advice"] for check in ran.json["checks"]}
    assert {
        f'pip install "wsi-ats[{extra}]"' for extra in ("survival", "plots", "metrics", "remote")
    } <= advice


def test_doctor_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(doctor_module, "versions", lambda: {"timm": "not installed"})
    ran = run("doctor", code=1)
    assert "pip install timm" in ran.stdout


def test_the_version(run):
    ran = run("--version")
    assert (ran.exit_code, ran.stdout) == (0, f"wsi-ats {doctor_module.versions()['wsi-ats']}\n")


def test_without_a_command_the_help_page_is_shown(run):
    ran = run(scheduler=None, code=2)
    words = " ".join((ran.stdout + ran.stderr).split())
    assert "--install-completion" in words
    assert "crossval" in words


def test_the_reader_is_chosen_reported_and_overridden(run, slides, config, tmp_path):
    path = slides / "slide_000.tif"
    ran = run("info", path, "--config", config)
    assert "direct: its pixels are the same as OpenSlide's" in " ".join(ran.stdout.split())
    (forced,) = run("info", path, "--config", config, "--reader", "openslide", "--json").json["slides"]
    assert (forced["reader"], forced["reader_reason"]) == ("openslide", "requested")
    ran = run("prepare", path, "--config", config, "--reader", "nonsense", "--out", tmp_path / "out", code=2)
    assert "expected one of auto, direct, openslide, zarr" in " ".join(ran.stderr.split())
    assert not (tmp_path / "out").exists()


def test_both_readers_prepare_the_same(run, slides, config, tmp_path):
    for reader in ("direct", "openslide"):
        run("prepare", slides, "--config", config, "--reader", reader, "--out", tmp_path / reader)
    pictures = sorted((tmp_path / "direct" / "thumbnails").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.read_bytes() == (tmp_path / "openslide" / "thumbnails" / picture.name).read_bytes()


def test_settings_are_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("settings").stdout
    assert "[sampling]" in text
    listed = {each["name"]: each for each in run("settings", "--json").json["settings"]}
    assert listed["tile.size"]["default"] == Settings().tile.size
    assert {"type", "reason", "fixes", "kinds"} <= listed["tile.size"].keys()
    for name in listed:
        assert name.partition(".")[2] in text


def test_settings_are_written_to_a_file_that_is_read_again(run, tmp_path):
    path = tmp_path / "ats.toml"
    ran = run("settings", "--write", path)
    assert "written" in ran.stdout
    assert Settings.read(path) == Settings()
    assert "# Side of a tile in pixels" in path.read_text()
    path.write_text("mine")
    refused = run("settings", "--write", path, code=2)
    assert "--overwrite" in refused.stderr
    assert path.read_text() == "mine"
    assert run("settings", "--write", path, "--overwrite", "--json").json["written"] == str(path)
    assert Settings.read(path) == Settings()
    run("settings", "--overwrite", code=2)


def test_the_schema_of_settings_is_printed_alone(run, tmp_path):
    assert json.loads(run("settings", "--schema").stdout) == json.loads(json.dumps(json_schema()))
    assert "without --write" in run("settings", "--schema", "--write", tmp_path / "a.toml", code=2).stderr
    assert not (tmp_path / "a.toml").exists()


def test_a_settings_file_changes_what_it_names_and_leaves_the_model_s_other_settings(tmp_path):
    path = tmp_path / "ats.toml"
    path.write_text("[sampling]\ntiles = 6\n")
    base = Settings().with_values(["tile.size=128", "sampling.draws=2"])
    settings = SettingsOptions(config=path, set=["sampling.draws=3"], qc="pen").settings(base)
    assert settings == base.with_values(["sampling.tiles=6", "sampling.draws=3", "thumbnail.exclude=pen"])


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("lifelines", ("train", "--set", "model.task=survival"), "survival"),
        ("lifelines", ("crossval", "--set", "model.task=survival"), "survival"),
        ("matplotlib", ("crossval",), "plots"),
        ("prometheus_client", ("train", "--metrics", "run.prom"), "metrics"),
        ("prometheus_client", ("train", "--metrics", "run.prom", "--dry-run"), "metrics"),
    ],
)
def test_a_missing_extra_is_refused_before_any_work(run, slides, tmp_path, without, missing, words, extra):
    labels = tmp_path / "labels.csv"
    rows = [f"slide_{i:03d},{i + 1};1" for i in range(6)]
    survival = "model.task=survival" in words
    labels.write_text(
        "\n".join(["slide_id,label", *rows]) if survival else (slides / "labels.csv").read_text()
    )
    name, *rest = words
    without(missing)
    ran = run(name, slides, "--labels", labels, "--out", tmp_path / "out", *rest, scheduler=None, code=2)
    assert ran.stderr.endswith(f'is not installed; pip install "wsi-ats[{extra}]"\n')
    assert not (tmp_path / "out").exists()
