"""The command line itself, and the commands that only look."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from conftest import ROOT

from pipelines import doctor as doctor_module
from pipelines.info import info
from wsi_ats.slides.base import SlideRef

STAGE_OPTIONS = [
    *("--scheduler", "--workers", "--seed", "--overwrite", "--dry-run", "--json", "--strict", "--config"),
    *("--set", "--debug", "--mpp", "--log-json", "--metrics"),
]


@pytest.mark.parametrize("stage", ["prepare", "convert", "train", "score", "export", "evaluate", "crossval"])
def test_every_stage_has_the_shared_options(run, stage, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run(stage, "--help", scheduler=None).stdout
    assert [option for option in STAGE_OPTIONS if option not in text] == []


def test_the_demo_has_only_the_options_that_it_honours(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("demo", "--help").stdout
    own = {"--out", "--scheduler", "--workers", "--seed", "--overwrite", "--debug", "--json"}
    assert {word for word in text.split() if word.startswith("--")} == {*own, "--help"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys, pipelines.cli\n"
        "heavy = {'numpy', 'torch', 'dask', 'distributed', 'openslide', 'pyarrow', 'skimage', 'tifffile'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("words", ["prepare", "nonsense", "prepare x", "prepare x --out y --workers 0"])
def test_wrong_usage(run, words):
    ran = run(*words.split(), scheduler=None)
    assert ran.exit_code == 2
    assert ran.stdout == ""


def test_results_are_not_written_to_a_store(run, slides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("prepare", slides, "--out", "s3://bucket/prepared", scheduler=None)
    assert ran.exit_code == 2
    assert "looks like a URL" in " ".join(ran.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_does_not_answer(run, slides, config, tmp_path):
    there = "tcp://127.0.0.1:1"
    words = ("prepare", slides, "--out", tmp_path / "out", "--config", config, "--wait", 1)
    ran = run(*words, scheduler=there)
    assert ran.exit_code == 2
    assert there in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_info(run, slides, config):
    ran = run("info", slides / "slide_000.tif", slides / "slide_001.tif", "--config", config, "--json")
    assert ran.exit_code == 0
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


def test_info_of_what_is_no_slide(run, slides, tmp_path):
    (tmp_path / "text.svs").write_text("no slide")
    ran = run("info", slides / "slide_000.tif", tmp_path / "text.svs", "--set", "tile.size=64", "--json")
    assert ran.exit_code == 1
    assert ran.json["failed"].keys() == {"text"}
    assert len(ran.json["slides"]) == 1
    assert run("info", tmp_path / "none").exit_code == 2


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


def test_a_mistake_of_ours_is_one_line(run, monkeypatch):
    def broken():
        raise TypeError("of ours")

    monkeypatch.setattr(doctor_module, "doctor", broken)
    ran = run("doctor")
    assert (ran.exit_code, ran.stdout) == (70, "")
    assert ran.stderr == (
        "unexpected TypeError: of ours; run again with --debug for its origin, and please report it\n"
    )
    traced = run("doctor", "--debug")
    assert traced.exit_code == 70
    assert "Traceback" in traced.stderr
    assert "unexpected TypeError: of ours; please report it" in traced.stderr
    assert "70" in run("--help").stdout


def test_doctor(run):
    ran = run("doctor", "--json")
    assert ran.exit_code == 0, ran.stdout
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}
    assert {"python", "torch", "OpenSlide library", "graphics processor"} <= checks.keys()
    assert not checks["Dask's dashboard"]["needed"]
    assert ".svs" in checks["reader OpenSlide"]["found"]


def test_doctor_says_what_to_install(run, monkeypatch):
    monkeypatch.setattr(doctor_module, "versions", lambda: {"timm": "not installed"})
    ran = run("doctor")
    assert ran.exit_code == 1
    assert "pip install timm" in ran.stdout


def test_a_reader_is_chosen_said_and_forced(run, slides, config, tmp_path):
    path = slides / "slide_000.tif"
    ran = run("info", path, "--config", config)
    assert "direct: its pixels are those that OpenSlide gives" in " ".join(ran.stdout.split())
    (forced,) = run("info", path, "--config", config, "--reader", "openslide", "--json").json["slides"]
    assert (forced["reader"], forced["reader_reason"]) == ("openslide", "asked for")
    ran = run("prepare", path, "--config", config, "--reader", "nonsense", "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert "expected one of auto, direct, openslide, zarr" in " ".join(ran.stderr.split())
    assert not (tmp_path / "out").exists()


def test_both_readers_prepare_the_same(run, slides, config, tmp_path):
    for reader in ("direct", "openslide"):
        ran = run("prepare", slides, "--config", config, "--reader", reader, "--out", tmp_path / reader)
        assert ran.exit_code == 0
    pictures = sorted((tmp_path / "direct" / "thumbnails").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.read_bytes() == (tmp_path / "openslide" / "thumbnails" / picture.name).read_bytes()
