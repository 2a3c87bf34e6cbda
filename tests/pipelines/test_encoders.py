"""Encoders on the command line: listed without torch, and unsuited tiles are told."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from pipelines._options import SettingsOptions
from wsi_ats.encoders import ENCODERS
from wsi_ats.settings import Settings


def test_encoders_are_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = run("encoders").stdout
    for encoder in ENCODERS.values():
        assert text.count(f"│ {encoder.name} ") == 2  # whole, in both tables
    assert "hf-hub:owner/model" in text
    listed = {each["name"]: each for each in run("encoders", "--json").json["encoders"]}
    assert list(listed) == list(ENCODERS)
    assert listed["virchow2"] | {"sources": None} == listed["virchow2"] | {
        "width": 2560,
        "tile": 224,
        "mpp": [0.5, 0.25, 1.0, 2.0],
        "pooling": "class+mean",
        "gated": True,
        "page": "https://huggingface.co/paige-ai/Virchow2",
        "sources": None,
    }


def test_encoders_are_listed_without_torch():
    code = (
        "import sys; from pipelines.encoders import encoders; encoders().sections()\n"
        "print(sorted({'torch', 'timm', 'numpy', 'dask'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_command_warns_of_tiles_that_the_encoder_was_not_trained_on(run, slides):
    words = ("info", slides / "slide_000.tif", "--set", "model.backbone=uni")
    silent = run(*words, "--json")
    assert (silent.exit_code, silent.stderr) == (0, "")
    ran = run(*words, "--set", "tile.size=64", "--json")
    assert ran.exit_code == 0
    assert ran.stderr == ("warning: model.backbone is uni, and tile.size is 64, but 224 in its training\n")


@pytest.mark.parametrize("size", [224, 448])
def test_scoring_warns_no_more_of_tiles_that_a_model_was_trained_with(capsys, size):
    trained = Settings().with_values(["model.backbone=uni", f"tile.size={size}"])
    assert SettingsOptions(set=["sampling.draws=2"]).settings(trained).tile.size == size
    assert capsys.readouterr().err == ""


def test_the_saved_settings_hold_the_tiles_of_the_encoder(tmp_path):
    settings = SettingsOptions(set=["model.backbone=conch_v1"]).settings()
    (tmp_path / "config.toml").write_text(settings.to_toml())
    assert "size = 448" in (tmp_path / "config.toml").read_text()
    assert SettingsOptions(config=tmp_path / "config.toml").settings() == settings
